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


def is_glob(item: str | Path) -> bool:
    """Whether an input is a glob: it has wildcards, and no file has it for a name."""
    return bool(_WILDCARD.search(str(item))) and not os.path.lexists(item)


def expand(item: str | Path) -> list[Path]:
    """The paths that an input names: itself, or what a glob matches, in natural order.

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
        matches = sorted(base.glob(str(Path(*pattern))), key=lambda p: natural_key(str(p)))
    if not matches:
        raise UserError(f"{one_line(item)} matches no file.")
    return matches


def reaches(item: str | Path, path: Path) -> bool:
    """Whether the glob ``item`` would match ``path`` or a folder above it, were it there."""
    base, pattern = _split(Path(item))
    base, path = base.resolve(), path.resolve()
    return path.is_relative_to(base) and _matches(pattern, path.relative_to(base).parts)


def _split(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that a glob starts from, and its parts from the first wildcard on."""
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    return Path(*parts[:first]), parts[first:]


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether ``pattern`` matches ``parts`` or their first few."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _matches(pattern[1:], parts) or bool(parts) and _matches(pattern, parts[1:])
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])
