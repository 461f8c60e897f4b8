"""COCO AP: hand-computed cases, equality with pycocotools, weights, and what is undefined."""

import contextlib
import io
import math
import time

from d2_covid.data.lesion_masks import encode_mask
from d2_covid.evaluation.average_precision import AveragePrecision
from d2_covid.evaluation.slice_instances import collect_slices

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES = ("GGO", "consolidation")


def score(dicts, predictions, classes=("lesion",), task="segm", max_detections=128):
    return AveragePrecision(collect_slices(dicts, predictions, classes), classes, task, max_detections)


def pycocotools_stats(dicts, predictions, classes, task, max_detections=100):
    """The twelve figures that COCOeval prints, by way of its own files and ``loadRes``."""
    truth = {
        "info": {},
        "images": [{"id": d["image_id"], "height": d["height"], "width": d["width"]} for d in dicts],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(classes)],
        "annotations": [],
    }
    for item in dicts:
        for annotation in item["annotations"]:
            row = {"id": len(truth["annotations"]) + 1, "image_id": item["image_id"]}
            row |= {key: annotation[key] for key in ("bbox", "segmentation", "iscrowd")}
            # The lesions are rectangles.
            row |= {"category_id": annotation["category_id"] + 1, "area": annotation["bbox"][2] * annotation["bbox"][3]}
            truth["annotations"].append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        kept = ("image_id", "category_id", "score", "segmentation" if task == "segm" else "bbox")
        evaluation = COCOeval(coco, coco.loadRes([{key: row[key] for key in kept} for row in predictions]), task)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(lesions, task, seed):
    dicts, predictions = lesions.random_case(seed)
    ours = score(dicts, predictions, CLASSES, task, max_detections=100).values
    theirs = pycocotools_stats(dicts, predictions, CLASSES, task)
    expected = [math.nan if value < 0 else 100 * value for value in theirs.stats[:6]]
    assert [ours[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == pytest.approx(expected, nan_ok=True)
    for k, name in enumerate(CLASSES):
        assert ours[f"AP-{name}"] == pytest.approx(100 * theirs.eval["precision"][:, :, k, 0, -1].mean())
    assert 0 < ours["AP"] < 100


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_own_accumulate_at_weight_one_equals_pycocotools(lesions, task):
    for seed in range(8):
        precision = score(*lesions.random_case(seed), CLASSES, task)
        assert precision.weighted(np.ones(12, dtype=int)) == pytest.approx(precision.values, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_slices_that_occur_several_times(lesions, seed):
    """Repeated slices lie side by side, as equal scores keep the order of the slices."""
    dicts, predictions = lesions.random_case(seed, classes=1)
    weights = np.random.default_rng(seed).integers(0, 4, len(dicts))
    repeated_dicts, repeated_predictions = [], []
    for item, weight in zip(dicts, weights, strict=True):
        for copy in range(weight):
            image_id = 100 * item["image_id"] + copy
            repeated_dicts.append(item | {"image_id": image_id})
            rows = [row for row in predictions if row["image_id"] == item["image_id"]]
            repeated_predictions += [row | {"image_id": image_id} for row in rows]
    theirs = pycocotools_stats(repeated_dicts, repeated_predictions, ("lesion",), "segm")
    expected = [math.nan if value < 0 else 100 * value for value in theirs.stats[:6]]
    ours = score(dicts, predictions, max_detections=100).weighted(weights)
    assert list(ours.values()) == pytest.approx(expected, nan_ok=True)


def test_perfect_predictions_score_100(lesions):
    boxes = [(0, 5, 5, 20, 20), (1, 40, 40, 50, 50), (0, 0, 90, 150, 65)]
    dicts = [lesions.truth(1, boxes), lesions.truth(2, [])]
    predictions = lesions.found(1, [(label, 0.9, *box) for label, *box in boxes])
    for task in ("bbox", "segm"):
        values = score(dicts, predictions, CLASSES, task).values
        assert values == pytest.approx(dict.fromkeys(values, 100.0))
        assert list(values) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-GGO", "AP-consolidation"]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_more_lesions_on_a_slice_than_a_byte_counts(lesions, task):
    boxes = [(0, 5 * (i % 20), 5 * (i // 20), 4, 4) for i in range(300)]
    predictions = lesions.found(1, [(label, 0.9, *box) for label, *box in boxes])
    assert score([lesions.truth(1, boxes)], predictions, task=task, max_detections=300).values["AP"] == 100


def test_by_hand(lesions):
    """Two lesions; the first detection hits one at IoU 0.8, the second hits nothing, the third hits the other exactly.

    Precision by recall is 1 up to 0.5, then 2/3: of 101 recall points 51 lie at or below 0.5. Above IoU 0.8 the first
    detection is wrong, so the one hit comes third of three, and recall ends at 0.5: precision 1/3 on 51 points.
    """
    dicts = [lesions.truth(1, [(0, 10, 10, 10, 10), (0, 50, 50, 10, 10)])]
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 10, 8), (0, 0.8, 90, 90, 10, 10), (0, 0.7, 50, 50, 10, 10)])
    low = 100 * (51 * 1 + 50 * 2 / 3) / 101
    high = 100 * 51 / 3 / 101
    values = score(dicts, predictions).values
    assert values["AP50"] == pytest.approx(low) and values["AP75"] == pytest.approx(low)
    # IoU 0.8 itself is a hit: seven of the ten thresholds lie at or below it.
    assert values["AP"] == pytest.approx((7 * low + 3 * high) / 10)
    assert values["AP50"] == pytest.approx(83.498, abs=1e-3)


def test_detections_beyond_the_hundredth_count(lesions):
    """The one hit is the 120th of 120 detections of its slice; COCO's own limit of 100 does not see it."""
    wrong = [(0, 0.9 - i / 1000, 60 + i % 40, 60 + i // 40, 3, 3) for i in range(119)]
    dicts = [lesions.truth(1, [(0, 10, 10, 20, 20)])]
    predictions = lesions.found(1, [*wrong, (0, 0.5, 10, 10, 20, 20)])
    assert score(dicts, predictions, max_detections=100).values["AP"] == 0
    for limit in (128, 256, 0):
        assert score(dicts, predictions, max_detections=limit).values["AP"] == pytest.approx(100 / 120)


def test_limit_below_ten_is_kept(lesions):
    wrong = [(0, 0.9, 60 + 5 * i, 60, 3, 3) for i in range(5)]
    predictions = lesions.found(1, [*wrong, (0, 0.5, 10, 10, 20, 20)])
    assert score([lesions.truth(1, [(0, 10, 10, 20, 20)])], predictions, max_detections=5).values["AP"] == 0


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_no_prediction_at_all_is_zero_not_an_error(lesions, task):
    precision = score([lesions.truth(1, [(0, 10, 10, 20, 20)]), lesions.truth(2, [])], [], task=task)
    assert precision.values["AP"] == precision.values["APs"] == 0
    assert math.isnan(precision.values["APl"]) and "no ground truth of large size" in precision.notes["APl"]
    assert precision.weighted(np.array([2, 1]))["AP"] == 0


@pytest.mark.parametrize("with_predictions", [False, True])
def test_no_ground_truth_at_all_is_undefined_and_says_why(lesions, with_predictions):
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 20, 20)]) if with_predictions else []
    precision = score([lesions.truth(1, []), lesions.truth(2, [])], predictions)
    assert all(math.isnan(value) for value in precision.values.values())
    assert precision.notes["AP"] == "Undefined: no ground truth."
    assert math.isnan(precision.weighted(np.array([1, 1]))["AP"])


def test_class_without_ground_truth_is_left_out_and_named(lesions):
    precision = score([lesions.truth(1, [(0, 10, 10, 20, 20)])], lesions.found(1, [(0, 0.9, 10, 10, 20, 20)]), CLASSES)
    assert precision.values["AP"] == precision.values["AP-GGO"] == pytest.approx(100)
    assert math.isnan(precision.values["AP-consolidation"])
    assert "Without consolidation" in precision.notes["AP"]
    assert precision.instances["AP-GGO"] == 1 and precision.instances["AP-consolidation"] == 0


def test_mean_over_classes_is_undefined_where_a_weighting_loses_a_class(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 20, 20)]), lesions.truth(2, [(1, 10, 10, 20, 20)])]
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 20, 20)])
    precision = score(dicts, predictions, CLASSES)
    assert precision.values["AP"] == pytest.approx(50)
    lost = precision.weighted(np.array([2, 0]))
    assert math.isnan(lost["AP"]) and lost["AP-GGO"] == pytest.approx(100)


