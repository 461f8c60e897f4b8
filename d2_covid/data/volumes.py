"""A CT as the rest of the package sees it: axial slices one by one, and the way back to the input's own grid."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Literal, Mapping, Sequence

import numpy as np

from ..errors import UserError
from .geometry import OBLIQUE_DEGREES, Geometry, affine_from_spacing, flip_lps_ras, is_usable
from .intensity import Unit, decide_unit
from .limits import check_shape, one_line
from .preprocessing import window_to_uint8

# (source array axis, index) -> the plane there, its two axes in source order, in the reader's own units.
PlaneReader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Something that was not read, and why: one line that names it.

    ``failed`` is False for what is rightly left out of a CT, such as a scout: worth a word, but no failure.
    """

    path: str
    message: str
    failed: bool = True


@dataclass(frozen=True)
class SourceInstance:
    """The DICOM object, and the frame in it (from 0), that a source slice comes from."""

    path: Path
    frame: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one input, read when asked for.

    The slices are axial: slice 0 most inferior, row 0 most anterior, column 0 at the patient's right
    (:class:`.geometry.Geometry`); loose images are as they are. Reading holds a slice at a time, except that compressed
    and non-axial volumes hold their voxels until the series is let go (at most ``limits.MAX_VOLUME_BYTES``).

    Attributes:
        identifier: unique within one :func:`.discovery.discover`, and safe as a file name.
        source_files: the files read; of a volume in two, its header first.
        slice_names: one for each slice.
        geometry: None for loose images, which may differ in size and have no place in the patient.
        modality: ``"CT"`` where the input says so.
        warnings: one line each.
        instances: for DICOM, the object behind each slice of the *source* grid.
        oriented: False where the files say nothing on orientation; left and right in the geometry are a guess then.
        nifti_place: of a NIfTI volume, the fields of its header that place it, as they stand, for masks beside it.
    """

    identifier: str
    kind: Literal["dicom", "volume", "images", "array"]
    source_files: tuple[Path, ...]
    slice_names: tuple[str, ...]
    geometry: Geometry | None
    unit: Unit
    read_plane: PlaneReader = field(repr=False)
    modality: str = ""
    warnings: tuple[str, ...] = ()
    instances: tuple[SourceInstance, ...] = ()
    oriented: bool = True
    nifti_place: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def hounsfield(self) -> bool:
        """Whether :meth:`slice` gives Hounsfield units; otherwise it gives gray of a window already applied."""
        return self.unit.hounsfield

    @property
    def num_slices(self) -> int:
        return len(self.slice_names)

    def slice(self, index: int) -> np.ndarray:
        """Read axial slice ``index``, 0..num_slices-1.

        Returns:
            (H, W) ``float32`` in Hounsfield units, or ``uint8`` gray if not :attr:`hounsfield`.

        Raises:
            UserError: the slice can't be read; one line that names the file. Of loose images it costs that one only.
        """
        if not 0 <= index < self.num_slices:
            raise IndexError(f"slice {index} of {self.num_slices}")
        if self.geometry is None:
            return self.unit.convert(self.read_plane(0, index))
        plane = self.read_plane(*self.geometry.source_index(index))
        return np.ascontiguousarray(self.geometry.present_slice(self.unit.convert(plane)))

    def gray(self, index: int, level: float, width: float) -> np.ndarray:
        """Slice ``index`` as (H, W) ``uint8``, through the window if it is in Hounsfield units: what
        :func:`.preprocessing.network_input` takes."""
        values = self.slice(index)
        return window_to_uint8(values, level, width) if self.hounsfield else values

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(slices, rows, columns); None for loose images."""
        return self.geometry.shape if self.geometry else None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(slice, row, column) spacing in mm; None for loose images."""
        return self.geometry.spacing if self.geometry else None

    @property
    def pixel_area_mm2(self) -> float | None:
        return self.geometry.pixel_area_mm2 if self.geometry else None

    @property
    def slice_extents_mm(self) -> np.ndarray | None:
        """(slices,) millimetres of the body that each slice stands for; times area, it gives a volume, with the
        geometry's :attr:`~.geometry.Geometry.pixel_shares` where its pixels count unequally."""
        return self.geometry.slice_extents_mm if self.geometry else None

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), from axial (column, row, slice) to LPS in mm."""
        return self._placed().affine

    @property
    def source_affine(self) -> np.ndarray:
        """(4, 4), from (column, row, slice) of the input's own grid to LPS in mm."""
        return self._placed().source_affine

    @property
    def source_affine_ras(self) -> np.ndarray:
        """The same to RAS: for NIfTI, together with ``to_source(array).transpose(2, 1, 0)``."""
        return flip_lps_ras(self.source_affine)

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """Bring an axial (slices, rows, columns) array, such as a mask, back to the input's own grid."""
        return self._placed().to_source(array)

    def _placed(self) -> Geometry:
        if self.geometry is None:
            raise ValueError(f"{self.identifier}: loose images have no geometry")
        return self.geometry


