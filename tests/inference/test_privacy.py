"""Nothing that a header says of a patient comes out, in any output, unless ``--keep-tags`` names it.

Every text and date element of DICOM's dictionary gets a marker of its own; every byte that the command writes, packed
or not, is searched for all of them.
"""

import base64
import gzip
import re
from pathlib import Path

from d2_covid.cli import main
from d2_covid.data.limits import reading
from d2_covid.errors import UserError
from d2_covid.inference import predict_command
from d2_covid.inference.outputs import NEEDS

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
DAY, TIME, AGE, WEIGHT = "19430217", "031729.415926", "083Y", "87.654321"
# What reading needs, and what the file would be no CT without.
READ = {"Modality", "ImageType", "PhotometricInterpretation", "SpecificCharacterSet"}
MARKER = re.compile(rb"ZQ[0-9A-F]{8}", re.IGNORECASE)


def _marker(tag: int) -> str:
    return f"ZQ{tag:08X}"


def _plant(dataset: Dataset) -> dict[str, str]:
    """Give every element of text, date, time and age a marker; returns keyword -> marker of the text ones."""
    planted = {}
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if not keyword or keyword in READ or group < 8 or group in (0x0FFF, 0xFFFC, 0xFFFE) or tag in dataset:
            continue
        if vr in TEXT:
            planted[keyword] = _marker(tag)
            dataset.add_new(tag, vr, _marker(tag))
        elif vr in ("DA", "DT"):
            dataset.add_new(tag, vr, DAY)
        elif vr == "TM":
            dataset.add_new(tag, vr, TIME)
    return planted


