"""Intervals: weights by patient, coverage, what is undefined, repetition."""

import json
import math

from d2_covid.evaluation.bootstrap import bootstrap_interval, bootstrap_intervals, patient_weights

import numpy as np
import pytest


def weighted_mean(values):
    return lambda weights: float(weights @ values / weights.sum())


def test_patients_are_drawn_with_all_their_slices():
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = patient_weights(groups, 200, seed=3)
    assert weights.shape == (200, 6)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


def test_patients_may_have_names_of_any_kind():
    assert patient_weights([7, "7", (1, 2), 7], 5).shape == (5, 4)


def test_same_seed_same_interval_another_seed_another():
    values = np.random.default_rng(0).normal(size=40)
    groups = np.repeat(np.arange(10), 4).tolist()
    first, again, other = (bootstrap_interval(weighted_mean(values), groups, 200, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_interval_of_a_mean_is_near_the_textbook_one():
    values = np.random.default_rng(0).normal(size=100)
    interval = bootstrap_interval(weighted_mean(values), range(100), 2000)
    half = 1.96 * values.std() / 10
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert (interval.resamples, interval.groups, interval.undefined, interval.note) == (2000, 100, 0, "")


def coverage(by_patient: bool) -> float:
    """Share of 200 simulated studies whose 95 % interval holds the true mean, 0. Patients differ more than slices."""
    rng = np.random.default_rng(5)
    patients, slices, hits = 30, 8, 0
    groups = np.repeat(np.arange(patients), slices).tolist() if by_patient else range(patients * slices)
    for study in range(200):
        values = (rng.normal(size=(patients, 1)) + 0.5 * rng.normal(size=(patients, slices))).ravel()
        interval = bootstrap_interval(weighted_mean(values), groups, 200, seed=study)
        hits += interval.low <= 0 <= interval.high
    return hits / 200


def test_coverage_by_patients_holds_and_by_slices_does_not():
    assert 0.90 <= coverage(by_patient=True) <= 0.98
    assert coverage(by_patient=False) < 0.7


def test_level_widens_the_interval():
    values = np.random.default_rng(0).normal(size=50)
    narrow, wide = (bootstrap_interval(weighted_mean(values), range(50), 500, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(weighted_mean(values), range(50), level=95)


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "a", "a"]])
def test_fewer_than_two_patients_give_no_interval_and_say_so(groups):
    interval = bootstrap_interval(lambda weights: 0.5, groups)
    assert not interval.exists
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert "two patients" in interval.note


def test_no_resamples_give_no_interval_and_say_so():
    interval = bootstrap_interval(lambda weights: 0.5, ["a", "b"], resamples=0)
    assert not interval.exists and "none was asked for" in interval.note


def test_undefined_resamples_are_counted_and_left_out():
    # Only patient a has what the statistic needs; without it (chance 1/4) it is undefined.
    interval = bootstrap_interval(lambda weights: 0.5 if weights[0] else math.nan, ["a", "b"], 400)
    assert (interval.low, interval.high) == (0.5, 0.5)
    assert 60 < interval.undefined < 140
    assert str(interval.undefined) in interval.note


@pytest.mark.parametrize(("patients", "warns"), [(2, True), (9, True), (10, False)])
def test_few_patients_are_warned_of(patients, warns):
    interval = bootstrap_interval(weighted_mean(np.arange(patients)), range(patients), 50)
    assert interval.exists
    assert (f"only {patients}" in interval.note) == warns


def test_statistic_that_is_never_defined():
    interval = bootstrap_interval(lambda weights: math.nan, ["a", "b"], 50)
    assert not interval.exists and interval.undefined == 50 and "undefined in every resample" in interval.note
    assert json.loads(json.dumps(interval.as_dict(), allow_nan=False))["low"] is None


def test_several_statistics_share_the_resamples():
    values = np.random.default_rng(0).normal(size=20)
    both = bootstrap_intervals(
        lambda weights: {"mean": weighted_mean(values)(weights), "negative": -weighted_mean(values)(weights)}, range(20)
    )
    assert list(both) == ["mean", "negative"]
    assert both["mean"].low == pytest.approx(-both["negative"].high)
    assert both["mean"] == bootstrap_interval(weighted_mean(values), range(20))
