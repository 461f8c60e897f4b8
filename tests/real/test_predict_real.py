"""A real DICOM series through ``d2-covid predict``; skipped where it is absent."""

import json

from d2_covid import get_config
from d2_covid.cli import main
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, write_checkpoint

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from detectron2.modeling import build_model

# As in tests/inference: few channels, small input. The model is random; what is tested is everything around it.
TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.CONV_DIMS [8] MODEL.RPN.PRE_NMS_TOPK_TEST 40 MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 4
INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 128 MODEL.ANCHOR_GENERATOR.SIZES [[16,32]]""".split()


@pytest.fixture(scope="module")
def series(real_data):
    return real_data / "ct_md" / "normal001"


@pytest.fixture(scope="module")
def output(series, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", TINY)
    torch.manual_seed(0)
    weights = {"model": build_model(cfg).state_dict(), "d2_covid": model_facts(cfg) | carried_facts(cfg)}
    write_checkpoint(folder / "model.pth", weights)
    arguments = ["--weights", str(folder / "model.pth"), "--device", "cpu", "--score-threshold", "0"]
    assert main(["predict", str(series), "-o", str(folder / "out"), "--save", "json,nifti,dicom-seg", *arguments]) == 0
    (result,) = (path for path in (folder / "out").iterdir() if path.is_dir())
    return result


@pytest.fixture(scope="module")
def source(series) -> SimpleITK.Image:
    """The series as SimpleITK reads it, sorted by GDCM."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    return reader.Execute()


def test_the_lung_lies_on_the_scans_lung(output, source):
    lung = SimpleITK.ReadImage(str(output / "lung.nii.gz"))
    for attribute in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(lung, attribute)(), getattr(source, attribute)(), atol=1e-3), attribute
    mask, values = SimpleITK.GetArrayFromImage(lung) == 1, SimpleITK.GetArrayFromImage(source)
    assert np.median(values[mask]) < -700 and (values[mask] < -500).mean() > 0.85
    found = json.loads((output / "predictions.json").read_text())["result"]
    millilitres = mask.sum() * np.prod(source.GetSpacing()) / 1000
    assert found["lung_volume_ml"] == pytest.approx(millilitres, rel=1e-4) and 1500 < millilitres < 8000
    assert not found["lung_is_approximate"]


def test_segmentation_and_nifti_hold_the_same_lesions(output, source):
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(output / "lesions.nii.gz")))
    assert mask.any()
    segmentation = highdicom.seg.segread(output / "lesions.seg.dcm")
    slices = json.loads((output / "predictions.json").read_text())["slices"]
    # Axial slice 0 is the most inferior, as is GDCM's first.
    uids = [one["sop_instance_uid"] for one in slices if mask[one["index"]].any()]
    found = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    assert np.array_equal(found, mask[mask.any(axis=(1, 2))])


def test_nothing_of_the_header_goes_out(output, series):
    first = pydicom.dcmread(next(series.glob("*.dcm")), stop_before_pixels=True)
    names = ("PatientName", "PatientID", "StudyDate", "StudyTime", "InstitutionName", "Manufacturer")
    private = [str(first.get(name)) for name in names if len(str(first.get(name, ""))) > 3]
    # Names of files are kept, whatever they say; here they start with the PatientID.
    private = [value for value in private if not any(value in path.name for path in series.iterdir())]
    assert private
    for file in (path for path in output.rglob("*") if path.is_file()):
        data = file.read_bytes()
        assert not [value for value in private if value.encode() in data], file
