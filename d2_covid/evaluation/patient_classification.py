"""From the classes of slices to the class of a patient, in pure NumPy.

Shape shorthand: S slices of one patient, C image classes, P patients. Class 0 is the one without disease (control).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

AGGREGATIONS = ("any_k", "top_k_mean", "mean")


@dataclass(frozen=True)
class Patients:
    """P patients, in order of first appearance.

    Attributes:
        ids: their ids.
        truth: (P,) true class.
        predicted: (P,) predicted class.
        scores: (P, C).
        slices: (P,) slices of each.
        left_out: patients whose slices carry two or more classes besides class 0, so that they have no one class.
    """

    ids: tuple[Hashable, ...]
    truth: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    slices: np.ndarray
    left_out: tuple[Hashable, ...]


def patient_scores(scores: np.ndarray, method: str, k: int = 3) -> tuple[int, np.ndarray]:
    """Class and scores of a patient from the scores of its slices.

    Args:
        scores: (S, C) slice scores, S at least 1.
        method: ``any_k``: the patient has the disease that at least ``k`` slices show (the one that most show; a tie
            goes to the higher mean score), else class 0; its scores are the shares of slices predicted as each class.
            ``top_k_mean``: the mean of each class's ``k`` highest slice scores; ``mean``: of all slice scores; the
            class is the highest.
        k: slices; a patient with fewer slices uses what it has.

    Returns:
        class number, (C,) scores.

    Raises:
        UserError: another method, or k below 1.
        ValueError: no slices.
    """
    scores = np.asarray(scores, float)
    if method not in AGGREGATIONS:
        raise UserError(f"Patient aggregation {method!r}: one of {', '.join(AGGREGATIONS)}.")
    if k < 1:
        raise UserError(f"Patient aggregation over {k} slices: 1 or more.")
    if len(scores) == 0:
        raise ValueError("a patient without slices has no class")
    if method == "any_k":
        votes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
        diseases = [c for c in range(1, len(votes)) if votes[c] >= min(k, len(scores))]
        chosen = max(diseases, key=lambda c: (votes[c], scores[:, c].mean()), default=0)
        return int(chosen), votes / len(scores)
    kept = np.sort(scores, axis=0)[::-1][: k if method == "top_k_mean" else None]
    found = kept.mean(axis=0)
    return int(found.argmax()), found


def patient_class(slice_classes: Sequence[int]) -> int | None:
    """True class of a patient: the one class besides 0 that its slices carry, 0 if there is none, None if there are
    several."""
    diseases = set(map(int, slice_classes)) - {0}
    if len(diseases) > 1:
        return None
    return diseases.pop() if diseases else 0


def by_patient(
    patient_ids: Sequence[Hashable], truth: np.ndarray, scores: np.ndarray, method: str, k: int = 3
) -> Patients:
    """Gather slices by patient; see :func:`patient_scores`.

    Args:
        patient_ids: patient of each slice.
        truth: (S,) class of each slice; scores: (S, C).
    """
    truth, scores = np.asarray(truth), np.asarray(scores, float)
    rows: dict[Hashable, list[int]] = {}
    for index, patient in enumerate(patient_ids):
        rows.setdefault(patient, []).append(index)
    classes = {patient: patient_class(truth[index]) for patient, index in rows.items()}
    ids = tuple(patient for patient, true_class in classes.items() if true_class is not None)
    found = [patient_scores(scores[rows[patient]], method, k) for patient in ids]
    return Patients(
        ids=ids,
        truth=np.array([classes[patient] for patient in ids], dtype=np.int64),
        predicted=np.array([image_class for image_class, _ in found], dtype=np.int64),
        scores=np.array([score for _, score in found], dtype=float).reshape(len(ids), scores.shape[1]),
        slices=np.array([len(rows[patient]) for patient in ids], dtype=np.int64),
        left_out=tuple(patient for patient, true_class in classes.items() if true_class is None),
    )
