"""Dice, sensitivity and specificity, pixel by pixel, of all lesions of a slice taken together.

The predicted lesion mask of a slice is the union of its detections that score the threshold or more, the reference the
union of its ground-truth masks. Each figure comes as the mean over slices and pooled, from the pixels of all slices
added up. What an empty reference does to the mean over slices:

- Reference and prediction both empty: Dice and sensitivity are undefined; the slice is left out of them, and counted.
- Reference empty, prediction not: Dice is 0; sensitivity is undefined, the slice is left out of it, and counted.
- Specificity is undefined only where the reference fills the slice.

Pixels of crowd regions (COCO's ``iscrowd``) that no lesion has are left out of all counts.
"""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from .slice_instances import Rle, SliceInstances


def confusion_pixels(
    slices: Sequence[SliceInstances], score_threshold: float = 0.5, of_class: int | None = None
) -> np.ndarray:
    """(N, 4) int64 pixels of each slice: true positive, false positive, false negative, true negative.

    Detections and ground truth need masks.

    Args:
        score_threshold: detections scoring at least this are united.
        of_class: take only lesions of this class (default: all).
    """
    rows = []
    for item in slices:
        wanted = item.scores >= score_threshold
        if of_class is not None:
            wanted &= item.classes == of_class
        predicted = _union([item.masks[i] for i in np.flatnonzero(wanted)])
        truth = _union([item.truth_masks[i] for i in item.truth_indices(of_class)])
        crowd = _union([item.truth_masks[i] for i in item.truth_indices(of_class, crowd=True)])
        both = _area(predicted) + _area(truth) - _area(predicted + truth)
        anything = _area(predicted + truth + crowd)
        only_predicted, only_truth = anything - _area(truth + crowd), _area(truth) - both
        rows.append((both, only_predicted, only_truth, item.height * item.width - anything))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def overlap_by_slice(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """(N, 4) pixels -> ``dice``, ``sensitivity``, ``specificity`` of each slice: (N,) in [0, 1], nan if undefined."""
    tp, fp, fn, tn = np.asarray(pixels, dtype=np.float64).T
    return {
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
    }


def overlap_values(pixels: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Mean over slices (``dice`` ...) and pooled (``pooled_dice`` ...), slice n taken ``weights[n]`` times; nan where
    undefined: a mean without a slice, or pooled pixels without any of the kind asked for.

    Args:
        pixels: (N, 4) from :func:`confusion_pixels`.
        weights: (N,) integers.
    """
    weights = np.ones(len(pixels), dtype=np.int64) if weights is None else weights
    values = {}
    for name, of_slice in overlap_by_slice(pixels).items():
        defined = np.isfinite(of_slice)
        values[name] = float(_ratio(weights[defined] @ of_slice[defined], weights[defined].sum()))
    pooled = overlap_by_slice((weights @ pixels)[None])
    return values | {f"pooled_{name}": float(value[0]) for name, value in pooled.items()}


def empty_reference_counts(pixels: np.ndarray) -> dict[str, int]:
    """How many slices had no reference, and what that did (module docstring)."""
    tp, fp, fn, _ = np.asarray(pixels).T
    empty = tp + fn == 0
    return {
        "empty_reference": int(empty.sum()),
        "empty_reference_empty_prediction": int((empty & (fp == 0)).sum()),
        "empty_reference_with_prediction": int((empty & (fp > 0)).sum()),
    }


def _union(masks: list[Rle]) -> list[Rle]:
    """All as one mask; none of none."""
    return [mask_util.merge(masks)] if masks else []


def _area(masks: list[Rle]) -> int:
    """Pixels that any of them has."""
    return sum(int(mask_util.area(mask)) for mask in _union(masks))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    defined = np.asarray(denominator) > 0
    return np.divide(numerator, denominator, out=np.full(defined.shape, np.nan), where=defined)
