"""Pixels of one DICOM frame, by pydicom and its decoders."""

import functools
import struct
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .dicom_headers import DicomFrame, inflated_dataset
from .limits import check_shape, one_line, reading


def read_values(frame: DicomFrame, inverted: bool = False) -> np.ndarray:
    """Read a frame and apply its rescale slope and intercept.

    Args:
        inverted: turn the stored values round within their bits first (see :func:`.dicom_series.decide`).

    Returns:
        (rows, columns) ``float32``; NaN where the header says that a stored value stands for none.

    Raises:
        UserError: the file is gone, changed or damaged, or has no decoder here; the message says which.
    """
    with reading(frame.path):
        stored = _stored(frame)
        if stored.shape != (frame.rows, frame.columns):
            raise UserError(f"{one_line(frame.path)} changed while it was read; run again.")
        padded = None
        if frame.padding is not None:
            padded = (stored >= frame.padding[0]) & (stored <= frame.padding[1])
        values = stored.astype(np.float64)
        if inverted:
            values = frame.highest_stored + frame.lowest_stored - values
        values = (values * frame.slope + frame.intercept).astype(np.float32)
        if padded is not None:
            values[padded] = np.nan
        return values


def _stored(frame: DicomFrame) -> np.ndarray:
    import pydicom
    from pydicom.pixels import pixel_array
    from pydicom.uid import UID

    with open(frame.path, "rb") as file:
        has_preamble = file.read(132)[128:] == b"DICM"
        file.seek(0)
        if not has_preamble or inflated_dataset(frame.path) is not None:
            dataset = pydicom.dcmread(file, force=True)
            dataset.file_meta.setdefault("TransferSyntaxUID", UID("1.2.840.10008.1.2"))
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                raise UserError(f"{one_line(frame.path)} is compressed but has no DICOM preamble; replace it.")
            check_shape(frame.path, (int(dataset.Rows), int(dataset.Columns)))
            return pixel_array(dataset, index=frame.frame)
        meta = pydicom.filereader.read_file_meta_info(frame.path)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        _check_decoder(frame, syntax)
        _check_code_stream(frame, syntax, file)
        return pixel_array(file, index=frame.frame)


def _check_code_stream(frame: DicomFrame, syntax: str, file: BinaryIO) -> None:
    """Refuse a frame whose compressed stream has another size than the header says.

    A decoder takes memory by the stream's own word: 65,535 x 65,535 in a file of 300 KB takes 17 GB and two minutes.
    """
    import pydicom
    from pydicom.encaps import get_frame

    measure = _STREAM_SIZES.get(syntax)
    if measure is None:
        return
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    file.seek(12, 1)  # tag, type and length of the pixel data; what follows are the fragments
    stream = get_frame(file, frame.frame, number_of_frames=int(header.get("NumberOfFrames", 1) or 1))
    file.seek(0)
    size = measure(bytes(stream))
    if size != (frame.rows, frame.columns, 1):
        found = "no size" if size is None else "{1} x {0} of {2} component(s)".format(*size)
        raise UserError(
            f"{one_line(frame.path)} is damaged: its header says {frame.columns} x {frame.rows} pixels, its compressed "
            f"data {found}; replace or remove it."
        )


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of a JPEG or JPEG-LS stream: of the frame header before its first scan.

    The decoders' own functions for this decode the whole stream first.
    """
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (_JPEG_SCAN, _JPEG_HIERARCHY):
            return None
        if marker in _JPEG_FRAMES:
            return struct.unpack(">HHB", stream[at + 5 : at + 10])
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) of a JPEG 2000 code stream: its first segment is its size.

    DICOM has it bare; some software leaves it in the boxes of a JP2 file, which decoders take, too.
    """
    if stream.startswith(_JP2_SIGNATURE):
        stream = _code_stream(stream)
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 42:
        return None
    right, bottom, left, top, components = struct.unpack(">4I16xH", stream[8:42])
    return bottom - top, right - left, components


def _code_stream(boxes: bytes) -> bytes:
    """The first code stream in the boxes of a JP2 file; empty if there is none."""
    at = 0
    while at + 8 <= len(boxes):
        length, kind = struct.unpack(">I4s", boxes[at : at + 8])
        begin = at + 8
        if length == 1:  # what follows is the length, in 64 bits
            begin, length = at + 16, int.from_bytes(boxes[at + 8 : at + 16], "big")
        end = at + length if length else len(boxes)  # 0: to the end
        if end < begin:
            break
        if kind == b"jp2c":
            return boxes[begin:end]
        at = end
    return b""


def _check_decoder(frame: DicomFrame, syntax: str) -> None:
    name = _missing_decoder(syntax)
    if name:
        raise UserError(
            f"{one_line(frame.path)} is compressed as {name}, and no decoder for it is installed; "
            "pip install 'd2_covid[dicom]'."
        )


@functools.cache
def _missing_decoder(syntax: str) -> str | None:
    """The name of a transfer syntax that needs a decoder and has none; pydicom's own errors for the rest."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        return one_line(uid.name, 80) if uid.is_valid else "no known syntax"
    return None if decoder.is_available else one_line(uid.name, 80)


# Start of frame, of any process; 0xF7 is JPEG-LS's.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_HIERARCHY = 0xDA, 0xDE
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_STREAM_SIZES = {
    **{f"1.2.840.10008.1.2.4.{number}": _jpeg_size for number in (50, 51, 57, 70, 80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": _jpeg2000_size for number in (90, 91, 201, 202, 203)},
}
