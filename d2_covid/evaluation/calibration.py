"""How far a classifier's scores are chances: expected calibration error, Brier score, and a fitted temperature.

Shape shorthand: S slices, C image classes; ``logits`` and ``scores`` are (S, C), ``truth`` is (S,).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

# Temperatures outside of this range mean that the scores are noise (large) or separate the classes fully (small).
TEMPERATURE_RANGE = (0.01, 100.0)


@dataclass(frozen=True)
class ReliabilityBins:
    """Slices by the score of their predicted class, in B bins of equal width over [0, 1].

    Attributes:
        edges: (B + 1,).
        count: (B,) slices; a score on an edge belongs to the bin above, and 1 to the last.
        confidence: (B,) their mean score, nan where a bin is empty.
        accuracy: (B,) share of them that is right, nan where a bin is empty.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def image_scores(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(S, C) softmax of logits over a temperature, as the classifier computes them; no temperature changes a decision.

    Raises:
        ValueError: a temperature that isn't above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: above 0")
    return softmax(np.asarray(logits, float) / temperature, axis=1)


def reliability_bins(scores: np.ndarray, truth: np.ndarray, bins: int = 10) -> ReliabilityBins:
    """Mean score against share right, for the predicted class (the highest score) of each slice."""
    scores, truth = np.asarray(scores, float), np.asarray(truth)
    confidence = scores.max(axis=1, initial=0.0)
    right = scores.argmax(axis=1) == truth if len(scores) else np.zeros(0, bool)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return ReliabilityBins(
            np.linspace(0, 1, bins + 1),
            count,
            np.bincount(index, confidence, minlength=bins) / count,
            np.bincount(index, right, minlength=bins) / count,
        )


def expected_calibration_error(bins: ReliabilityBins) -> float:
    """Mean distance of score and share right, weighted by slices (Naeini et al. 2015); nan without slices."""
    if bins.count.sum() == 0:
        return math.nan
    distance = np.abs(bins.confidence - bins.accuracy)
    return float(np.nansum(distance * bins.count) / bins.count.sum())


def brier_score(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance of scores and one-hot truth, summed over classes (Brier 1950): 0 best, 2 worst with
    softmax scores. nan without slices."""
    if len(truth) == 0:
        return math.nan
    scores = np.asarray(scores, float)
    return float(np.square(scores - np.eye(scores.shape[1])[np.asarray(truth)]).sum(axis=1).mean())


def negative_log_likelihood(logits: np.ndarray, truth: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over slices of minus the logarithm of the true class's score."""
    logarithms = log_softmax(np.asarray(logits, float) / temperature, axis=1)
    return float(-logarithms[np.arange(len(logarithms)), np.asarray(truth)].mean())


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature that makes the true classes of a VALIDATION set most likely (Guo et al. 2017).

    Apply it to other data than it was fitted on; fitted and judged on the same slices it flatters.

    Raises:
        ValueError: no slices, or a logit that isn't a finite number.
    """
    logits = np.asarray(logits, float)
    if len(logits) == 0 or not np.isfinite(logits).all():
        raise ValueError("a temperature is fitted on one slice or more, with finite logits")
    bounds = tuple(np.log(TEMPERATURE_RANGE))
    fit = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, truth, math.exp(log_t)), bounds=bounds, method="bounded"
    )
    return float(math.exp(fit.x))
