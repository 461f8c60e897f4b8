"""How far two builds of one model agree: the same slices through both, detection by detection.

Shape shorthand: D detections of one slice.
"""

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import torch
from detectron2.structures import Instances, pairwise_iou

MATCH_IOU = 0.8
"""Two detections of one class are the same if their boxes overlap as much as this."""


@dataclass(frozen=True)
class Agreement:
    """What two models differ by.

    Attributes:
        detections: of the first model, at or above the score threshold.
        unmatched: detections of either model at or above the threshold that the other one lacks at any score.
        score_difference, box_difference_px: largest among those that match; None where none do.
        mask_dice: of the united masks of all slices; None without masks, or where both found nothing.
        image_score_difference: largest; None for models that do not classify.
    """

    slices: int
    detections: int
    unmatched: int
    score_difference: float | None
    box_difference_px: float | None
    mask_dice: float | None
    image_score_difference: float | None


def agreement(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], score_threshold: float
) -> Agreement:
    """Compare the outputs of two models on the same slices.

    Args:
        first, second: one output a slice, as a model gives it: ``instances`` and, of a classifier, ``image_scores``.
            Detections below the threshold serve as partners, so that a score at the threshold splits no pair.
    """
    detections = unmatched = common = total = 0
    scores, boxes, image_scores = [], [], []
    for one, other in zip(first, second, strict=True):
        a, b = one["instances"].to("cpu"), other["instances"].to("cpu")
        counted_a, counted_b = a.scores >= score_threshold, b.scores >= score_threshold
        partner = _partners(a, b)
        kept = counted_a & (partner >= 0)
        matched, theirs = a[kept], b[partner[kept]]
        detections += int(counted_a.sum())
        unmatched += int((counted_a & (partner < 0)).sum()) + int((counted_b & (_partners(b, a) < 0)).sum())
        scores += (matched.scores - theirs.scores).abs().tolist()
        boxes += (matched.pred_boxes.tensor - theirs.pred_boxes.tensor).abs().flatten().tolist()
        if a.has("pred_masks") and b.has("pred_masks"):
            mask_a, mask_b = (x.pred_masks[counted].any(dim=0) for x, counted in ((a, counted_a), (b, counted_b)))
            common += int((mask_a & mask_b).sum())
            total += int(mask_a.sum()) + int(mask_b.sum())
        if "image_scores" in one:
            image_scores += (one["image_scores"].cpu() - other["image_scores"].cpu()).abs().tolist()
    return Agreement(
        slices=len(first),
        detections=detections,
        unmatched=unmatched,
        score_difference=max(scores, default=None),
        box_difference_px=max(boxes, default=None),
        mask_dice=2 * common / total if total else None,
        image_score_difference=max(image_scores, default=None),
    )


def _partners(a: Instances, b: Instances) -> torch.Tensor:
    """(D,) for each detection of ``a`` the index of the one of ``b`` that is its best match; -1 where none is."""
    if not len(a) or not len(b):
        return torch.full((len(a),), -1)
    iou = pairwise_iou(a.pred_boxes, b.pred_boxes)
    iou[a.pred_classes[:, None] != b.pred_classes[None]] = 0
    best, index = iou.max(dim=1)
    return torch.where(best >= MATCH_IOU, index, -1)
