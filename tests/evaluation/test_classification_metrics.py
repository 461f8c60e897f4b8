"""Measures of image classes against scikit-learn, and what is undefined."""

import math

from d2_covid.evaluation.classification_metrics import (
    average_precision,
    confusion_matrix,
    confusion_measures,
    confusion_rows,
    group_counts,
    measure_function,
    precision_recall_curve,
    roc_auc,
    roc_curve,
    score_groups,
    wilson_interval,
)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

NAMES = ("control", "common pneumonia", "COVID-19")


def matrix_cases(confusion):
    """True and predicted classes of every case of a confusion matrix."""
    rows, columns = np.indices(confusion.shape)
    return np.repeat(rows.ravel(), confusion.ravel()), np.repeat(columns.ravel(), confusion.ravel())


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_confusion_measures_are_scikit_learns(num_classes, seed):
    confusion = np.random.default_rng(seed).integers(1, 40, (num_classes, num_classes))
    names = [f"c{c}" for c in range(num_classes)]
    truth, predicted = matrix_cases(confusion)
    np.testing.assert_array_equal(confusion_matrix(truth, predicted, num_classes), confusion)
    np.testing.assert_allclose(confusion_rows(confusion), metrics.confusion_matrix(truth, predicted, normalize="true"))
    found = {name: measure.value for name, measure in confusion_measures(confusion, names).items()}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, predicted)
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "mcc": metrics.matthews_corrcoef(truth, predicted),
    }
    for c, name in enumerate(names):
        others = metrics.recall_score(truth != c, predicted != c), metrics.precision_score(truth != c, predicted != c)
        expected |= {f"sensitivity-{name}": recall[c], f"ppv-{name}": precision[c], f"f1-{name}": f1[c]}
        expected |= {f"specificity-{name}": others[0], f"npv-{name}": others[1]}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_areas_are_scikit_learns(seed, ties):
    rng = np.random.default_rng(seed)
    positive, scores = rng.random(60) < 0.4, rng.random(60)
    scores = np.round(scores, 1) if ties else scores
    weights = rng.integers(0, 4, 60)
    counts = group_counts(positive, score_groups(scores), weights)
    repeated = np.repeat(positive, weights), np.repeat(scores, weights)
    assert roc_auc(*counts).value == pytest.approx(metrics.roc_auc_score(*repeated))
    assert average_precision(*counts).value == pytest.approx(metrics.average_precision_score(*repeated))
    plain = group_counts(positive, score_groups(scores))
    false, true, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(*plain), (false, true))
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    found_recall, found_precision = precision_recall_curve(*plain)
    np.testing.assert_allclose(found_recall, recall[-2::-1])
    np.testing.assert_allclose(found_precision, precision[-2::-1])


def test_areas_of_scores_that_say_nothing():
    counts = group_counts(np.array([True, False, True, False]), score_groups(np.full(4, 0.5)))
    assert roc_auc(*counts).value == 0.5
    assert average_precision(*counts).value == 0.5


@pytest.mark.parametrize("positive", [[], [True, True], [False, False]])
def test_areas_without_a_class_or_its_rest(positive):
    counts = group_counts(np.array(positive, bool), score_groups(np.arange(len(positive)) / 2))
    assert math.isnan(roc_auc(*counts).value) and roc_auc(*counts).reason
    found = average_precision(*counts)
    assert (found.value == 1.0) if any(positive) else (math.isnan(found.value) and found.reason)


def test_numerators_and_denominators():
    found = confusion_measures(np.array([[50, 3, 2], [4, 30, 6], [1, 5, 20]]), NAMES)
    counts = {name: (m.numerator, m.denominator) for name, m in found.items()}
    assert counts["accuracy"] == (100, 121)
    assert counts["sensitivity-common_pneumonia"] == (30, 40)
    assert counts["specificity-common_pneumonia"] == (73, 81)
    assert counts["ppv-common_pneumonia"] == (30, 38)
    assert counts["npv-common_pneumonia"] == (73, 83)
    assert counts["f1-common_pneumonia"] == (60, 78)
    assert counts["mcc"] == (None, None)
    assert all(m.value == m.numerator / m.denominator for m in found.values() if m.numerator is not None)


