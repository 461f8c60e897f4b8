"""Which folder of an output a series' result goes to: that of its earlier result, else one that no other has."""

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from ..data.pairing import natural_key
from ..data.volumes import Series
from .kept_tags import read_tags
from .outputs import DONE
from .resume import json_object


def sources_of(series: Series) -> list[str]:
    """What a result is of, whatever the model: the SeriesInstanceUID of DICOM, which may lie elsewhere the next time;
    without one, the resolved path of its folder; of a volume, its file; of loose images, each of them.

    Raises:
        UserError: a header can't be read any more.
    """
    uid = read_tags(series, ("SeriesInstanceUID",)).get("SeriesInstanceUID")
    if uid:
        return [uid]
    first = series.source_files[0]
    paths = {"dicom": [first.parent], "volume": [first]}.get(series.kind, series.source_files)
    return [str(path.resolve()) for path in paths]


class ResultFolders:
    """The results below ``output``, and which of them this run has taken up or added.

    A result belongs to the series of the same source. That of loose images belongs to images that it shares some with:
    they may have grown in number since, or become fewer. A result that was renamed, to be kept, is no series' any more.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        found = [path for path in output.glob(f"*/{DONE}") if not path.parent.name.startswith(".")]  # what a kill left
        self._sources = {path.parent.name: _sources(path) for path in found}
        self._claimed: set[str] = set()

    def claim(self, identifier: str, sources: Sequence[str]) -> str:
        """The name of the folder for a series; no two of a run get the same.

        Of a result that does not say what it is of, from an earlier version, the name alone decides.
        """
        own = [name for name, known in self._sources.items() if known and _same(known, frozenset(sources))]
        if identifier in self._sources and self._sources[identifier] is None:
            own.append(identifier)
        names = [identifier] if identifier in own else sorted(own, key=natural_key)
        name = next(name for name in chain(names, self._free(identifier)) if name.lower() not in self._claimed)
        self._claimed.add(name.lower())
        return name

    def _free(self, identifier: str) -> Iterator[str]:
        taken = {name.lower() for name in self._sources}
        base, _, end = identifier.rpartition("-")
        number = 1
        # One of several series of a name has a number already.
        if end.isdecimal() and base.lower() in taken | self._claimed:
            number = int(end)
        else:
            base = identifier
        if identifier.lower() not in taken:
            yield identifier
        while True:
            number += 1
            if f"{base}-{number}".lower() not in taken:
                yield f"{base}-{number}"


def _same(known: frozenset[str], sources: frozenset[str]) -> bool:
    """Whether a result of ``known`` is one of ``sources``. A single image and a folder that it lies in are two inputs,
    with names of their own; so are some images of a folder while the others are still there."""
    if known.isdisjoint(sources) or (len(known) == 1) != (len(sources) == 1):
        return False
    return not any(os.path.exists(path) for path in known - sources)


def _sources(done: Path) -> frozenset[str] | None:
    found = json_object(done)
    known, name = found.get("sources"), found.get("folder", done.parent.name)  # earlier versions give no name
    if name != done.parent.name:
        return frozenset()
    return frozenset(map(str, known)) if isinstance(known, list) else None
