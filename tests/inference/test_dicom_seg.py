"""The segmentation's identity, and that it costs nothing else where it can't be made."""

import struct

from d2_covid.data.discovery import discover
from d2_covid.inference.outputs import write_outputs

import highdicom
import pydicom
import pytest


@pytest.fixture
def write(known, scans, tmp_path):
    """``write(name, tags)`` predicts on one series anew; gives the segmentation's path and what was left out."""
    scans.dicom_series(tmp_path / "scan", scans.body(3), PatientID="MRN-4711")

    def run(name, tags=()):
        (series,) = discover([tmp_path / "scan"])
        (tmp_path / name).mkdir()
        result = known.series(series)
        left_out = write_outputs(tmp_path / name, result, series, known, ("json", "dicom-seg"), dict(tags))
        return tmp_path / name / "lesions.seg.dcm", left_out

    return run


def test_the_same_lesions_have_the_same_uid_and_others_another(write, known, monkeypatch):
    plain = type(known.model).forward

    def first_only(self, records):
        return [{"instances": output["instances"][:1]} for output in plain(self, records)]

    def uid(name, tags=()):
        found = pydicom.dcmread(write(name, tags)[0])
        assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID
        return found.SOPInstanceUID

    first = uid("a")
    assert uid("b") == first
    assert uid("c", {"PatientID": "MRN-4711"}) != first
    monkeypatch.setattr(type(known.model), "forward", first_only)  # as a higher threshold would
    assert uid("d") != first


@pytest.mark.parametrize("error", [OSError("for data_element"), struct.error("required"), IndexError("no item")])
def test_a_segmentation_that_cannot_be_encoded_costs_itself_only(write, monkeypatch, error):
    def refuse(self, *args, **options):
        raise error

    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", refuse)
    path, left_out = write("out")
    assert str(error) in left_out["dicom-seg"] and not path.exists() and (path.parent / "predictions.json").is_file()


@pytest.mark.parametrize("kept, label", [(slice(0, 1), "GGO"), (slice(1, 2), "consolidation")])
def test_a_class_that_is_found_alone_is_the_first_segment(kept, label, write, known, monkeypatch, tmp_path):
    plain = type(known.model).forward

    def some(self, records):
        return [{"instances": output["instances"][kept]} for output in plain(self, records)]

    monkeypatch.setattr(type(known.model), "forward", some)
    path, left_out = write("out")
    segmentation = highdicom.seg.segread(path)
    assert left_out == {}
    assert [(one.SegmentNumber, one.SegmentLabel) for one in segmentation.SegmentSequence] == [(1, label)]
    for source in map(pydicom.dcmread, (tmp_path / "scan").iterdir()):
        values = source.pixel_array.astype(int) - 1024
        expected = values == 700 if label == "consolidation" else (values <= -850) & (values > -860)
        (plane,) = segmentation.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
        assert expected.any() and ((plane == 1) == expected).all()
