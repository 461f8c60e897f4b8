"""Pixels of one DICOM frame, by pydicom and its decoders."""

import functools
import importlib
import importlib.util
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .dicom_headers import DicomFrame, inflated_dataset
from .limits import check_shape, one_line, reading

# Transfer syntaxes whose streams say their own size, and what reads it without decoding.
_STREAM_READERS = {
    **{f"1.2.840.10008.1.2.4.{n}": "libjpeg.utils" for n in (50, 51, 57, 70, 80, 81)},  # JPEG, JPEG-LS
    **{f"1.2.840.10008.1.2.4.{n}": "openjpeg" for n in (90, 91, 201, 202, 203)},  # JPEG 2000, HTJ2K
}


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

    with open(frame.path, "rb") as file:
        has_preamble = file.read(132)[128:] == b"DICM"
        file.seek(0)
        if not has_preamble or inflated_dataset(frame.path) is not None:
            dataset = pydicom.dcmread(file, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
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

    module = _STREAM_READERS.get(syntax)
    if module is None or importlib.util.find_spec(module) is None:
        return
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    file.seek(12, 1)  # tag, type and length of the pixel data; what follows are the fragments
    stream = get_frame(file, frame.frame, number_of_frames=int(header.get("NumberOfFrames", 1) or 1))
    size = importlib.import_module(module).get_parameters(bytes(stream))
    if (size["rows"], size["columns"]) != (frame.rows, frame.columns):
        raise UserError(
            f"{one_line(frame.path)} is damaged: its header says {frame.columns} x {frame.rows} pixels, its compressed "
            f"data {size['columns']} x {size['rows']}; replace or remove it."
        )
    file.seek(0)


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
        return one_line(uid.name, 80)
    return None if decoder.is_available else one_line(uid.name, 80)
