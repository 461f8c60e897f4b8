"""Proposals and detections of a batch against Detectron2's, from the same features."""

from d2_covid import get_config
from d2_covid.modeling.fast_boxes import FastBoxPredictor, can_be_fast_predictor
from d2_covid.modeling.fast_proposals import FastRPN, best_first, can_be_fast_rpn

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances

from d2_covid.modeling.box_predictor import LesionBoxPredictor  # isort: skip

SIZES = [(60, 64), (48, 64)]


def make_rpn(levels: tuple[int, ...] = (8,), *opts: str):
    """An RPN on features of these strides, whose logits and deltas differ."""
    names = [f"p{stride.bit_length() - 1}" for stride in levels]
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ["MODEL.RPN.IN_FEATURES", str(names), *opts])
    shapes = {name: ShapeSpec(channels=6, stride=stride) for name, stride in zip(names, levels)}
    rpn = build_proposal_generator(cfg, shapes).eval()
    for layer in rpn.rpn_head.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data.normal_(0, 0.3)
            layer.bias.data.normal_(0, 0.1)
    features = {name: torch.randn(2, 6, 64 // stride, 64 // stride) for name, stride in zip(names, levels)}
    return rpn, features


def compare(rpn, features):
    images = ImageList(torch.zeros(2, 3, 64, 64), SIZES)
    with torch.no_grad():
        expected, _ = rpn(images, features, None)
        found, losses = FastRPN(rpn)(images, features)
    assert losses == {}
    for a, b in zip(expected, found, strict=True):
        assert a.image_size == b.image_size and len(a) == len(b)
        assert torch.allclose(a.objectness_logits, b.objectness_logits, atol=1e-5)
        moved = (a.proposal_boxes.tensor - b.proposal_boxes.tensor).abs().amax(1) > 1e-4
        # Of logits that rounding makes equal, either may come first.
        for index in moved.nonzero()[:, 0].tolist():
            near = (a.objectness_logits[index] - b.objectness_logits).abs() < 1e-5
            distance = (a.proposal_boxes.tensor[index] - b.proposal_boxes.tensor[near]).abs().amax(1)
            assert distance.min() < 1e-4
        assert moved.sum() < 0.05 * len(a) + 1
    return found


TOPK = ("MODEL.RPN.PRE_NMS_TOPK_TEST", "150", "MODEL.RPN.POST_NMS_TOPK_TEST", "60")


@pytest.mark.parametrize("name", ["RPN", "LesionRPN"])
@pytest.mark.parametrize(
    "levels, opts",
    [
        ((8,), TOPK),
        ((8,), ()),
        ((8, 16), TOPK),
        ((8,), (*TOPK, "MODEL.RPN.NMS_THRESH", "0.3")),
        ((8,), (*TOPK, "MODEL.RPN.CONV_DIMS", "[6, 5]")),
        ((8,), (*TOPK, "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "4")),
        ((8,), (*TOPK, "MODEL.ANCHOR_GENERATOR.OFFSET", "0.5")),
    ],
)
def test_the_same_proposals_in_the_same_order(name, levels, opts):
    found = compare(*make_rpn(levels, *opts, "MODEL.PROPOSAL_GENERATOR.NAME", name))
    assert all(10 < len(x) for x in found)


def test_no_proposal_at_all():
    found = compare(*make_rpn((8,), "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "1000"))
    assert [len(x) for x in found] == [0, 0]


def test_proposals_that_are_not_finite_go():
    rpn, features = make_rpn((8,), *TOPK)
    features["p3"][1, :, 4, 4] = float("inf")
    found = compare(rpn, features)
    assert all(torch.isfinite(x.proposal_boxes.tensor).all() for x in found)


def test_half_precision_features():
    rpn, features = make_rpn((8,), *TOPK)
    fast = FastRPN(rpn)
    fast.rpn_head.hidden.to(torch.bfloat16)
    images = ImageList(torch.zeros(2, 3, 64, 64), SIZES)
    with torch.no_grad():
        found, _ = fast(images, {name: x.bfloat16() for name, x in features.items()})
    assert all(x.proposal_boxes.tensor.dtype == x.objectness_logits.dtype == torch.float32 for x in found)


def test_other_networks_are_told():
    rpn, _ = make_rpn((8,))
    assert can_be_fast_rpn(rpn)
    rpn.rpn_head.conv.activation = torch.nn.GELU()
    assert not can_be_fast_rpn(rpn)
    assert not can_be_fast_rpn(torch.nn.Identity())


@pytest.mark.parametrize("limit", [1, 50, 400, 1000])
def test_the_best_are_those_of_a_stable_sort(limit):
    scores = torch.randn(3, 400).round(decimals=1)
    scores[2] = 0.5
    values, index = scores.sort(dim=1, descending=True, stable=True)
    found_values, found_index = best_first(scores, limit)
    assert torch.equal(found_values, values[:, :limit]) and torch.equal(found_index, index[:, :limit])


# ---- detections ----


def make_predictor(kind, num_classes, agnostic, **options):
    return kind(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        test_nms_thresh=0.5,
        **options,
    )


def make_predictions(num_classes: int, agnostic: bool, counts=(150, 0, 90)):
    total = sum(counts)
    corner = torch.rand(total, 2) * 50
    boxes = torch.cat((corner, corner + torch.rand(total, 2) * 20), 1).split(counts)
    proposals = [Instances(size, proposal_boxes=Boxes(x)) for size, x in zip([(60, 64), (64, 64), (40, 50)], boxes)]
    return (torch.randn(total, num_classes + 1), torch.randn(total, 4 if agnostic else 4 * num_classes)), proposals


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid", None])
@pytest.mark.parametrize("num_classes, agnostic", [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("threshold, topk", [(0.3, 20), (-0.01, 1000), (2.0, 20), (0.6, -1)])
def test_the_same_detections(score_function, num_classes, agnostic, threshold, topk):
    kind = LesionBoxPredictor if score_function else FastRCNNOutputLayers
    options = {"score_function": score_function} if score_function else {}
    plain = make_predictor(
        kind, num_classes, agnostic, test_score_thresh=threshold, test_topk_per_image=topk, **options
    )
    assert can_be_fast_predictor(plain)
    predictions, proposals = make_predictions(num_classes, agnostic)
    expected, expected_rois = plain.inference(predictions, proposals)
    found, found_rois = FastBoxPredictor(plain).inference(predictions, proposals)
    for a, b, a_rois, b_rois in zip(expected, found, expected_rois, found_rois, strict=True):
        assert a.image_size == b.image_size and torch.equal(a_rois, b_rois)
        assert torch.equal(a.pred_classes, b.pred_classes) and torch.equal(a.scores, b.scores)
        assert torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-5)
    assert (sum(map(len, found)) == 0) == (threshold > 1)


def test_predictions_that_are_not_finite_go():
    plain = make_predictor(FastRCNNOutputLayers, 2, False, test_score_thresh=0.2, test_topk_per_image=-1)
    predictions, proposals = make_predictions(2, False)
    bad = [3, 7, 151]
    predictions[0][3, 0], predictions[1][7, 2], predictions[1][151] = float("nan"), float("inf"), float("-inf")
    expected, _ = plain.inference(predictions, proposals)
    found, rois = FastBoxPredictor(plain).inference(predictions, proposals)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.scores, b.scores) and torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-5)
    # Indices are those of the RoIs that were given, whatever went.
    first = [0, 150, 150]
    assert not {roi + start for part, start in zip(rois, first) for roi in part.tolist()} & set(bad)
    probs = torch.cat(plain.predict_probs(predictions, proposals)).split([150, 0, 90])
    for one, part, image in zip(found, rois, probs):
        assert torch.equal(image[part, one.pred_classes], one.scores)
