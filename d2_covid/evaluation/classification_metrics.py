"""Accuracy of image classes, in pure NumPy.

Shape shorthand: S slices (or patients), C image classes. ``truth`` and ``predicted`` are (S,) class numbers, ``scores``
is (S, C), ``weights`` is (S,) counts of how often each slice is taken, 1 where left out; a bootstrap resample is a set
of weights. Curves are one class against the rest.

A figure that the data don't define (the sensitivity of a class that doesn't occur) is nan with its reason, and so is
every average over it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        value: nan where it is undefined, and ``reason`` says why.
        numerator, denominator: the counts that it is the ratio of, None where it isn't a ratio of counts.
        reason: empty where the value is defined.
        is_proportion: whether it is a share of yes-or-no cases, so that a Wilson interval applies (F1 isn't one).
    """

    value: float
    numerator: int | None = None
    denominator: int | None = None
    reason: str = ""
    is_proportion: bool = False

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values for a json file; an undefined value is None and carries its reason."""
        entry: dict[str, float | int | str | None] = {"value": None if math.isnan(self.value) else self.value}
        if self.numerator is not None:
            entry |= {"numerator": self.numerator, "denominator": self.denominator}
        return entry | ({"reason": self.reason} if self.reason else {})


def confusion_matrix(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """(C, C) int64 counts; row: true class, column: predicted class."""
    cell = np.asarray(truth, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(cell, weights, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def confusion_rows(confusion: np.ndarray) -> np.ndarray:
    """(C, C) shares of each true class; the row of a class that doesn't occur is nan."""
    totals = confusion.sum(axis=1, keepdims=True).astype(float)
    return np.divide(confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)


def ratio(numerator: int, denominator: int, missing: str, is_proportion: bool = True) -> Measure:
    """``numerator / denominator``; where the denominator is 0, nan with ``no {missing}`` as its reason."""
    numerator, denominator = int(numerator), int(denominator)
    value = numerator / denominator if denominator else math.nan
    return Measure(value, numerator, denominator, "" if denominator else f"no {missing}", is_proportion)


def mean_of(measures: Sequence[Measure], names: Sequence[str]) -> Measure:
    """Mean; nan, naming the first undefined part, where not every part is defined."""
    for measure, name in zip(measures, names, strict=True):
        if math.isnan(measure.value):
            return Measure(math.nan, reason=f"undefined for {name}: {measure.reason}")
    return Measure(float(np.mean([measure.value for measure in measures])))


def confusion_measures(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Measure]:
    """Everything that follows from a confusion matrix.

    Returns:
        ``accuracy``, ``balanced_accuracy`` (mean sensitivity), ``macro_f1``, ``mcc`` (Matthews correlation, Gorodkin
        2004), and per class ``sensitivity-<name>``, ``specificity-<name>``, ``ppv-<name>``, ``npv-<name>``,
        ``f1-<name>``. The F1 score's numerator and denominator are 2 TP and 2 TP + FP + FN.
    """
    total = int(confusion.sum())
    true, predicted, hits = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    per_class: dict[str, list[Measure]] = {
        "sensitivity": [ratio(hits[c], true[c], f"{name} in the data") for c, name in enumerate(class_names)],
        "specificity": [
            ratio(total - true[c] - predicted[c] + hits[c], total - true[c], f"other class than {name} in the data")
            for c, name in enumerate(class_names)
        ],
        "ppv": [ratio(hits[c], predicted[c], f"{name} predicted") for c, name in enumerate(class_names)],
        "npv": [
            ratio(total - true[c] - predicted[c] + hits[c], total - predicted[c], f"other class than {name} predicted")
            for c, name in enumerate(class_names)
        ],
        "f1": [
            ratio(2 * hits[c], true[c] + predicted[c], f"{name} in the data or predicted", is_proportion=False)
            for c, name in enumerate(class_names)
        ],
    }
    return {
        "accuracy": ratio(hits.sum(), total, "cases"),
        "balanced_accuracy": mean_of(per_class["sensitivity"], class_names),
        "macro_f1": mean_of(per_class["f1"], class_names),
        "mcc": matthews_correlation(confusion),
        **{
            metric_name(kind, name): measure
            for c, name in enumerate(class_names)
            for kind, measure in ((kind, measures[c]) for kind, measures in per_class.items())
        },
    }


