"""Files that can't be read beside a series: a word of them among its warnings, for it may lack slices."""

from dataclasses import replace
from pathlib import Path
from typing import Iterable

from ..data.limits import one_line
from ..data.volumes import Problem, Series


def with_unread(series: Series, problems: Iterable[Problem]) -> Series:
    """The series, with what failed of ``problems`` among its warnings."""
    unread = tuple(problem.message for problem in problems if problem.failed)
    return replace(series, warnings=series.warnings + unread)


def in_folders_of(series: Series, problems: Iterable[Problem]) -> list[Problem]:
    """Those of the files that lie beside a series' own; none for a volume, which lacks nothing."""
    if series.kind == "volume":
        return []
    folders = {one_line(path.parent) for path in series.source_files}
    # The path of a series that failed is its folder.
    return [one for one in problems if str((path := Path(one.path)).parent) in folders and not path.is_dir()]
