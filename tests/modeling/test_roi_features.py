"""The quick features of RoIs against Detectron2's own, in whole models."""

from d2_covid import get_config
from d2_covid.modeling.roi_features import box_features, can_be_quick, mask_logits, pool

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

SMALL = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 16
MODEL.RPN.PRE_NMS_TOPK_TEST 100 MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.RPN.PRE_NMS_TOPK_TRAIN 100
MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0""".split()
T1, T2 = "segmentation/mask_rcnn_R_18_T1_FPN.yaml", "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
TUNED = "segmentation/tuned/mask_rcnn_R_18_T1_FPN.yaml"
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
SIZE = 128


def models(config_file=T2, *opts):
    """The same model twice: with quick features, and without."""
    made = []
    for fast in ("True", "False"):
        torch.manual_seed(0)
        made.append(build_model(get_config(config_file, [*SMALL, "MODEL.ROI_HEADS.FAST_POOLING", fast, *opts])))
        generator = torch.Generator().manual_seed(1)
        predictor = made[-1].roi_heads.box_predictor
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.data.normal_(0, 0.1, generator=generator)
    return made


def records():
    """Two slices: one with two lesions, one without any."""
    generator = torch.Generator().manual_seed(2)
    boxes = torch.tensor([[20.0, 30, 60, 64], [70, 8, 120, 100]])
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = True
        mask[y0, x0] = False
    made = []
    for count in (2, 0):
        truth = Instances((SIZE, SIZE))
        truth.gt_boxes, truth.gt_masks = Boxes(boxes[:count]), BitMasks(masks[:count])
        truth.gt_classes = torch.zeros(count, dtype=torch.int64)
        image = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        made.append({"image": image, "instances": truth, "image_class": count})
    return made


def step(model, inputs, autocast=False):
    """Losses of one training step, and the gradients that it leaves."""
    torch.manual_seed(3)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def assert_close(found, wanted, tolerance=1e-4):
    """Same names; each value within a share of its largest."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        difference = (found[name] - wanted[name]).abs().max()
        assert difference <= tolerance * wanted[name].abs().max() + 1e-9, name


