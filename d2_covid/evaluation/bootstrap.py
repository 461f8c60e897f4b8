"""Confidence intervals by bootstrap over patients, in pure NumPy.

Slices of one patient resemble each other, so an interval that resamples slices is too narrow. Here patients are drawn
with replacement, and each drawn patient brings all of its slices (the cluster bootstrap; Davison and Hinkley,
"Bootstrap Methods and their Application", 1997, section 3.8). The interval is the percentile interval.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEW_PATIENTS = 10
"""With fewer the interval's note warns: the 95 % interval of a normal mean held the truth in 51, 81, 88, 94 and 92 % of
1000 simulated studies with 2, 4, 9, 15 and 30 patients."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval and what stands behind it.

    Attributes:
        low, high: its ends; nan where there is no interval, and ``note`` says why.
        level: share of resamples between the ends, 0.95 for 95 %.
        resamples: resamples drawn.
        groups: patients, or other units, they were drawn from.
        undefined: resamples in which the statistic was undefined (nan); they are left out of the interval.
        note: what must be said about the interval, else empty.
        unit: what a group is, ``"patient"`` or ``"slice"``.
    """

    low: float
    high: float
    level: float
    resamples: int
    groups: int
    undefined: int = 0
    note: str = ""
    unit: str = "patient"

    @property
    def exists(self) -> bool:
        """Whether the interval has ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values for a json file; None for an end that does not exist."""
        return {
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "level": self.level,
            "resamples": self.resamples,
            "patients": self.groups if self.unit == "patient" else None,
            "resampled_units": self.groups,
            "undefined_resamples": self.undefined,
            "note": self.note,
        }


def patient_weights(groups: Sequence[Hashable], resamples: int, seed: int = 0) -> np.ndarray:
    """How often each slice occurs in each resample of patients.

    Args:
        groups: patient of each of N slices. Patients are numbered in order of first appearance, so the same slices in
            the same order give the same weights.
        resamples: rows to draw.
        seed: of the generator.

    Returns:
        (resamples, N) int64; slices of one patient share a column value, and the patients' values in a row sum to the
        number of patients.
    """
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if not number:
        return np.zeros((resamples, 0), dtype=np.int64)
    patient = np.array([number[group] for group in groups])
    draws = np.random.default_rng(seed).multinomial(len(number), np.full(len(number), 1 / len(number)), size=resamples)
    return draws[:, patient]


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    groups: Sequence[Hashable],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    *,
    unit: str = "patient",
) -> dict[str, Interval]:
    """Intervals of several statistics from the same resamples.

    Args:
        statistics: takes (N,) integer slice weights, "this slice occurs so many times" (0: not drawn), and returns
            the statistics by name, nan where one is undefined. It is called once with all weights 1 for the names.
        groups: patient of each of N slices.
        resamples: 0 gives no interval.
        seed: of the resampling.
        level: share of resamples inside the interval.
        unit: what a group is, in the singular, where it is no patient.

    Returns:
        name -> :class:`Interval`. With fewer than two groups, or every resample undefined, its ends are nan and its
        note says so.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    count = len(set(groups))
    names = list(statistics(np.ones(len(groups), dtype=np.int64)))
    if resamples < 1 or count < 2:
        note = f"No interval: it takes two {unit}s, and there is {count or 'none'}."
        if resamples < 1:
            note = "No interval: none was asked for (0 resamples)."
        return {name: Interval(math.nan, math.nan, level, 0, count, 0, note, unit) for name in names}
    rows = [statistics(weights) for weights in patient_weights(groups, resamples, seed)]
    return {name: _percentile([row[name] for row in rows], level, count, unit) for name in names}


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Hashable],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    *,
    unit: str = "patient",
) -> Interval:
    """Interval of one statistic; see :func:`bootstrap_intervals`."""
    return bootstrap_intervals(lambda weights: {"": statistic(weights)}, groups, resamples, seed, level, unit=unit)[""]


def _percentile(values: Sequence[float], level: float, count: int, unit: str) -> Interval:
    drawn = np.asarray(values, dtype=np.float64)
    defined = drawn[np.isfinite(drawn)]
    undefined = drawn.size - defined.size
    if not defined.size:
        note = "No interval: the statistic is undefined in every resample."
        return Interval(math.nan, math.nan, level, drawn.size, count, undefined, note, unit)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    notes = [f"Undefined in {undefined} of {drawn.size} resamples, which are left out."] if undefined else []
    if count < FEW_PATIENTS:
        notes.append(f"Resampled from only {count} {unit}s: the interval is rough, and likely too narrow.")
    return Interval(float(low), float(high), level, drawn.size, count, undefined, " ".join(notes), unit)