def metric_name(kind: str, class_name: str) -> str:
    """``sensitivity-common_pneumonia`` of ``sensitivity`` and ``common pneumonia``."""
    return f"{kind}-{class_name.replace(' ', '_')}"


def matthews_correlation(confusion: np.ndarray) -> Measure:
    """Matthews correlation coefficient of C classes; nan where only one class occurs or only one is predicted."""
    counts = confusion.astype(float)
    total, true, predicted = counts.sum(), counts.sum(axis=1), counts.sum(axis=0)
    spread_true, spread_predicted = total**2 - true @ true, total**2 - predicted @ predicted
    if spread_true == 0:
        return Measure(math.nan, reason="fewer than two classes in the data")
    if spread_predicted == 0:
        return Measure(math.nan, reason="every case is predicted the same")
    covariance = np.trace(counts) * total - true @ predicted
    return Measure(float(covariance / math.sqrt(spread_true * spread_predicted)))


def score_groups(scores: np.ndarray) -> np.ndarray:
    """(S,) number of each slice's distinct score, 0 for the lowest: equal scores share a group."""
    return np.unique(np.asarray(scores), return_inverse=True)[1].reshape(-1)


def group_counts(
    positive: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How many slices of the class and how many others have each distinct score, highest score first."""
    weights = np.ones(len(groups)) if weights is None else np.asarray(weights, float)
    size = int(groups.max(initial=-1)) + 1
    positives = np.bincount(groups, weights * positive, minlength=size)
    return positives[::-1], (np.bincount(groups, weights, minlength=size)[::-1] - positives[::-1])


def roc_auc(positives: np.ndarray, negatives: np.ndarray) -> Measure:
    """Area under the ROC curve from :func:`group_counts`: how often a slice of the class outscores another one; a tie
    counts one half (Hanley and McNeil 1982)."""
    if positives.sum() == 0 or negatives.sum() == 0:
        return Measure(math.nan, reason="the class or its rest doesn't occur")
    outscored = negatives.sum() - np.cumsum(negatives) + negatives / 2
    return Measure(float(positives @ outscored / (positives.sum() * negatives.sum())))


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> Measure:
    """Area under the precision-recall curve as a sum of steps, without interpolation, from :func:`group_counts`."""
    if positives.sum() == 0:
        return Measure(math.nan, reason="the class doesn't occur")
    true, taken = np.cumsum(positives), np.cumsum(positives + negatives)
    precision = np.divide(true, taken, out=np.zeros_like(true), where=taken > 0)
    return Measure(float(positives @ precision / positives.sum()))


def roc_curve(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity) from (0, 0) to (1, 1); nan where the class or its rest doesn't occur."""
    with np.errstate(invalid="ignore"):
        return tuple(np.r_[0.0, np.cumsum(counts)] / counts.sum() for counts in (negatives, positives))


def precision_recall_curve(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision), one point a distinct score."""
    with np.errstate(invalid="ignore"):
        true = np.cumsum(positives)
        return true / positives.sum(), true / np.cumsum(positives + negatives)


def measure_function(
    truth: np.ndarray, predicted: np.ndarray, scores: np.ndarray, class_names: Sequence[str]
) -> Callable[[np.ndarray | None], dict[str, Measure]]:
    """A function from weights to all measures: those of :func:`confusion_measures`, then ``auc`` and
    ``average_precision`` (of the second class where C is 2, else the mean over classes) and both per class.

    Scores are sorted once, so that a bootstrap over thousands of slices is quick.
    """
    groups = [score_groups(scores[:, c]) for c in range(len(class_names))]

    def measures(weights: np.ndarray | None = None) -> dict[str, Measure]:
        found = confusion_measures(confusion_matrix(truth, predicted, len(class_names), weights), class_names)
        curves = [group_counts(truth == c, groups[c], weights) for c in range(len(class_names))]
        for kind, area in (("auc", roc_auc), ("average_precision", average_precision)):
            areas = [area(*curve) for curve in curves]
            found[kind] = areas[1] if len(areas) == 2 else mean_of(areas, class_names)
            found |= {metric_name(kind, name): value for name, value in zip(class_names, areas, strict=True)}
        return found

    return measures


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), for independent trials; nan where there are none."""
    if trials == 0:
        return math.nan, math.nan
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
