"""Frames of DICOM files -> series: grouped by SeriesInstanceUID, sorted by where they lie, and checked."""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..errors import UserError
from .dicom_headers import DicomFrame
from .dicom_pixels import read_values
from .geometry import Geometry, is_usable
from .intensity import Unit, decide_unit
from .limits import check_shape, one_line
from .pairing import natural_key
from .volumes import Problem, Series, SourceInstance, series_from_planes

# Slices nearer to each other than this lie at the same place, in mm.
_SAME_PLACE_MM = 0.01
# Cosines and lengths that differ by less are the same.
_SAME_COSINE = 1e-3
# Steps that differ from the usual one by more than this share are uneven; from this factor on, a slice is missing.
_UNEVEN_SHARE = 0.1
_GAP_FACTOR = 1.5
# A group of fewer slices that are not axial is a scout without the label.
_LEAST_SLICES_OF_A_PLANE = 3
# MONOCHROME1 leaves room for doubt; a chest CT that is right has this share of air.
_AIR_IF_IN_DOUBT = 0.05


@dataclass
class _Stack:
    """Frames of one series, size and orientation; filled step by step."""

    name: str
    frames: list[DicomFrame]
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(f"{self.name}: {message}")


def assemble(frames: Iterable[DicomFrame], assume_window: bool = False) -> Iterator[Series | Problem]:
    """Make series of frames from any number of files.

    A series comes as one :class:`Series` for each size and orientation it has. Slices are sorted by their position
    along the slice normal; of several at one place (a repeated file, a further time point) the first is read.

    Yields:
        A :class:`Series`, or a :class:`Problem` in place of one that can't be read.
    """
    groups: dict[str | Path, list[DicomFrame]] = {}
    for frame in frames:
        groups.setdefault(series_key(frame), []).append(frame)
    for key, members in groups.items():
        uid = key if isinstance(key, str) else key.name or "series"
        stacks = _by_plane(members)
        kept = [stack for stack in stacks if not _is_unlabelled_scout(stack, stacks)]
        for stack in stacks:
            if stack not in kept:
                path = one_line(stack[0].path)
                yield Problem(path, f"{path}: left out: {len(stack)} slice(s) in another plane, like a scout.", False)
        for number, stack in enumerate(kept):
            identifier = f"{uid}-{number + 1}" if number else uid
            result = _Stack(f"series {one_line(uid, 80)} in {one_line(stack[0].path.parent)}", stack)
            if len(kept) > 1:
                result.warn(
                    f"its slices have {len(kept)} sizes, spacings or orientations; this is part {number + 1} of "
                    f"{len(kept)}, read as a series of its own."
                )
            try:
                yield _series(result, identifier, assume_window)
            except UserError as error:
                message = str(error) if str(error).startswith(result.name) else f"{result.name}: {error}"
                yield Problem(one_line(stack[0].path.parent), message)


def series_key(frame: DicomFrame) -> str | Path:
    """What the frames of one series share: their SeriesInstanceUID; where that is missing, their folder."""
    return frame.series_uid or frame.path.parent.resolve()


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


def _series(stack: _Stack, identifier: str, assume_window: bool) -> Series:
    first = stack.frames[0]
    if any(frame.position is None or frame.orientation is None for frame in stack.frames):
        geometry = _without_positions(stack)
    else:
        geometry = _with_positions(stack)
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
    )


def decide(stack: _Stack, assume_window: bool) -> tuple[Unit, bool, tuple[str, ...]]:
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


def _without_positions(stack: _Stack) -> Geometry:
    """Geometry of files that do not say where they lie: in the order of their location or number, head first."""
    frames = stack.frames
    if all(frame.slice_location is not None for frame in frames):
        frames.sort(key=lambda frame: (frame.slice_location, frame.order, natural_key(str(frame.path))))
        how = "slice location"
    else:
        # Scanners count from head to feet as a rule; the presentation goes from feet to head.
        frames.sort(key=lambda frame: (frame.order, natural_key(str(frame.path))), reverse=True)
        how = "instance number, taken to run from head to feet"
    stack.warn(f"no usable positions in the header; sorted by {how}, and taken as axial.")
    affine = np.eye(4)
    affine[0, 0], affine[1, 1] = _pixel_edges(stack)
    affine[2, 2] = _step(stack)
    return Geometry((len(frames), frames[0].rows, frames[0].columns), affine)


