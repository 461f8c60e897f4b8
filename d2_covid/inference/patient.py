"""The class of a patient (or series) from what the classifier says about its slices, ready for ``predictions.json``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluation.patient_classification import patient_scores


def patient_result(
    image_scores: np.ndarray, image_classes: Sequence[str], method: str = "any_k", k: int = 3
) -> dict[str, Any]:
    """Class and scores of one patient, as plain values.

    Args:
        image_scores: (S, C) scores of its S slices, S at least 1.
        image_classes: C names, the first that of no disease.
        method, k: see :func:`d2_covid.evaluation.patient_classification.patient_scores`.

    Returns:
        ``image_class`` (name), ``scores`` (by name), ``slices_by_class`` (predicted, by name) and ``k`` (None for
        ``mean``, which has none).

    Raises:
        UserError: another method, or k below 1.
        ValueError: no slices, or another number of classes than names.
    """
    scores = np.asarray(image_scores, float)
    if scores.ndim != 2 or scores.shape[1] != len(image_classes):
        raise ValueError(f"scores of shape {scores.shape} for {len(image_classes)} classes")
    chosen, found = patient_scores(scores, method, k)
    votes = np.bincount(scores.argmax(axis=1), minlength=len(image_classes))
    return {
        "image_class": image_classes[chosen],
        "scores": dict(zip(image_classes, found.tolist(), strict=True)),
        "slices_by_class": dict(zip(image_classes, votes.tolist(), strict=True)),
        "k": None if method == "mean" else k,
    }
