"""The paper's own average precision: worked out slice by slice, then averaged over slices.

Published figures (paper, Table 2) are in this measure, which is not COCO's: a slice counts the same whether it holds
one lesion or ten, and only detections scoring above a threshold (0.75) enter. The rules, for a slice and an IoU t:

- Detections that score above the threshold, not at it, enter, in descending score (ties in the order they came).
- Ground-truth masks are taken in turn; each goes to the entering detection that overlaps it best, if their mask IoU is
  t or more (on a tie, to the one that scores higher). One detection may match several ground-truth masks.
- After each detection, precision is the share of detections so far that match something, recall the share of
  ground-truth masks matched by a detection so far. AP is the area under that curve with precision made non-increasing
  (all-point interpolation).
- Neither ground truth nor entering detections: AP is 1. Only one of the two: 0.

Left open by the paper, and decided here. With K > 1 classes a detection matches only ground truth of its own class, and
a slice has one curve over all classes. Recall counts ground-truth masks, not detections; the two differ only where one
detection matches several masks, which for masks that don't overlap takes an IoU of exactly 0.5 with both. Crowd regions
(COCO's ``iscrowd``) are no ground truth. A detection with half of its pixels or more in one of its class, and an IoU of
0.5 or more with no lesion, does not enter.
"""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from .slice_instances import SliceInstances

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def paper_average_precision(
    iou: np.ndarray, scores: np.ndarray, score_threshold: float = 0.75, iou_thresholds: np.ndarray = IOU_THRESHOLDS
) -> np.ndarray:
    """AP of one slice at each IoU threshold; the module's docstring has the rules.

    Args:
        iou: (D, G) overlap of detections and ground-truth masks; below every threshold (say 0) for a pair of
            different classes.
        scores: (D,).
        score_threshold: detections scoring above it enter.
        iou_thresholds: (T,).

    Returns:
        (T,) in [0, 1].
    """
    entering = np.flatnonzero(scores > score_threshold)
    entering = entering[np.argsort(-scores[entering], kind="stable")]
    truths = iou.shape[1]
    if not entering.size or not truths:
        return np.full(len(iou_thresholds), float(not entering.size and not truths))
    iou = iou[entering]
    best = iou.argmax(axis=0)
    overlap = iou[best, np.arange(truths)]
    return np.array([_area_under_curve(best[overlap >= t], len(entering), truths) for t in iou_thresholds])


def paper_ap_table(
    slices: Sequence[SliceInstances],
    score_threshold: float = 0.75,
    of_class: int | None = None,
) -> np.ndarray:
    """(N, T) AP of each slice at IoU 0.50:0.05:0.95, of all classes or one.

    Detections and ground truth need masks.
    """
    return np.stack([_slice_ap(item, score_threshold, of_class) for item in slices])


def paper_ap_values(table: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """AP (mean over IoUs), AP50 and AP75 in percent: the mean over N slices of ``table``, slice n taken ``weights[n]``
    times."""
    by_threshold = 100 * np.average(table, axis=0, weights=weights)
    return {
        "AP": float(by_threshold.mean()),
        "AP50": float(by_threshold[np.isclose(IOU_THRESHOLDS, 0.5)].item()),
        "AP75": float(by_threshold[np.isclose(IOU_THRESHOLDS, 0.75)].item()),
    }


def _slice_ap(item: SliceInstances, score_threshold: float, of_class: int | None) -> np.ndarray:
    detections = np.arange(len(item.scores)) if of_class is None else np.flatnonzero(item.classes == of_class)
    iou = _overlaps(item, detections, item.truth_indices(of_class))
    in_crowd = _overlaps(item, detections, item.truth_indices(of_class, crowd=True), crowd=True)
    entering = (iou >= 0.5).any(axis=1) | ~(in_crowd >= 0.5).any(axis=1)
    return paper_average_precision(iou[entering], item.scores[detections[entering]], score_threshold)


def _overlaps(item: SliceInstances, detections: np.ndarray, truths: np.ndarray, crowd: bool = False) -> np.ndarray:
    """(D, G) IoU of masks, or with ``crowd`` the share of the detection that lies in the region; 0 between classes."""
    if not len(detections) or not len(truths):
        return np.zeros((len(detections), len(truths)))
    masks, truth_masks = [item.masks[d] for d in detections], [item.truth_masks[g] for g in truths]
    iou = mask_util.iou(masks, truth_masks, [int(crowd)] * len(truths))
    return np.where(item.classes[detections, None] == item.truth_classes[truths], iou, 0.0)


def _area_under_curve(matches: np.ndarray, detections: int, truths: int) -> float:
    """``matches``: rank of the detection that each matched ground-truth mask went to."""
    masks_found = np.bincount(matches, minlength=detections)
    precision = np.cumsum(masks_found > 0) / np.arange(1, detections + 1)
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((masks_found / truths) @ highest_from_here)
