"""Instances from every source come out as the same arrays, and are matched as COCO matches."""

from dataclasses import replace

from d2_covid.visualization.instances import (
    InstanceArrays,
    from_coco_results,
    from_dataset_dict,
    from_instances,
    in_crowd,
    match,
)

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((64, 48), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def made(*squares: tuple[int, int, int], classes=None, scores=None, masks=True) -> InstanceArrays:
    boxes = np.array([[left, top, left + side, top + side] for top, left, side in squares], float).reshape(-1, 4)
    return InstanceArrays(
        boxes,
        np.array(classes or [0] * len(squares), int),
        np.array([square(*s) for s in squares], bool).reshape(-1, 64, 48) if masks else None,
        None if scores is None else np.array(scores, float),
    )


def test_every_source_gives_the_same_arrays():
    mask = square(10, 5, 12)
    expected_box = [5, 10, 17, 22]
    truth = from_dataset_dict(
        {
            "height": 64,
            "width": 48,
            "annotations": [
                {"bbox": [5, 10, 12, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": rle(mask)}
            ],
        }
    )
    results = from_coco_results(
        [{"bbox": [5, 10, 12, 12], "category_id": 2, "score": 0.5, "segmentation": rle(mask)}], 64, 48, {1: 0, 2: 1}
    )
    model_output = Instances((64, 48))
    model_output.pred_boxes = Boxes(torch.tensor([expected_box], dtype=torch.float32))
    model_output.pred_classes = torch.tensor([1])
    model_output.scores = torch.tensor([0.5])
    model_output.pred_masks = torch.from_numpy(mask[None])
    predicted = from_instances(model_output)
    for instances in (truth, results, predicted):
        assert instances.boxes.tolist() == [expected_box]
        assert instances.classes.tolist() == [1]
        assert instances.masks.dtype == bool and (instances.masks[0] == mask).all()
    assert truth.scores is None
    assert results.scores.tolist() == predicted.scores.tolist() == [0.5]


def test_slices_without_instances_and_instances_without_masks():
    empty = from_dataset_dict({"height": 64, "width": 48, "annotations": []})
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 64, 48)
    assert len(from_dataset_dict({"height": 64, "width": 48})) == 0
    boxes_only = from_coco_results([{"bbox": [1, 2, 3, 4], "category_id": 1, "score": 1.0}], 64, 48, {1: 0})
    assert boxes_only.masks is None and boxes_only.boxes.tolist() == [[1, 2, 4, 6]]


def test_score_threshold_keeps_the_threshold_itself_and_all_ground_truth():
    assert len(made((0, 0, 5), (9, 9, 5), (20, 20, 5), scores=[0.9, 0.5, 0.49]).above(0.5)) == 2
    assert len(made((0, 0, 5)).above(0.5)) == 1


@pytest.mark.parametrize("masks", [True, False])
def test_match_is_one_to_one_and_the_better_score_comes_first(masks):
    truth = made((10, 10, 10), masks=masks)
    # Both overlap the one lesion enough; the second scores higher.
    predictions = made((11, 10, 10), (10, 10, 10), (40, 30, 10), scores=[0.6, 0.9, 0.99], masks=masks)
    found, correct = match(truth, predictions)
    assert found.tolist() == [True]
    assert correct.tolist() == [False, True, False]


def test_match_wants_the_same_class_and_half_of_the_union():
    truth = made((10, 10, 10), classes=[0])
    assert match(truth, made((10, 10, 10), classes=[1], scores=[1]))[0].tolist() == [False]
    # 10x10 squares shifted by s overlap by (10 - s) / (10 + s): 0.54 at 3, 0.43 at 4.
    assert match(truth, made((13, 10, 10), scores=[1]))[1].tolist() == [True]
    assert match(truth, made((14, 10, 10), scores=[1]))[1].tolist() == [False]


@pytest.mark.parametrize("masks", [True, False])
def test_crowd_regions_are_nothing_to_find_and_excuse_what_lies_in_them(masks):
    crowd = np.array([True, False])
    truth = replace(made((0, 0, 30), (40, 30, 10), masks=masks), crowd=crowd)
    assert truth.lesions.tolist() == truth.select(np.array([0, 1])).lesions.tolist() == [False, True]
    squares = (0, 0, 30), (5, 5, 10), (40, 30, 10), (5, 5, 10), (0, 26, 10)  # fits; in it; the lesion; class; beside it
    predictions = made(*squares, classes=[0, 0, 0, 1, 0], scores=[0.9] * 5, masks=masks)
    found, correct = match(truth, predictions)
    assert found.tolist() == [False, True]
    assert correct.tolist() == [False, False, True, False, False]
    assert in_crowd(truth, predictions, correct).tolist() == [True, True, False, False, False]


def test_crowd_regions_come_from_the_dataset_dict():
    annotation = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    annotations = [annotation, {**annotation, "iscrowd": 0}, {**annotation, "iscrowd": 1}]
    record = {"height": 64, "width": 48, "annotations": annotations}
    assert from_dataset_dict(record).lesions.tolist() == [True, True, False]
    nothing = from_dataset_dict({"height": 64, "width": 48})
    assert nothing.lesions.shape == (0,) and not len(in_crowd(nothing, nothing, np.zeros(0, bool)))


@pytest.mark.parametrize(("truth", "predictions"), [(0, 0), (0, 2), (2, 0)])
def test_match_with_nothing_on_a_side(truth, predictions):
    squares = [(0, 0, 5), (20, 20, 5)]
    found, correct = match(made(*squares[:truth]), made(*squares[:predictions], scores=[1.0] * predictions))
    assert found.shape == (truth,) and correct.shape == (predictions,)
    assert not found.any() and not correct.any()
