"""The one exception a user is meant to read."""


class UserError(Exception):
    """Input, config or environment that the user can mend. Its message is one line that says what and how;
    commands print it without a traceback and exit with status 2."""
