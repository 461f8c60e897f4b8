"""Header fields that the user asks to keep: as text everywhere, and where they belong in a segmentation."""

from d2_covid.data.discovery import discover
from d2_covid.inference.kept_tags import read_tags
from d2_covid.inference.outputs import write_outputs

import pydicom
import pytest


@pytest.fixture
def keep(known, scans, tmp_path):
    """``keep(keywords, **header)`` gives the kept tags of a series with that header, its segmentation, and what was
    left out."""

    def run(keywords, **header):
        scans.dicom_series(tmp_path / "scan", scans.body(3), **header)
        (series,) = discover([tmp_path / "scan"])
        tags = read_tags(series, keywords)
        (tmp_path / "out").mkdir()
        save = ("json", "dicom-seg")
        left_out = write_outputs(tmp_path / "out", known.series(series), series, known, save, tags)
        return tags, pydicom.dcmread(tmp_path / "out" / "lesions.seg.dcm"), left_out

    return run


def test_numbers_of_the_images_are_kept_as_text_and_not_in_the_segmentation(keep):
    header = {"CTDIvol": 12.5, "SpiralPitchFactor": 0.9, "TableSpeed": 46.0, "ExposureTime": 500}
    tags, segmentation, left_out = keep(list(header), **header)
    assert tags == {"CTDIvol": "12.5", "SpiralPitchFactor": "0.9", "TableSpeed": "46.0", "ExposureTime": "500"}
    assert left_out == {} and not [keyword for keyword in header if keyword in segmentation]


def test_several_values_are_joined_as_dicom_joins_them(keep):
    keywords = ["PixelSpacing", "ImageType", "OtherPatientNames", "StudyDate"]
    tags, segmentation, left_out = keep(keywords, OtherPatientNames=["Doe^Jane", "Roe^Jane"])
    assert tags == {
        "PixelSpacing": "1.0\\0.8", "ImageType": "ORIGINAL\\PRIMARY\\AXIAL", "OtherPatientNames": "Doe^Jane\\Roe^Jane"
    }  # fmt: skip
    assert left_out == {} and segmentation.ImageType == ["DERIVED", "PRIMARY"]
    assert segmentation.OtherPatientNames == ["Doe^Jane", "Roe^Jane"]


def test_a_segmentation_keeps_what_is_its_own(keep):
    keywords = ["Modality", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "SeriesDescription", "Manufacturer"]
    tags, segmentation, left_out = keep(keywords, SeriesDescription="LUNG 1.0", Manufacturer="Maker")
    assert set(tags) == set(keywords) and left_out == {}
    assert segmentation.Modality == "SEG" and segmentation.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert not {tags["SeriesInstanceUID"], tags["SOPInstanceUID"]} & {
        segmentation.SeriesInstanceUID, segmentation.SOPInstanceUID
    }  # fmt: skip
    assert (segmentation.SeriesDescription, segmentation.Manufacturer) == (
        "d2_covid lesions, research use only", "d2_covid"
    )  # fmt: skip


def test_patient_and_study_go_into_the_segmentation_in_their_own_types_and_letters(keep):
    header = {"PatientName": "Müller^Zoë", "PatientWeight": 71.5, "PregnancyStatus": 4, "StudyDescription": "Thorax"}
    _, segmentation, left_out = keep([*header, "PatientID"], SpecificCharacterSet="ISO_IR 100", **header)
    assert left_out == {} and segmentation.PatientID == "test" and not segmentation.PatientBirthDate
    assert {keyword: segmentation[keyword].value for keyword in header} == header


@pytest.mark.parametrize(
    "character_set, name",
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["", "ISO 2022 IR 100"], "Müller^Zoë"),
        ("ISO-IR 100", "Müller^Zoë"),  # as careless software writes it
        ("ISO_IR 6", "Doe^Jane"),
        ("", "Doe^Jane"),
    ],
)
def test_a_segmentation_takes_text_of_any_character_set(character_set, name, keep):
    tags, segmentation, left_out = keep(["PatientName"], SpecificCharacterSet=character_set, PatientName=name)
    assert left_out == {} and tags == {"PatientName": name} and str(segmentation.PatientName) == name


@pytest.mark.parametrize("bad, kept", [(0, {"PatientID": "test"}), (1, {"PatientID": "test", "PregnancyStatus": "4"})])
def test_a_value_that_can_not_be_read_costs_no_other_output(bad, kept, known, scans, tmp_path):
    """In the first file it isn't kept; in another, there is no segmentation."""
    scans.dicom_series(tmp_path / "scan", scans.body(3), PregnancyStatus=4)
    (series,) = discover([tmp_path / "scan"])
    scans.spoil_number(series.source_files[bad], "PregnancyStatus")
    said = []
    tags = read_tags(series, ["PatientID", "PregnancyStatus"], said.append)
    assert tags == kept and [f"{series.source_files[0]}: what PregnancyStatus holds" in line for line in said] == (
        [True] if bad == 0 else []
    )
    (tmp_path / "out").mkdir()
    left_out = write_outputs(tmp_path / "out", known.series(series), series, known, ("json", "dicom-seg"), tags)
    assert (tmp_path / "out" / "predictions.json").is_file()
    assert (tmp_path / "out" / "lesions.seg.dcm").is_file() == (bad == 0)
    assert list(left_out) == ([] if bad == 0 else ["dicom-seg"])
    assert bad == 0 or "headers do not allow it" in left_out["dicom-seg"]
