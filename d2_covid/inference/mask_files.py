"""Masks in the input's own grid: as NIfTI, plane by plane, and as planes for other formats."""

import gzip
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from ..data.files import atomic_write
from ..data.geometry import Geometry
from ..data.volumes import Series
from .series_result import SeriesResult
from .slice_result import decode_mask, label_map

MaskOfSlice = Callable[[int], np.ndarray]
"""From the number of an axial slice to its (H, W) uint8 mask."""


def source_planes(series: Series, mask_of: MaskOfSlice) -> Iterator[np.ndarray]:
    """The masks of a series' axial slices as planes (rows, columns) of its own grid, in that grid's order.

    Holds one plane at a time; all of them where the input's slices are not the axial ones.
    """
    geometry = series.geometry
    if geometry is None:
        raise ValueError(f"{series.identifier}: loose images have no grid")
    if not geometry.is_axial:
        yield from series.to_source(np.stack([mask_of(index) for index in range(series.num_slices)]))
        return
    plane = Geometry((1, *geometry.source_shape[1:]), geometry.source_affine)
    axial = {geometry.source_index(index)[1]: index for index in range(series.num_slices)}
    for k in range(geometry.source_shape[0]):
        yield plane.to_source(mask_of(axial[k])[None])[0]


def lesion_mask_of(result: SeriesResult, lesion_classes: Sequence[str]) -> MaskOfSlice:
    """Label maps of a series' slices: 0 background, 1 the first lesion class, 2 the second."""
    by_index = {one.index: one for one in result.slices}
    return lambda index: label_map(by_index[index], lesion_classes)


def lung_mask_of(result: SeriesResult) -> MaskOfSlice:
    """Lung of a series' slices: 0 background, 1 lung."""
    by_index = {one.index: one for one in result.slices}
    return lambda index: decode_mask(by_index[index].lung_mask).astype(np.uint8)


def write_nifti(path: str | Path, series: Series, mask_of: MaskOfSlice) -> None:
    """Write masks as gzipped NIfTI with the shape and affine of the input's own grid.

    Beside a NIfTI they lie where its header says, in the same fields; nowhere, where that says nothing.

    Raises:
        UserError: the file can't be written.
    """
    import nibabel

    columns_rows_slices = (series.geometry or _none(series)).source_shape[::-1]
    large = max(columns_rows_slices) > np.iinfo(np.int16).max
    header = (nibabel.Nifti2Header if large else nibabel.Nifti1Header)()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(columns_rows_slices)
    # Programs differ in which of NIfTI's two places they go by, and are to make the same of scan and mask.
    if series.nifti_place:
        fields = dict(series.nifti_place)
        header["pixdim"][:4] = fields.pop("pixdim")[:4]
        for name, value in fields.items():
            header[name] = value
    else:
        _place(header, series.source_affine_ras)
    header.set_xyzt_units("mm")
    header["descrip"] = b"d2_covid, research use only"
    # After the header come four bytes that say that no extension follows; nibabel writes them.
    header.set_data_offset(header.sizeof_hdr + 4)
    # No time and no name in the gzip header: the same masks are the same bytes.
    with atomic_write(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        header.write_to(packed)
        for plane in source_planes(series, mask_of):
            packed.write(np.ascontiguousarray(plane, dtype=np.uint8).tobytes())


def _place(header: Any, affine: np.ndarray) -> None:
    """Set both places of a NIfTI header to one affine, (4, 4) to RAS in mm."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_zooms(edges)
    header.set_sform(affine, code="scanner")
    directions = affine[:3, :3] / edges
    # A quaternion can't hold the shear of a tilted gantry.
    if np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        header.set_qform(affine, code="scanner")


def _none(series: Series) -> Geometry:
    raise ValueError(f"{series.identifier}: loose images have no grid")
