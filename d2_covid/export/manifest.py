"""``model.json``: all that someone needs to know to run an exported model and to judge what it says, as data."""

import platform
from dataclasses import asdict
from importlib import import_module
from typing import Any, Sequence

import torch
import torchvision
from detectron2.config import CfgNode

from .. import __version__
from ..inference.model_card import ModelCard
from ..inference.model_source import ModelSource
from ..inference.predictions_json import NOTICE
from .outputs import Output
from .write import LARGEST_BATCH, LARGEST_EDGE, OPSET, SMALLEST_EDGE

SCHEMA_VERSION = 1

INTENDED_USE = "Research on finding, outlining and classifying lung lesions in chest CT."
LIMITS = (
    "What it was trained on is not recorded here. Scans unlike those of its training, in source, window or region of "
    "the body, give numbers too, and they mean nothing. Scores are not probabilities of disease."
)


def describe(
    source: ModelSource,
    *,
    part: str,
    kind: str,
    file: str,
    sha256: str,
    outputs: Sequence[Output],
    batch: int | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """The content of ``model.json``.

    Args:
        source: the model that was exported.
        part: "whole" or "dense".
        kind, file, sha256: format, name and checksum of the file.
        batch, size: N and (H, W) that the graph takes; None where they change from call to call.
    """
    cfg = source.cfg
    height, width = size or ("height", "width")
    return {
        "schema_version": SCHEMA_VERSION,
        "name": source.name,
        "part": part,
        "format": kind,
        "file": file,
        "sha256": sha256,
        "weights": {"file": source.weights.name, "sha256": source.weights_sha256},
        "notice": NOTICE,
        "intended_use": source.card.intended_use if source.card else INTENDED_USE,
        "limits": list(source.card.limits) if source.card else [LIMITS],
        **(_terms(source.card) if source.card else {}),
        "input": {
            "name": "image",
            "dtype": "uint8",
            "shape": [batch or "batch", height, width],
            "bounds": {"batch": LARGEST_BATCH, "shortest_edge": SMALLEST_EDGE, "longest_edge": LARGEST_EDGE},
            "meaning": "slices after preprocessing.size: gray of the window, black 0 to white 255; row 0 is the most "
            "anterior, column 0 at the patient's right; images of one batch have one size",
        },
        "preprocessing": _preprocessing(cfg),
        "outputs": [{**vars(output), "shape": list(output.shape)} for output in outputs],
        "lesion_classes": list(source.lesion_classes),
        "image_classes": list(source.image_classes),
        "thresholds": _thresholds(cfg),
        **({"anchors": _anchors(cfg)} if part == "dense" else {"postprocessing": _postprocessing(cfg)}),
        "versions": _versions(kind),
    }


def _terms(card: ModelCard) -> dict[str, Any]:
    """Under what terms the weights may be used, and what they were made from, as the card of a shipped model has it."""
    return {
        "not_intended_use": card.not_intended_use,
        "licence": asdict(card.licence),
        "training_data": [asdict(one) for one in card.training.data],
        **({"base": asdict(card.base)} if card.base else {}),
    }


def _preprocessing(cfg: CfgNode) -> dict[str, Any]:
    return {
        "window": {
            "level": float(cfg.INPUT.WINDOW.LEVEL),
            "width": float(cfg.INPUT.WINDOW.WIDTH),
            "unit": "Hounsfield units",
            "rule": "gray = floor(clip((HU - (level - width / 2)) * 255 / width, 0, 255) + 0.5); no number is 0",
        },
        "size": {
            "shortest_edge": int(cfg.INPUT.MIN_SIZE_TEST),
            "longest_edge_at_most": int(cfg.INPUT.MAX_SIZE_TEST),
            "rule": "scale so that the shorter edge has shortest_edge pixels; if the longer one then has more than "
            "longest_edge_at_most, scale so that it has as many; each edge is floor(length + 0.5); a shortest_edge "
            "of 0 keeps the slice as it is",
        },
        "resize": {
            "interpolation": "bilinear",
            "algorithm": "triangle filter as wide as the reduction (antialiased), along the rows, then along the "
            "columns; weights rounded to units of 2**-22, each result rounded to a byte: Pillow's Image.resize with "
            "BILINEAR on 8-bit gray",
        },
        "channels": {"count": 1, "inside_the_graph": "the gray value stands for all three channels of the model"},
        "normalization": {
            "inside_the_graph": True,
            "mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
            "std": [float(value) for value in cfg.MODEL.PIXEL_STD],
        },
        "padding": "inside the graph: below and at the right, to what the network's stride asks for",
    }


def _thresholds(cfg: CfgNode) -> dict[str, Any]:
    return {
        "score": float(cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST),
        "lesion_score": float(cfg.TEST.UNION_SCORE_THRESH),
        "mask": 0.5,
        "nms": float(cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST),
        "rpn_nms": float(cfg.MODEL.RPN.NMS_THRESH),
        "detections_per_image": int(cfg.TEST.DETECTIONS_PER_IMAGE),
        "meaning": "the graph gives detections that score more than score; d2_covid counts those of lesion_score or "
        "more as lesions",
    }


def _postprocessing(cfg: CfgNode) -> dict[str, Any]:
    steps = [
        "multiply boxes by the slice's width and height over the input's",
        "clip them to the slice, and leave out those without area",
    ]
    if cfg.MODEL.MASK_ON:
        steps.append(
            "a pixel of the slice belongs to a lesion if its mask, stretched over the box and interpolated linearly "
            "between the centers of its cells, zeros around them, is at least thresholds.mask at the pixel's center"
        )
    return {"steps": steps, "example": "run.py"}


def _anchors(cfg: CfgNode) -> dict[str, Any]:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    return {
        "sizes": [list(map(float, sizes)) for sizes in generator.SIZES],
        "aspect_ratios": [list(map(float, ratios)) for ratios in generator.ASPECT_RATIOS],
        "offset": float(generator.OFFSET),
        "deltas_weights": list(map(float, cfg.MODEL.RPN.BBOX_REG_WEIGHTS)),
        "rule": "at each cell (row, column) of a level the anchors are centered at (column + offset, row + offset) "
        "times the level's stride; for each size and then each ratio the width is sqrt(size**2 / ratio) and the height "
        "ratio times that; their channels follow in this order",
    }


def _versions(kind: str) -> dict[str, Any]:
    found = {
        "d2_covid": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    if kind == "onnx":
        # Asked of the module: packages of several names bring it, as onnxruntime-gpu does.
        names = ("onnx", "onnxscript", "onnxruntime")
        found |= {name: getattr(import_module(name), "__version__", "unknown") for name in names}
        found["opset"] = OPSET
    return found
