"""What reading a series needs of each DICOM header, by pydicom; one small record a frame, no pixels."""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from ..errors import UserError
from .limits import MAX_HEADER_BYTES, check_enough_data, check_shape, file_size, one_line, reading, require

_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
}
# Named where they are left out; other text in their place is not repeated, since it may be anything.
_OTHER_MODALITIES = {
    "CR", "DX", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RF", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC",
    "SEG", "SR", "US", "XA",
}  # fmt: skip
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID",
    "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "SliceThickness", "SpacingBetweenSlices",
    "GantryDetectorTilt", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class DicomFrame:
    """One slice of a DICOM file. Lengths in mm, in LPS; None where the header says nothing usable.

    Attributes:
        order: which of several slices at one place is read: the least.
        padding: lowest and highest stored value that stands for no value.
        highest_stored: largest value that the stored bits can have.
    """

    path: Path
    frame: int
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slice_step: float | None
    slice_location: float | None
    tilt: float
    order: tuple[float, ...]
    slope: float
    intercept: float
    padding: tuple[float, float] | None
    inverted: bool
    lowest_stored: int
    highest_stored: int

    @property
    def acquisition(self) -> tuple[float, ...]:
        """What frames of one acquisition and time point share."""
        return self.order[:3]


@dataclass(frozen=True)
class LeftOut:
    """A DICOM file that is no slice of a CT, and what it is."""

    path: Path
    reason: str


def read_frames(path: Path) -> list[DicomFrame] | LeftOut:
    """Read a DICOM file's header.

    Raises:
        UserError: no pydicom; or the file is damaged, claims more than it holds or than may be read, or is a CT
            without what reading it needs.
    """
    require("pydicom", path)
    size = file_size(path)
    with reading(path):
        dataset = _read_header(path)
        if getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID") == _DIRECTORY:
            return LeftOut(path, "DICOMDIR, a list of other files")
        if not any(dataset.get(name) for name in ("SOPClassUID", "Modality", "Rows")):
            raise UserError(f"{one_line(path)} is damaged or no DICOM file: its header is empty; replace or remove it.")
        reason = _left_out(dataset)
        return LeftOut(path, reason) if reason else _frames(path, dataset, size)


def inflated_dataset(path: Path) -> bytes | None:
    """A deflated data set, inflated; None if the file's is not deflated. pydicom would inflate without bound.

    Raises:
        UserError: it would inflate to more than ``MAX_HEADER_BYTES``.
    """
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID", "")) != _DEFLATED:
        return None
    start = 128 + 4 + 12 + int(meta.get("FileMetaInformationGroupLength", 0))
    with open(path, "rb") as file:
        file.seek(start)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(file.read(MAX_HEADER_BYTES), MAX_HEADER_BYTES)
    if inflater.unconsumed_tail:
        raise UserError(f"{one_line(path)} inflates to more than {MAX_HEADER_BYTES:,} bytes; store it uncompressed.")
    return inflated


def _read_header(path: Path) -> Any:
    import pydicom

    with open(path, "rb") as file:
        has_preamble = file.read(132)[128:] == b"DICM"
    if has_preamble:
        inflated_dataset(path)
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=not has_preamble)


def _left_out(dataset: Any) -> str | None:
    """What a data set is, if it is no slice of a CT."""
    sop_class = str(dataset.get("SOPClassUID", "") or "")
    image_type = [str(value).upper() for value in _values(dataset.get("ImageType"))]
    modality = str(dataset.get("Modality", "") or "").upper()
    if sop_class.startswith(_SECONDARY_CAPTURE):
        return "secondary capture"
    if "LOCALIZER" in image_type:
        return "scout (localizer)"
    if modality not in ("CT", "") or (modality == "" and sop_class not in _CT_CLASSES):
        return f"modality {modality if modality in _OTHER_MODALITIES else 'unknown'}, not CT"
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        return "DICOM object without an image"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "colour image, such as a screen capture"
    return None


