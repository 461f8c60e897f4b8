"""What a record takes from a run's files, and what it refuses."""

import json

from d2_covid import get_config
from d2_covid.engine.run_record import RunRecord
from d2_covid.errors import UserError
from d2_covid.zoo.records import metrics_of, parameters_in, read_records, run_facts, step_seconds

import pytest
import torch


def test_seconds_of_the_steps_alone(tmp_path):
    metrics = tmp_path / "metrics.json"
    lines = [{"iteration": 19, "time": 0.5}, {"iteration": 39, "time": 0.25}, {"iteration": 39, "segm/AP50": 3.0}]
    metrics.write_text("\n".join(map(json.dumps, [*lines, {"iteration": 43, "time": 1.0}])) + '\n{"iter')
    assert step_seconds(metrics) == (44, 20 * 0.5 + 20 * 0.25 + 4 * 1.0)
    assert step_seconds(tmp_path / "none.json") == (0, 0.0)


def test_a_line_without_a_time_leaves_its_iterations_to_the_next(tmp_path):
    lines = [{"iteration": 9, "segm/AP50": 3.0}, {"iteration": 19, "time": 0.5}, {"iteration": 21, "segm/AP50": 4.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    assert step_seconds(tmp_path / "metrics.json") == (22, 20 * 0.5)


def test_figures_of_lesions_and_of_classes_have_one_form():
    lesions = {
        "metrics": {
            "segm/AP": {"value": 8.123456789, "interval": {"low": 1.0, "high": 9.0, "level": 0.95}, "note": "x"},
            "union/dice": {"value": None, "interval": {"low": None, "high": None}},
            "segm/APs": {"value": 1.0, "interval": {}},
        }
    }
    assert metrics_of(lesions) == {
        "segm/AP": {"value": 8.12346, "low": 1.0, "high": 9.0},
        "union/dice": {"value": None, "low": None, "high": None},
    }
    classes = {
        "measures": {"accuracy": {"value": 0.75, "interval": {"low": 0.5, "high": 1.0}}, "auc": {"value": 1.0}},
        "calibration": {"ece": {"value": 0.1}, "brier": {"value": 0.2}, "bins": {}},
    }
    found = metrics_of(classes)
    assert found["image/accuracy"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert found["image/auc"] == {"value": 1.0, "low": None, "high": None} and set(found) == {
        *("image/accuracy", "image/auc", "image/ece", "image/brier")
    }
    assert metrics_of({}) == {}


def test_parameters_are_counted_as_in_the_papers_table():
    from d2_covid.modeling.complexity import count_parameters

    from detectron2.modeling import build_model

    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert parameters_in(model.state_dict()) == count_parameters(model)[0]
    assert parameters_in({"a.num_batches_tracked": torch.tensor(3), "w": torch.zeros(2, 3)}) == 6


def test_a_run_that_has_not_begun_has_no_facts(tmp_path):
    assert run_facts(tmp_path, {}) == {"iterations": 0, "step_seconds": 0.0}


def test_records_are_read_by_name_and_bad_ones_are_named(tmp_path, record):
    second, first = record(seed=2), record(seed=1)
    for number, one in enumerate((second, first, first)):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    assert [one["seed"] for one in read_records([tmp_path])] == [1, 2]
    (tmp_path / "3.json").write_text(json.dumps({**first, "seconds": 5}))
    with pytest.raises(UserError, match="3.json: another record of tuned-R18-T1-scratch-s1"):
        read_records([tmp_path])
    for text, words in (
        ("{}", "not a record"),
        ("{", "is damaged"),
        (json.dumps({**first, "schema_version": 9}), "newer d2_covid"),
    ):
        (tmp_path / "3.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_records([tmp_path])
    with pytest.raises(UserError, match="no folder .*nowhere"):
        read_records([tmp_path / "nowhere"])


@pytest.mark.parametrize("left_out, trained_on", [(True, 7), (False, 9)])
def test_slices_without_a_lesion_count_where_they_are_trained_on(left_out, trained_on, tmp_path):
    record = {"status": "running", "max_iter": 40, "device": "cpu", "versions": {}}
    record["config"] = {"SOLVER": {"IMS_PER_BATCH": 2}, "DATALOADER": {"FILTER_EMPTY_ANNOTATIONS": left_out}}
    record["data"] = {"train": [{"name": "a_train", "slices": 9}], "test": []}
    (tmp_path / RunRecord.FILE).write_text(json.dumps(record))
    facts = run_facts(tmp_path, {"a_train": {"slices_without_lesion": 2}})
    assert facts["training_slices"] == trained_on
