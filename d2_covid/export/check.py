"""Whether an exported model says what the model says: the same slices through both, preprocessing included.

Shape shorthand: R detections of one slice.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN

from ..inference.batch import slice_record
from .runtime import Result, Session

BOX_TOLERANCE = 1e-3
"""Of a box's longer side, which counts at least one pixel."""
SCORE_TOLERANCE = 1e-4
"""Of scores, and of the dense part's values as shares of the largest."""
MASK_TOLERANCE = 1e-3
"""Of a mask's probabilities."""
PIXEL_TOLERANCE = 1e-3
"""Share of a slice's lesion pixels that may fall on the other side of the threshold."""

_SAME_BOX = 0.01
"""Share of a box's longer side within which two detections are compared as one."""


@dataclass(frozen=True)
class Difference:
    """What the exported model says otherwise about one slice; each number the largest there is.

    Attributes:
        detections: of the model.
        unmatched: detections of either that the other lacks, but for those that rounding brings in or out: whose score
            is as good as the score threshold or, where the list is full, as the last one's.
        box: as a share of the box's longer side, or of a pixel.
        score: of matched detections.
        mask: of their masks' probabilities; pixels: share of all lesion pixels that differ, pasted.
        image_score: of the image classes.
        dense: of the dense part's outputs, as a share of the largest value of each.
    """

    name: str
    detections: int = 0
    unmatched: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    pixels: float = 0.0
    image_score: float = 0.0
    dense: float = 0.0

    @property
    def within_tolerance(self) -> bool:
        # Each compared by itself: NaN is within no tolerance, but Python's max() may drop it.
        return (
            self.unmatched == 0
            and self.box <= BOX_TOLERANCE
            and self.score <= SCORE_TOLERANCE
            and self.image_score <= SCORE_TOLERANCE
            and self.dense <= SCORE_TOLERANCE
            and self.mask <= MASK_TOLERANCE
            and self.pixels <= PIXEL_TOLERANCE
        )


def compare(model: GeneralizedRCNN, cfg: CfgNode, session: Session, image: np.ndarray, name: str) -> Difference:
    """Run a slice through the model and through what was exported of it.

    Args:
        model: in inference mode, as it was exported; ``cfg``: what it was built from.
        image: (H, W) ``uint8``.
        name: of the slice.
    """
    found = session(image)
    if session.info["part"] == "dense":
        return Difference(name, dense=_dense_difference(model, cfg, found.raw, image))
    expected = reference(model, cfg, image)
    return result_difference(
        expected,
        found,
        name,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        most_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


@torch.no_grad()
def reference(model: GeneralizedRCNN, cfg: CfgNode, image: np.ndarray) -> Result:
    """What the model itself says about a slice, (H, W) ``uint8``."""
    record = slice_record(image, cfg)
    (output,) = model.inference([record], do_postprocess=False)
    instances = output["instances"] if isinstance(output, dict) else output
    if instances.has("pred_masks"):
        instances.soft_masks = instances.pred_masks[:, 0]
    sizes = [tuple(record["image"].shape[-2:])]
    instances = GeneralizedRCNN._postprocess([copy.deepcopy(instances)], [record], sizes)[0]["instances"].to("cpu")
    with_masks = instances.has("pred_masks")
    return Result(
        boxes=instances.pred_boxes.tensor.numpy(),
        scores=instances.scores.numpy(),
        classes=instances.pred_classes.numpy(),
        masks=instances.pred_masks.numpy() if with_masks else None,
        soft_masks=instances.soft_masks.numpy() if with_masks else None,
        image_scores=output["image_scores"].cpu().numpy() if isinstance(output, dict) else None,
        raw={},
    )


def result_difference(
    expected: Result, found: Result, name: str = "", *, score_threshold: float, most_detections: int
) -> Difference:
    """Compare two results of one slice, detection by detection.

    Args:
        expected, found: the model's, and the exported model's.
        score_threshold: what detections score more than; most_detections: how many there are at most.
    """
    partner = _partners(expected, found)
    lost = _beyond_rounding(expected.scores[partner < 0], expected, score_threshold, most_detections)
    added = np.setdiff1d(np.arange(len(found.scores)), partner)
    added = _beyond_rounding(found.scores[added], found, score_threshold, most_detections)
    mine, theirs = np.flatnonzero(partner >= 0), partner[partner >= 0]
    box = _box_distances(expected.boxes[mine], found.boxes[theirs])
    numbers: dict[str, Any] = {
        "detections": len(expected.scores),
        "unmatched": lost + added,
        "box": _most(box),
        "score": _most(expected.scores[mine] - found.scores[theirs]),
    }
    if expected.masks is not None:
        numbers["mask"] = _most(expected.soft_masks[mine] - found.soft_masks[theirs])
        masks = expected.masks[mine]
        numbers["pixels"] = float((masks != found.masks[theirs]).sum() / max(masks.sum(), 1))
    if expected.image_scores is not None:
        numbers["image_score"] = _most(expected.image_scores - found.image_scores)
    return Difference(name, **numbers)


def _partners(expected: Result, found: Result) -> np.ndarray:
    """(R,) index of the exported detection that is each of the model's; -1 where there is none."""
    partner = np.full(len(expected.scores), -1)
    free = np.ones(len(found.scores), bool)
    for index, (box, score, number) in enumerate(zip(expected.boxes, expected.scores, expected.classes)):
        near = np.flatnonzero(free & (found.classes == number) & (np.abs(found.scores - score) <= _SAME_BOX))
        if len(near):
            distance = _box_distances(np.broadcast_to(box, (len(near), 4)), found.boxes[near])
            best = int(distance.argmin())
            if distance[best] <= _SAME_BOX:
                partner[index] = near[best]
                free[near[best]] = False
    return partner


def _box_distances(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Largest difference of a coordinate as a share of the box's longer side, or of a pixel if that is more: (R,)."""
    sides = np.maximum(expected[:, 2:] - expected[:, :2], 1).max(1)
    return np.abs(expected - found).max(1) / sides


def _beyond_rounding(scores: np.ndarray, result: Result, score_threshold: float, most_detections: int) -> int:
    """How many of these scores of a result lie clear of where its list ends."""
    least = score_threshold
    if 0 <= most_detections <= len(result.scores):
        least = max(least, float(result.scores.min()))
    return int((~(scores <= least + SCORE_TOLERANCE)).sum())  # NaN lies clear of it too


def _most(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


@torch.no_grad()
def _dense_difference(model: GeneralizedRCNN, cfg: CfgNode, raw: dict[str, np.ndarray], image: np.ndarray) -> float:
    features = model.backbone(model.preprocess_image([slice_record(image, cfg)]).tensor)
    rpn = model.proposal_generator
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    expected = {f"features_{name}": value for name, value in features.items()}
    expected |= {f"rpn_logits_{name}": value for name, value in zip(rpn.in_features, logits)}
    expected |= {f"rpn_deltas_{name}": value for name, value in zip(rpn.in_features, deltas)}
    if expected.keys() != raw.keys():
        raise ValueError(f"the graph gives {sorted(raw)}, not {sorted(expected)}")
    shares = [
        _most(value.cpu().numpy() - raw[name]) / max(float(value.abs().max()), 1e-6) for name, value in expected.items()
    ]
    return float(np.max(shares))  # NaN if one of them is
