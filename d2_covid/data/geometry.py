"""Where the voxels of a volume lie, and how it turns to axial slices and back. Pure functions of small arrays.

Arrays are [slice, row, column]. An affine takes (column, row, slice, 1) to millimetres in LPS, the patient's left,
posterior and superior, as in DICOM and SimpleITK; NIfTI's RAS is :func:`flip_lps_ras` away.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

# Degrees between a volume's axes and the patient's, from which its slices are no longer called axial.
OBLIQUE_DEGREES = 20.0


def flip_lps_ras(affine: np.ndarray) -> np.ndarray:
    """An affine to LPS as one to RAS, or the other way round; exact."""
    flipped = np.array(affine, dtype=np.float64)
    flipped[:2] = -flipped[:2] + 0.0  # no negative zeros
    return flipped


def affine_from_spacing(spacing: tuple[float, float, float]) -> np.ndarray:
    """Affine of an axial volume with its first voxel at the origin; ``spacing`` as (slice, row, column) in mm."""
    return np.diag([spacing[2], spacing[1], spacing[0], 1.0]).astype(np.float64)


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine is finite, and its voxels have edges of 0.001 to 1000 mm and a volume."""
    if np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
        return False
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((edges > 1e-3) & (edges < 1e3)).all() or np.abs(affine).max() > 1e6:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / edges)) > 1e-2)


def _between_slices(affine: np.ndarray) -> float:
    """Millimetres from slice to slice along their normal."""
    column, row = affine[:3, 0], affine[:3, 1]
    return abs(float(np.linalg.det(affine[:3, :3]))) / float(np.linalg.norm(np.cross(column, row)))


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a volume, and its axial presentation: slice 0 most inferior, row 0 most anterior, column 0 at the
    patient's right. Only axes change places and directions; no voxel is interpolated.

    Attributes:
        source_shape: (slices, rows, columns) of the input's own grid.
        source_affine: (4, 4), from its (column, row, slice) to LPS.
        slice_offsets: millimetres of each source slice along the slice normal where they are known one by one (DICOM),
            so that uneven spacing counts as it is, along whichever axial axis; None: evenly spaced.
    """

    source_shape: tuple[int, int, int]
    source_affine: np.ndarray
    slice_offsets: tuple[float, ...] | None = None

    def __post_init__(self):
        if not is_usable(self.source_affine):
            raise ValueError(f"not an affine of a volume: {self.source_affine}")

    @property
    def _axes(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Source axis of each axial axis, and the axial axes that run backwards, both as array axes."""
        directions = self.source_affine[:3, :3] / np.linalg.norm(self.source_affine[:3, :3], axis=0)
        world, source = linear_sum_assignment(-np.abs(directions))
        order, backwards = [0, 0, 0], []
        for w, s in zip(world.tolist(), source.tolist()):
            order[2 - w] = 2 - s
            if directions[w, s] < 0:
                backwards.append(2 - w)
        return (order[0], order[1], order[2]), tuple(sorted(backwards))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the axial presentation."""
        order, _ = self._axes
        return self.source_shape[order[0]], self.source_shape[order[1]], self.source_shape[order[2]]

    @property
    def is_axial(self) -> bool:
        """Whether the input's slices are the axial slices, if perhaps in other order or mirrored."""
        return self._axes[0][0] == 0

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), from the axial (column, row, slice) to LPS."""
        order, backwards = self._axes
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1
        for axis, source_axis in enumerate(order):
            sign = -1 if axis in backwards else 1
            to_source[2 - source_axis, 2 - axis] = sign
            if sign < 0:
                to_source[2 - source_axis, 3] = self.source_shape[source_axis] - 1
        return self.source_affine @ to_source

    @property
    def obliqueness(self) -> float:
        """Largest angle between an axis of the volume and the patient's axis nearest to it, in degrees."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.degrees(np.arccos(np.clip(np.diag(directions), -1, 1))).max())

    @property
    def pixel_area_mm2(self) -> float:
        """Area of one pixel of an axial slice, on average (:attr:`pixel_shares`)."""
        return float(np.linalg.norm(np.cross(self.affine[:3, 0], self.affine[:3, 1])))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(slice, row, column) spacing in mm, on average; between slices the distance along their normal."""
        affine = self.affine
        return _between_slices(affine), float(np.linalg.norm(affine[:3, 1])), float(np.linalg.norm(affine[:3, 0]))

    @property
    def slice_extents_mm(self) -> np.ndarray:
        """(slices,) millimetres of the body that each axial slice stands for: half the way to either neighbour.

        The first and the last slice reach out as far as in. Over a gap of missing slices, its two neighbours share it.
        """
        if not self.is_axial:
            return np.full(self.shape[0], self.spacing[0])
        extents = self._source_extents_mm
        return extents[::-1].copy() if 0 in self._axes[1] else extents

    @property
    def pixel_shares(self) -> np.ndarray:
        """What each pixel of an axial slice counts, in :attr:`pixel_area_mm2`; broadcasts to (rows, columns).

        1, but where the source's slices are the rows or columns: each stands for its own extent, as
        :attr:`slice_extents_mm` has it for axial ones.
        """
        if self.is_axial:
            return np.ones((1, 1))
        return self.present_slice(self._source_extents_mm[:, None] / _between_slices(self.source_affine))

    @property
    def _source_extents_mm(self) -> np.ndarray:
        """(source slices,) millimetres along their normal that each source slice stands for."""
        if self.slice_offsets is None or len(self.slice_offsets) < 2:
            return np.full(self.source_shape[0], _between_slices(self.source_affine))
        steps = np.abs(np.diff(np.asarray(self.slice_offsets, dtype=np.float64)))
        steps = np.concatenate([steps[:1], steps, steps[-1:]])
        return (steps[:-1] + steps[1:]) / 2

    def source_index(self, index: int) -> tuple[int, int]:
        """(array axis, index on it) of the input's own grid that axial slice ``index`` lies on."""
        order, backwards = self._axes
        return order[0], self.shape[0] - 1 - index if 0 in backwards else index

    def present_slice(self, plane: np.ndarray) -> np.ndarray:
        """Turn a plane cut from the source at :meth:`source_index`, its two axes in source order, to an axial slice."""
        order, backwards = self._axes
        if order[1] > order[2]:
            plane = plane.T
        return np.flip(plane, tuple(axis - 1 for axis in backwards if axis > 0))

    def to_axial(self, array: np.ndarray) -> np.ndarray:
        """A (slices, rows, columns) array of the input's own grid as axial slices (a view)."""
        self._check(array, self.source_shape)
        order, backwards = self._axes
        return np.flip(array.transpose(order), backwards)

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """Bring axial slices, (slices, rows, columns), back to the input's own grid (a view): the exact inverse."""
        self._check(array, self.shape)
        order, backwards = self._axes
        return np.flip(array, backwards).transpose(tuple(np.argsort(order)))

    @staticmethod
    def _check(array: np.ndarray, shape: tuple[int, int, int]) -> None:
        if array.shape != shape:
            raise ValueError(f"an array of shape {shape} is needed, not {array.shape}")
