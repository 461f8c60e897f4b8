"""The class of a patient as plain values."""

import json

from d2_covid.inference.patient import patient_result

import numpy as np
import pytest

NAMES = ("control", "common pneumonia", "COVID-19")


def test_patient_result():
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.0, 0.4, 0.6]])
    found = patient_result(scores, NAMES, "any_k", 2)
    assert json.loads(json.dumps(found)) == found
    assert found["image_class"] == "COVID-19" and found["k"] == 2
    assert found["slices_by_class"] == {"control": 1, "common pneumonia": 0, "COVID-19": 2}
    assert found["scores"]["COVID-19"] == pytest.approx(2 / 3)
    assert patient_result(scores, NAMES, "any_k", 3)["image_class"] == "control"
    assert patient_result(scores, NAMES, "mean")["k"] is None


def test_scores_and_names_must_fit():
    with pytest.raises(ValueError, match="2 classes"):
        patient_result(np.ones((1, 3)), NAMES[:2])
    with pytest.raises(ValueError, match="without slices"):
        patient_result(np.ones((0, 3)), NAMES)