def test_crowd_region_is_not_a_miss_nor_a_false_positive(lesions):
    item = lesions.truth(1, [(0, 10, 10, 20, 20), (0, 80, 80, 40, 40)])
    item["annotations"][1]["iscrowd"] = 1
    predictions = lesions.found(1, [(0, 0.9, 85, 85, 10, 10), (0, 0.8, 10, 10, 20, 20)])
    precision = score([item], predictions)
    assert precision.values["AP"] == pytest.approx(100) and precision.instances["AP"] == 1
    assert precision.weighted(np.array([1]))["AP"] == pytest.approx(100)


def test_thousand_weightings_of_a_validation_set_are_fast():
    """150 slices with 128 detections each: 100 weightings, to be scaled by ten, without building masks."""
    rng = np.random.default_rng(0)
    dicts, predictions = [], []
    for image_id in range(150):
        annotations = []
        for _ in range(3):
            x, y, w, h = rng.integers(5, 200, 4).tolist()
            annotations.append({"category_id": 0, "bbox": [x, y, w, h], "bbox_mode": 1})
        dicts.append({"image_id": image_id, "height": 512, "width": 512, "annotations": annotations})
        for _ in range(128):
            box = (np.array(annotations[rng.integers(3)]["bbox"]) + rng.integers(-20, 20, 4)).clip(1).tolist()
            predictions.append({"image_id": image_id, "category_id": 1, "bbox": box, "score": float(rng.random())})
    precision = score(dicts, predictions, task="bbox")
    start = time.process_time()
    for _ in range(100):
        precision.weighted(rng.integers(0, 3, 150))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(("task", "small", "medium"), [("bbox", 100, 50), ("segm", 50, 100)])