def series_from_planes(
    identifier: str,
    kind: Literal["dicom", "volume", "array"],
    source_files: Sequence[Path],
    geometry: Geometry,
    read_plane: PlaneReader,
    *,
    plane_names: Sequence[str] | None = None,
    assume_window: bool = False,
    name: object = None,
    unit: Unit | None = None,
    **attributes,
) -> Series:
    """Make a :class:`Series` of a volume: looks at its values to tell their unit, and at its geometry to warn.

    Args:
        read_plane: as :data:`PlaneReader`.
        plane_names: names of the source slices, if each has its own (used where they are the axial ones).
        name: what messages call it (default: its first file, or ``identifier``).
        unit: of the values; None: tell it from them.

    Raises:
        UserError: the values can't be Hounsfield units (:func:`.intensity.decide_unit`).
    """
    name = name if name is not None else (source_files[0] if source_files else identifier)
    warnings = tuple(attributes.pop("warnings", ()))
    if unit is None:
        # Along the source's own slices: the cheap way to read, and the values are the same.
        unit, found = decide_unit(lambda k: read_plane(0, k), geometry.source_shape[0], name, assume_window)
        warnings += found
    if geometry.obliqueness > OBLIQUE_DEGREES:
        warnings += (
            f"{one_line(name)}: its axes are {geometry.obliqueness:.0f} degrees off the patient's; "
            "its slices are taken along the nearest axis, and are not truly axial.",
        )
    if not geometry.is_axial:
        warnings += (f"{one_line(name)}: stored in another plane than axial; read as axial, results go back.",)
    count = geometry.shape[0]
    if plane_names is not None and geometry.is_axial:
        names = tuple(plane_names[geometry.source_index(i)[1]] for i in range(count))
    else:
        stem = source_files[0].name if source_files and kind == "volume" else identifier
        names = tuple(f"{stem}#{i}" for i in range(count))
    return Series(identifier, kind, tuple(source_files), names, geometry, unit, read_plane,
                  warnings=warnings, **attributes)  # fmt: skip


def series_from_array(
    array: np.ndarray,
    spacing: tuple[float, float, float] | None = None,
    affine: np.ndarray | None = None,
    identifier: str = "array",
    assume_window: bool = False,
) -> Series:
    """A series of an array in memory.

    Args:
        array: (slices, rows, columns) or one (rows, columns); Hounsfield units, or gray with ``assume_window``.
        spacing: (slice, row, column) in mm of axial slices, from inferior to superior, row 0 anterior and column 0 at
            the patient's right. None, and no affine: 1 mm each, with a warning.
        affine: (4, 4), from (column, row, slice) to LPS in mm, instead of ``spacing``.

    Raises:
        UserError: the array is empty, complex, too large or of other dimensions, not in Hounsfield units, or the
            spacing is not above 0.
    """
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise UserError(f"{one_line(identifier)}: an array of numbers (slices, rows, columns) is needed, "
                        f"not {array.shape} {array.dtype}.")  # fmt: skip
    check_shape(identifier, array.shape, array.itemsize)
    warnings: tuple[str, ...] = ()
    if affine is None:
        if spacing is None:
            warnings = (f"{one_line(identifier)}: no spacing given; lengths, areas and volumes take 1 mm a voxel.",)
            spacing = (1.0, 1.0, 1.0)
        affine = affine_from_spacing(spacing) if len(spacing) == 3 and min(spacing) > 0 else np.zeros((4, 4))
    if not is_usable(affine):
        raise UserError(f"{one_line(identifier)}: the spacing must be three numbers above 0, in mm; or give an affine.")
    values = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return series_from_planes(
        identifier, "array", (), Geometry(array.shape, np.asarray(affine, np.float64)),
        lambda axis, index: np.take(values, index, axis=axis), assume_window=assume_window, warnings=warnings,
    )  # fmt: skip


def renamed(series: Series, identifier: str) -> Series:
    """The same series under another identifier."""
    return replace(series, identifier=identifier)
