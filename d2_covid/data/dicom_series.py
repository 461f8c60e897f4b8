"""Frames of DICOM files -> series: grouped by SeriesInstanceUID, sorted by where they lie, and checked."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..errors import UserError
from .dicom_headers import DicomFrame
from .dicom_pixels import read_values
from .dicom_places import Stack, is_placed, stack_geometry
from .intensity import Unit, decide_unit
from .limits import check_shape, one_line
from .volumes import Problem, Series, SourceInstance, series_from_planes

# Cosines and lengths that differ by less are the same.
_SAME_COSINE = 1e-3
# A group of fewer slices that are not axial is a scout without the label.
_LEAST_SLICES_OF_A_PLANE = 3
# MONOCHROME1 leaves room for doubt; a chest CT that is right has this share of air.
_AIR_IF_IN_DOUBT = 0.05


def assemble(frames: Iterable[DicomFrame], assume_window: bool = False) -> Iterator[Series | Problem]:
    """Make series of frames from any number of files.

    A series comes as one :class:`Series` for each size and orientation it has. Slices are sorted by their position
    along the slice normal; of several at one place (a repeated file, a further time point) the first is read. Where two
    thirds or more say where they lie, the others are left out.

    Yields:
        A :class:`Series`, or a :class:`Problem` in place of one that can't be read.
    """
    groups: dict[str | Path, list[DicomFrame]] = {}
    for frame in frames:
        groups.setdefault(series_key(frame), []).append(frame)
    for key, members in groups.items():
        uid = key if isinstance(key, str) else key.name or "series"
        placed, unplaced = _by_placed(members)
        stacks = _by_plane(placed)
        kept = [stack for stack in stacks if not _is_unlabelled_scout(stack, stacks)]
        for stack in stacks:
            if stack not in kept:
                path = one_line(stack[0].path)
                yield Problem(path, f"{path}: left out: {len(stack)} slice(s) in another plane, like a scout.", False)
        for number, stack in enumerate(kept):
            identifier = f"{uid}-{number + 1}" if number else uid
            result = Stack(f"series {one_line(uid, 80)} in {one_line(stack[0].path.parent)}", stack)
            if len(kept) > 1:
                result.warn(
                    f"its slices have {len(kept)} sizes, spacings or orientations; this is part {number + 1} of "
                    f"{len(kept)}, read as a series of its own."
                )
            if unplaced and number == 0:
                result.warn(
                    f"{len(unplaced)} of {len(members)} slices, the first {one_line(unplaced[0].path.name)}, have no "
                    "usable position or orientation in their header; left out."
                )
            try:
                yield _series(result, identifier, assume_window)
            except UserError as error:
                message = str(error) if str(error).startswith(result.name) else f"{result.name}: {error}"
                yield Problem(one_line(stack[0].path.parent), message)


def series_key(frame: DicomFrame) -> str | Path:
    """What the frames of one series share: their SeriesInstanceUID; where that is missing, their folder."""
    return frame.series_uid or frame.path.parent.resolve()


def _by_placed(frames: Sequence[DicomFrame]) -> tuple[Sequence[DicomFrame], Sequence[DicomFrame]]:
    """Frames to read and, where they are a third at most, those that do not say where they lie."""
    placed = [frame for frame in frames if is_placed(frame)]
    if 3 * len(placed) < 2 * len(frames):
        return frames, []
    return placed, [frame for frame in frames if not is_placed(frame)]


def _by_plane(frames: Sequence[DicomFrame]) -> list[list[DicomFrame]]:
    """Split frames that can't be one volume: another size, spacing or orientation. Largest group first."""
    groups: list[list[DicomFrame]] = []
    for frame in frames:
        group = next((group for group in groups if _same_plane(group[0], frame)), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return sorted(groups, key=len, reverse=True)


def _same_plane(one: DicomFrame, other: DicomFrame) -> bool:
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    for a, b in ((one.orientation, other.orientation), (one.pixel_spacing, other.pixel_spacing)):
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and max(abs(x - y) for x, y in zip(a, b)) > _SAME_COSINE:
            return False
    return True


def _is_unlabelled_scout(stack: Sequence[DicomFrame], stacks: Sequence[Sequence[DicomFrame]]) -> bool:
    orientation = stack[0].orientation
    if len(stack) >= _LEAST_SLICES_OF_A_PLANE or orientation is None or stack is stacks[0] and len(stacks) > 1:
        return False
    return int(np.argmax(np.abs(np.cross(orientation[:3], orientation[3:])))) != 2


def _series(stack: Stack, identifier: str, assume_window: bool) -> Series:
    first = stack.frames[0]
    geometry = stack_geometry(stack)
    frames = tuple(stack.frames)
    check_shape(first.path, geometry.source_shape, 1 if geometry.is_axial else 4)
    if any(frame.tilt for frame in frames):
        stack.warn(f"gantry tilt of {max((frame.tilt for frame in frames), key=abs):g} degrees in the header.")
    unit, inverted, warnings = decide(stack, assume_window)
    read = _axial_reader(frames, inverted) if geometry.is_axial else _held_reader(frames, inverted)
    several = len({frame.path for frame in frames}) < len(frames)
    return series_from_planes(
        identifier,
        "dicom",
        tuple(dict.fromkeys(frame.path for frame in frames)),
        geometry,
        read,
        plane_names=[f"{f.path.name}#{f.frame}" if several else f.path.name for f in frames],
        unit=unit,
        name=stack.name,
        modality="CT",
        warnings=(*stack.warnings, *warnings),
        instances=tuple(SourceInstance(f.path, f.frame, f.sop_class_uid, f.sop_instance_uid) for f in frames),
        oriented=all(map(is_placed, frames)),
    )


def decide(stack: Stack, assume_window: bool) -> tuple[Unit, bool, tuple[str, ...]]:
    """The unit of a stack's values, and whether its stored values run backwards.

    MONOCHROME1 asks a display to show low values white; Hounsfield units stay what they are. Some programs store the
    values themselves turned round, though, and then the plain ones have no air: whichever way has air is right.
    """
    frames = stack.frames

    def read(index: int, inverted: bool = False) -> np.ndarray:
        return read_values(frames[index], inverted)

    if not any(frame.inverted for frame in frames):
        unit, warnings = decide_unit(read, len(frames), stack.name, assume_window, count_missing=False)
        return unit, False, warnings
    for inverted in (False, True):
        look = functools.partial(read, inverted=inverted)
        if decide_air(look, len(frames), stack.name):
            how = "stored inverted; turned round" if inverted else "Hounsfield units as stored"
            return Unit(), inverted, (f"{stack.name}: MONOCHROME1, {how}.",)
    unit, warnings = decide_unit(read, len(frames), stack.name, assume_window, count_missing=False)
    return replace(unit, inverted=True), False, warnings


def decide_air(read: Callable[[int], np.ndarray], count: int, name: str) -> bool:
    """Whether the values are Hounsfield units beyond doubt."""
    try:
        unit, _ = decide_unit(read, count, name, count_missing=False, least_air=_AIR_IF_IN_DOUBT)
    except UserError:
        return False
    return unit.hounsfield


def _axial_reader(frames: tuple[DicomFrame, ...], inverted: bool) -> Callable[[int, int], np.ndarray]:
    return lambda axis, index: read_values(frames[index], inverted)


def _held_reader(frames: tuple[DicomFrame, ...], inverted: bool) -> Callable[[int, int], np.ndarray]:
    """Reader of slices across the files' own: reads all of them at the first call, and holds them."""

    @functools.cache
    def volume() -> np.ndarray:
        held = np.empty((len(frames), frames[0].rows, frames[0].columns), np.float32)
        for index, frame in enumerate(frames):
            held[index] = read_values(frame, inverted)
        return held

    return lambda axis, index: np.take(volume(), index, axis=axis)
