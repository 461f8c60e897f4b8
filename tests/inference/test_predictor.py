"""The predictor: which model it is, what it is fed, and what it refuses."""

import dataclasses
import json
import pickle

from d2_covid import get_config
from d2_covid.data.discovery import discover
from d2_covid.data.lung import lung_mask
from d2_covid.data.mappers import LesionDatasetMapper
from d2_covid.data.preprocessing import window_to_uint8
from d2_covid.data.slice_datasets import COVID_CT_CLASSES
from d2_covid.data.slice_mapper import SliceMapper
from d2_covid.data.volumes import series_from_array
from d2_covid.engine.carried_config import carried_facts, config_from_facts, silent_differences
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.inference.model_source import find_config, model_names, resolve_model
from d2_covid.inference.predictor import Predictor

import numpy as np
import pytest
import torch
from PIL import Image

SPACING = (2.0, 1.0, 0.8)
COUNT = 3


@pytest.fixture(scope="module")
def classifier(classifier_weights):
    return Predictor(weights=classifier_weights, device="cpu", score_threshold=0.0)


@pytest.fixture(scope="module")
def segmentation(make_weights):
    weights = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml")
    return Predictor(weights=weights, device="cpu", score_threshold=0.0)


# ---- the same input as in training ----


def _png(scans, folder, volume):
    return [_image(folder / f"{k}.png", window_to_uint8(plane, -600, 1500)) for k, plane in enumerate(volume)][0].parent


def _png_16(scans, folder, volume):
    planes = [window_to_uint8(plane, -600, 1500).astype(np.uint16) * 257 for plane in volume]
    return [_image(folder / f"{k}.png", plane) for k, plane in enumerate(planes)][0].parent


def _image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


