"""What all sections of a benchmark share: settings, inputs, and the models that are measured, built when asked for."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..config import get_config, merge_overrides
from ..engine.weights import load_weights
from ..errors import UserError
from ..inference.model_source import resolve_model
from ..inference.shipped import shipped_names
from ..modeling.backbone import truncation_of
from ..modeling.fast import for_inference
from .classification_peer import TorchvisionClassifier
from .detectors import TorchvisionDetector, stock_r50_config
from .inputs import Inputs
from .machine import DTYPES
from .mayaku_peer import MayakuDetector, mayaku_version
from .torchvision_peer import build_torchvision_peer, convert_to_torchvision
from .weights import STOCK_SPREAD, spread_weights

TORCHVISION, PLAIN, STOCK, MAYAKU = "torchvision", "d2_covid plain", "Detectron2 R50-FPN", "mayaku R50"
"""Names of candidates; the fast path's are those of :func:`fast_name`."""
SEEDED = "seeded"
DEFAULT_MODEL = "R_18_T1"

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        model: "R_18_T1" and so on, of the shipped configs; None: that of the weights, or else :data:`DEFAULT_MODEL`.
        weights: "auto" (the shipped model, if it is of this shape), "seeded", a path, or a shipped model's name.
        dtypes: of the fast path, out of "fp32" and "bf16".
        repeats: rounds of a timing, at most: a section's budget may end it before.
        quick: fewer candidates and less work.
        work: folder for what the benchmark writes on its way.
        opts: overrides for the model's config.
    """

    model: str | None = None
    weights: str = "auto"
    device: str = "cpu"
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    repeats: int = 10
    quick: bool = False
    seed: int = 0
    work: Path = Path("benchmark")
    opts: tuple[str, ...] = ()


class Bench:
    """Settings, inputs and models of one benchmark.

    Args:
        machine: from :func:`.machine.describe_machine`.
        rates: FLOP/s of a matrix product by dtype, from :func:`.machine.matmul_rate`.

    Raises:
        UserError: weights that are not there, or not of a segmentation model, or of another than was asked for.
    """

    def __init__(self, settings: Settings, inputs: Inputs, machine: dict[str, Any], rates: Mapping[str, float]) -> None:
        self.settings, self.inputs, self.machine, self.rates = settings, inputs, machine, rates
        self.device = settings.device
        self.cfg, self.weights = choose_weights(settings)
        self.cfg.MODEL.DEVICE = settings.device
        # All that the box head finds, up to the largest number of detections: so many masks are pasted.
        self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        self.cfg.SOLVER.IMS_PER_BATCH = 1

    @property
    def model(self) -> str:
        """Name of the model that is measured."""
        return model_name(self.cfg)

    @property
    def classifier_cfg(self) -> CfgNode:
        """The classifier on the same detector, in batches of 8, as the paper trains it."""
        return classifier_config(self.cfg)

    @cached_property
    def images(self) -> list[torch.Tensor]:
        """Sixteen network inputs, (3, h, w) uint8."""
        return self.inputs.network_inputs(16, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

    @cached_property
    def state(self) -> State:
        """The segmentation model's weights, on the CPU."""
        cfg = plain_parts(self.cfg)
        cfg.MODEL.DEVICE = "cpu"
        torch.manual_seed(self.settings.seed)
        model = build_model(cfg)
        if self.weights == SEEDED:
            spread_weights(model, self.images[:4], self.settings.seed)
        else:
            load_weights(model, cfg, complete=True)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    @cached_property
    def segmenters(self) -> dict[str, nn.Module]:
        """Segmentation models by candidate's name, the torchvision peer first; all have the same weights."""
        return {name: build_candidate(name, self.cfg, self.state, self.images) for name in self._names()}

    @cached_property
    def classifiers(self) -> dict[str, nn.Module]:
        """The same for classifiers."""
        return {name: build_candidate(name, self.classifier_cfg, self.state, self.images) for name in self._names()}

    @cached_property
    def others(self) -> dict[str, nn.Module]:
        """Segmentation models of other shapes, with random weights spread likewise: Detectron2's stock R50-FPN and,
        where it is installed, mayaku's nearest."""
        names = [STOCK, *([MAYAKU] if mayaku_version() else [])]
        return {name: build_candidate(name, self.cfg, self.state, self.images) for name in names}

    def _names(self) -> list[str]:
        graphs = [False, True] if self.device.startswith("cuda") else [False]
        fast = [fast_name(dtype, graph) for dtype in self.settings.dtypes for graph in graphs]
        return [TORCHVISION, PLAIN, *fast]


def fast_name(dtype: str, graph: bool = False) -> str:
    """Candidate's name of our fast path in ``dtype``; ``graph``: its dense part as a CUDA graph."""
    return f"d2_covid {dtype}" + (", CUDA graph" if graph else "")


