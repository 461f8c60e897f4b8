"""A model over slices: files and arrays alike, results in the slice's own pixels."""

from d2_covid import get_config
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.inference.batch import load_model, predict_slices

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

OPTS = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
OPTS += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", [*OPTS, "MODEL.WEIGHTS", str(path)])
    torch.manual_seed(0)
    write_checkpoint(path, {"model": build_model(cfg).state_dict(), "d2_covid": model_facts(cfg)})
    return cfg


def test_files_and_arrays_give_the_same(cfg, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (96, 120), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "slice.png")
    model = load_model(cfg)
    assert not model.training
    (read, from_file), (same, from_array) = predict_slices(model, [tmp_path / "slice.png", image], cfg)
    assert (read == image).all() and (same == image).all()
    assert len(from_file) > 0
    assert torch.equal(from_file.pred_boxes.tensor, from_array.pred_boxes.tensor)
    assert torch.equal(from_file.pred_masks, from_array.pred_masks)
    assert from_file.image_size == (96, 120) and from_file.pred_masks.shape[1:] == (96, 120)
    assert (from_file.scores.diff() <= 0).all()


def test_slices_are_read_as_they_are_asked_for(cfg, tmp_path):
    image = np.zeros((64, 64), np.uint8)
    results = predict_slices(load_model(cfg), [image, tmp_path / "missing.png"], cfg)
    next(results)
    assert torch.is_grad_enabled()
    with pytest.raises(UserError, match="missing.png"):
        next(results)


def test_a_model_without_weights_is_refused(cfg):
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        load_model(cfg)


def test_a_model_that_can_not_be_built_is_refused_before_its_weights_are_read(cfg):
    cfg = cfg.clone()
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.WEIGHTS = ["p4"], "missing.pth"
    with pytest.raises(UserError, match="no model that can be built .KeyError: p4"):
        load_model(cfg)
