"""Globs among inputs: what one matches now, and whether it would match a file that isn't there yet."""

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Sequence

from ..errors import UserError
from .limits import one_line, reading
from .pairing import natural_key

_WILDCARD = re.compile(r"[*?\[]")
_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")  # no UID ends like this


def is_glob(item: str | Path) -> bool:
    """Whether an input is a glob: it has wildcards, and no file has it for a name."""
    return bool(_WILDCARD.search(str(item))) and not os.path.lexists(item)


def expand(item: str | Path) -> list[Path]:
    """The paths that an input names: itself, or what a glob matches, in natural order.

    As in a shell, a name that begins with a dot is matched by a pattern alone that does.

    Raises:
        UserError: it is no path, or a glob that matches nothing.
    """
    path = Path(item)
    with reading(path):
        if "\0" in str(item):
            raise UserError(f"{one_line(item)} is no path.")
        if not is_glob(item):
            return [path]
        base, pattern = _split(path)
        # pathlib's ** stays out of symlinked folders, and so out of loops.
        found = [match for match in base.glob(str(Path(*pattern))) if not _is_hidden(match, base, pattern)]
        matches = sorted(found, key=lambda p: natural_key(str(p)))
    if not matches:
        raise UserError(f"{one_line(item)} matches no file.")
    return matches


def reaches(item: str | Path, folder: Path, below: Sequence[str | None]) -> bool:
    """Whether the glob ``item`` would match a path, were it there, or a folder above it.

    Args:
        folder: where the path begins.
        below: its parts below that; None for a folder of any name, but for one that ends as files do.
    """
    base, pattern = _split(Path(item))
    base, folder = base.resolve(), folder.resolve()
    return folder.is_relative_to(base) and _matches(pattern, [*folder.relative_to(base).parts, *below])


def _split(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that a glob starts from, and its parts from the first wildcard on."""
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    return Path(*parts[:first]), parts[first:]


def _is_hidden(match: Path, base: Path, pattern: Sequence[str]) -> bool:
    dotted = any(part.startswith(".") for part in match.relative_to(base).parts)
    return dotted and not any(part.startswith(".") for part in pattern)


def _matches(pattern: Sequence[str], parts: Sequence[str | None]) -> bool:
    """Whether ``pattern`` matches ``parts`` or their first few."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _matches(pattern[1:], parts) or bool(parts) and _matches(pattern, parts[1:])
    if not parts:
        return False
    fits = not _SUFFIX.search(pattern[0]) if parts[0] is None else fnmatchcase(parts[0], pattern[0])
    return fits and _matches(pattern[1:], parts[1:])
