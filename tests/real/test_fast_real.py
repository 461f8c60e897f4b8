"""The fast copy of a model against the model on real slices; skipped where they are absent."""

import logging
from pathlib import Path

from d2_covid import get_config
from d2_covid.data.cncb import prepare_lesions
from d2_covid.data.datasets import register_lesions
from d2_covid.data.pairing import pair_cncb
from d2_covid.data.preprocessing import network_input, read_slice
from d2_covid.engine.evaluation import evaluate, flat_numbers
from d2_covid.engine.tasks import task_of
from d2_covid.errors import UserError
from d2_covid.inference.batch import load_model
from d2_covid.inference.model_source import ModelSource, resolve_model
from d2_covid.modeling.fast import for_inference

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

SEGMENTATION = "segmentation/mask_rcnn_R_18_T1_FPN.yaml"
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T1_FPN.yaml"


@pytest.fixture(scope="module")
def records(real_data) -> list[dict]:
    """Network inputs of the paper's size: square, enlarged, and neither square nor a multiple of the stride."""
    folders = [real_data / name / "ct_lesion_seg" / "image" for name in ("radiopaedia", "coronacases")]
    files = [sorted(folder.glob("*/*"))[20] for folder in folders]
    wide = (path for path in sorted((real_data / "covid_ct" / "CT_COVID").iterdir()) if not _is_square(path))
    slices = [read_slice(path) for path in (*files, next(wide))]
    return [{"image": network_input(x, 512, 1024), "height": x.shape[0], "width": x.shape[1]} for x in slices]


def _is_square(path: Path) -> bool:
    height, width = read_slice(path).shape
    return height == width


def spread_model(config_file: str) -> nn.Module:
    """The paper's model, untrained, with BatchNorm as after training, and scores, boxes and masks that differ."""
    torch.manual_seed(0)
    model = build_model(get_config(config_file, ["MODEL.DEVICE", "cpu"])).eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    layers = {rpn.objectness_logits: 0.1, rpn.anchor_deltas: 0.02}
    layers |= {heads.box_predictor.cls_score: 0.05, heads.box_predictor.bbox_pred: 0.05}
    if heads.mask_on:
        layers[heads.mask_head.predictor] = 0.3
    for layer, scale in layers.items():
        layer.weight.data.normal_(0, scale, generator=generator)
    return model


def test_segmentation_of_real_slices(records):
    model = spread_model(SEGMENTATION)
    fast = for_inference(model)
    for record in records:
        with torch.no_grad():
            (expected,), (found,) = ([x["instances"] for x in one([record])] for one in (model, fast))
        assert len(expected) == len(found) == 128
        assert torch.allclose(expected.scores, found.scores, rtol=1e-4)
        # Two detections whose scores rounding makes equal may change places.
        near = (expected.pred_boxes.tensor[:, None] - found.pred_boxes.tensor).abs().amax(2) < 0.01
        near &= (expected.scores[:, None] - found.scores).abs() < 1e-4 * expected.scores[:, None]
        assert near.any(1).all()
        masks = found.pred_masks[near.float().argmax(1)]
        assert masks.dtype == torch.bool and masks.shape == (128, record["height"], record["width"])
        assert (masks != expected.pred_masks).sum() < 1e-3 * expected.pred_masks.sum()
        assert expected.pred_masks.flatten(1).any(1).float().mean() > 0.5


def test_classes_of_real_slices(records):
    model = spread_model(CLASSIFIER)
    fast = for_inference(model)
    with torch.no_grad():
        expected = [model([record])[0] for record in records]
    for one, found in zip(expected, [fast([record])[0] for record in records], strict=True):
        assert torch.allclose(one["ranked"].scores, found["ranked"].scores, rtol=1e-4)
        assert torch.allclose(one["image_logits"], found["image_logits"], atol=1e-4)
    together = fast([records[0], records[0], records[1]])
    for one, found in zip((expected[0], expected[0], expected[1]), together):
        assert torch.allclose(one["image_logits"], found["image_logits"], atol=1e-4)


# ---- bfloat16 costs no accuracy ----


def trained_model() -> ModelSource:
    """The lesion model that ships; a test that asks for it is skipped where none does."""
    try:
        return resolve_model(device="cpu")
    except UserError as error:
        pytest.skip(f"no trained model: {error}")


@pytest.fixture
def validation_set(real_data, tmp_path):
    """Every second validation slice of radiopaedia, registered."""
    whole = pair_cncb(real_data / "radiopaedia")
    pairs = [pair for pair in whole.pairs if pair.patient_id in ("1", "4")][::2]
    prepare_lesions(whole, {"val": pairs}, tmp_path / "set", mask_types=["merge"], progress=False)
    name = "fast_real_val"
    register_lesions(name, tmp_path / "set" / "annotations" / "merge_val.json")
    yield name
    DatasetCatalog.remove(name)


def test_bfloat16_holds_average_precision(validation_set, tmp_path, caplog):
    cfg = trained_model().cfg
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (), (validation_set,), str(tmp_path)
    cfg.TEST.FAST = False
    model = load_model(cfg)
    cfg.TEST.FAST = True
    caplog.set_level(logging.ERROR)
    found = {}
    for dtype in ("float32", "bfloat16"):
        cfg.TEST.DTYPE = dtype
        found[dtype] = flat_numbers(evaluate(cfg, task_of(cfg), model, final=False))
    assert found["float32"]["segm/AP"] > 1
    for metric in ("segm/AP", "bbox/AP"):
        assert found["bfloat16"][metric] == pytest.approx(found["float32"][metric], abs=0.2), metric