READERS = {
    "png": _png,
    "16-bit png": _png_16,
    "dicom": lambda scans, folder, volume: scans.dicom_series(folder, volume),
    "compressed dicom": lambda scans, folder, volume: scans.dicom_series(folder, volume, syntax="1.2.840.10008.1.2.5"),
    "enhanced dicom": lambda scans, folder, volume: scans.save(folder / "x.dcm", scans.enhanced_dicom(volume)),
    "nifti": lambda scans, folder, volume: scans.nifti(folder / "x.nii", volume),
    "nifti.gz": lambda scans, folder, volume: scans.nifti(folder / "x.nii.gz", volume.astype(np.float32)),
    "metaimage": lambda scans, folder, volume: scans.itk(folder / "x.mha", volume),
    "nrrd": lambda scans, folder, volume: scans.itk(folder / "x.nrrd", volume, compressed=True),
    "array": lambda scans, folder, volume: series_from_array(volume, SPACING),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_gives_the_bytes_of_evaluation(reader, segmentation, scans, tmp_path):
    volume = scans.body(COUNT)
    source = READERS[reader](scans, tmp_path / "scan", volume)
    series = source if reader == "array" else next(iter(discover([source])))
    mappers = LesionDatasetMapper(segmentation.cfg, is_train=False), SliceMapper(segmentation.cfg, is_train=False)
    for index, plane in enumerate(volume):
        file = _image(tmp_path / f"plain{index}.png", window_to_uint8(plane, -600, 1500))
        record = {"file_name": str(file), "height": plane.shape[0], "width": plane.shape[1], "annotations": []}
        fed = segmentation.network_input(series, index)
        assert fed.dtype == torch.uint8 and fed.shape == (3, 64, 77)
        for mapper in mappers:
            assert torch.equal(mapper(record)["image"], fed)


def test_what_is_fed_is_what_the_model_gets(segmentation, scans, monkeypatch):
    series, got = series_from_array(scans.body(5), SPACING), []
    plain = segmentation.model.forward
    monkeypatch.setattr(segmentation.model, "forward", lambda records: got.extend(records) or plain(records))
    segmentation.series(series)
    assert len(got) == 5 and (got[0]["height"], got[0]["width"]) == series.shape[1:]
    assert all(torch.equal(record["image"], segmentation.network_input(series, i)) for i, record in enumerate(got))


def test_another_window_is_another_input(segmentation, lesion_weights, scans):
    series = series_from_array(scans.body(1), SPACING)
    other = Predictor(weights=lesion_weights, device="cpu", window=(40, 400))
    assert other.window == (40.0, 400.0)
    expected = window_to_uint8(series.slice(0), 40, 400)
    assert (other.network_input(series, 0)[0].numpy() == expected).all()


# ---- results ----


def test_slice_volume_and_files_agree(classifier, scans, tmp_path):
    volume = scans.body(COUNT)
    by_volume = classifier.volume(volume, SPACING)
    by_dicom = classifier.series(scans.dicom_series(tmp_path / "scan", volume))
    alone = classifier.slice(volume[1], SPACING[1:])
    gray = classifier.slice(window_to_uint8(volume[1], -600, 1500))
    assert len(alone.instances) > 0 and alone.image_class in classifier.image_classes
    for other in (by_volume.slices[1], by_dicom.slices[1], gray):
        assert [one.mask for one in other.instances] == [one.mask for one in alone.instances]
        assert np.allclose([one.box for one in other.instances], [one.box for one in alone.instances], atol=1e-2)
        assert other.image_scores == pytest.approx(alone.image_scores, abs=1e-5)
    first = alone.instances[0]
    assert first.area_mm2 == pytest.approx(first.area_px * 0.8) and gray.instances[0].area_mm2 is None
    scores = [one.score for one in alone.instances]
    assert scores == sorted(scores, reverse=True)
    assert by_volume.lesion_volume_ml == pytest.approx(by_dicom.lesion_volume_ml, rel=1e-3)
    assert [rule.rule for rule in by_volume.classes] == ["any_k", "top_k_mean", "mean"]


def test_the_class_of_a_series_takes_as_many_slices_as_the_config_says(classifier, scans):
    cfg = classifier.cfg.clone()
    cfg.defrost()
    cfg.TEST.PATIENT_K = 1
    any_k, top, mean = Predictor(cfg, device="cpu").volume(scans.body(COUNT), SPACING).classes
    assert (any_k.k, top.rule, top.k, len(top.deciding_slices), mean.k) == (1, "top_k_mean", 1, 1, None)


def test_the_lung_of_hounsfield_units_is_found_by_them_whatever_the_spacing(classifier, scans):
    values = scans.body(1)[0]
    dense = np.where(values < -400, values + 600, values)  # no lung any more, but still the darkest
    assert lung_mask(window_to_uint8(dense, -600, 1500)).any()
    for one in (values, dense):
        alone, placed = classifier.slice(one), classifier.slice(one, SPACING[1:])
        assert alone.lung_mask == placed.lung_mask and alone.lung_area_px == placed.lung_area_px
    assert alone.lung_area_px == 0


def test_contributions_explain_the_class(classifier, scans):
    result = classifier.slice(scans.body(1)[0])
    found = result.contributions
    assert 0 < len(found) <= 16 and found.rows.sum() == 16
    assert np.abs(found.shares).sum() == pytest.approx(1, abs=1e-5)
    assert found.boxes.shape == (len(found), 4) and found.boxes.max() <= 48


def test_results_are_frozen_and_repeat(classifier, scans):
    volume = scans.body(COUNT)
    one, two = classifier.volume(volume, SPACING), classifier.volume(volume, SPACING)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.identifier = "x"
    assert [s.instances for s in one.slices] == [s.instances for s in two.slices]
    assert [s.image_scores for s in one.slices] == [s.image_scores for s in two.slices]


def test_the_threshold_keeps_what_scores_as_much(segmentation, scans):
    plane = scans.body(1)[0]
    scores = [one.score for one in segmentation.slice(plane).instances]
    assert len(scores) > 2
    at = Predictor(segmentation.cfg, device="cpu", score_threshold=scores[1])
    assert [one.score for one in at.slice(plane).instances] == scores[:2]


def test_a_model_without_masks_still_classifies(make_weights, scans):
    predictor = Predictor(weights=make_weights("classification/covid_ct_mask_net_R_18_T2_FPN.yaml"), score_threshold=0)
    result = predictor.volume(scans.body(2), SPACING)
    assert result.image_class and result.lesion_volume_ml is None and result.lesions is None
    assert all(one.mask is None and one.area_px is None for s in result.slices for one in s.instances)


def test_loose_images_of_several_sizes(segmentation, scans, tmp_path):
    sizes = [(40, 48), (40, 48), (48, 40), (64, 64)]
    for index, (rows, columns) in enumerate(sizes):
        _image(tmp_path / f"{index}.png", window_to_uint8(scans.body(1, rows, columns)[0], -600, 1500))
    result = segmentation.series(tmp_path)
    assert [(one.height, one.width) for one in result.slices] == sizes
    assert result.lesion_volume_ml is None and result.lesion_count is None and 0 <= result.lesion_share_of_lung <= 1
    assert result.slices[2].instances == segmentation.series(tmp_path / "2.png").slices[0].instances


def test_a_bad_image_costs_only_itself(segmentation, scans, tmp_path):
    for index in range(3):
        _image(tmp_path / f"{index}.png", window_to_uint8(scans.body(1)[0], -600, 1500))
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    result = segmentation.series(tmp_path)
    assert [one.index for one in result.slices] == [0, 2]
    assert result.failed_slices[0].index == 1 and "1.png" in result.failed_slices[0].message


@pytest.mark.parametrize("kind", ["dicom", "image", "another volume"])
def test_what_can_not_be_read_beside_a_series_is_a_warning(kind, segmentation, scans, tmp_path):
    if kind == "image":
        for index in range(3):
            _image(tmp_path / f"{index}.png", window_to_uint8(scans.body(1)[0], -600, 1500))
    else:
        scans.dicom_series(tmp_path, scans.body(3))
        scans.save(tmp_path / "scout.dcm", scans.dicom(scans.body(1)[0], ImageType=["ORIGINAL", "LOCALIZER"]))
    bad = tmp_path / "bad.nii.gz" if kind == "another volume" else sorted(tmp_path.iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:-2500] if kind == "dicom" else b"\x1f\x8b" if bad.suffix == ".gz" else b"\x89PNG")
    result = segmentation.series(tmp_path)
    assert result.num_slices == (3 if kind == "another volume" else 2)
    assert [bad.name in warning for warning in result.warnings].count(True) == 1
    assert not any("scout" in warning for warning in result.warnings)


