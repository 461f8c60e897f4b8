"""All that is said about a classifier's predictions on one data set: measures, intervals, calibration, by patient.

Shape shorthand: S slices, C image classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .bootstrap import Interval, bootstrap_intervals
from .calibration import brier_score, expected_calibration_error, reliability_bins
from .classification_metrics import Measure, confusion_matrix, confusion_rows, measure_function, wilson_interval
from .patient_classification import AGGREGATIONS, by_patient

_BY_SLICE = (
    "intervals of proportions are Wilson's, the others resample slices, and both take slices for independent. Slices "
    "of one patient are not, so the intervals are too narrow if any share a patient."
)
FEW_FOR_CLASSES = 20
"""Below this many patients, intervals over them are remarked on: more than :data:`.bootstrap.FEW_PATIENTS`, since the
patients are shared out among the classes, and the sensitivity to a class rests on its own alone."""
NO_WIDTH = "No width: (nearly) every resample gave this value, which is not certainty."


@dataclass(frozen=True)
class SlicePredictions:
    """What a classifier said about S slices, and what they are.

    Attributes:
        files: (S,) paths.
        patient_ids, scan_ids: (S,); "" where the data don't say.
        truth: (S,) int true class.
        logits: (S, C) before the score function; scores: (S, C) after it. The predicted class is the highest logit.
        class_names: C names.
    """

    files: Sequence[str]
    patient_ids: Sequence[str]
    scan_ids: Sequence[str]
    truth: np.ndarray
    logits: np.ndarray
    scores: np.ndarray
    class_names: Sequence[str]

    @property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(axis=1) if len(self.truth) else np.zeros(0, np.int64)

    @property
    def has_patients(self) -> bool:
        """Whether every slice names its patient; a set where only some do is treated as one where none does."""
        return len(self.patient_ids) > 0 and all(self.patient_ids)


@dataclass(frozen=True)
class IntervalOptions:
    """How 95 % intervals are drawn; 0 resamples: none."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95


DEFAULT_INTERVALS = IntervalOptions()


def classification_results(
    predictions: SlicePredictions, options: IntervalOptions = DEFAULT_INTERVALS, k: int = 3, bins: int = 10
) -> dict[str, Any]:
    """Everything as plain values for ``results.json``; undefined values are None and carry a ``reason``.

    Args:
        k: of the patient aggregations ``any_k`` and ``top_k_mean``.
        bins: of the reliability figure and the expected calibration error.

    Returns:
        ``classes``, ``slices``, ``patients`` (None where unknown), ``intervals`` (how they were made), ``confusion``
        (counts and rows), ``measures``, ``calibration``, and ``by_patient`` (empty where patients are unknown): one
        entry an aggregation, each with ``confusion`` and ``measures``.

    Raises:
        UserError: a score or logit is not finite; the message names its slice.
    """
    names, truth = list(predictions.class_names), predictions.truth
    _check_finite(predictions)
    groups = list(predictions.patient_ids) if predictions.has_patients else list(range(len(truth)))
    unit = "patient" if predictions.has_patients else "slice"
    calibration = reliability_bins(predictions.scores, truth, bins)
    extra = {
        "ece": Measure(*_or_reason(expected_calibration_error(calibration))),
        "brier": Measure(*_or_reason(brier_score(predictions.scores, truth))),
    }
    results: dict[str, Any] = {
        "classes": names,
        "slices": len(truth),
        "slices_by_class": np.bincount(truth, minlength=len(names)).tolist(),
        "patients": len(set(groups)) if predictions.has_patients else None,
        "intervals": {
            "level": options.level,
            "resamples": options.resamples,
            "seed": options.seed,
            "unit": unit,
            "note": _interval_note(predictions, len(set(groups))),
        },
        **_judge(
            truth, predictions.predicted, predictions.scores, names, groups, options, predictions.has_patients, unit
        ),
        "calibration": {
            **{name: measure.as_dict() for name, measure in extra.items()},
            "bins": {
                "edges": calibration.edges.tolist(),
                "slices": calibration.count.tolist(),
                "confidence": [_plain(value) for value in calibration.confidence.tolist()],
                "accuracy": [_plain(value) for value in calibration.accuracy.tolist()],
            },
        },
        "by_patient": {},
    }
    if predictions.has_patients:
        for method in AGGREGATIONS:
            found = by_patient(predictions.patient_ids, truth, predictions.scores, method, k)
            results["by_patient"][method] = {
                "k": None if method == "mean" else k,
                "patients": len(found.ids),
                "left_out": [str(patient) for patient in found.left_out],
                # One case a patient: the cases are independent, and proportions need no resampling.
                **_judge(found.truth, found.predicted, found.scores, names, list(found.ids), options, False, "patient"),
            }
    return results


