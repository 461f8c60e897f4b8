"""Calibration: bins, error, Brier score, temperature."""

import math

from d2_covid.evaluation.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    image_scores,
    negative_log_likelihood,
    reliability_bins,
)

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss


def draw(size, temperature, seed=0, classes=3):
    """Logits whose softmax over ``temperature`` is the chance that the drawn class is the true one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(size, classes))
    chances = image_scores(logits, temperature)
    truth = (rng.random((size, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return logits, truth


def test_bins_count_every_slice_once_edges_included():
    scores = np.array([[0.5, 0.5], [1.0, 0.0], [0.3, 0.7], [0.05, 0.95]])
    bins = reliability_bins(scores, np.array([0, 0, 0, 1]), bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 2]
    assert bins.accuracy[[5, 7, 9]].tolist() == [1, 0, 1]
    assert bins.confidence[9] == pytest.approx(0.975) and math.isnan(bins.confidence[0])
    assert expected_calibration_error(bins) == pytest.approx((0.5 + 0.7 + 2 * 0.025) / 4)


def test_no_slices():
    assert math.isnan(expected_calibration_error(reliability_bins(np.zeros((0, 3)), np.zeros(0, int))))
    assert math.isnan(brier_score(np.zeros((0, 3)), np.zeros(0, int)))
    with pytest.raises(ValueError, match="one slice"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.array([[np.nan, 1.0]]), np.array([0]))


def test_brier_score_of_two_classes_is_twice_scikit_learns():
    rng = np.random.default_rng(0)
    chance, truth = rng.random(50), rng.integers(0, 2, 50)
    found = brier_score(np.stack([1 - chance, chance], axis=1), truth)
    assert found == pytest.approx(2 * brier_score_loss(truth, chance))
    assert brier_score(np.eye(3), np.arange(3)) == 0
    assert brier_score(np.eye(3), np.array([1, 2, 0])) == 2


def test_negative_log_likelihood_is_scikit_learns_log_loss():
    logits, truth = draw(80, 1.0)
    assert negative_log_likelihood(logits, truth, 1.7) == pytest.approx(log_loss(truth, image_scores(logits, 1.7)))


def test_scores_sum_to_one_and_a_temperature_changes_no_decision():
    logits, _ = draw(30, 1.0)
    for temperature in (0.1, 1, 9):
        scores = image_scores(logits, temperature)
        np.testing.assert_allclose(scores.sum(axis=1), 1)
        np.testing.assert_array_equal(scores.argmax(axis=1), logits.argmax(axis=1))
    with pytest.raises(ValueError, match="above 0"):
        image_scores(logits, 0)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_is_the_one_behind_the_data(temperature):
    assert fit_temperature(*draw(6000, temperature)) == pytest.approx(temperature, rel=0.08)


def test_a_temperature_fitted_on_validation_data_calibrates_other_data():
    temperature = fit_temperature(*draw(4000, 2.5, seed=1))
    logits, truth = draw(4000, 2.5, seed=2)
    before, after = (
        expected_calibration_error(reliability_bins(image_scores(logits, t), truth)) for t in (1.0, temperature)
    )
    assert after < 0.03 < 0.1 < before


def test_slices_that_are_all_right_or_noise_stay_within_the_range():
    logits = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert 0.01 <= fit_temperature(logits, np.array([0, 1])) < 0.1
    assert 10 < fit_temperature(logits, np.array([1, 0])) <= 100
