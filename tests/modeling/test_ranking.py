from d2_covid.modeling.ranking import rank_detections, repeat_in_place

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = (100, 200)
OPTIONS = {
    "features": "deltas",
    "score_thresh": -0.01,
    "nms_thresh": 0.75,
    "drop_empty": True,
    "padding": "even",
    "padding_seed": 0,
}


def detections(scores, boxes=None, deltas=None):
    """(R, K) scores, and boxes that do not overlap, with deltas that tell their owner."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    scores = scores[:, None] if scores.dim() == 1 else scores
    r, k = scores.shape
    if boxes is None:
        x = torch.arange(r, dtype=torch.float32)
        boxes = torch.stack((x, torch.zeros(r), x + 1, torch.full((r,), 5.0)), dim=1).repeat(1, k)
    if deltas is None:
        deltas = torch.arange(r * k * 4, dtype=torch.float32).reshape(r, k * 4)
    return scores, deltas, torch.as_tensor(boxes, dtype=torch.float32)


def rank(scores, deltas, boxes, counts=None, sizes=None, num_rois=5, **options):
    counts = counts or [len(scores)]
    sizes = sizes or [SIZE] * len(counts)
    return rank_detections(scores, deltas, boxes, counts, sizes, num_rois=num_rois, **{**OPTIONS, **options})


# --- repeat_in_place -------------------------------------------------------------------------------------------------


def test_even_padding_gives_the_papers_example():
    index = repeat_in_place(torch.tensor([3]), 5)
    assert torch.tensor([3, 1, 2])[index[0]].tolist() == [3, 3, 1, 2, 2]


def test_sampled_padding_reaches_the_papers_example():
    reached = {tuple(repeat_in_place(torch.tensor([3]), 5, "sampled", seed)[0].tolist()) for seed in range(100)}
    assert (0, 0, 1, 2, 2) in reached
    assert len(reached) == 6, "two more rows out of three detections, with replacement, stand in six ways"


@given(n=st.integers(1, 60), extra=st.integers(0, 60), padding=st.sampled_from(["even", "sampled"]))
@settings(deadline=None)
def test_order_never_breaks_and_every_detection_appears(n, extra, padding):
    index = repeat_in_place(torch.tensor([n]), n + extra, padding, seed=n)[0]
    assert len(index) == n + extra
    assert (index.diff() >= 0).all()
    assert index.unique().tolist() == list(range(n))
    if padding == "even":
        times = torch.bincount(index)
        assert times.max() - times.min() <= 1


def test_padding_is_deterministic_and_independent_of_the_batch():
    together = repeat_in_place(torch.tensor([7, 0, 3]), 20, "sampled", seed=4)
    for i, n in enumerate([7, 0, 3]):
        assert torch.equal(together[i : i + 1], repeat_in_place(torch.tensor([n]), 20, "sampled", seed=4))
    assert not torch.equal(together, repeat_in_place(torch.tensor([7, 0, 3]), 20, "sampled", seed=5))
    assert (together[1] == -1).all()


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="even, sampled"):
        repeat_in_place(torch.tensor([1]), 2, "odd")


# --- rank_detections -------------------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    num_classes=st.integers(1, 2),
    num_rois=st.integers(1, 10),
    seed=st.integers(0, 10_000),
    padding=st.sampled_from(["even", "sampled"]),
)
@settings(deadline=None, max_examples=150)
def test_ranked_batch_of_any_detections(counts, num_classes, num_rois, seed, padding):
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    # Few different scores: ties are the rule.
    scores = torch.randint(0, 6, (total, num_classes), generator=generator) / 5
    corner = torch.rand(total, num_classes, 2, generator=generator) * 90
    size = torch.randint(0, 3, (total, num_classes, 2), generator=generator) * 15  # a third without area
    boxes = torch.cat((corner, corner + size), dim=2).flatten(1)
    deltas = torch.randn(total, num_classes * 4, generator=generator)
    batch = rank(scores, deltas, boxes, counts, num_rois=num_rois, padding=padding, nms_thresh=0.5)

    assert batch.rows.shape == (len(counts), num_rois, 5)
    assert (batch.rows[:, :, 0].diff(dim=1) <= 0).all()
    start = 0
    for i, count in enumerate(counts):
        kept = int(batch.kept[i])
        part = slice(start, start + count)
        valid = (size[part] > 0).all(-1)
        assert kept <= min(num_rois, int(valid.sum()))
        assert (kept == 0) == (not valid.any())
        if kept:
            assert batch.detection[i].unique().tolist() == list(range(kept))
            roi, cls = batch.roi[i], batch.classes[i]
            assert torch.equal(batch.rows[i, :, 0], scores[part][roi, cls])
            assert torch.equal(batch.rows[i, :, 1:], deltas[part].reshape(count, num_classes, 4)[roi, cls])
            assert valid[roi, cls].all()
            assert batch.rows[i, 0, 0] == scores[part][valid].max(), "the best valid detection leads"
        else:
            assert not batch.rows[i].any() and not batch.boxes[i].any()
            assert (batch.roi[i] == -1).all() and (batch.classes[i] == -1).all() and (batch.detection[i] == -1).all()
        alone = rank(
            scores[part], deltas[part], boxes[part], [count], num_rois=num_rois, padding=padding, nms_thresh=0.5
        )
        assert torch.equal(alone.rows[0], batch.rows[i]), "an image's rows do not depend on its neighbours"
        start += count


def test_one_detection_fills_every_row():
    batch = rank(*detections([0.3]), num_rois=4)
    assert batch.kept.tolist() == [1]
    assert torch.equal(batch.rows[0], torch.tensor([[0.3, 0, 1, 2, 3]]).expand(4, 5))


def test_more_than_d_detections_keep_the_best():
    batch = rank(*detections([0.1, 0.9, 0.5, 0.7, 0.3]), num_rois=3)
    assert batch.roi[0].tolist() == [1, 3, 2]
    assert batch.kept.tolist() == [3]


def test_equal_scores_keep_the_order_of_rois_then_classes():
    scores, deltas, boxes = detections([[0.5, 0.5], [0.5, 0.5], [0.9, 0.5]])
    batch = rank(scores, deltas, boxes, num_rois=6)
    assert list(zip(batch.roi[0].tolist(), batch.classes[0].tolist(), strict=True)) == [
        (2, 0),
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 1),
    ]


def test_nms_is_class_wise_and_image_wise():
    boxes = [[10.0, 10, 30, 30] * 2] * 2
    scores, deltas, boxes = detections([[0.9, 0.2], [0.8, 0.7]], boxes)
    one = rank(scores, deltas, boxes, num_rois=4)
    assert one.kept.tolist() == [2]
    assert one.roi[0].unique_consecutive().tolist() == [0, 1]
    assert one.classes[0].unique_consecutive().tolist() == [0, 1]
    two = rank(scores, deltas, boxes, counts=[1, 1], num_rois=4)
    assert two.kept.tolist() == [2, 2]
    assert two.roi.unique().tolist() == [0], "RoIs are counted within their image"


@pytest.mark.parametrize("drop_empty, kept", [(True, 1), (False, 4)])
def test_empty_boxes(drop_empty, kept):
    # A fine one, one without width, one above the slice and one to its right.
    boxes = [[5, 5, 9, 9], [5, 5, 5, 9], [0, -9, 4, 0], [300, 5, 310, 9]]
    batch = rank(*detections([0.1, 0.9, 0.8, 0.7], boxes), drop_empty=drop_empty)
    assert batch.kept.tolist() == [kept]
    if drop_empty:
        assert (batch.roi == 0).all()


@pytest.mark.parametrize("thresh, kept", [(-0.01, 3), (0.0, 2), (0.5, 1)])
def test_score_threshold_below_zero_keeps_all(thresh, kept):
    assert rank(*detections([0.0, 0.4, 0.9]), score_thresh=thresh).kept.tolist() == [kept]


def test_numbers_that_are_not_finite_are_left_out():
    scores, deltas, boxes = detections([0.9, float("nan"), 0.7, 0.6])
    boxes[0, 0] = float("inf")
    deltas[2, 1] = float("nan")
    batch = rank(scores, deltas, boxes)
    assert batch.roi.unique().tolist() == [3]
    assert batch.rows.isfinite().all()


def test_boxes_are_shares_of_the_image():
    scores, deltas, boxes = detections([0.9], [[20.0, 10, 250, 50]])
    batch = rank(scores, deltas, boxes, features="boxes", num_rois=2)
    assert torch.allclose(batch.rows[0, 0], torch.tensor([0.9, 0.1, 0.1, 1.0, 0.5]))
    assert batch.boxes[0, 0].tolist() == [20, 10, 200, 50], "clipped to the image"
    double = rank(scores, deltas, boxes * 2, sizes=[(200, 400)], features="boxes", num_rois=2)
    assert torch.allclose(double.rows, batch.rows), "resolution does not matter"


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="deltas, boxes"):
        rank(*detections([0.9]), features="masks")


@pytest.mark.parametrize("features", ["deltas", "boxes"])
def test_gradients_reach_scores_and_numbers_of_ranked_rows_only(features):
    scores, deltas, boxes = detections([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    for tensor in (scores, deltas, boxes):
        tensor.requires_grad_(True)
    batch = rank(scores, deltas, boxes, num_rois=3, features=features)
    assert batch.kept.tolist() == [3]
    batch.rows.sum().backward()
    ranked = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert torch.equal(scores.grad, ranked)
    numbers = (deltas if features == "deltas" else boxes).grad.reshape(3, 2, 4)
    assert torch.equal((numbers != 0).any(-1), ranked.bool())


def test_a_repeated_row_collects_the_gradient_of_its_repeats():
    scores, deltas, boxes = detections([0.9, 0.8, 0.7])
    scores.requires_grad_(True)
    rank(scores, deltas, boxes, num_rois=5).rows[..., 0].sum().backward()
    assert scores.grad.flatten().tolist() == [2, 1, 2]


def test_class_agnostic_regression_serves_every_class():
    scores, deltas, boxes = detections([[0.9, 0.4]])
    batch = rank(scores, deltas[:, :4], boxes[:, :4], num_rois=2)
    assert batch.classes[0].tolist() == [0, 1]
    assert torch.equal(batch.rows[0, 0, 1:], batch.rows[0, 1, 1:])


@pytest.mark.parametrize("num_classes", [1, 2])
def test_no_roi_at_all_is_defined_and_has_a_gradient(num_classes):
    scores = torch.zeros(0, num_classes, requires_grad=True)
    empty = torch.zeros(0, num_classes * 4)
    batch = rank(scores, empty, empty, counts=[0, 0], num_rois=3)
    assert batch.rows.shape == (2, 3, 5)
    assert batch.kept.tolist() == [0, 0]
    batch.rows.sum().backward()


def test_boxes_are_shares_of_their_own_image():
    boxes = torch.tensor([[20.0, 10, 60, 50], [20, 10, 60, 50]])
    scores, sizes = torch.tensor([[0.9], [0.9]]), [(100, 200), (50, 80)]
    options = OPTIONS | {"features": "boxes"}
    batch = rank_detections(scores, torch.zeros(2, 4), boxes, [1, 1], sizes, num_rois=1, **options)
    assert torch.allclose(batch.rows[0, 0, 1:], torch.tensor([0.1, 0.1, 0.3, 0.5]))
    assert torch.allclose(batch.rows[1, 0, 1:], torch.tensor([0.25, 0.2, 0.75, 1.0]))