def flat_values(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The values alone, as Detectron2 wants an evaluator's results: ``{"image": {...}, "patient": {...}}``, with nan
    for what is undefined. ``patient`` holds the aggregation ``mean``, and is left out where patients are unknown."""
    values = {"image": _values(results["measures"]) | _values({n: results["calibration"][n] for n in ("ece", "brier")})}
    if results["by_patient"]:
        values["patient"] = _values(results["by_patient"]["mean"]["measures"])
    return values


def _judge(
    truth: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    names: list[str],
    groups: list,
    options: IntervalOptions,
    clustered: bool,
    unit: str,
) -> dict[str, Any]:
    measure = measure_function(truth, predicted, scores, names)
    measures = measure(None)
    intervals = _intervals(measure, measures, groups, options, clustered, unit)
    confusion = confusion_matrix(truth, predicted, len(names))
    rows = [[_plain(share) for share in row] for row in confusion_rows(confusion).tolist()]
    return {
        "confusion": {"counts": confusion.tolist(), "rows": rows},
        "measures": {name: entry.as_dict() | {"interval": intervals.get(name)} for name, entry in measures.items()},
    }


def _intervals(
    measure: Callable[[np.ndarray | None], dict[str, Measure]],
    measures: dict[str, Measure],
    groups: list,
    options: IntervalOptions,
    clustered: bool,
    unit: str,
) -> dict[str, dict[str, Any]]:
    """``{name: {low, high, method, ...}}``; empty where none was asked for.

    Args:
        groups: what to resample, one entry a case.
        clustered: whether a group holds several cases; proportions of single cases have Wilson's interval.
        unit: what a group is called.
    """
    if options.resamples < 1:
        return {}
    drawn = bootstrap_intervals(
        lambda weights: {name: found.value for name, found in measure(weights).items()},
        groups,
        options.resamples,
        options.seed,
        options.level,
        unit=unit,
    )
    found = {}
    for name, interval in drawn.items():
        entry = measures[name]
        if not clustered and entry.is_proportion:
            low, high = wilson_interval(entry.numerator, entry.denominator, options.level)
            found[name] = {"low": _plain(low), "high": _plain(high), "method": "Wilson"}
        else:
            found[name] = {
                "low": _plain(interval.low),
                "high": _plain(interval.high),
                "method": f"bootstrap over {unit}s",
                "undefined_resamples": interval.undefined,
                "note": _note(interval),
            }
    return found


def _check_finite(predictions: SlicePredictions) -> None:
    bad = ~(np.isfinite(predictions.scores) & np.isfinite(predictions.logits)).all(axis=1)
    if bad.any():
        file = predictions.files[int(bad.argmax())]
        raise UserError(f"{file} has scores that are no numbers, as {int(bad.sum())} slices do; was training stable?")


def _interval_note(predictions: SlicePredictions, patients: int) -> str:
    if not predictions.has_patients:
        slices = len(predictions.truth)
        unnamed = slices - sum(map(bool, predictions.patient_ids))
        if unnamed < slices:
            return f"{unnamed} of {slices} slices name no patient, so there are no figures by patient: {_BY_SLICE}"
        return f"The data name no patients: {_BY_SLICE}"
    if patients < FEW_FOR_CLASSES:
        return f"Only {patients} patients: intervals that resample so few are too narrow."
    return ""


def _note(interval: Interval) -> str:
    without_width = NO_WIDTH if interval.low == interval.high else ""
    return " ".join(filter(None, (interval.note, without_width)))


def _or_reason(value: float) -> tuple[float, None, None, str]:
    return value, None, None, "no slices" if math.isnan(value) else ""


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _values(measures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: math.nan if entry["value"] is None else entry["value"] for name, entry in measures.items()}
