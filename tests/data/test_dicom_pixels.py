"""DICOM: what the numbers in a slice are, however they are stored, and what is refused before it is decoded."""

from d2_covid.data.dicom_headers import LeftOut, read_frames
from d2_covid.data.dicom_series import assemble
from d2_covid.data.preprocessing import network_input, window_to_uint8
from d2_covid.data.volumes import Problem, Series
from d2_covid.errors import UserError

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from .conftest import one_series, read_all, voxels, warned


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless],
    ids=lambda syntax: syntax.name[:20],
)
def test_transfer_syntaxes_give_the_same_network_input(scans, tmp_path, syntax):
    volume = scans.body(3)
    series = one_series(scans.dicom_series(tmp_path, volume, syntax=syntax))
    for k in range(3):
        np.testing.assert_array_equal(series.slice(k), volume[k])
        expected = network_input(window_to_uint8(volume[k], -600, 1500), 64, 128)
        assert network_input(series.gray(k, -600, 1500), 64, 128).equal(expected)


@pytest.mark.parametrize("implicit, little", [(True, True), (False, False)], ids=["implicit", "big endian"])
def test_other_native_encodings(scans, tmp_path, implicit, little):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRBigEndian
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(tmp_path / f"{k}", dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    np.testing.assert_array_equal(voxels(one_series(tmp_path)), volume)


def test_without_preamble_and_without_suffix(scans, tmp_path):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        del dataset.file_meta
        pydicom.dcmwrite(tmp_path / f"IM{k}", dataset, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(voxels(one_series(tmp_path)), volume)


def test_slope_and_intercept_of_each_slice(scans, tmp_path):
    volume = scans.body(4)
    for k, (slope, intercept) in enumerate([(1, -1024), (2, -2000), (0.5, -1024), (1, 0)]):
        signed = {"PixelRepresentation": 1}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(volume[k], (0, 0, k), slope=slope, intercept=intercept, **signed))
    np.testing.assert_allclose(voxels(one_series(tmp_path)), volume, atol=1)


@pytest.mark.parametrize("signed, padding", [(True, -2000), (True, 63536), (False, 60000)])
def test_padding_is_air(scans, tmp_path, signed, padding):
    """Even where the padding's own type says unsigned and the pixels are signed."""
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), intercept=0 if signed else -1024, PixelRepresentation=int(signed))
        pixels = np.frombuffer(dataset.PixelData, np.int16 if signed else np.uint16).reshape(40, 48).copy()
        pixels[:5] = -2000 if signed else 60000
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "US" if padding > 0 else "SS", padding)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    volume[:, :5] = -1024
    np.testing.assert_array_equal(voxels(one_series(tmp_path)), volume)


@pytest.mark.parametrize("turned", [False, True])
def test_monochrome1_is_hounsfield_as_stored_or_turned_round(scans, tmp_path, turned):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
        if turned:
            dataset.PixelData = (4095 - np.frombuffer(dataset.PixelData, np.uint16)).astype(np.uint16).tobytes()
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "MONOCHROME1", "turned round" if turned else "as stored")


def test_monochrome1_gray_is_turned_round(scans, tmp_path):
    gray = window_to_uint8(scans.body(3), -600, 1500)
    for k in range(3):
        tags = {"intercept": 0, "PhotometricInterpretation": "MONOCHROME1"}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(255 - gray[k].astype(int), (0, 0, k), **tags))
    (problem,) = read_all(tmp_path)
    assert isinstance(problem, Problem) and "--assume-window" in problem.message
    np.testing.assert_array_equal(voxels(one_series(tmp_path, assume_window=True)), gray)


@pytest.mark.parametrize(
    "tags, message",
    [
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 x 1 voxels; a slice may have 16,777,216 pixels at most"),
        ({"Rows": 4000, "Columns": 4000}, "is incomplete"),
        ({"Rows": 0}, "claims"),
        ({"BitsAllocated": 64}, "64 bits a pixel"),
        ({"RescaleSlope": 0}, "rescale slope 0"),
        ({"ModalityLUTSequence": [Dataset()]}, "by a table"),
        ({"PixelData": None}, "is incomplete"),
    ],
)
def test_bad_headers_are_refused_before_pixels_are_read(scans, tmp_path, tags, message):
    (problem,) = read_all(scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0], **tags)))
    assert problem.failed and message in problem.message and "\n" not in problem.message


@pytest.mark.parametrize("window", [["50", "-600"], "", ["x"]])
def test_windows_in_the_header_do_not_matter(scans, tmp_path, window):
    dataset = scans.dicom(scans.body()[0])
    dataset[0x00281050] = pydicom.DataElement(0x00281050, "LO", window)
    scans.save(tmp_path / "x.dcm", dataset)
    assert one_series(tmp_path).num_slices == 1


def test_a_deflated_bomb_is_refused(scans, tmp_path):
    dataset = scans.dicom(scans.body()[0], syntax=DeflatedExplicitVRLittleEndian)
    dataset.add_new(0x00091001, "OB", b"\0" * (2**26 + 2))
    scans.save(tmp_path / "bomb.dcm", dataset)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2**20
    assert "inflates to more than" in read_all(tmp_path)[0].message


@pytest.mark.parametrize(
    "syntax, marker, offset, size",
    [(JPEGLSLossless, b"\xff\xf7", 5, 2), (JPEG2000Lossless, b"\xff\x51", 6, 4)],
    ids=["JPEG-LS", "JPEG 2000"],
)
@pytest.mark.parametrize("claim", [65535, 41])
def test_a_compressed_stream_of_another_size_is_refused_before_it_is_decoded(
    scans, tmp_path, syntax, marker, offset, size, claim
):
    data = bytearray(scans.dicom_bytes(scans.dicom(scans.body()[0], syntax=syntax)))
    at = data.index(marker, data.index(b"\xe0\x7f\x10\0")) + offset
    data[at : at + 2 * size] = claim.to_bytes(size, "big") * 2
    (problem,) = read_all(scans.save(tmp_path / "bomb.dcm", bytes(data)))
    assert f"its compressed data {claim} x {claim} of 1 component(s)" in problem.message


