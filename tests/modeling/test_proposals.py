"""Proposals of a whole batch, beside Detectron2's, image by image."""

from d2_covid.modeling import proposals as module
from d2_covid.modeling.proposals import ProposalBatch, find_proposals, suppress, suppress_in_rounds

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals

SIZES = [(100, 120), (90, 70), (100, 100)]
TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def predictions(*counts: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Anchors, logits and deltas of one level each, for :data:`SIZES`."""
    anchors = []
    for count in counts:
        corners = torch.rand(count, 2) * 90
        anchors.append(torch.cat((corners, corners + 5 + torch.rand(count, 2) * 40), dim=1))
    logits = [torch.randn(len(SIZES), count) for count in counts]
    deltas = [torch.randn(len(SIZES), count, 4) * 0.3 for count in counts]
    return anchors, logits, deltas


def detectron2s(anchors, logits, deltas, pre, post, nms_thresh, min_box_size):
    decoded = []
    for places, level in zip(anchors, deltas):
        boxes = TRANSFORM.apply_deltas(level.reshape(-1, 4), places.repeat(len(SIZES), 1))
        decoded.append(boxes.view(len(SIZES), -1, 4))
    return find_top_rpn_proposals(decoded, logits, SIZES, nms_thresh, pre, post, min_box_size, training=True)


@pytest.mark.parametrize("counts", [(400,), (300, 80, 20)])
@pytest.mark.parametrize(
    ("pre", "post", "nms_thresh", "min_box_size"), [(150, 40, 0.75, 0.0), (1000, 1000, 0.3, 0.0), (200, 30, 0.9, 12.0)]
)
def test_proposals_are_detectron2s(counts, pre, post, nms_thresh, min_box_size):
    given = predictions(*counts)
    found, finite = find_proposals(
        *given, SIZES, TRANSFORM, pre_nms_topk=pre, post_nms_topk=post, nms_thresh=nms_thresh, min_box_size=min_box_size
    )
    assert finite.item() and len(found) == 3
    for ours, theirs in zip(found, detectron2s(*given, pre, post, nms_thresh, min_box_size), strict=True):
        assert ours.image_size == theirs.image_size
        torch.testing.assert_close(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)


def test_what_is_not_finite_is_left_out_and_told():
    anchors, logits, deltas = predictions(50)
    anchors[0] += 200  # well within the image
    logits[0][0, 0], deltas[0][1, 3, 2] = torch.inf, torch.nan
    logits[0][1, 3] = 10
    found, finite = find_proposals(
        anchors, logits, deltas, [(1000, 1000)] * 3, TRANSFORM, pre_nms_topk=50, post_nms_topk=50, nms_thresh=1.0
    )
    assert not finite.item()
    assert found.valid.sum(1).tolist() == [49, 49, 50]
    assert all(torch.isfinite(x.proposal_boxes.tensor).all() for x in found)


def test_a_batch_is_made_of_detectron2s_proposals():
    given = predictions(60)
    theirs = detectron2s(*given, 60, 60, 0.5, 0.0)
    batch = ProposalBatch.of(theirs)
    assert len(batch) == 3 and ProposalBatch.of(batch) is batch
    for ours, other in zip(batch, theirs, strict=True):
        assert torch.equal(ours.proposal_boxes.tensor, other.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, other.objectness_logits)
    assert batch[1].image_size == SIZES[1]


def crowded(count: int) -> torch.Tensor:
    corners = torch.rand(2, count, 2) * 60
    return torch.cat((corners, corners + 5 + torch.rand(2, count, 2) * 40), dim=-1)


@pytest.mark.parametrize("nms_thresh", [0.3, 0.75])
@pytest.mark.parametrize("grouped", [False, True])
def test_suppression_in_rounds_is_suppression(nms_thresh, grouped):
    boxes, valid = crowded(300), torch.rand(2, 300) < 0.9
    groups = torch.randint(0, 3, (2, 300)) if grouped else None
    kept = suppress(boxes, groups, valid, nms_thresh)
    assert 0 < kept.sum() < valid.sum() and not (kept & ~valid).any()
    assert torch.equal(suppress_in_rounds(boxes, groups, valid, nms_thresh), kept)


def test_rounds_go_on_to_the_end_of_a_chain():
    """Each box overlaps the next one only, so that every second stays, and each waits for the one before it."""
    count = 5 * module._ROUNDS
    start = torch.arange(count) * 4.0
    boxes = torch.stack((start, torch.zeros(count), start + 10, torch.full((count,), 10.0)), dim=1)[None]
    kept = suppress_in_rounds(boxes, None, torch.ones(1, count, dtype=torch.bool), 0.4)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(count)]


def test_nothing_to_suppress():
    none = torch.zeros(2, 5, dtype=torch.bool)
    for function in (suppress, suppress_in_rounds):
        assert not function(torch.zeros(2, 5, 4), None, none, 0.5).any()
