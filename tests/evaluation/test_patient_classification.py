"""Slices to patients."""

from d2_covid.errors import UserError
from d2_covid.evaluation.patient_classification import AGGREGATIONS, by_patient, patient_class, patient_scores

import numpy as np
import pytest

CONTROL, PNEUMONIA, COVID = np.array([0.8, 0.1, 0.1]), np.array([0.1, 0.7, 0.2]), np.array([0.2, 0.2, 0.6])


def slices(*scores):
    return np.stack(scores)


@pytest.mark.parametrize(
    "scores, k, expected",
    [
        (slices(CONTROL, CONTROL, CONTROL, COVID), 1, 2),
        (slices(CONTROL, CONTROL, CONTROL, COVID), 2, 0),
        (slices(CONTROL, PNEUMONIA, COVID, COVID), 1, 2),
        (slices(PNEUMONIA, COVID), 1, 1),  # a tie: the higher mean score, 0.45 against 0.4
        (slices(COVID), 3, 2),  # fewer slices than k
        (slices(CONTROL), 1, 0),
    ],
)
def test_any_k(scores, k, expected):
    chosen, shares = patient_scores(scores, "any_k", k)
    assert chosen == expected
    assert shares.sum() == pytest.approx(1)


def test_means():
    scores = slices(CONTROL, CONTROL, CONTROL, COVID, COVID)
    chosen, found = patient_scores(scores, "mean")
    assert chosen == 0 and found == pytest.approx(scores.mean(axis=0))
    # Its highest slice of each class: 0.8, 0.2, 0.6; its two highest: the same.
    assert patient_scores(scores, "top_k_mean", 2)[1] == pytest.approx([0.8, 0.2, 0.6])
    assert patient_scores(scores, "top_k_mean", 99)[1] == pytest.approx(scores.mean(axis=0))


@pytest.mark.parametrize("method", AGGREGATIONS)
def test_the_order_of_slices_does_not_matter(method):
    scores = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    for seed in range(3):
        other = np.random.default_rng(seed).permutation(scores)
        one, two = patient_scores(scores, method, 2), patient_scores(other, method, 2)
        assert one[0] == two[0] and one[1] == pytest.approx(two[1])


def test_what_can_not_be():
    with pytest.raises(UserError, match="'vote': one of any_k"):
        patient_scores(slices(COVID), "vote")
    with pytest.raises(UserError, match="0 slices"):
        patient_scores(slices(COVID), "mean", 0)
    with pytest.raises(ValueError, match="without slices"):
        patient_scores(np.zeros((0, 3)), "mean")


@pytest.mark.parametrize("classes, expected", [([0, 0], 0), ([0, 2, 0], 2), ([1, 1], 1), ([0, 1, 2], None)])
def test_true_class_of_a_patient(classes, expected):
    assert patient_class(classes) == expected


def test_by_patient():
    ids = ["b", "a", "b", "c", "a"]
    truth = np.array([0, 2, 0, 1, 0])
    scores = slices(CONTROL, COVID, CONTROL, COVID, CONTROL)
    found = by_patient(ids, truth, scores, "any_k", 1)
    assert found.ids == ("b", "a", "c")
    assert found.truth.tolist() == [0, 2, 1] and found.predicted.tolist() == [0, 2, 2]
    assert found.slices.tolist() == [2, 2, 1] and found.left_out == ()


def test_a_patient_of_two_diseases_is_left_out_and_named():
    found = by_patient(["a", "a", "b"], np.array([1, 2, 0]), slices(COVID, COVID, CONTROL), "mean")
    assert found.ids == ("b",) and found.left_out == ("a",)
    nobody = by_patient([], np.zeros(0, int), np.zeros((0, 3)), "mean")
    assert nobody.scores.shape == (0, 3) and nobody.ids == ()
