"""The one exception a user is meant to read."""

from typing import Sequence


class UserError(Exception):
    """Input, config or environment that the user can mend. Its message is one line that says what and how;
    commands print it without a traceback and exit with status 2."""


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a :class:`UserError` that names the config key, the value and the choices, if ``value`` is none of them."""
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, not {value!r}.")