def _frames(path: Path, dataset: Any, size: int) -> list[DicomFrame]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits = int(dataset.get("BitsAllocated", 16) or 16)
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if bits not in (8, 16, 32):
        raise UserError(f"{one_line(path)} has {bits} bits a pixel; 8, 16 or 32 can be read.")
    check_shape(path, (count, rows, columns), bits // 8)
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is None or not (syntax.is_compressed or syntax == _DEFLATED):
        check_enough_data(path, count * rows * columns * bits // 8, size)
    if "ModalityLUTSequence" in dataset:
        raise UserError(f"{one_line(path)} maps its values by a table; convert it to rescale slope and intercept.")
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if groups is None and count == 1:
        return [_frame(path, dataset, 0, bits, [dataset])]
    if groups is None or len(groups) != count:
        raise UserError(
            f"{one_line(path)} claims {count} frames and describes {len(groups or ())} of them; replace or remove it."
        )
    return [_frame(path, dataset, i, bits, _levels(group, shared, dataset)) for i, group in enumerate(groups)]


def _levels(group: Any, shared: Any, dataset: Any) -> list[Any]:
    """Where an attribute of a frame may stand, nearest first: in its own groups, in the shared ones, at the top."""
    found = []
    for holder in (group, shared):
        if holder is not None:
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
                         "PixelValueTransformationSequence", "FrameContentSequence"):  # fmt: skip
                item = _first(holder.get(name))
                if item is not None:
                    found.append(item)
    return [*found, dataset]


def _frame(path: Path, dataset: Any, index: int, bits: int, levels: list[Any]) -> DicomFrame:
    def find(name: str) -> Any:
        return next((level.get(name) for level in levels if level.get(name) is not None), None)

    slope, intercept = _number(find("RescaleSlope"), 1.0), _number(find("RescaleIntercept"), 0.0)
    if slope == 0:
        raise UserError(f"{one_line(path)} has rescale slope 0; replace or remove it.")
    signed = int(dataset.get("PixelRepresentation", 0) or 0) == 1
    stored = min(max(int(dataset.get("BitsStored", bits) or bits), 1), bits)
    spacing = _numbers(find("PixelSpacing"), 2)
    return DicomFrame(
        path=path,
        frame=index,
        sop_class_uid=str(dataset.get("SOPClassUID", "") or ""),
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "") or ""),
        series_uid=str(dataset.get("SeriesInstanceUID", "") or ""),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=_numbers(find("ImagePositionPatient"), 3),
        orientation=_orientation(find("ImageOrientationPatient")),
        pixel_spacing=spacing if spacing and all(1e-3 < edge < 1e3 for edge in spacing) else None,
        slice_step=_positive(find("SpacingBetweenSlices")) or _positive(find("SliceThickness")),
        slice_location=(_numbers(find("SliceLocation"), 1) or (None,))[0],
        tilt=_number(find("GantryDetectorTilt"), 0.0),
        order=tuple(_number(find(name), 0.0) for name in
                    ("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "InstanceNumber")),
        slope=slope,
        intercept=intercept,
        padding=_padding(dataset, bits, signed),
        inverted=str(dataset.get("PhotometricInterpretation", "")).upper() == "MONOCHROME1",
        lowest_stored=-(1 << (stored - 1)) if signed else 0,
        highest_stored=(1 << (stored - signed)) - 1,
    )  # fmt: skip


def _padding(dataset: Any, bits: int, signed: bool) -> tuple[float, float] | None:
    value = dataset.get("PixelPaddingValue")
    if value is None or not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    # The tag's own type says signed or not, and is at times wrong: read its bits as the pixels' are.
    ends = [end % (1 << bits) for end in ends]
    if signed:
        ends = [end - (1 << bits) if end >= 1 << (bits - 1) else end for end in ends]
    return float(min(ends)), float(max(ends))


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence is not None and len(sequence) else None


def _values(value: Any) -> Sequence[Any]:
    if value is None or value == "":
        return ()
    return [value] if isinstance(value, (str, bytes, int, float)) else list(value)


def _number(value: Any, default: Any) -> Any:
    """The first finite number of a possibly multi-valued element, or ``default`` where there is none."""
    for item in _values(value):
        try:
            number = float(item)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            return number
    return default


def _positive(value: Any) -> float | None:
    number = _number(value, None)
    return number if number is not None and 1e-3 < number < 1e3 else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(item) for item in _values(value))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(abs(n) < 1e6 for n in numbers) else None


def _orientation(value: Any) -> tuple[float, ...] | None:
    """Direction cosines of a row and a column, if they are of length one and at right angles."""
    cosines = _numbers(value, 6)
    if cosines is None:
        return None
    row, column = cosines[:3], cosines[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    across = sum(a * b for a, b in zip(row, column))
    return cosines if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(across)) < 1e-2 else None
