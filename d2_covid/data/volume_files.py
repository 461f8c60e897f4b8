"""Volumes in one file: NIfTI by nibabel, MetaImage and NRRD by SimpleITK. Headers first, and bounded, then voxels."""

import functools
import gzip
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Literal, Mapping

import numpy as np

from ..errors import UserError
from . import itk_process
from .geometry import Geometry, flip_lps_ras, is_usable
from .limits import (
    MAX_HEADER_BYTES,
    MAX_VOLUME_BYTES,
    check_enough_data,
    check_shape,
    file_size,
    one_line,
    reading,
    require,
)
from .volumes import Series, series_from_planes

VolumeFormat = Literal["NIfTI", "MetaImage", "NRRD"]
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")

_NIFTI_HEADER_BYTES = 540  # NIfTI-2's; NIfTI-1 has 348
_TEXT_HEADER_BYTES = 2**16
_NUMBER_KINDS = "iuf"
_UNORIENTED = "its header says nothing on orientation; left and right may be swapped."
# Where MetaImage and NRRD headers have it.
_SPACING_FIELDS = ("elementspacing", "elementsize", "spacings", "space directions")
# Where MetaImage has the directions of its axes, by three names; what NRRD has is of the patient in these spaces only.
_DIRECTION_FIELDS = ("transformmatrix", "rotation", "orientation")
_ANATOMICAL_SPACE = re.compile(r"(R|L)AS|LPS|(right|left)-anterior-superior|left-posterior-superior", re.IGNORECASE)
# Where NIfTI has the place of its voxels, twice.
_PLACE_FIELDS = ("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
                 "sform_code", "srow_x", "srow_y", "srow_z")  # fmt: skip


@dataclass(frozen=True)
class _Volume:
    """A header read and found in order, of ``files``. ``read`` gives the whole array, in whatever type is stored;
    ``plane`` one plane of it without the rest, or None where the format has no way to."""

    files: tuple[Path, ...]
    geometry: Geometry
    read: Callable[[], np.ndarray]
    plane: Callable[[int], np.ndarray] | None
    scale: tuple[float, float] | None
    warnings: tuple[str, ...] = ()
    oriented: bool = True
    nifti_place: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_volume(path: str | Path, form: VolumeFormat, identifier: str, assume_window: bool = False) -> Series:
    """Read a volume's header, look at its values, and make a series of it.

    Uncompressed axial NIfTI is read slice by slice. Other volumes are read at first use and held.

    Raises:
        UserError: the file is damaged, incomplete, too large, not three-dimensional or not in Hounsfield units.
    """
    path = Path(path)
    size = file_size(path)
    with reading(path):
        volume = _open_nifti(path, size) if form == "NIfTI" else _open_with_itk(path, form, size)
    held = functools.cache(volume.read)

    def read_plane(axis: int, index: int) -> np.ndarray:
        with reading(path):
            if volume.plane is not None and axis == 0 and volume.geometry.is_axial:
                plane = volume.plane(index)
            else:
                plane = np.take(held(), index, axis=axis)
            if volume.scale is not None:
                plane = plane * np.float64(volume.scale[0]) + volume.scale[1]
            return plane

    return series_from_planes(
        identifier,
        "volume",
        volume.files,
        volume.geometry,
        read_plane,
        assume_window=assume_window,
        warnings=volume.warnings,
        oriented=volume.oriented,
        nifti_place=volume.nifti_place,
    )


def is_nifti_header(block: bytes) -> bool:
    """Whether bytes from a file's start, inflated, are a NIfTI header of one file."""
    return block[344:348] == b"n+1\0" or block[4:8] == b"n+2\0"


def inflated_start(path: str | Path, count: int = _NIFTI_HEADER_BYTES) -> bytes:
    """The first ``count`` bytes of a file, inflated if it is gzipped."""
    with _open_binary(Path(path)) as file:
        return file.read(count)


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open_binary(path: Path) -> Any:
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")