@pytest.fixture(scope="module")
def planted(scans, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A series with a marker wherever a header has room for one."""
    folder = tmp_path_factory.mktemp("planted")
    for k, values in enumerate(scans.body(3)):
        dataset = scans.dicom(values, (-20, -30, 10 + 2 * k), number=k + 1, PatientName=None, PatientID=None)
        markers = _plant(dataset)
        dataset.PatientAge, dataset.PatientWeight = AGE, WEIGHT
        inner = Dataset()
        inner.PatientID, inner.PatientName, inner.PersonAddress = "ZQAAAA0001", "ZQAAAA0002^X", "ZQAAAA0003"
        for name in ("OtherPatientIDsSequence", "RequestAttributesSequence", "ReferencedStudySequence"):
            setattr(dataset, name, [inner])
        private = dataset.private_block(0x0011, "ZQAAAA0004", create=True)
        private.add_new(1, "LO", "ZQAAAA0005")
        private.add_new(2, "UN", b"ZQAAAA0006")
        private.add_new(3, "SQ", [inner])
        dataset.file_meta.SourceApplicationEntityTitle = "ZQAAAA0007"
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
        dataset.file_meta.PrivateInformation = b"ZQAAAA0008"
        dataset.preamble = b"ZQAAAA0009".ljust(128, b"\0")
        dataset.add_new(0xFFFCFFFC, "OB", b"ZQAAAA0010")  # what follows the pixels
        scans.save(folder / f"{k}.dcm", dataset)
    assert {
        *("PatientName", "PatientID", "PatientAddress", "InstitutionName", "PatientComments", "StudyDescription"),
        *("ReferringPhysicianName", "OperatorsName", "SeriesDescription", "ProtocolName"),
    } <= markers.keys()
    assert len(markers) > 700
    return folder, markers


@pytest.fixture
def predict(known, monkeypatch, tmp_path, capfd):
    """``predict(*arguments)`` saves all that can be saved; gives the status and every byte that came out, by where."""
    monkeypatch.setattr(predict_command, "Predictor", lambda *args, **options: known)

    def run(*arguments) -> tuple[int, dict[str, bytes]]:
        output = tmp_path / "out"
        status = main(["predict", *map(str, arguments), "-o", str(output), "--save", ",".join(NEEDS)])
        shown = capfd.readouterr()
        contents = {"stdout": shown.out.encode(), "stderr": shown.err.encode()}
        for path in output.rglob("*"):
            if path.is_file():
                contents[str(path.relative_to(output))] = _unpacked(path)
        return status, contents

    return run


def _unpacked(path: Path) -> bytes:
    """A file's name and bytes, and what is packed in it: gzip, and base64 in pages."""
    content = path.read_bytes()
    found = [str(path).encode(), content]
    if content[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(content))
    if path.suffix == ".png":
        with Image.open(path) as image:
            assert not image.info.keys() - {"dpi"}, f"{path}: {image.info}"
    if path.suffix in (".html", ".json"):
        found += [base64.b64decode(m + b"=" * (-len(m) % 4)) for m in re.findall(rb"[A-Za-z0-9+/]{64,}", content)]
    return b"\n".join(found)


def _leaks(contents: dict[str, bytes]) -> dict[str, set[bytes]]:
    """Markers by where they came out; also as two-byte text."""
    secrets = [DAY, "1943-02-17", TIME, "03:17:29", AGE, WEIGHT]
    found = {}
    for where, content in contents.items():
        leaked = set(MARKER.findall(content)) | set(MARKER.findall(content.replace(b"\0", b"")))
        leaked |= {secret.encode() for secret in secrets if secret.encode() in content}
        if leaked:
            found[where] = leaked
    return found


def test_no_output_tells_of_the_patient(planted, predict):
    status, contents = predict(planted[0])
    assert status == 0 and _leaks(contents) == {}
    written = {Path(name).name for name in contents}
    assert {"predictions.json", "lesions.nii.gz", "lung.nii.gz", "lesions.seg.dcm", "0000.png", "run.json"} <= written
    assert ("report.html" in written) == ("report" in NEEDS)


def test_only_what_keep_tags_names_is_kept(planted, predict, tmp_path):
    folder, markers = planted
    status, contents = predict(folder, "--keep-tags", "PatientID")
    kept = markers["PatientID"].encode()
    assert status == 0 and set().union(*_leaks(contents).values()) == {kept}
    segmentation = pydicom.dcmread(next((tmp_path / "out").rglob("*.seg.dcm")))
    assert segmentation.PatientID == kept.decode() and not segmentation.PatientName and not segmentation.StudyDate


def test_enhanced_multi_frame(scans, predict, tmp_path):
    dataset = scans.enhanced_dicom(scans.body(3))
    del dataset.PatientName, dataset.PatientID
    _plant(dataset)
    for group in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
        inner = Dataset()
        inner.FrameComments, inner.FrameLaterality = "ZQAAAA0011", "R"
        group.FrameAnatomySequence = [inner]
        for item in (*group.get("PlanePositionSequence", ()), *group.get("PixelMeasuresSequence", ())):
            item.ImageComments = "ZQAAAA0012"
    scans.save(tmp_path / "in" / "enhanced.dcm", dataset)
    status, contents = predict(tmp_path / "in")
    assert status == 0 and "lesions.seg.dcm" in " ".join(contents) and _leaks(contents) == {}


ENCODED = ("RescaleSlope", "PixelSpacing", "ImagePositionPatient", "InstanceNumber", "NumberOfFrames", "Rows",
           "PixelPaddingValue", "Modality", "PhotometricInterpretation", "TransferSyntaxUID")  # fmt: skip


@pytest.mark.parametrize("keyword", ENCODED)
def test_errors_do_not_quote_a_header(keyword, scans, predict, tmp_path):
    """Text where a number or a code belongs, as careless software writes it."""
    folder = scans.dicom_series(tmp_path / "in", scans.body(2))
    path = sorted(folder.iterdir())[0]
    dataset = pydicom.dcmread(path)
    if keyword == "TransferSyntaxUID":
        syntax = dataset.file_meta.TransferSyntaxUID.encode()
        path.write_bytes(path.read_bytes().replace(syntax, b"ZQ00000001".ljust(len(syntax))))
    else:  # with an explicit type, the text is read as it stands
        dataset[keyword] = DataElement(tag_for_keyword(keyword), "LO", "ZQ00000001")
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert MARKER.search(path.read_bytes())
    _, contents = predict(folder)
    assert _leaks(contents) == {}


def test_text_of_nifti_and_nrrd_headers_is_not_carried_over(scans, predict, tmp_path):
    path = scans.nifti(tmp_path / "in" / "scan.nii.gz", scans.body(3))
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    header = image.header
    header["descrip"], header["aux_file"], header["db_name"] = b"ZQ00000001", b"ZQ00000002", b"ZQ00000003"
    header["intent_name"] = b"ZQ00000004"
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"ZQ00000005"))
    nibabel.save(nibabel.Nifti1Image(data, image.affine, header), path)
    assert MARKER.findall(gzip.decompress(path.read_bytes()))
    for suffix in (".nrrd", ".mha"):
        volume = SimpleITK.ReadImage(str(scans.itk(tmp_path / "in" / f"other{suffix}", scans.body(3))))
        volume.SetMetaData("PatientName", "ZQ00000006")
        volume.SetMetaData("Comment", "ZQ00000007")
        SimpleITK.WriteImage(volume, str(tmp_path / "in" / f"other{suffix}"))
    status, contents = predict(tmp_path / "in")
    assert status == 0 and sum("lung.nii.gz" in name for name in contents) == 3 and _leaks(contents) == {}


def test_text_in_images_is_not_carried_over(predict, tmp_path):
    (tmp_path / "in").mkdir()
    pixels = Image.fromarray(np.full((40, 48), 84, np.uint8))
    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", "ZQ00000001")
    words.add_itxt("Patient", "ZQ00000002", zip=True)
    pixels.save(tmp_path / "in" / "a.png", pnginfo=words)
    exif = Image.Exif()
    exif[0x010E] = "ZQ00000003"  # ImageDescription
    pixels.save(tmp_path / "in" / "b.jpg", exif=exif, comment=b"ZQ00000004")
    status, contents = predict(tmp_path / "in")
    assert status == 0 and any(name.endswith("0001.png") for name in contents) and _leaks(contents) == {}


@pytest.mark.parametrize("quoted", ["'ZQ00000001'", '"ZQ00000001"', "b'ZQ00000001'"])
def test_what_a_reader_quotes_is_left_out(quoted):
    with pytest.raises(UserError, match=r"a\.dcm is damaged or unreadable \(it can't take '\.\.\.' of length 10\)"):
        with reading("a.dcm"):
            raise ValueError(f"it can't take {quoted} of length 10")
