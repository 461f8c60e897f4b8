"""Where the slices of a DICOM series lie: in order, one at each place, and what is odd about that said."""

import math
from dataclasses import dataclass, field
from typing import Callable

import numpy as np

from ..errors import UserError
from .dicom_headers import DicomFrame
from .geometry import Geometry, is_usable
from .pairing import natural_key

# Slices nearer to each other than this lie at the same place, in mm.
_SAME_PLACE_MM = 0.01
# Steps that differ from the usual one by more than this share are uneven; from this factor on, a slice is missing.
_UNEVEN_SHARE = 0.1
_GAP_FACTOR = 1.5


@dataclass
class Stack:
    """Frames of one series, size and orientation; filled step by step."""

    name: str
    frames: list[DicomFrame]
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(f"{self.name}: {message}")


def is_placed(frame: DicomFrame) -> bool:
    """Whether a frame's header says where it lies."""
    return frame.position is not None and frame.orientation is not None


def stack_geometry(stack: Stack) -> Geometry:
    """Sort the frames of a stack by where they lie, keep one at each place, and warn of what is odd.

    Raises:
        UserError: the places in the headers make no volume.
    """
    return _with_positions(stack) if all(map(is_placed, stack.frames)) else _without_positions(stack)


def _without_positions(stack: Stack) -> Geometry:
    """Geometry of files that do not say where they lie: taken as axial, by their location or, from head to feet, their
    number.

    Unlike positions, locations are rounded, or filled in carelessly: where some repeat, they are the order and no more.
    """
    locations = [frame.slice_location for frame in stack.frames if frame.slice_location is not None]
    unplaced = "no usable positions in the header; taken as axial, sorted by"
    # Careless software gives all slices the same location.
    located = len(locations) == len(stack.frames) and max(locations) - min(locations) >= _SAME_PLACE_MM
    if located:
        _drop_repeated_files(stack)
    if located and np.diff(sorted(frame.slice_location for frame in stack.frames)).min() >= _SAME_PLACE_MM:
        stack.warn(f"{unplaced} slice location.")
        places = _sort(stack, lambda frame: frame.slice_location)
        step = (places[-1] - places[0]) / (len(places) - 1)
    else:
        if located:
            _sort_by_location_and_number(stack)
            by = "slice location and, where that repeats, by instance number"
        else:
            _sort_by_number(stack)
            by = "instance number, taken to run from head to feet"
        stated = stack.frames[0].slice_step
        apart = f", and {stated:g} mm apart, the spacing or thickness in the header" if stated else ""
        stack.warn(f"{unplaced} {by}{apart}.")
        step = _step(stack)
        places = step * np.arange(len(stack.frames))
    return _geometry(stack, np.eye(3)[0], np.eye(3)[1], step * np.eye(3)[2], np.zeros(3), places)


def _drop_repeated_files(stack: Stack) -> None:
    """Keep one of the files that are the same slice again: of one location and number."""
    # A number that all have, or none (0), tells no slice from another.
    numbered = len({frame.order[-1] for frame in stack.frames}) > 1
    files: dict[tuple, list[DicomFrame]] = {}
    for frame in stack.frames:
        identity = None if numbered and frame.order[-1] else frame.sop_instance_uid or frame.path
        files.setdefault((frame.slice_location, frame.order, frame.frame, identity), []).append(frame)
    _keep_first(stack, list(files.values()))


def _sort_by_location_and_number(stack: Stack) -> None:
    locations = np.array([frame.slice_location for frame in stack.frames])
    # The frames of one file share its number.
    numbers = np.array([frame.order[-1] + frame.frame for frame in stack.frames])
    # Within a location the numbers run as they do along the axis.
    _sort_by_number(stack, falling=float((locations - locations.mean()) @ numbers) <= 0)
    stack.frames.sort(key=lambda frame: frame.slice_location)
    _check_acquisitions(stack, np.sort(locations))


def _sort_by_number(stack: Stack, falling: bool = True) -> None:
    # Scanners count from head to feet as a rule; the presentation goes from feet to head.
    stack.frames.sort(key=lambda frame: (frame.order, natural_key(str(frame.path)), frame.frame), reverse=falling)


def _with_positions(stack: Stack) -> Geometry:
    first = stack.frames[0]
    assert first.orientation is not None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    places = _sort(stack, lambda frame: float(np.dot(frame.position, normal)))
    positions = np.array([frame.position for frame in stack.frames], dtype=np.float64)
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
        _check_course(stack, positions, normal)
    else:
        step = normal * _step(stack)
    return _geometry(stack, row, column, step, positions[0], places)


def _geometry(
    stack: Stack, row: np.ndarray, column: np.ndarray, step: np.ndarray, origin: np.ndarray, places: np.ndarray
) -> Geometry:
    """Geometry from directions of rows and columns, the (3,) step from slice to slice in mm, and each slice's place."""
    across, down = _pixel_edges(stack)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * across, column * down, step, origin
    if not is_usable(affine):
        raise UserError(f"the positions in its headers make no volume (step {np.linalg.norm(step):g} mm).")
    uneven = len(places) > 2 and float(np.ptp(np.diff(places))) > 1e-3
    shape = len(places), stack.frames[0].rows, stack.frames[0].columns
    geometry = Geometry(shape, affine, tuple(places.tolist()) if uneven else None)
    if uneven:
        _check_steps(stack, np.diff(places), geometry.is_axial)
    return geometry