def test_a_detection_is_as_large_as_what_the_task_compares(lesions, task, small, medium):
    """A wrong detection, surer than the right ones: a thin L of 304 pixels, which is small, in a medium box."""
    dicts = [lesions.truth(1, [(0, 10, 10, 20, 20), (0, 90, 90, 60, 60)])]
    boxes = [(0, 0.9, 40, 30, 40, 40), (0, 0.8, 10, 10, 20, 20), (0, 0.7, 90, 90, 60, 60)]
    predictions = lesions.found(1, boxes)
    mask = np.zeros((160, 160), bool)
    mask[30:70, 40:44] = mask[66:70, 40:80] = True
    predictions[0]["segmentation"] = encode_mask(mask)
    values = score(dicts, predictions, task=task, max_detections=100).values
    theirs = pycocotools_stats(dicts, predictions, ("lesion",), task).stats
    assert [values["APs"], values["APm"]] == pytest.approx([100 * theirs[3], 100 * theirs[4]])
    assert [values["APs"], values["APm"]] == pytest.approx([small, medium])


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_a_lesion_is_as_large_as_its_mask_in_both_tasks(lesions, task):
    """A thin L of 99 pixels in a box of 50 x 50: small, where its box would be medium."""
    item = lesions.truth(1, [(0, 10, 10, 50, 50)])
    item["annotations"][0]["segmentation"] = [[10, 10, 60, 10, 60, 11, 11, 11, 11, 60, 10, 60]]
    instances = score([item], lesions.found(1, [(0, 0.9, 10, 10, 50, 50)]), task=task).instances
    assert (instances["APs"], instances["APm"]) == (1, 0)
