"""What the runs in an output folder were made with: all of a table share it, and a later command has to know."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import write_json
from ..errors import UserError

SETTINGS = "settings.json"
# Its entry beside those of the kinds of runs.
_DEPARTURES = "departures"


def check_settings(output: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an output folder whose runs were made with other settings: a table has one recipe and one set of data.

    Args:
        settings: by kind of run, then by name. A list is one value in several spellings, the typed one first; two
            values with a spelling in common are the same.

    Raises:
        UserError: names the first setting that differs, and both values as typed.
    """
    known = _read(output)
    for kind, own in settings.items():
        for name, value in own.items():
            before, now = _spellings(known.get(kind, {}).get(name, value)), _spellings(value)
            if not any(spelling in now for spelling in before):
                raise UserError(
                    f"The {kind} runs in {output} have {name} {before[0]!r}, and now it is {now[0]!r}; give another "
                    "--output, or the same settings."
                )


def note_settings(
    output: Path, settings: Mapping[str, Mapping[str, Any]], departures: Mapping[str, Sequence[str]]
) -> None:
    """Keep the settings of the runs that begin, beside those of other kinds.

    Args:
        departures: by kind, in what the runs are not the paper's, as sentences.
    """
    known = _read(output)
    all_departures = known.get(_DEPARTURES, {}) | {kind: list(lines) for kind, lines in departures.items()}
    write_json(output / SETTINGS, known | settings | {_DEPARTURES: all_departures})


def known_departures(output: Path, kind: str) -> list[str] | None:
    """In what the runs of a kind in an output folder are not the paper's, as sentences; None where nobody knows."""
    return _read(output).get(_DEPARTURES, {}).get(kind)


def _spellings(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read(output: Path) -> dict[str, Any]:
    path = output / SETTINGS
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; restore it, or give another folder.") from error