# ---- refused ----


def test_several_series_and_none_are_refused(segmentation, scans, tmp_path):
    scans.dicom_series(tmp_path / "two" / "a", scans.body(2), series="1.5")
    scans.dicom_series(tmp_path / "two" / "b", scans.body(2), series="1.6")
    (tmp_path / "none").mkdir()
    for folder, message in (("two", "more than one series"), ("none", "no CT"), ("missing", "no such file")):
        with pytest.raises(UserError, match=message):
            segmentation.series(tmp_path / folder)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 8, 8), np.uint8), "volume"),
        (np.full((8, 8), 3, np.int16), "Hounsfield"),
        (np.zeros((8, 8), complex), "numbers"),
    ],
)
def test_arrays_that_are_no_slice(segmentation, array, message):
    with pytest.raises(UserError, match=message):
        segmentation.slice(array)


def test_gray_of_another_type_is_taken_when_said(segmentation):
    gray = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    expected = segmentation.slice(gray)
    for array in (gray.astype(np.float32), gray.astype(int), gray / 255):
        found = segmentation.slice(array, assume_window=True)
        assert [one.score for one in found.instances] == [one.score for one in expected.instances]


def test_settings_that_make_no_sense(lesion_weights):
    for options in ({"score_threshold": 1.5}, {"score_threshold": float("nan")}, {"window": (0, 0)}):
        with pytest.raises(UserError):
            Predictor(weights=lesion_weights, device="cpu", **options)
    with pytest.raises(UserError, match="device"):
        Predictor(weights=lesion_weights, device="teapot")


# ---- which model ----


def test_every_shipped_model_is_found_by_name():
    assert "mask_rcnn_R_18_T1_FPN" in model_names()
    for name in model_names():
        assert find_config(name).stem == name
    assert find_config("segmentation/mask_rcnn_R_18_T1_FPN.yaml") == find_config("mask_rcnn_R_18_T1_FPN")
    with pytest.raises(UserError, match="mask_rcnn_R_18_T1_FPN"):
        find_config("mask_rcnn_R18_T1_FPN")


