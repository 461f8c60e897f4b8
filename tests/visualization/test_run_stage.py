"""A run's folder as a part of the summary page."""

import json

from d2_covid.errors import UserError
from d2_covid.visualization.run_stage import classification_stage, run_facts, segmentation_stage
from d2_covid.visualization.summary import summary_html

import pytest

RUN = {
    "seed": 1234,
    "iterations": 777,
    "device": "cpu: x86_64 (AVX512)",
    "threads": 2,
    "versions": {"torch": "2.4.0", "d2_covid": "0.1.0"},
    "config": {"SOLVER": {"IMS_PER_BATCH": 4}},
    "data": {"train": [{"name": "p_train", "slices": 360}], "test": [{"name": "p_val", "slices": 1}]},
    "sessions": [{"seconds": 100.4}, {"seconds": 11.2}],
}
INTERVAL = {"low": 60.0, "high": 80.0, "level": 0.95, "resamples": 10, "patients": 12}
RESULTS = {
    "slices": 120,
    "patients": 12,
    "resampled": "patients",
    "instances": {"lesion": 67},
    "slices_without_ground_truth": 79,
    "settings": {"bootstrap": 10},
    "metrics": {
        "segm/AP50": {"value": 71.0, "interval": INTERVAL, "slices": 120, "patients": 12, "instances": 67, "note": ""}
    },
}


@pytest.fixture()
def folder(tmp_path):
    (tmp_path / "inference" / "p_val").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "inference" / "p_val" / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 19, "total_loss": 1.5}) + "\n")
    return tmp_path


def test_the_page_tells_of_config_data_length_device_and_seed(folder):
    stage = segmentation_stage(folder, "p_val", "A title", "A lead.", "quick.yaml")
    html = summary_html("Page", "", [stage])
    for text in ("A title", "A lead.", "quick.yaml", "1234", "777 iterations of 4 slices", "112 s, resumed 1 time"):
        assert text in html
    for text in (
        "p_train, 360 slices",
        "p_val, 1 slice",
        "AVX512",
        "2 threads",
        "torch 2.4.0",
        "71.0 %",
        "60.0 to 80.0",
    ):
        assert text in html
    assert str(folder) in html
    assert stage.curve


def test_a_run_in_one_go_is_not_called_resumed():
    assert run_facts({**RUN, "sessions": [{"seconds": 5}]})["Time with evaluations"] == "5 s"


def test_a_run_without_its_files_is_named(folder):
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json is not json"):
        segmentation_stage(folder, "p_val", "", "", "")
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="run.json: no such file"):
        segmentation_stage(folder, "p_val", "", "", "")


def _measure(value, **more):
    return {"value": value, "interval": {"low": 0.5, "high": 0.9, "note": ""}, **more}


CLASS_RESULTS = {
    "classes": ["control", "common pneumonia"],
    "slices": 20,
    "slices_by_class": [12, 8],
    "patients": 4,
    "intervals": {"resamples": 10, "unit": "patient", "note": "Only 4 patients."},
    "confusion": {"counts": [[11, 1], [2, 6]]},
    "measures": {
        "accuracy": _measure(0.85, numerator=17, denominator=20),
        "balanced_accuracy": _measure(0.8333),
        "macro_f1": _measure(0.84),
        "auc": {"value": None, "interval": None},
        "sensitivity-control": _measure(0.9167, numerator=11, denominator=12),
        "sensitivity-common_pneumonia": _measure(0.75, numerator=6, denominator=8),
    },
}


def test_a_classifier_shows_counts_intervals_and_its_confusions(folder):
    (folder / "inference" / "p_val" / "results.json").write_text(json.dumps(CLASS_RESULTS))
    stage = classification_stage(folder, "p_val", "A classifier", "", "quick.yaml")
    html = summary_html("Page", "", [stage])
    for text in ("0.850 (17 of 20)", "0.500 to 0.900", "0.750 (6 of 8)", "undefined", "20 slices of 4 patients"):
        assert text in html
    for text in ("Sensitivity, common pneumonia", "control 12, common pneumonia 8", "Only 4 patients.", "Confusion"):
        assert text in html
    assert stage.confusion.startswith(b"\x89PNG")
    assert "classification.html" in html
