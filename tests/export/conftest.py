"""Tiny models that find something on a phantom and nothing on a black slice, and what is exported of them."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from d2_covid import get_config
from d2_covid.data.phantom import phantom_patient
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.export import session
from d2_covid.export.model import ExportOptions, export_model, plain_model
from d2_covid.export.runtime import resize
from d2_covid.export.write import require_format
from d2_covid.inference.model_source import resolve_model

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

LESION = "segmentation/mask_rcnn_R_18_T1_FPN.yaml"
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
BOTH = ("DATASETS.MASK_TYPE", "both", "MODEL.ROI_HEADS.NUM_CLASSES", "2")
TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.CONV_DIMS [8] MODEL.RPN.PRE_NMS_TOPK_TEST 60 MODEL.RPN.POST_NMS_TOPK_TEST 40 TEST.DETECTIONS_PER_IMAGE 20
MODEL.CLASSIFIER.NUM_ROIS 16 MODEL.CLASSIFIER.HIDDEN_DIM 12 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 192
MODEL.ANCHOR_GENERATOR.SIZES [[16,32]] MODEL.ROI_HEADS.FAST_POOLING False
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0""".split()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _pytorch_that_exports():
    try:
        require_format("pt2")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def phantom() -> np.ndarray:
    """A slice that is larger than what the models take, and no square."""
    return np.ascontiguousarray(phantom_patient(seed=3, image_class=2, num_slices=3, size=160)[1].image[:, 8:150])


def _spread(model: nn.Module, seed: int) -> nn.Module:
    """Let BatchNorm do something, and proposals, scores, boxes and masks differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # The last of a bottleneck adds to a sum that would grow from block to block.
            least, most = (0.1, 0.3) if name.endswith("conv3.norm") else (0.5, 1.5)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(least, most, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    layers = [rpn.objectness_logits, rpn.anchor_deltas, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]
    layers += [heads.mask_head.predictor] if heads.mask_on else []
    for layer in layers:
        layer.weight.data.normal_(0, 0.3, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def make_model():
    """``make_model(config_file, *opts)`` gives a tiny model in inference mode, and its config."""

    def make(config_file: str, *opts: str, seed: int = 1):
        cfg = get_config(config_file, [*TINY, *opts])
        torch.manual_seed(0)
        return _spread(build_model(cfg), seed), cfg

    return make


@pytest.fixture(scope="session")
def make_weights(make_model, phantom, tmp_path_factory):
    """``make_weights(config_file, *opts)`` gives the checkpoint of a tiny model. Its score threshold, and that of the
    classifier, lie above all scores on black slices and below the best ones on a phantom."""

    def make(config_file: str, *opts: str) -> Path:
        for seed in range(20):
            model, _ = make_model(config_file, *opts, seed=seed)
            least = max(_best_score(model, np.zeros(shape, np.uint8)) for shape in ((108, 96), (101, 77)))
            resized = resize(phantom, 108, 96)
            seen = (phantom[:101, 20:97], phantom[40:141, 20:97], resized, np.ascontiguousarray(resized[:, ::-1]))
            most = min(_best_score(model, image) for image in seen)
            if most > least + 0.04:
                break
        else:
            raise AssertionError("no seed makes a model that tells a phantom from a black slice")
        threshold = str(round(least + 0.01, 6))
        classifier = "classification" in config_file
        opts += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold)
        opts += ("MODEL.CLASSIFIER.SCORE_THRESH", threshold) if classifier else ()
        cfg = get_config(config_file, [*TINY, *opts])
        path = tmp_path_factory.mktemp("weights") / "model_best.pth"
        facts = model_facts(cfg, classifier=classifier) | carried_facts(cfg)
        write_checkpoint(path, {"model": model.state_dict(), "d2_covid": facts})
        return path

    return make


@torch.no_grad()
def _best_score(model: nn.Module, image: np.ndarray) -> float:
    tensor = torch.from_numpy(image)[None].expand(3, -1, -1)
    (output,) = model.inference([{"image": tensor}], do_postprocess=False)
    return float((output["instances"] if isinstance(output, dict) else output).scores.max())


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """``export(weights, **options)`` exports a checkpoint, and gives folder, session, model and config."""

    def make(weights: Path, **options) -> SimpleNamespace:
        source = resolve_model(None, weights, "cpu")
        model = plain_model(source.cfg)
        exported = export_model(model, source, replace(ExportOptions(), **options))
        folder = tmp_path_factory.mktemp("exported")
        exported.write(folder)
        return SimpleNamespace(
            folder=folder, session=session(folder, 1), model=model, cfg=source.cfg, source=source, exported=exported
        )

    return make


@pytest.fixture(scope="session")
def lesion_weights(make_weights):
    """R18-T1, one class, slices resized."""
    return make_weights(LESION)


@pytest.fixture(scope="session")
def classifier_weights(make_weights):
    """R18-T2, two classes, with masks."""
    return make_weights(CLASSIFIER, *BOTH, "MODEL.MASK_ON", "True")


@pytest.fixture(scope="session")
def lesion_onnx(export, lesion_weights):
    """The segmentation model for one slice of 160 x 142 a call, in ONNX."""
    return export(lesion_weights, batch=1, slice_size=(160, 142))


@pytest.fixture(scope="session")
def classifier_onnx(export, classifier_weights):
    """The classifier for any batch of any size, in ONNX."""
    return export(classifier_weights)


@pytest.fixture(scope="session")
def lesion_pt2(export, lesion_weights):
    """The segmentation model for any batch of any size, as PyTorch's exported program."""
    return export(lesion_weights, kind="pt2")


@pytest.fixture(scope="session")
def dense_onnx(export, lesion_weights):
    """The dense part of the segmentation model for any batch of slices of 160 x 142, in ONNX."""
    return export(lesion_weights, part="dense", slice_size=(160, 142))


@pytest.fixture
def without():
    """``without("onnx")`` is a context in which a package can't be imported."""
    import sys

    @contextlib.contextmanager
    def block(name: str):
        hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == name}
        sys.modules[name] = None
        try:
            yield
        finally:
            del sys.modules[name]
            sys.modules.update(hidden)

    return block