def records(images: Sequence[torch.Tensor]) -> list[dict]:
    """What a detector takes: results at the size of the input."""
    return [{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images]


def build_candidate(name: str, cfg: CfgNode, state: State, images: Sequence[torch.Tensor]) -> nn.Module:
    """A detector to be measured, in eval mode, on ``MODEL.DEVICE``.

    Args:
        name: a candidate's.
        cfg: of the segmentation model, or of the classifier.
        state: weights of the segmentation model; what a classifier has besides is seeded.
        images: (3, h, w) ``uint8``, which the weights of peers of other shapes are fitted to.

    Raises:
        ValueError: no such candidate.
    """
    device, classifies = cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet"
    if name == STOCK:
        stock = stock_r50_config(["MODEL.DEVICE", "cpu"])
        return spread_weights(build_model(stock), images[:2], spread=STOCK_SPREAD).to(device)
    if name == MAYAKU:
        return MayakuDetector(cfg, images[:2]).to(device).eval()
    if name == PLAIN:
        return build_with(plain_parts(cfg), state)
    if name == TORCHVISION:
        plain = build_with(plain_parts(cfg), state)
        weights = {key: value.cpu() for key, value in plain.state_dict().items()}
        if classifies:
            peer = TorchvisionClassifier(cfg)
            peer.load_detectron2(weights, cfg)
        else:
            peer = TorchvisionDetector(build_torchvision_peer(cfg))
            peer.peer.load_state_dict(convert_to_torchvision(weights, cfg))
        return peer.to(device).eval()
    for dtype, graph in itertools.product(DTYPES, (False, True)):
        if name == fast_name(dtype, graph):
            return for_inference(build_with(cfg, state), dtype=DTYPES[dtype], cuda_graph=graph)
    raise ValueError(f"no candidate {name!r}")


def build_with(cfg: CfgNode, state: State) -> nn.Module:
    """The model of ``cfg`` with the detector's weights, in eval mode; module S is seeded."""
    torch.manual_seed(0)
    model = build_model(cfg)
    missing, _ = model.load_state_dict(state, strict=False)
    if any(not key.startswith("roi_heads.image_classifier.") for key in missing):
        raise ValueError(f"the weights lack {missing[0]}")
    return model.eval()


def plain_parts(cfg: CfgNode) -> CfgNode:
    """``cfg`` without the parts that d2_covid puts in the place of Detectron2's to be faster."""
    cfg = cfg.clone()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    if "FAST_POOLING" in cfg.MODEL.ROI_HEADS:
        cfg.MODEL.ROI_HEADS.FAST_POOLING = False
    return cfg


def without_draws(cfg: CfgNode) -> CfgNode:
    """``cfg`` as slices are prepared for prediction, in training too: no augmentation, one size."""
    cfg = cfg.clone()
    for name in cfg.INPUT.AUGMENTATION:
        cfg.INPUT.AUGMENTATION[name] = 0.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST
    return cfg


def classifier_config(cfg: CfgNode) -> CfgNode:
    """The config of the classifier on the detector of ``cfg``."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "CovidCTMaskNet", "CovidROIHeads"
    cfg.MODEL.MASK_ON, cfg.SOLVER.IMS_PER_BATCH = False, 8
    return cfg


def choose_weights(settings: Settings) -> tuple[CfgNode, str]:
    """The segmentation config that is measured, and what its weights are called.

    Raises:
        UserError: there are no such weights, or they are a classifier's, or not of ``settings.model``.
    """
    weights = settings.weights
    if weights in ("auto", SEEDED):
        config = f"segmentation/mask_rcnn_{settings.model or DEFAULT_MODEL}_FPN.yaml"
        cfg = get_config(config, settings.opts)
        shipped = None if weights == SEEDED or settings.opts else _shipped_of_shape(cfg)
        if shipped is None:
            cfg.MODEL.WEIGHTS = ""
            return cfg, SEEDED
        weights = shipped
    source = resolve_model(None, weights, settings.device)
    if source.cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or not source.cfg.MODEL.MASK_ON:
        raise UserError(f"{weights} is no segmentation model; the benchmark makes its classifier from one.")
    own = model_name(source.cfg)
    if settings.model not in (None, own):
        raise UserError(
            f"--weights {weights} is a model {own}, not --model {settings.model}; leave out one of the two."
        )
    merge_overrides(source.cfg, settings.opts)
    source.cfg.MODEL.WEIGHTS = str(source.weights)  # what the report says, whatever an override says
    return source.cfg, f"{source.name} (sha256 {source.weights_sha256[:12]})"


def model_name(cfg: CfgNode) -> str:
    """``R_18_T1`` and so on, as the shipped configs call their models."""
    return f"R_{cfg.MODEL.RESNETS.DEPTH}_{truncation_of(cfg)}"


def _shipped_of_shape(cfg: CfgNode) -> str | None:
    """Name of the shipped segmentation model with the architecture of ``cfg``."""
    for name in shipped_names():
        own = resolve_model(None, name, "cpu").cfg
        if own.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and own.MODEL.MASK_ON and _shape(own) == _shape(cfg):
            return name
    return None


def _shape(cfg: CfgNode) -> tuple:
    model = cfg.MODEL
    return model.RESNETS.DEPTH, list(model.FPN.IN_FEATURES), model.FPN.OUT_CHANNELS, str(model.ANCHOR_GENERATOR)
