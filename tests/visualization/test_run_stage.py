"""A run's folder as a part of the summary page."""

import json

from d2_covid.errors import UserError
from d2_covid.visualization.run_stage import run_facts, segmentation_stage
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
