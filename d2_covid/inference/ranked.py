"""All that a detector says about a slice, low scores included, with the raw scores of its masks.

It is what the paper's Figures 2 and 3 show.

Shape shorthand: R detections of a slice, K lesion classes, C image classes; (H, W) is the slice's size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes

from ..errors import UserError
from .batch import slice_record


@dataclass(frozen=True)
class RankedPrediction:
    """Detections of one slice in descending score, in its own pixels.

    Attributes:
        boxes: (R, 4) float, XYXY.
        scores: (R,) float.
        classes: (R,) int.
        masks: (R, H, W) bool, or None from a model without masks.
        mask_logits: (R, 28, 28) float, before the sigmoid, each over its own box; None from a model without masks.
        image_logits: (C,) float, or None from a model that doesn't classify.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None
    mask_logits: np.ndarray | None = None
    image_logits: np.ndarray | None = None


def keep_all_detections(cfg: CfgNode) -> None:
    """Let the model of ``cfg`` show every detection that the classifier may rank: the best D, whatever their scores."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.CLASSIFIER.SCORE_THRESH
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = cfg.MODEL.CLASSIFIER.NMS_THRESH
    cfg.TEST.DETECTIONS_PER_IMAGE = cfg.MODEL.CLASSIFIER.NUM_ROIS


@torch.no_grad()
def predict_ranked(model: GeneralizedRCNN, image: np.ndarray, cfg: CfgNode) -> RankedPrediction:
    """Run a segmentation model or a classifier, in inference mode, on one slice.

    Args:
        model: built from ``cfg`` after :func:`keep_all_detections`.
        image: (H, W) ``uint8``.
    """
    record = slice_record(image, cfg)
    tensor = record["image"]
    output = model([record])[0]
    instances = output["instances"].to("cpu")
    boxes, classes = instances.pred_boxes.tensor, instances.pred_classes
    raw = None
    if instances.has("pred_masks"):
        scale = torch.tensor([tensor.shape[2] / image.shape[1], tensor.shape[1] / image.shape[0]]).repeat(2)
        raw = mask_logits(model, tensor, boxes * scale, classes).cpu().numpy()
    return RankedPrediction(
        boxes=boxes.numpy().astype(float),
        scores=instances.scores.numpy().astype(float),
        classes=classes.numpy().astype(int),
        masks=instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None,
        mask_logits=raw,
        image_logits=output["image_logits"].cpu().numpy().astype(float) if "image_logits" in output else None,
    )


@torch.no_grad()
def mask_logits(
    model: GeneralizedRCNN, image: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Raw scores of the mask head in given boxes, each box on its own.

    Detectron2's mask head hands out their sigmoid; here its layers run without it (paper, section 3.1).

    Args:
        model: with masks, in inference mode.
        image: (3, h, w) network input.
        boxes: (R, 4) in the network input's pixels; classes: (R,), whose mask to take.

    Returns:
        (R, 28, 28) logits; their size is twice the mask pooler's.

    Raises:
        UserError: the model has no masks.
    """
    heads = model.roi_heads
    if not heads.mask_on:
        raise UserError("The model has no mask head: use MODEL.MASK_ON True, and weights that hold one.")
    features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
    pooled = heads.mask_pooler([features[name] for name in heads.mask_in_features], [Boxes(boxes.to(model.device))])
    logits = heads.mask_head.layers(pooled)
    # A class-agnostic head has one channel for all classes.
    channels = classes.to(logits.device) if logits.shape[1] > 1 else torch.zeros_like(classes, device=logits.device)
    return logits[torch.arange(len(boxes), device=logits.device), channels]