def _with_positions(stack: _Stack) -> Geometry:
    first = stack.frames[0]
    assert first.orientation is not None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    _sort_and_drop_repeated(stack, normal)
    frames = stack.frames
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    along = positions @ normal
    steps = np.diff(along)
    if len(frames) > 1:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        _check_steps(stack, steps)
        _check_course(stack, positions, normal)
    else:
        step = normal * _step(stack)
    across, down = _pixel_edges(stack)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * across, column * down, step, positions[0]
    if not is_usable(affine):
        raise UserError(f"the positions in its headers make no volume (step {np.linalg.norm(step):g} mm).")
    uneven = len(frames) > 2 and float(np.ptp(steps)) > 1e-3
    return Geometry((len(frames), first.rows, first.columns), affine, tuple(along.tolist()) if uneven else None)


def _sort_and_drop_repeated(stack: _Stack, normal: np.ndarray) -> None:
    def along(frame: DicomFrame) -> float:
        return float(np.dot(frame.position, normal))

    places: list[list[DicomFrame]] = []
    for frame in sorted(stack.frames, key=along):
        if places and along(frame) - along(places[-1][0]) < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    repeated = len(stack.frames) - len(places)
    if repeated:
        stack.warn(
            f"{repeated} of {len(stack.frames)} slices lie where another one does (repeated files, or further time "
            "points); of those at one place the first by time, acquisition and instance number is read."
        )
    stack.frames = [min(place, key=lambda f: (f.order, natural_key(str(f.path)), f.frame)) for place in places]


def _check_steps(stack: _Stack, steps: np.ndarray) -> None:
    usual = float(np.median(steps))
    gaps = steps[steps > _GAP_FACTOR * usual]
    if gaps.size:
        missing = int(np.round(gaps / usual - 1).sum())
        stack.warn(
            f"{gaps.size} gap(s) of up to {gaps.max():.4g} mm between slices {usual:.4g} mm apart; about {missing} "
            "slice(s) missing. Volumes count half of a gap to either side."
        )
    rest = steps[steps <= _GAP_FACTOR * usual]
    if rest.size and np.abs(rest - usual).max() > max(_UNEVEN_SHARE * usual, _SAME_PLACE_MM):
        stack.warn(
            f"uneven spacing, {rest.min():.4g} to {rest.max():.4g} mm; volumes count each slice's own, "
            "and an affine can hold the average only."
        )


def _check_course(stack: _Stack, positions: np.ndarray, normal: np.ndarray) -> None:
    """Warn of slices that do not lie straight behind one another: a tilted gantry, or a table that moved."""
    course = positions[-1] - positions[0]
    shear = math.degrees(math.acos(min(1.0, abs(float(course @ normal)) / float(np.linalg.norm(course)))))
    if shear > 0.5:
        stack.warn(
            f"gantry tilt: slices are displaced by {shear:.3g} degrees; they are read as they are, "
            "and distances counted along their normal."
        )
    share = ((positions - positions[0]) @ normal / float(course @ normal))[:, None]
    aside = np.linalg.norm(positions - positions[0] - share * course, axis=1).max()
    if aside > max(_pixel_edges(stack, quiet=True)):
        stack.warn(f"slices lie up to {aside:.3g} mm beside the line from first to last; their place is inexact.")


def _pixel_edges(stack: _Stack, quiet: bool = False) -> tuple[float, float]:
    """Column and row spacing in mm."""
    spacing = stack.frames[0].pixel_spacing
    if spacing is None:
        if not quiet:
            stack.warn("no usable pixel spacing in the header; lengths, areas and volumes take 1 mm a pixel.")
        return 1.0, 1.0
    return spacing[1], spacing[0]


def _step(stack: _Stack) -> float:
    step = stack.frames[0].slice_step
    if step is None:
        stack.warn("no usable slice thickness in the header; volumes take 1 mm a slice.")
    return step or 1.0
