"""From records and predictions to named panels."""

import json

from d2_covid.data.lesion_masks import encode_mask
from d2_covid.errors import UserError
from d2_covid.visualization.gallery import dataset_panels, find_slices, read_predictions, sample, unique_stems

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image


def record(folder, image_id: int, patient: str = "3") -> dict:
    file = folder / f"{image_id}.png"
    Image.fromarray(np.full((64, 48), 90, np.uint8)).save(file)
    mask = np.zeros((64, 48), bool)
    mask[10:22, 5:17] = True
    annotation = {
        "bbox": [5, 10, 12, 12],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": encode_mask(mask),
        "iscrowd": 0,
    }
    return {
        "file_name": str(file),
        "height": 64,
        "width": 48,
        "image_id": image_id,
        "patient_id": patient,
        "annotations": [annotation],
    }


def result(image_id: int, score: float) -> dict:
    mask = np.zeros((64, 48), bool)
    mask[40:52, 30:42] = True
    return {
        "image_id": image_id,
        "category_id": 1,
        "score": score,
        "bbox": [30, 40, 12, 12],
        "segmentation": encode_mask(mask),
    }


def without(*keys: str) -> dict:
    return {key: value for key, value in result(1, 0.5).items() if key not in keys}


def test_panels_carry_patient_slice_and_predictions_above_the_threshold(tmp_path):
    records = [record(tmp_path, 1), record(tmp_path, 2)]
    (tmp_path / "predictions.json").write_text(json.dumps([result(1, 0.9), result(2, 0.3)]))
    predict = read_predictions(tmp_path / "predictions.json", records, {1: 0})
    first, second = dataset_panels(records, ["lesion"], predict, score_threshold=0.5)
    (alone,) = dataset_panels(records[:1], ["lesion"])
    assert (first.name, first.text) == ("3_1", "patient 3 · 1.png")
    assert first.image.shape[1] == second.image.shape[1] > alone.image.shape[1]
    last = -(first.image.shape[1] // 3 - 10)
    assert (first.image[:, last:] != second.image[:, last:]).any()  # drawn above the threshold, left out below


def test_panels_of_slices_of_unknown_patients_have_the_names_of_their_files(tmp_path):
    unknown = record(tmp_path, 1)
    del unknown["patient_id"]
    unnamed, named = dataset_panels([unknown, record(tmp_path, 2)], ["lesion"])
    assert (unnamed.name, unnamed.text, named.name) == ("1", "1.png", "3_2")


def test_a_slice_that_cannot_be_read_costs_no_other_its_panel(tmp_path):
    records = [record(tmp_path, 1), record(tmp_path, 2), record(tmp_path, 3)]
    (tmp_path / "1.png").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "2.png")
    empty, other_size, good = dataset_panels(records, ["lesion"])
    assert isinstance(empty, UserError) and "1.png" in str(empty)
    assert isinstance(other_size, UserError) and "2.png" in str(other_size)
    assert good.name == "3_3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("[", "holds no predictions"),
        ('{"version": 1}', "holds no predictions"),
        ('[{"bbox": [1, 2, 3, 4]}]', "holds no predictions"),
        (json.dumps([result(7, 0.5)]), "slice 7, which the dataset lacks"),
        (json.dumps([{**result(1, 0.5), "category_id": 4}]), "category 4, which the dataset lacks"),
        (
            json.dumps([{**result(1, 0.5), "segmentation": {"size": [48, 64], "counts": "PP3"}}]),
            "mask for slice 1 is 48x64, and the slice 64x48 pixels",
        ),
        (
            json.dumps([{**result(1, 0.5), "segmentation": {"size": [64, 48], "counts": [100, 20]}}]),
            "mask for slice 1 .*: its runs add up to 120 pixels, not 3072",
        ),
        (
            json.dumps([{**result(1, 0.5), "segmentation": {"size": [64, 48], "counts": "~"}}]),
            "mask for slice 1 .*: its counts are no compressed run-length code",
        ),
        (json.dumps([{**result(1, 0.5), "segmentation": {"size": [64, 48]}}]), "mask for slice 1 .* add up to 0"),
        (json.dumps([{**result(1, 0.5), "segmentation": {"counts": [3072]}}]), "mask for slice 1 is of no size"),
        (json.dumps([without("score")]), "prediction for slice 1 has no score; give"),
        (json.dumps([{**without("score"), "score": None}]), "prediction for slice 1 has no score; give"),
        (json.dumps([without("bbox", "segmentation")]), "prediction for slice 1 has no box and no mask; give"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path, [record(tmp_path, 1)], {1: 0})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [without("bbox"), {**without("bbox"), "bbox": None}])
def test_a_prediction_without_a_box_gets_that_of_its_mask(tmp_path, content):
    (tmp_path / "predictions.json").write_text(json.dumps([content]))
    slices = [record(tmp_path, 1)]
    predict = read_predictions(tmp_path / "predictions.json", slices, {1: 0})
    assert predict(slices[0], np.zeros((64, 48), np.uint8)).boxes.tolist() == [[30, 40, 42, 52]]


def test_samples_repeat_and_keep_the_order():
    items = list(range(100))
    chosen = sample(items, 10, seed=1)
    assert chosen == sample(items, 10, seed=1) == sorted(chosen)
    assert len(set(chosen)) == 10
    assert chosen != sample(items, 10, seed=2)
    assert sample(items, None, 0) == sample(items, 100, 0) == sample(items, 500, 0) == items


def test_slices_are_found_below_a_folder_in_natural_order(tmp_path):
    tmp_path = tmp_path / ".hidden"  # what is above the folder is the user's own
    tmp_path.mkdir()
    for name in ("b/10.png", "b/2.png", "a.JPG", "notes.txt", "b/._2.png", ".cache/1.png", "@eaDir/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_slices(tmp_path)] == ["a.JPG", "b/2.png", "b/10.png"]
    with pytest.raises(UserError, match="no such folder"):
        find_slices(tmp_path / "missing")
    with pytest.raises(UserError, match="no image"):
        (tmp_path / "empty").mkdir()
        find_slices(tmp_path / "empty")


def test_file_names_are_unique_on_any_system():
    assert unique_stems(["a", "b", "a", "A", "p/1: x", "a_2"]) == ["a", "b", "a_2", "A_3", "p_1__x", "a_2_2"]
