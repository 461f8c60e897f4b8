"""All detections of a slice, with the raw scores of their masks."""

from d2_covid import get_config
from d2_covid.data.preprocessing import network_input
from d2_covid.errors import UserError
from d2_covid.inference.ranked import keep_all_detections, mask_logits, predict_ranked

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.PRE_NMS_TOPK_TEST 60 MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.CLASSIFIER.NUM_ROIS 9
MODEL.CLASSIFIER.HIDDEN_DIM 12 INPUT.MIN_SIZE_TEST 96""".split()
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
SEGMENTATION = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"


def build(config_file, *opts):
    cfg = get_config(config_file, [*TINY, *opts])
    keep_all_detections(cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.data.normal_(0, 0.3, generator=generator)
    if model.roi_heads.mask_on:
        model.roi_heads.mask_head.predictor.weight.data.normal_(0, 3, generator=generator)
    return model, cfg


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 48), dtype=np.uint8)


@pytest.mark.parametrize("opts", [(), ("DATASETS.MASK_TYPE", "both", "MODEL.ROI_HEADS.NUM_CLASSES", "2")])
def test_mask_logits_are_what_the_mask_head_takes_the_sigmoid_of(image, opts):
    model, cfg = build(SEGMENTATION, *opts)
    tensor = network_input(image, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    with torch.no_grad():
        (instances,) = model.inference([{"image": tensor}], do_postprocess=False)
    assert len(instances) > 1
    raw = mask_logits(model, tensor, instances.pred_boxes.tensor, instances.pred_classes)
    assert raw.shape == (len(instances), 28, 28) and raw.abs().max() > 0.05
    assert torch.allclose(raw.sigmoid(), instances.pred_masks[:, 0], atol=1e-6)


def test_detections_low_scores_included_in_the_slices_pixels(image):
    model, cfg = build(SEGMENTATION)
    found = predict_ranked(model, image, cfg)
    assert len(found.scores) == 9 and (np.diff(found.scores) <= 0).all()
    assert found.masks.shape == (9, 64, 48) and found.mask_logits.shape == (9, 28, 28)
    assert (found.boxes >= 0).all() and (found.boxes <= [48, 64, 48, 64]).all()
    assert found.image_logits is None
    again = predict_ranked(model, image, cfg)
    np.testing.assert_array_equal(found.mask_logits, again.mask_logits)


def test_a_classifier_gives_its_logits_with_masks_and_without(image):
    without, with_masks = (predict_ranked(*_pair(image, on)) for on in ("False", "True"))
    assert without.masks is None and without.mask_logits is None
    assert with_masks.mask_logits.shape == (len(with_masks.scores), 28, 28)
    assert without.image_logits.shape == (3,)


def _pair(image, mask_on):
    model, cfg = build(CLASSIFIER, "MODEL.MASK_ON", mask_on)
    return model, image, cfg


def test_a_model_without_masks_has_no_mask_logits(image):
    model, cfg = build(CLASSIFIER)
    with pytest.raises(UserError, match="MODEL.MASK_ON True"):
        mask_logits(model, network_input(image, 64, 64), torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))