@pytest.mark.parametrize(
    "config_file, opts",
    [
        (T1, []),
        (T2, []),
        (TUNED, []),
        (T2, ["MODEL.ROI_MASK_HEAD.NUM_CONV", "2"]),
        (T2, ["MODEL.ROI_MASK_HEAD.NORM", "BN"]),
        (T2, ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8"]),
        (T2, ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"]),
    ],
)
def test_training_step(config_file, opts):
    fast, plain = models(config_file, *opts)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    inputs = records()
    (losses, gradients), (plain_losses, plain_gradients) = (step(model, inputs) for model in (fast, plain))
    assert losses["loss_mask"] > 0
    assert_close(losses, plain_losses)
    # BatchNorm over a few cells makes the smallest gradients the noisiest.
    assert_close(gradients, plain_gradients, 1e-3)


def test_training_without_any_lesion():
    fast, plain = models()
    inputs = records()[1:]
    (losses, gradients), (plain_losses, plain_gradients) = (step(model, inputs) for model in (fast, plain))
    assert losses["loss_mask"] == 0
    assert_close(losses, plain_losses)
    assert_close(gradients, plain_gradients, 1e-3)


def test_training_of_the_classifier():
    fast, plain = models(CLASSIFIER, "MODEL.CLASSIFIER.NUM_ROIS", "16", "MODEL.CLASSIFIER.HIDDEN_DIM", "12")
    inputs = records()
    (losses, gradients), (plain_losses, plain_gradients) = (step(model, inputs) for model in (fast, plain))
    assert any("backbone" in name for name in gradients)
    assert_close(losses, plain_losses)
    assert_close(gradients, plain_gradients, 1e-3)


@pytest.mark.parametrize("config_file", [T1, T2, TUNED])
def test_inference(config_file):
    fast, plain = models(config_file)
    with torch.no_grad():
        outputs = [model.eval()(records()) for model in (fast, plain)]
    for a, b in zip(*([x["instances"] for x in out] for out in outputs), strict=True):
        assert len(a) == len(b) > 0
        a_numbers, b_numbers = ({"scores": x.scores, "boxes": x.pred_boxes.tensor} for x in (a, b))
        assert_close(a_numbers, b_numbers)
        assert (a.pred_masks != b.pred_masks).float().mean() < 1e-5


def test_no_detection():
    fast, _ = models(T2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    with torch.no_grad():
        for output in fast.eval()(records()):
            assert len(output["instances"]) == 0 and output["instances"].pred_masks.shape == (0, SIZE, SIZE)


def features_and_boxes(cells=8, channels=8):
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(30, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 4 + torch.rand(30, 2, generator=generator) * 60], dim=1)
    return torch.randn(2, channels, cells, cells, generator=generator), [Boxes(boxes[:20]), Boxes(boxes[20:])]


def pooler(size=14, **kwargs):
    options = {"scales": [1 / 16], "sampling_ratio": 2, "pooler_type": "ROIAlignV2"}
    return ROIPooler(output_size=size, **options | kwargs)


def mask_head(**kwargs):
    from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead

    torch.manual_seed(6)
    return MaskRCNNConvUpsampleHead(ShapeSpec(8, 14, 14), num_classes=2, **{"conv_dims": [6, 6]} | kwargs)


@pytest.mark.parametrize("conv_dims", [[6], [6, 6], [6, 6, 6]])
@pytest.mark.parametrize("norm", ["", "BN"])
def test_mask_logits(conv_dims, norm):
    features, boxes = features_and_boxes()
    head = mask_head(conv_dims=conv_dims, conv_norm=norm).eval()
    with torch.no_grad():
        found, wanted = mask_logits(pooler(), head, [features], boxes), head.layers(pooler()([features], boxes))
    assert_close({"logits": found}, {"logits": wanted})


@pytest.mark.parametrize("change", ["lines", "cells"])
def test_mask_logits_in_parts_and_where_the_map_is_large(change, monkeypatch):
    features, boxes = features_and_boxes()
    name, value = {"lines": ("LINES_AT_ONCE", 10), "cells": ("CELLS_PER_BIN", 0.0)}[change]
    monkeypatch.setattr(f"d2_covid.modeling.roi_features.{name}", value)
    head = mask_head()
    with torch.no_grad():
        found, wanted = mask_logits(pooler(), head, [features], boxes), head.layers(pooler()([features], boxes))
    assert_close({"logits": found}, {"logits": wanted})


def test_box_features_in_parts(monkeypatch):
    from detectron2.modeling.roi_heads import FastRCNNConvFCHead

    monkeypatch.setattr("d2_covid.modeling.roi_features.ROIS_AT_ONCE", 7)
    features, boxes = features_and_boxes()
    torch.manual_seed(7)
    head = FastRCNNConvFCHead(ShapeSpec(8, 7, 7), conv_dims=[], fc_dims=[10, 9])
    with torch.no_grad():
        found, wanted = box_features(pooler(7), head, [features], boxes), head(pooler(7)([features], boxes))
        assert_close({"features": found}, {"features": wanted})
        assert box_features(pooler(7), head, [features], [Boxes(torch.zeros(0, 4))] * 2).shape == (0, 9)


@pytest.mark.parametrize(
    "kwargs", [{"pooler_type": "ROIAlign"}, {"pooler_type": "ROIPool"}, {"scales": [1 / 8, 1 / 16]}]
)
def test_other_poolers_are_detectron2s(kwargs):
    features, boxes = features_and_boxes()
    other = pooler(**kwargs)
    maps = [torch.nn.functional.interpolate(features, scale_factor=2), features][-len(other.level_poolers) :]
    head = mask_head()
    assert can_be_quick(pooler(), [features]) and not can_be_quick(other, maps)
    assert not can_be_quick(pooler(), [features.to("meta")])
    with torch.no_grad():
        assert torch.equal(mask_logits(other, head, maps, boxes), head.layers(other(maps, boxes)))


@pytest.mark.parametrize("kwargs", [{"scales": [1 / 8, 1 / 16]}, {"pooler_type": "ROIAlign"}])
def test_other_poolers_read_boxes_exactly_under_autocast(kwargs):
    features, boxes = features_and_boxes()
    boxes = [Boxes(x.tensor + 300) for x in boxes]  # where bfloat16 is two pixels apart
    features = torch.nn.functional.interpolate(features, scale_factor=4, mode="bilinear").bfloat16()
    other = pooler(**kwargs)
    maps = [torch.nn.functional.interpolate(features, scale_factor=2), features][-len(other.level_poolers) :]
    exact = other([x.float() for x in maps], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(other, maps, boxes)
    assert found.dtype == torch.bfloat16
    assert_close({"features": found.float()}, {"features": exact}, 0.005)


def test_autocast_is_no_less_accurate():
    """Errors of a step in bfloat16 against one in single precision, quick and plain."""
    fast, plain = models(T1)
    inputs = records()
    exact, _ = step(plain, inputs)
    errors = []
    for model in (fast, plain):
        losses, gradients = step(model, inputs, autocast=True)
        assert all(x.isfinite().all() for x in gradients.values())
        errors.append(max((losses[x] - exact[x]).abs().item() for x in ("loss_cls", "loss_mask")))
    assert errors[0] <= errors[1] + 0.01