def _open_nifti(path: Path, size: int) -> _Volume:
    nibabel = require("nibabel", path)
    block = inflated_start(path)
    compressed = _is_gzip(path)
    header_class = nibabel.Nifti2Header if block[4:8] == b"n+2\0" else nibabel.Nifti1Header
    # Without nibabel's check, which logs; what matters here is looked at below.
    header = header_class(block[: header_class.template_dtype.itemsize], check=False)
    shape = _three_dimensions(path, [int(n) for n in header.get_data_shape()])
    dtype = header.get_data_dtype()
    if dtype.kind not in _NUMBER_KINDS:
        raise UserError(f"{one_line(path)} holds {dtype} values; a CT of one number a voxel is needed.")
    check_shape(path, shape[::-1], dtype.itemsize)
    offset = int(header.get_data_offset())
    if not 0 < offset <= MAX_HEADER_BYTES:
        raise UserError(f"{one_line(path)} has its voxels {offset:,} bytes from its start; replace or remove it.")
    claimed = offset + int(np.prod(shape)) * dtype.itemsize
    check_enough_data(path, claimed, size, compressed)
    if header.get_xyzt_units()[0] in ("meter", "micron"):
        raise UserError(f"{one_line(path)} has its lengths in {header.get_xyzt_units()[0]}s; store it in millimetres.")
    geometry = Geometry(shape[::-1], _usable(path, flip_lps_ras(header.get_best_affine())))
    warnings = _flatness(path, len(header.get_data_shape()), geometry)
    oriented = bool(int(header["sform_code"]) or int(header["qform_code"]))
    if not oriented:
        warnings += (f"{one_line(path)}: {_UNORIENTED}",)
    place = {name: np.array(header[name]) for name in _PLACE_FIELDS}
    slope, intercept = header.get_slope_inter()
    scale = None if slope is None or (slope, intercept or 0.0) == (1.0, 0.0) else (slope, intercept or 0.0)

    def read() -> np.ndarray:
        return _bytes_to_array(_read_exactly(path, 0, claimed), offset, shape[::-1], dtype)

    def plane(index: int) -> np.ndarray:
        count = shape[0] * shape[1] * dtype.itemsize
        return _bytes_to_array(_read_exactly(path, offset + index * count, count), 0, (shape[1], shape[0]), dtype)

    return _Volume((path,), geometry, read, None if compressed else plane, scale, warnings, oriented, place)


def _bytes_to_array(data: bytearray, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    # NIfTI's first index runs fastest: the last axis of a C array.
    return np.ndarray(shape, dtype, buffer=data, offset=offset)


def _read_exactly(path: Path, start: int, count: int) -> bytearray:
    """``count`` bytes from ``start`` of a file, inflated if need be; memory grows with what the file really holds."""
    data = bytearray()
    with _open_binary(path) as file:
        file.seek(start)
        while len(data) < count:
            chunk = file.read(min(count - len(data), 2**22))
            if not chunk:
                raise UserError(
                    f"{one_line(path)} is incomplete: it ends after {start + len(data):,} of {start + count:,} bytes; "
                    "replace or remove it."
                )
            data += chunk
        if isinstance(file, gzip.GzipFile):
            file.read(1)  # at the end of the stream this compares its checksum
    return data


def _three_dimensions(path: Path, shape: list[int]) -> tuple[int, int, int]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = [*shape, 1]
    if len(shape) != 3:
        size = " x ".join(map(str, shape))
        raise UserError(
            f"{one_line(path)} is {len(shape)}-dimensional ({size}), not one volume; save the time point or channel "
            "to be read as a volume of its own."
        )
    return shape[0], shape[1], shape[2]


def _flatness(path: Path, dimensions: int, geometry: Geometry) -> tuple[str, ...]:
    """What to warn of where a file has two dimensions: its slice has no thickness that anyone meant."""
    if dimensions != 2:
        return ()
    step = geometry.spacing[0]
    return (f"{one_line(path)}: two-dimensional, without a spacing of slices; volumes take {step:g} mm a slice.",)


def _usable(path: Path, affine: np.ndarray) -> np.ndarray:
    if not is_usable(affine):
        edges = ", ".join(f"{edge:g}" for edge in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))
        raise UserError(f"{one_line(path)} has no usable voxel spacing ({edges} mm); correct its header.")
    return affine


