"""Suppression that looks at few pairs, and at many images: the same boxes in the same order as torchvision's."""

from d2_covid.modeling import fast_nms
from d2_covid.modeling.fast_nms import nms_by_image, sparse_nms

import numpy as np
import pytest
import torch
from torchvision.ops import nms


def make_boxes(count: int, size: float, spread: float, groups: int = 1):
    """Boxes in clusters, so that many overlap; scores with many equal ones."""
    centers = torch.rand(count, 2) * spread
    centers[count // 2 :] = centers[: count - count // 2] + torch.randn(count - count // 2, 2)
    sides = torch.rand(count, 2) * size + 1
    sides[count // 2 :] = sides[: count - count // 2] * (0.9 + 0.2 * torch.rand(count - count // 2, 2))
    boxes = torch.cat((centers - sides / 2, centers + sides / 2), 1)
    return boxes, torch.rand(count).round(decimals=2), torch.randint(groups, (count,))


def one_group_after_the_other(boxes, scores, groups, threshold):
    """torchvision's NMS of each group, merged by score; of equal ones the earlier box first."""
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    kept = torch.cat(kept).sort().values if kept else torch.zeros(0, dtype=torch.int64)
    return kept[scores[kept].sort(descending=True, stable=True).indices]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("count, size, spread", [(600, 20, 300), (600, 100, 300), (300, 300, 300), (50, 20, 60)])
def test_the_same_boxes_as_torchvision(count, size, spread, threshold, groups):
    boxes, scores, group = make_boxes(count, size, spread, groups)
    expected = one_group_after_the_other(boxes, scores, group, threshold)
    assert 1 < len(expected) < count
    assert torch.equal(sparse_nms(boxes, scores, group, threshold), expected)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_ways_give_the_same(share, monkeypatch):
    monkeypatch.setattr(fast_nms, "SHARE_OF_PAIRS", share)
    monkeypatch.setattr(fast_nms, "FEW_BOXES", 0)
    for count in (1, 2, 40, 250):
        boxes, scores, group = make_boxes(count, 40, 80, 2)
        expected = one_group_after_the_other(boxes, scores, group, 0.4)
        assert torch.equal(sparse_nms(boxes, scores, group, 0.4), expected)


def test_boxes_exactly_at_the_threshold_stay(monkeypatch):
    monkeypatch.setattr(fast_nms, "FEW_BOXES", 0)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 4], [1, 0, 4, 4], [9, 9, 9, 9], [9, 9, 9, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    for threshold in (0.75, 0.74, 0.76):
        expected = nms(boxes, scores, threshold)
        assert torch.equal(sparse_nms(boxes, scores, torch.zeros(6, dtype=torch.int64), threshold), expected)


def test_one_box_after_the_other_decides():
    """A removes B, and so B does not remove C, which then removes D."""
    better, worse = np.array([0, 1, 2]), np.array([1, 2, 3])
    assert fast_nms._greedy(better, worse, 4).tolist() == [0, 2]


@pytest.mark.parametrize("limit", [-1, 0, 7, 1000])
@pytest.mark.parametrize("function", [nms_by_image, fast_nms._nms_together])
def test_an_image_does_not_depend_on_its_neighbours(function, limit):
    counts = [120, 0, 250, 1]
    parts = [make_boxes(count, 30, 100, 2) for count in counts]
    boxes, scores, groups = (torch.cat(x) for x in zip(*parts))
    order, kept = function(boxes, scores, groups, counts, 0.5, limit)
    start = 0
    for count, part, found in zip(counts, parts, order.split(kept)):
        expected = one_group_after_the_other(*part, 0.5)
        assert torch.equal(found - start, expected[:limit] if limit >= 0 else expected)
        start += count


@pytest.mark.parametrize("function", [nms_by_image, fast_nms._nms_together])
def test_no_boxes_at_all(function):
    order, kept = function(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [0, 0], 0.5, 10)
    assert order.shape == (0,) and kept == [0, 0]