def _sort(stack: Stack, place_of: Callable[[DicomFrame], float]) -> np.ndarray:
    """Sort the frames by their place along the axis, keep one at each, and give (slices,) places in mm."""
    _sort_and_drop_repeated(stack, place_of)
    places = np.array([place_of(frame) for frame in stack.frames], dtype=np.float64)
    if len(places) > 1:
        _check_acquisitions(stack, places)
    return places


def _sort_and_drop_repeated(stack: Stack, place_of: Callable[[DicomFrame], float]) -> None:
    places: list[list[DicomFrame]] = []
    for frame in sorted(stack.frames, key=place_of):
        if places and place_of(frame) - place_of(places[-1][0]) < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    _keep_first(stack, places)


def _keep_first(stack: Stack, groups: list[list[DicomFrame]]) -> None:
    """Keep the first frame of each group, which lie at one place, and warn where there are others."""
    repeated = len(stack.frames) - len(groups)
    if repeated:
        stack.warn(
            f"{repeated} of {len(stack.frames)} slices lie where another one does (repeated files, or further time "
            "points); of those at one place the first by time, acquisition and instance number is read."
        )
    stack.frames = [min(group, key=lambda f: (f.order, natural_key(str(f.path)), f.frame)) for group in groups]


def _check_acquisitions(stack: Stack, places: np.ndarray) -> None:
    """Warn of acquisitions, or time points, whose ranges along the axis overlap: step-and-shoot has none."""
    ranges: dict[tuple[float, ...], list[float]] = {}
    for frame, place in zip(stack.frames, places.tolist(), strict=True):
        ranges.setdefault(frame.acquisition, [place, place])[1] = place
    # By where they begin; the one that reaches furthest so far overlaps with the next, or none does.
    overlapping: set[tuple[float, ...]] = set()
    furthest = next(iter(ranges))
    for acquisition, (begin, end) in list(ranges.items())[1:]:
        if begin < ranges[furthest][1]:
            overlapping |= {furthest, acquisition}
        if end > ranges[furthest][1]:
            furthest = acquisition
    if overlapping:
        stack.warn(
            f"{len(overlapping)} acquisitions overlap along the axis; their slices are read as one volume in order of "
            "place; separate them if they are different breath-holds or phases."
        )


def _check_steps(stack: Stack, steps: np.ndarray, is_axial: bool) -> None:
    """Warn of missing slices and of uneven spacing, and say what counts it and what can't."""
    average = "an affine, as of the NIfTI masks, can hold the average only"
    if all(map(is_placed, stack.frames)):
        average += ": use the DICOM SEG for places"
    if not is_axial:
        average += "; areas in axial slices take that average"
    usual = float(np.median(steps))
    gaps = steps[steps > _GAP_FACTOR * usual]
    if gaps.size:
        missing = int(np.round(gaps / usual - 1).sum())
        stack.warn(
            f"{gaps.size} gap(s) of up to {gaps.max():.4g} mm between slices {usual:.4g} mm apart; about {missing} "
            f"slice(s) missing. Volumes count half of a gap to either side; {average}."
        )
    rest = steps[steps <= _GAP_FACTOR * usual]
    if rest.size and np.abs(rest - usual).max() > max(_UNEVEN_SHARE * usual, _SAME_PLACE_MM):
        stack.warn(
            f"uneven spacing, {rest.min():.4g} to {rest.max():.4g} mm; volumes count each slice's own; {average}."
        )


def _check_course(stack: Stack, positions: np.ndarray, normal: np.ndarray) -> None:
    """Warn of slices that do not lie straight behind one another: a tilted gantry, or a table that moved."""
    course = positions[-1] - positions[0]
    shear = math.degrees(math.acos(min(1.0, abs(float(course @ normal)) / float(np.linalg.norm(course)))))
    if shear > 0.5:
        stack.warn(
            f"gantry tilt: slices are displaced by {shear:.3g} degrees; they are read as they are, and distances "
            "counted along their normal; tools built on ITK can't open its NIfTI masks: use the DICOM SEG."
        )
    share = ((positions - positions[0]) @ normal / float(course @ normal))[:, None]
    aside = np.linalg.norm(positions - positions[0] - share * course, axis=1).max()
    if aside > max(_pixel_edges(stack, quiet=True)):
        stack.warn(f"slices lie up to {aside:.3g} mm beside the line from first to last; their place is inexact.")


def _pixel_edges(stack: Stack, quiet: bool = False) -> tuple[float, float]:
    """Column and row spacing in mm."""
    spacing = stack.frames[0].pixel_spacing
    if spacing is None:
        if not quiet:
            stack.warn("no usable pixel spacing in the header; lengths, areas and volumes take 1 mm a pixel.")
        return 1.0, 1.0
    return spacing[1], spacing[0]


def _step(stack: Stack) -> float:
    step = stack.frames[0].slice_step
    if step is None:
        stack.warn("no usable slice thickness in the header; volumes take 1 mm a slice.")
    return step or 1.0