def _box(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A box of a JP2 file; ``length`` 0: to the end of the file, 1: in 64 bits."""
    if length == 1:
        return b"\0\0\0\1" + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (8 + len(content) if length is None else length).to_bytes(4, "big") + kind + content


def _in_jp2(scans, plane, length: int | None = None, claim: int | None = None) -> bytes:
    """A slice whose code stream lies in a JP2 file's boxes; ``claim`` is the size that the stream says it has."""
    dataset = scans.dicom(plane, syntax=JPEG2000Lossless)
    stream = bytearray(next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
    if claim:
        stream[8:16] = claim.to_bytes(4, "big") * 2
    sizes = b"".join(n.to_bytes(4, "big") for n in plane.shape)
    header = _box(b"ihdr", sizes + bytes([0, 1, 15, 7, 0, 0])) + _box(b"colr", bytes([1, 0, 0, 0, 0, 0, 17]))
    boxes = _box(b"jP  ", b"\r\n\x87\n") + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + _box(b"jp2h", header)
    dataset.PixelData = pydicom.encaps.encapsulate([boxes + _box(b"jp2c", bytes(stream), length)])
    dataset["PixelData"].is_undefined_length = True
    return scans.dicom_bytes(dataset)


@pytest.mark.parametrize("length", [None, 0, 1])
def test_jpeg_2000_in_the_boxes_of_a_jp2_file(scans, tmp_path, length):
    volume = scans.body(1)
    series = one_series(scans.save(tmp_path / "x.dcm", _in_jp2(scans, volume[0], length)))
    np.testing.assert_array_equal(voxels(series), volume)


@pytest.mark.parametrize("length, claim, found", [
    (None, 65535, "65535 x 65535 of 1 component(s)"), (1, 41, "41 x 41 of 1 component(s)"), (7, None, "no size"),
])  # fmt: skip
def test_a_stream_of_another_size_in_a_jp2_file_is_refused(scans, tmp_path, length, claim, found):
    (problem,) = read_all(scans.save(tmp_path / "x.dcm", _in_jp2(scans, scans.body()[0], length, claim)))
    assert f"its compressed data {found}; replace or remove it." in problem.message


def test_a_missing_decoder_is_said_with_the_command(scans, tmp_path, monkeypatch):
    from d2_covid.data import dicom_pixels

    scans.dicom_series(tmp_path, scans.body(3), syntax=JPEGLSLossless)
    monkeypatch.setattr(dicom_pixels, "_missing_decoder", lambda syntax: "JPEG-LS Lossless Image Compression")
    (problem,) = read_all(tmp_path)
    assert "JPEG-LS" in problem.message and "pip install 'd2_covid[dicom]'" in problem.message


def test_pydicom_missing_is_said_with_the_command(scans, tmp_path, monkeypatch):
    path = scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0]))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r"needs pydicom.*pip install 'd2_covid\[dicom\]'"):
        read_frames(path)


def test_a_slice_damaged_inside_costs_itself_only(scans, tmp_path):
    volume = scans.body()
    scans.dicom_series(tmp_path / "good", volume, series="1.1")
    series = one_series(scans.dicom_series(tmp_path / "bad", volume, series="1.2", syntax=RLELossless))
    path = series.instances[2].path  # none of those that are looked at to tell the unit
    data = bytearray(path.read_bytes())
    data[-300:-8] = bytes(292)  # within the frame: its end is marked as before
    path.write_bytes(data)
    good, bad = sorted(read_all(tmp_path), key=lambda one: one.identifier)
    assert (good.identifier, bad.identifier) == ("1.1", "1.2")
    with pytest.raises(UserError, match=path.name) as error:
        bad.slice(2)
    assert "\n" not in str(error.value)
    for k in (0, 1, 3, 4, 5, 6, 7):
        np.testing.assert_array_equal(bad.slice(k), good.slice(k))


def test_a_file_that_vanishes_or_changes_while_read(scans, tmp_path):
    series = one_series(scans.dicom_series(tmp_path, scans.body(3)))
    scans.save(series.source_files[0], scans.dicom(scans.body(1, 8, 8)[0]))
    with pytest.raises(UserError, match="changed while"):
        series.slice(0)
    series.source_files[1].unlink()
    with pytest.raises(UserError, match="no such file"):
        series.slice(1)


def test_headers_are_read_without_pixels(scans, tmp_path):
    frames = read_frames(scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0])))
    assert not isinstance(frames, LeftOut) and len(frames) == 1
    (series,) = assemble(frames)
    assert isinstance(series, Series) and series.num_slices == 1


def test_signed_monochrome1_is_turned_round_within_its_bits(scans, tmp_path):
    volume = scans.body(3)
    tags = {"PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME1", "intercept": 0}
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), **tags)
        dataset.PixelData = (-1 - np.frombuffer(dataset.PixelData, np.int16)).tobytes()
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "MONOCHROME1", "turned round")


def test_a_range_of_padding_is_air(scans, tmp_path):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(40, 48).copy()
        pixels[:5] = 60000 + np.arange(5)[:, None]
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "US", 60004)
        dataset.add_new(0x00280121, "US", 60000)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    volume[:, :5] = -1024
    np.testing.assert_array_equal(voxels(one_series(tmp_path)), volume)