def test_a_class_that_does_not_occur_is_undefined_and_so_is_every_mean_over_it():
    found = confusion_measures(np.array([[5, 1, 0], [2, 6, 0], [0, 0, 0]]), NAMES)
    for name in ("sensitivity-COVID-19", "ppv-COVID-19", "f1-COVID-19", "balanced_accuracy", "macro_f1"):
        assert math.isnan(found[name].value) and found[name].as_dict()["value"] is None, name
    assert found["sensitivity-COVID-19"].reason == "no COVID-19 in the data"
    assert found["ppv-COVID-19"].reason == "no COVID-19 predicted"
    assert found["balanced_accuracy"].reason == "undefined for COVID-19: no COVID-19 in the data"
    assert found["accuracy"].value == 11 / 14 and found["specificity-COVID-19"].value == 1
    assert np.isnan(confusion_rows(np.array([[1, 0], [0, 0]]))[1]).all()


@pytest.mark.parametrize(
    "confusion, reason",
    [
        ([[3, 2], [0, 0]], "fewer than two classes"),
        ([[3, 0], [2, 0]], "predicted the same"),
        ([[0, 0], [0, 0]], "fewer than two classes"),
    ],
)
def test_matthews_correlation_is_undefined_without_contrast(confusion, reason):
    found = confusion_measures(np.array(confusion), ("no", "yes"))["mcc"]
    assert math.isnan(found.value) and reason in found.reason


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_weights_are_repetitions(weights):
    rng = np.random.default_rng(7)
    truth, scores = np.arange(9) % 3, np.round(rng.random((9, 3)), 1)
    predicted = scores.argmax(axis=1)
    repeat = np.repeat(np.arange(9), weights)
    weighted = measure_function(truth, predicted, scores, NAMES)(np.array(weights))
    repeated = measure_function(truth[repeat], predicted[repeat], scores[repeat], NAMES)(None)
    for name, measure in weighted.items():
        assert measure.value == pytest.approx(repeated[name].value, nan_ok=True), name
        assert (measure.numerator, measure.denominator) == (repeated[name].numerator, repeated[name].denominator)


def test_two_classes_report_the_second_and_three_the_mean():
    truth, scores = np.array([0, 1, 1, 0]), np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    found = measure_function(truth, scores.argmax(1), scores, ("no", "yes"))(None)
    assert found["auc"] == found["auc-yes"] and found["auc"].value == 0.75
    assert found["average_precision"] == found["average_precision-yes"]
    scores3 = np.random.default_rng(1).random((30, 3))
    found = measure_function(np.arange(30) % 3, scores3.argmax(1), scores3, NAMES)(None)
    one_by_one = metrics.roc_auc_score(np.eye(3)[np.arange(30) % 3], scores3, average="macro")
    assert found["auc"].value == pytest.approx(one_by_one)


def test_wilson_interval():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1
    assert all(math.isnan(end) for end in wilson_interval(0, 0))


def test_wilson_interval_covers_what_it_promises():
    hits = np.random.default_rng(0).binomial(40, 0.85, 2000)
    intervals = {k: wilson_interval(k, 40) for k in set(hits.tolist())}
    covered = np.mean([intervals[k][0] <= 0.85 <= intervals[k][1] for k in hits.tolist()])
    assert 0.92 <= covered <= 0.98


def test_overall_accuracy_follows_from_the_class_sensitivities():
    """The published overall accuracy of R34-T1 repeats another column instead; here all come from one matrix."""
    confusion = np.array([[929, 40, 31], [25, 458, 17], [12, 9, 279]])
    found = confusion_measures(confusion, NAMES)
    slices = confusion.sum(axis=1)
    sensitivities = np.array([found[f"sensitivity-{name.replace(' ', '_')}"].value for name in NAMES])
    assert found["accuracy"].value == pytest.approx(sensitivities @ slices / slices.sum())
    assert found["accuracy"].value != pytest.approx(sensitivities[0], abs=1e-3)


def test_wilson_interval_of_another_level():
    # Half the level, a third of the width: 0.6745 for 1.96 standard deviations.
    (low, high), (wide_low, wide_high) = wilson_interval(500, 1000, 0.5), wilson_interval(500, 1000)
    assert (high - low) / (wide_high - wide_low) == pytest.approx(0.6745 / 1.96, rel=1e-2)
