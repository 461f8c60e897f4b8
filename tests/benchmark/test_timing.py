"""Medians, quartiles, ratios by round, and the order of rounds."""

from d2_covid.benchmark.timing import interleave, ratio, spread

import pytest


class Clock:
    """Time that only candidates let pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _candidates(clock, seconds, seen):
    def candidate(name):
        def run(number):
            seen.append((number, name))
            clock.now += seconds[name][number]

        return run

    return {name: candidate(name) for name in seconds}


def test_spread_is_median_and_quartiles():
    assert spread([5, 1, 4, 2, 3]) == spread([1, 2, 3, 4, 5])
    found = spread([1, 2, 3, 4, 5])
    assert (found.median, found.low, found.high, found.count) == (3, 2, 4, 5)


def test_spread_of_few_values_is_their_range():
    found = spread([2.0, 1.0, 4.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 4.0)
    with pytest.raises(ValueError, match="nothing"):
        spread([])


def test_ratios_are_taken_within_rounds():
    """A machine that slows down for a round slows both; the ratio of that round stays."""
    found = ratio([2, 2, 20, 2], [1, 1, 10, 1])
    assert (found.median, found.low, found.high) == (2, 2, 2)
    with pytest.raises(ValueError):
        ratio([1, 2], [1])


def test_rounds_turn_the_order_and_leave_out_the_warm_up():
    clock, seen = Clock(), []
    seconds = {"a": [9, 1, 2, 3], "b": [9, 4, 5, 6]}
    found = interleave(_candidates(clock, seconds, seen), repeats=3, warmup=1, clock=clock)
    assert found == {"a": [1, 2, 3], "b": [4, 5, 6]}
    assert seen == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (3, "b"), (3, "a")]


def test_a_budget_ends_the_rounds_but_not_before_three():
    clock, seen = Clock(), []
    candidates = _candidates(clock, {"a": [10] * 20}, seen)
    assert len(interleave(candidates, repeats=10, warmup=1, budget=5, clock=clock)["a"]) == 3
    assert len(interleave(candidates, repeats=10, warmup=1, budget=65, clock=clock)["a"]) == 6
    assert len(interleave(candidates, repeats=2, warmup=0, budget=0, clock=clock)["a"]) == 2
