"""Matching and sampling of a whole batch, beside Detectron2's, image by image."""

from d2_covid.modeling import matching
from d2_covid.modeling.matching import GroundTruth, box_deltas, first_true, match_boxes, padded, sample_labels

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, pairwise_iou


def random_boxes(count: int, span: float = 100.0) -> torch.Tensor:
    corners = torch.rand(count, 2) * span
    return torch.cat((corners, corners + 1 + torch.rand(count, 2) * span / 2), dim=1)


def truth_of(*counts: int) -> tuple[GroundTruth, list[torch.Tensor]]:
    boxes = [random_boxes(count) for count in counts]
    return GroundTruth.of(boxes), boxes


def test_padded_parts_come_back():
    parts = [torch.arange(6.0).view(3, 2), torch.zeros(0, 2), torch.ones(1, 2)]
    values, valid = padded(parts, 4)
    assert values.shape == (3, 4, 2) and valid.tolist() == [[True] * 3 + [False], [False] * 4, [True] + [False] * 3]
    assert all(torch.equal(row[mask], part) for row, mask, part in zip(values, valid, parts))
    assert values[~valid].abs().sum() == 0


def test_overlaps_are_detectron2s():
    truth, boxes = truth_of(5, 2)
    others = torch.stack([random_boxes(40), random_boxes(40)])
    others[0, 0] = others[0, 0, :1]  # no area
    ours = matching.pairwise_iou(truth.boxes, others)
    for i, image_boxes in enumerate(boxes):
        assert torch.equal(ours[i, : len(image_boxes)], pairwise_iou(Boxes(image_boxes), Boxes(others[i])))
    empty = torch.zeros(1, 1, 4)
    assert matching.pairwise_iou(empty, empty).item() == 0


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(
    ("thresholds", "labels"), [([0.3, 0.7], [0, -1, 1]), ([0.5], [0, 1]), ([0.1, 0.2], [-1, 0, 1])]
)
@pytest.mark.parametrize("at_once", [1, 1 << 25])
def test_matches_are_detectron2s(thresholds, labels, low_quality, at_once, monkeypatch):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    matcher = Matcher(thresholds, labels, allow_low_quality_matches=low_quality)
    truth, boxes = truth_of(4, 0, 1, 7)
    anchors = random_boxes(300)
    anchors = torch.cat((anchors, anchors[:5]))  # ties
    boxes[2][0] = truth.boxes[2, 0] = torch.tensor([500.0, 500, 510, 510])  # touches no anchor
    matched, found = match_boxes(truth, anchors[None], matcher)
    assert found.dtype == torch.int8
    for i, image_boxes in enumerate(boxes):
        expected_matches, expected_labels = matcher(pairwise_iou(Boxes(image_boxes), Boxes(anchors)))
        assert torch.equal(matched[i], expected_matches) and torch.equal(found[i], expected_labels)


@pytest.mark.parametrize(
    ("positives", "negatives", "number", "fraction"),
    [(50, 100, 40, 0.75), (3, 100, 40, 0.75), (50, 4, 40, 0.75), (0, 100, 40, 0.5), (50, 0, 40, 0.5), (9, 9, 400, 0.5)],
)
def test_quotas_are_detectron2s(positives, negatives, number, fraction):
    labels = torch.cat((torch.ones(positives), torch.zeros(negatives), -torch.ones(20))).long()
    labels = torch.stack([labels[torch.randperm(len(labels))] for _ in range(3)])
    sample = sample_labels(labels == 1, labels == 0, number, fraction)
    for i, row in enumerate(labels):
        expected = subsample_labels(row, number, fraction, 0)
        for index, counts, value, wanted in (
            (sample.positive[i], sample.is_positive[i], 1, expected[0]),
            (sample.negative[i], sample.is_negative[i], 0, expected[1]),
        ):
            chosen = index[counts]
            assert len(chosen) == len(wanted) == len(chosen.unique())
            assert (row[chosen] == value).all()


def test_every_candidate_has_the_same_chance():
    foreground = torch.zeros(4000, 12, dtype=torch.bool)
    foreground[:, 2:8] = True
    sample = sample_labels(foreground, ~foreground, 4, 0.5)
    for index, counts, candidates in (
        (sample.positive, sample.is_positive, range(2, 8)),
        (sample.negative, sample.is_negative, [0, 1, 8, 9, 10, 11]),
    ):
        assert counts.sum(1).tolist() == [2] * 4000
        share = torch.bincount(index[counts], minlength=12) / (2 * 4000)
        expected = torch.zeros(12)
        expected[list(candidates)] = 1 / 6
        assert (share - expected).abs().max() < 0.02  # five standard deviations


def test_the_seed_decides():
    mask = torch.rand(2, 500) < 0.5
    torch.manual_seed(5)
    first = sample_labels(mask, ~mask, 20, 0.5)
    torch.manual_seed(5)
    again = sample_labels(mask, ~mask, 20, 0.5)
    other = sample_labels(mask, ~mask, 20, 0.5)
    assert torch.equal(first.positive, again.positive) and torch.equal(first.negative, again.negative)
    assert not torch.equal(first.positive, other.positive)


def test_deltas_are_detectron2s():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    boxes, targets = random_boxes(30), random_boxes(30)
    torch.testing.assert_close(
        box_deltas(transform, boxes.view(5, 6, 4), targets.view(5, 6, 4)).view(-1, 4),
        transform.get_deltas(boxes, targets),
    )


def test_first_true():
    mask = torch.rand(50) < 0.3
    assert torch.equal(first_true(mask, int(mask.sum())), mask.nonzero()[:, 0])


def test_an_overlap_at_a_threshold_counts_as_above_it():
    truth = torch.tensor([[0.0, 0, 10, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 10]])  # IoU 0.5, 0.4 and 1
    matcher = Matcher([0.5], [0, 1])
    (labels,) = match_boxes(GroundTruth.of([truth]), anchors[None], matcher)[1]
    assert labels.tolist() == matcher(pairwise_iou(Boxes(truth), Boxes(anchors)))[1].tolist() == [1, 0, 1]


def test_a_quota_is_rounded_down():
    labels = torch.ones(2, 60).long()
    labels[:, 20:] = 0
    sample = sample_labels(labels == 1, labels == 0, 7, 0.25)
    expected = subsample_labels(labels[0], 7, 0.25, 0)
    assert sample.is_positive.sum(1).tolist() == [len(expected[0])] * 2 == [1, 1]
    assert sample.is_negative.sum(1).tolist() == [len(expected[1])] * 2 == [6, 6]
