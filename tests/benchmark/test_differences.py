"""What is told apart, and what is not."""

from d2_covid.benchmark.differences import differences, worst

import pytest
import torch
from detectron2.structures import Boxes, Instances


def _found(count=6, size=(60, 80)):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=generator) * 15), dim=1)
    found = Instances(size, pred_boxes=Boxes(boxes), scores=torch.linspace(0.9, 0.4, count))
    found.pred_classes = torch.zeros(count, dtype=torch.int64)
    found.soft_masks = torch.rand(count, 28, 28, generator=generator)
    found.pred_masks = torch.zeros(count, *size, dtype=torch.bool)
    for i, box in enumerate(boxes.int().tolist()):
        found.pred_masks[i, box[1] : box[3], box[0] : box[2]] = True
    return found


def _changed(**fields):
    found = _found()
    for name, change in fields.items():
        value = getattr(found, name)
        if name == "pred_boxes":
            change(value.tensor)
        else:
            change(value)
    return found


def test_equal_detections_do_not_differ():
    found = differences(_found(), _found())
    assert (found.detections, found.unmatched, found.box_px, found.score) == (6, 0, 0, 0)
    assert (found.soft_mask, found.mask_pixels, found.pasted_iou) == (0, 0, 1)


def test_order_does_not_matter():
    other = _found()[torch.tensor([3, 1, 5, 0, 2, 4])]
    assert differences(_found(), other).unmatched == 0


@pytest.mark.parametrize(
    "change, name, value",
    [
        ({"pred_boxes": lambda t: t[2].add_(5e-4)}, "box_px", 5e-4),
        ({"scores": lambda t: t[1].add_(0.01)}, "score", 0.01),
        ({"soft_masks": lambda t: t[0, 3, 3].add_(0.25)}, "soft_mask", 0.25),
    ],
)
def test_sizes_of_differences(change, name, value):
    found = differences(_found(), _changed(**change))
    assert found.unmatched == 0 and getattr(found, name) == pytest.approx(value, rel=0.05)


def test_moved_box_and_other_class_have_no_partner():
    assert differences(_found(), _changed(pred_boxes=lambda t: t[2].add_(1.0))).unmatched == 2
    assert differences(_found(), _changed(pred_classes=lambda t: t[0].fill_(1))).unmatched == 2


def test_pixels_of_masks_count_but_not_those_at_the_threshold():
    ours = _changed(soft_masks=lambda t: t.fill_(0.4))
    assert differences(ours, _changed(soft_masks=lambda t: t.fill_(0.6))).mask_pixels > 100
    at = _changed(soft_masks=lambda t: t.fill_(0.5))
    assert differences(at, _changed(soft_masks=lambda t: t.fill_(0.4999))).mask_pixels < 60  # borders of boxes


def test_a_thin_box_that_one_dropped_is_no_difference():
    """torchvision drops it before it cuts its list, so that its last detection is one that ours has no room for."""
    theirs = _found(8)
    ours = Instances.cat([theirs[:7], theirs[7:]])[:7]
    ours.pred_boxes.tensor[2, 2] = ours.pred_boxes.tensor[2, 0] + 1e-3
    theirs = theirs[torch.tensor([0, 1, 3, 4, 5, 6, 7])]
    found = differences(ours, theirs)
    assert found.unmatched == 0 and found.detections == 6


def test_a_missing_detection_is_a_difference():
    assert differences(_found(), _found()[:5]).unmatched == 1


def test_without_detections():
    assert differences(_found()[:0], _found()[:0]).unmatched == 0
    assert differences(_found(), _found()[:0]).unmatched == 6


def test_worst_of_several():
    one, other = differences(_found(), _found()), differences(_found(), _changed(scores=lambda t: t[0].add_(0.1)))
    found = worst([one, other])
    assert found.detections == 12 and found.score == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(ValueError):
        worst([])
