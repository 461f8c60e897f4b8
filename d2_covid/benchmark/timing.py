"""Timing of candidates beside each other: in rounds, after a warm-up, told as medians, quartiles and ratios.

A machine drifts: other programs, heat, clock rates. So a round runs every candidate once on the same work, in an order
that turns from round to round, and candidates are compared within a round only.
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

import torch

Work = Callable[[int], object]
"""One run of a candidate; it is told the number of its round, to choose what it works on."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of what was measured; of fewer than four values, the least and the greatest instead."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (inclusive: the second of five values is the lower one)."""
    if not values:
        raise ValueError("nothing was measured")
    if len(values) < 4:
        return Spread(statistics.median(values), min(values), max(values), len(values))
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> Spread:
    """How many times faster than the reference, round by round: 2 is half its time.

    Raises:
        ValueError: the two were not measured in the same rounds.
    """
    return spread([before / after for before, after in zip(reference, seconds, strict=True)])


def interleave(
    candidates: Mapping[str, Work],
    *,
    repeats: int,
    warmup: int = 2,
    budget: float = math.inf,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that each candidate took in each round.

    Args:
        candidates: by name; all get the same round number in a round.
        repeats: rounds that count.
        warmup: rounds before them that don't; they have the first round numbers.
        budget: no new round begins once so many seconds have gone, warm-up included; three rounds are always
            measured (or ``repeats``, if that is fewer).
        device: what to wait for before the clock is read.

    Returns:
        By name, one number for each round measured, in order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    started = clock()
    for number in range(warmup + repeats):
        measured = number - warmup
        if measured >= min(3, repeats) and clock() - started > budget:
            break
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            synchronize(device)
            before = clock()
            candidates[name](number)
            synchronize(device)
            if measured >= 0:
                seconds[name].append(clock() - before)
    return seconds


def synchronize(device: str) -> None:
    """Wait until ``device`` has done all that it was given; a CPU has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
