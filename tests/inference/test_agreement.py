"""How far two builds of a model agree: by hand."""

from d2_covid.inference.agreement import agreement

import pytest
import torch
from detectron2.structures import Boxes, Instances


def output(*detections, image_scores=None):
    """``detections``: (class, score, x, y, width, height); each mask fills its box."""
    rows = torch.tensor(detections, dtype=torch.float32).reshape(-1, 6)
    found = Instances((100, 100), scores=rows[:, 1], pred_classes=rows[:, 0].long())
    found.pred_boxes = Boxes(torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], dim=1))
    found.pred_masks = torch.zeros(len(rows), 100, 100, dtype=torch.bool)
    for mask, (_, _, x, y, w, h) in zip(found.pred_masks, rows.int().tolist(), strict=True):
        mask[y : y + h, x : x + w] = True
    return {"instances": found} | ({} if image_scores is None else {"image_scores": torch.tensor(image_scores)})


ONE = (0, 0.9, 10, 10, 20, 20)


def test_differences_are_the_largest_over_all_slices():
    first = [output(ONE, (0, 0.8, 50, 50, 20, 20), image_scores=[0.5, 0.5]), output(image_scores=[0.5, 0.5])]
    second = [
        output((0, 0.85, 10, 10, 20, 20), (0, 0.8, 52, 50, 20, 20), image_scores=[0.4, 0.6]),
        output(image_scores=[0.2, 0.8]),
    ]
    found = agreement(first, second, 0.5)
    assert (found.slices, found.detections, found.unmatched) == (2, 2, 0)
    assert (found.score_difference, found.box_difference_px) == pytest.approx((0.05, 2))
    assert found.mask_dice == pytest.approx((400 + 360) / 800) and found.image_score_difference == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("first", "second", "unmatched"),
    [
        ([ONE], [(1, *ONE[1:])], 2),  # another class
        ([ONE], [(0, 0.9, 13, 10, 20, 20)], 2),  # IoU 0.74
        ([ONE], [], 1),
        ([], [ONE], 1),
        ([ONE], [(0, 0.3, *ONE[2:])], 0),  # below the threshold it still is a partner
        ([(0, 0.3, *ONE[2:])], [ONE], 0),
        ([(0, 0.3, *ONE[2:])], [], 0),
    ],
)
def test_what_the_other_lacks_is_counted_on_both_sides(first, second, unmatched):
    assert agreement([output(*first)], [output(*second)], 0.5).unmatched == unmatched


def test_nothing_found_is_no_difference():
    found = agreement([output()], [output()], 0.5)
    assert (found.detections, found.unmatched) == (0, 0)
    assert found.score_difference is found.box_difference_px is found.mask_dice is found.image_score_difference is None