def test_weights_alone_are_enough(make_weights, tmp_path):
    carried = resolve_model(weights=make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml"), device="cpu")
    assert carried.cfg.INPUT.MIN_SIZE_TEST == 64 and carried.cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[16, 32]]
    assert carried.name == "mask_rcnn_R_18_T2_merge" and carried.lesion_classes == ("lesion",)

    bare = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml", carried=False)
    with pytest.raises(UserError, match="--model"):
        resolve_model(weights=bare, device="cpu")
    carried.cfg.TEST.DTYPE = "float16"  # what a GPU trained, a CPU may use
    (bare.parent / "config.yaml").write_text(carried.cfg.dump())
    assert Predictor(weights=bare, device="cpu").cfg.INPUT.MIN_SIZE_TEST == 64


def test_classes_travel_with_the_weights():
    cfg = get_config("classification/covid_ct_mask_net_R_18_T2_FPN.yaml", ["MODEL.CLASSIFIER.NUM_CLASSES", "2"])
    cfg.DATASETS.TRAIN = ("covid_ct_train",)
    facts = carried_facts(cfg)
    assert facts["image_classes"] == list(COVID_CT_CLASSES) and json.dumps(facts)
    assert config_from_facts(facts, "x").MODEL.CLASSIFIER.NUM_CLASSES == 2
    assert config_from_facts({}, "x") is None
    with pytest.raises(UserError, match="update d2_covid"):
        config_from_facts({"config": {"MODEL": {"FROM_THE_FUTURE": 1}}}, "x")


def test_a_model_whose_first_class_is_a_disease_says_so(make_weights):
    weights = make_weights("classification/covid_ct_mask_net_R_18_T2_FPN.yaml", "MODEL.CLASSIFIER.NUM_CLASSES", "2")
    content = read_checkpoint(weights)
    content["d2_covid"]["image_classes"] = ["ill", "healthy"]
    write_checkpoint(weights, content)
    (warning,) = resolve_model(weights=weights, device="cpu").warnings
    assert warning.startswith("Of the image classes ill, healthy the first, ill, is taken for the one without disease")


def test_a_config_that_differs_in_silence_is_told(make_weights):
    weights = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml")
    facts = read_checkpoint(weights)["d2_covid"]
    cfg = config_from_facts(facts, weights)
    assert silent_differences(cfg, facts) == []
    cfg.INPUT.MIN_SIZE_TEST = 512
    (warning,) = resolve_model(cfg, weights, "cpu").warnings
    assert "INPUT.MIN_SIZE_TEST 512, theirs is 64" in warning


def test_weights_of_another_model_are_refused_in_a_sentence(lesion_weights, classifier_weights):
    with pytest.raises(UserError, match="MASK_TYPE 'both'"):
        Predictor("mask_rcnn_R_18_T2_FPN", lesion_weights, "cpu")
    with pytest.raises(UserError, match="T2"):
        Predictor("covid_ct_mask_net_R_18_T1_FPN", classifier_weights, "cpu")


def test_more_classes_than_the_mask_type_names_are_refused_in_a_line(make_weights):
    weights = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    message = rf"^{weights}: .*NUM_CLASSES is 3, .*MASK_TYPE 'merge' has 1 .*\(lesion\); .* by --model\.$"
    with pytest.raises(UserError, match=message):
        resolve_model(weights=weights, device="cpu")


class _Harm:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("harm", ["torn", "pickle", "torch pickle", "empty", "folder", "missing", "text"])
def test_torn_and_foreign_weights_are_refused(harm, lesion_weights, tmp_path, capfd):
    path = tmp_path / "model.pth"
    data = lesion_weights.read_bytes()
    if harm == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "pickle":
        path.write_bytes(pickle.dumps({"model": _Harm()}))
    elif harm == "torch pickle":
        torch.save({"model": {}, "x": _Harm()}, path)
    elif harm == "folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes(b"" if harm == "empty" else b"weights")
    with pytest.raises(UserError, match="model.pth"):
        Predictor(weights=path, device="cpu")
    assert "code ran" not in capfd.readouterr().out


def test_facts_that_are_none_of_ours(tmp_path):
    path = tmp_path / "model.pth"
    write_checkpoint(path, {"model": {"a": torch.zeros(1)}, "d2_covid": "hello"})
    with pytest.raises(UserError, match="does not say which model"):
        Predictor(weights=path, device="cpu")


def test_without_weights():
    with pytest.raises(UserError, match="--weights"):
        Predictor("mask_rcnn_R_18_T1_FPN")
