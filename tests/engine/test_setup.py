"""The device of a run, what builds no model, and how its model lies in memory."""

import copy
import re

from d2_covid import get_config
from d2_covid.data.mappers import LesionDatasetMapper
from d2_covid.engine import setup
from d2_covid.engine.optimizer import MixedPrecision
from d2_covid.engine.setup import build_for_device, choose_device
from d2_covid.engine.training_step import training_step
from d2_covid.errors import UserError

import pytest
import torch
from detectron2.data import DatasetCatalog
from torch import nn

from .conftest import TINY, tiny_config


def test_the_default_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_config()
    assert cfg.MODEL.DEVICE == "cuda"
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps", "meta"])
def test_a_device_that_is_not_there_is_named_in_a_line(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opts = ["MODEL.DEVICE", device]
    with pytest.raises(UserError) as error:
        choose_device(get_config(None, opts), opts)
    message = rf"PyTorch can't compute on device {device!r} here \(.+\); use MODEL.DEVICE cuda or cpu\."
    assert re.fullmatch(message, str(error.value)) and len(str(error.value)) < 250


@pytest.mark.parametrize(("device", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_by_its_number_becomes_the_current_one(device, current, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(setup, "build_model", lambda cfg: nn.Identity())
    build_for_device(get_config(None, ["MODEL.DEVICE", device]))
    assert chosen == current


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("MODEL.RPN.IN_FEATURES", "['p4']", r"KeyError: p4"),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone", r"KeyError: p3"),
        ("MODEL.RESNETS.DEPTH", "20", r"KeyError: 20"),
        ("MODEL.ROI_HEADS.NAME", "LesionRoiHeads", r"KeyError: No object named 'LesionRoiHeads' found .*"),
        ("MODEL.KEYPOINT_ON", "True", None),
        ("MODEL.PIXEL_MEAN", "[120.0]", None),
        ("MODEL.PIXEL_STD", "[1.0, 1.0]", None),
    ],
)
def test_a_model_that_can_not_be_built_is_refused_in_a_line(key, value, reason):
    found = rf"no model that can be built \({reason}\); compare .*" if reason else rf"{key} .*"
    with pytest.raises(UserError, match=found) as error:
        build_for_device(tiny_config(key, value))
    assert "\n" not in str(error.value)


# ---- channels last ----


def lesion_config():
    return tiny_config("MODEL.BACKBONE.FREEZE_AT", 0)


def classifier_config():
    """That of a classifier that trains BatchNorm, so that gradients go through the whole detector."""
    own = ("MODEL.CLASSIFIER.NUM_ROIS", "8", "MODEL.CLASSIFIER.HIDDEN_DIM", "6", "MODEL.CLASSIFIER.TRAIN_NORM", "True")
    return get_config("classification/covid_ct_mask_net_R_18_T2_FPN.yaml", [*TINY, *own])


def one_step(model: nn.Module, batch: list[dict]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of a training step; the weights stay as they are."""
    torch.manual_seed(0)  # anchors and RoIs are sampled
    precision = MixedPrecision(enabled=False, dtype="bfloat16", device="cpu")
    losses, _ = training_step(model, batch, precision, torch.optim.SGD(model.parameters(), lr=0.0))
    return losses, {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("make_config", [lesion_config, classifier_config])
def test_a_training_step_is_the_same_in_channels_last(make_config, lesion_sets):
    cfg = make_config()
    model = build_for_device(cfg).train()
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(layer.weight, std=0.3)  # detections that differ
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    weights = [one.backbone.bottom_up.res2[0].conv1.weight for one in (model, plain)]
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [True, False]

    mapper = LesionDatasetMapper(cfg, is_train=False)
    batch = [{**mapper(x), "image_class": i % 2} for i, x in enumerate(DatasetCatalog.get("engine_train")[:4])]
    (losses, gradients), (expected_losses, expected) = (one_step(one, batch) for one in (model, plain))
    assert losses == pytest.approx(expected_losses, rel=1e-4) and min(losses.values()) > 0
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        largest = expected[name].abs().max()
        # Measured: 4e-6.
        assert largest > 0 and (gradient - expected[name]).abs().max() <= 1e-4 * largest, name