def _open_with_itk(path: Path, form: VolumeFormat, size: int) -> _Volume:
    fields = _text_header(path)
    data_path = _data_file(path, form, fields)
    io = "MetaImageIO" if form == "MetaImage" else "NrrdImageIO"
    header = itk_process.read_header(path, io)
    shape = _three_dimensions(path, header["size"])
    if header["components"] != 1 or header["type"] is None:
        raise UserError(f"{one_line(path)} holds more than one number a voxel; a CT of one number a voxel is needed.")
    dtype = np.dtype(header["type"])
    check_shape(path, shape[::-1], dtype.itemsize)
    claimed = int(np.prod(shape)) * dtype.itemsize
    check_enough_data(path, claimed, file_size(data_path) if data_path != path else size, not _is_raw(fields))
    dimension = len(header["size"])
    inner = min(dimension, 3)
    affine = np.eye(4)
    axes = np.reshape(header["direction"], (dimension, dimension)) * header["spacing"]
    affine[:inner, :inner] = axes[:inner, :inner]
    affine[:inner, 3] = header["origin"][:inner]
    geometry = Geometry(shape[::-1], _usable(path, affine))

    def read() -> np.ndarray:
        return np.frombuffer(itk_process.read_voxels(path, io, claimed), dtype).reshape(geometry.source_shape)

    files = (path,) if data_path == path else (path, data_path)
    warnings = _flatness(path, dimension, geometry)
    if not _has_spacing(fields):
        warnings = (
            f"{one_line(path)}: no spacing in its header, or not of every axis; lengths, areas and volumes take 1 mm "
            "where there is none.",
        )
    oriented = _has_orientation(fields)
    if not oriented:
        warnings += (f"{one_line(path)}: {_UNORIENTED}",)
    return _Volume(files, geometry, read, None, None, warnings, oriented)


def _text_header(path: Path) -> dict[str, str]:
    """Fields of a MetaImage or NRRD header, names in lower case; only to see where the data lie, and how."""
    with open(path, "rb") as file:
        text = file.read(_TEXT_HEADER_BYTES).decode("latin-1")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = re.match(r"([^=:]*)(=|:=?)?(.*)", line).groups()  # type: ignore[union-attr]
        if not separator and not line.startswith(("NRRD", "#")):
            break
        fields.setdefault(name.strip().lower(), (value or "").strip())
        if name.strip().lower() == "elementdatafile":
            break
    return fields


def _has_spacing(fields: dict[str, str]) -> bool:
    """Whether a header gives the spacing of each axis of space: by numbers, or in NRRD by vectors as (0, 0, 2)."""
    stated = next((fields[name] for name in _SPACING_FIELDS if fields.get(name)), "")
    axes = re.findall(r"\([^)]*\)|[^\s()]+", stated)[:3]
    return bool(axes) and not any(re.search("nan|none", axis, re.IGNORECASE) for axis in axes)


def _has_orientation(fields: dict[str, str]) -> bool:
    """Whether a header gives the directions of its axes in the patient."""
    if _ANATOMICAL_SPACE.match(fields.get("space", "")):
        return "(" in fields.get("space directions", "")
    return any(fields.get(name) for name in _DIRECTION_FIELDS)


def _is_raw(fields: dict[str, str]) -> bool:
    if "encoding" in fields:
        return fields["encoding"].lower() == "raw"
    compressed = fields.get("compresseddata", "false").lower() == "true"
    return not compressed and fields.get("binarydata", "true").lower() != "false"


def _data_file(path: Path, form: VolumeFormat, fields: dict[str, str]) -> Path:
    """The file that holds the voxels: ``path``, or a regular one that it names in its own folder.

    Raises:
        UserError: the header names several files, one elsewhere, or one that is missing, empty or no regular file.
    """
    if form == "MetaImage":
        named = fields.get("elementdatafile", "LOCAL")
        if named.upper() == "LOCAL":
            return path
    else:
        named = fields.get("data file", fields.get("datafile", ""))
        if not named:
            return path
    pattern = re.search(r"%|^LIST\b", named) or (re.search(r"\s\d+\s", named) and not (path.parent / named).is_file())
    if len(Path(named).parts) != 1 or named in (".", "..") or pattern:
        raise UserError(
            f"{one_line(path)} has its voxels in {one_line(named, 80)!r}; only one file beside it is read. "
            "Save it as one .mha, .nrrd or .nii.gz."
        )
    data_path = path.parent / named
    size = file_size(data_path)
    if size > 2 * MAX_VOLUME_BYTES:
        raise UserError(f"{one_line(data_path)} has {size:,} bytes; {MAX_VOLUME_BYTES:,} can be read.")
    return data_path
