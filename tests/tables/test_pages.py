"""Figures read from runs' files, and the pages made of them."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

from d2_covid.tables.models import CLASSIFICATION, MODELS, SEGMENTATION
from d2_covid.tables.options import Options
from d2_covid.tables.pages import as_json, csv_text, in_order, markdown, write_table
from d2_covid.tables.plan import make_plan
from d2_covid.tables.rows import COLUMNS, Figure, Outcome, Spread, outcome_of, spread, training_minutes
from d2_covid.tables.sources import PAPER_SPLIT, ClassSet, LesionSet

import pytest

LESIONS = LesionSet(Path("ct/cncb"), ("--val-fraction", "0.2"), {"train": 8, "val": 2}, {"train": 4, "val": 1}, "aa")
SLICES = {"train": [4, 4, 4], "test": [1, 1, 1]}
CLASSES = ClassSet(Path("ct/x"), Path("ct/train.txt"), Path("ct/test.txt"), 6, SLICES, "bb")
INTERVAL = {"low": 10.0, "high": 30.0, "note": "Resampled from only 4: the interval is rough."}


def make(tmp_path, *names, seeds=(0,), tables=(2,)):
    return make_plan(Options(tmp_path, tuple(MODELS[n] for n in names), seeds), tables, LESIONS, CLASSES)


def finish(run, value, minutes=2.0):
    """Leave what a finished run leaves."""
    for path in (run.final, run.results):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = (column.metric for column in COLUMNS[SEGMENTATION])
    metrics = {name: {"value": value, "interval": INTERVAL, "note": ""} for name in names}
    metrics["segm/AP75"] = {"value": None, "interval": {"low": None, "high": None}, "note": "no lesion"}
    results = {
        "metrics": metrics,
        "slices": 2,
        "patients": 1,
        "instances": {"lesion": 5},
        "slices_without_ground_truth": 1,
        "resampled": "patients",
        "settings": {
            "bootstrap": 100, "max_detections": 128, "paper_score_threshold": 0.75, "union_score_threshold": 0.5,
        },
    }  # fmt: skip
    run.results.write_text(json.dumps(results))
    lines = [{"iteration": 19, "time": minutes * 3}, {"iteration": 29}, {"iteration": 39, "time": 0.0}]
    (run.folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_figures_intervals_and_time_of_a_run(tmp_path):
    (run,) = make(tmp_path, "R18").runs
    assert outcome_of(run, {}).state == "not done" and outcome_of(run, {run: "no memory"}).reason == "no memory"
    finish(run, 20.0)
    outcome = outcome_of(run, {})
    assert outcome.state == "done" and outcome.figures["paper_ap50"] == Figure(20.0, 10.0, 30.0)
    assert outcome.figures["dice"] == Figure(2000.0, 1000.0, 3000.0)  # shares become percent
    assert outcome.figures["coco_mask_ap75"] == Figure(None, None, None)
    assert outcome.minutes == pytest.approx(2.0) and outcome.facts["training_slices"] == 8
    assert "COCO mask AP75: no lesion" in outcome.facts["notes"]
    assert outcome_of(run, {}, whole=False).state == "not done"  # evaluated on the way, or from an earlier start
    assert outcome_of(run, {run: "no memory"}).state == "failed"
    assert any(note.startswith("AP@0.5IoU, AP@0.75IoU") and "only 4" in note for note in outcome.facts["notes"])


def test_training_time_of_an_interrupted_run(tmp_path):
    path = tmp_path / "metrics.json"
    assert training_minutes(path) is None
    path.write_text('{"iteration": 1}\n')
    assert training_minutes(path) is None
    path.write_text('{"iteration": 9, "time": 3.0}\n{"iteration": 12}\n{"iteration": 19, "time": 6.0}\n{"itera')
    assert training_minutes(path) == pytest.approx((10 * 3.0 + 10 * 6.0) / 60)


def test_mean_and_deviation_over_seeds():
    assert spread([1.0, None, 3.0]) == Spread(2.0, math.sqrt(2), 2)
    assert spread([5.0]) == Spread(5.0, None, 1) and spread([None]) == Spread(None, None, 0)


def test_a_page_of_finished_failed_and_waiting_runs(tmp_path):
    plan = make(tmp_path, "R18", "R34", "R50-separate", seeds=(0, 1))
    for number, run in enumerate(plan.runs[:3]):
        finish(run, 20.0 + 2 * number)
    failures = {plan.runs[3]: "out of memory"}
    outcomes = in_order([outcome_of(run, failures) for run in reversed(plan.runs)])
    assert [outcome.run for outcome in outcomes] == plan.runs
    page = markdown(plan, SEGMENTATION, outcomes, "python tools/make_tables.py --table 2")
    ours, theirs = page.split("## Reported, not measured: the paper's Table 2")
    lines = [line for line in ours.splitlines() if line.startswith("| ResNet")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["ResNet18+FPN", *["21.00 ± 1.41"] * 3, "2.00", "2"]
    assert rows[1] == ["ResNet34+FPN", *["24.00 [10.0, 30.0]"] * 3, "2.00", "1 of 2"]
    assert rows[2] == ["ResNet50+FPN (separate masks)", "–", "–", "–", "–", "0 of 2"]
    assert "Mask R-CNN R34, seed 1 FAILED: out of memory. The same command tries it again." in ours
    assert "Not done yet: Mask R-CNN R50-separate, seed 0; Mask R-CNN R50-separate, seed 1." in ours
    assert "8 training slices; measured on 2 slices of 1 patient" in ours and "1 of them without a lesion" in ours
    assert "bootstrap over patients, 100 resamples" in ours and "standard deviation over seeds" in ours
    assert "Lesions: lesion 5 (cncb_merge_val)" in ours and "score above 0.75 enter" in ours
    assert "| ResNet34-T1+FPN " in theirs and "44.76" in theirs and "650 slices of 130 patients" in theirs

    table = list(csv.DictReader(io.StringIO(csv_text(SEGMENTATION, outcomes))))
    assert [row["state"] for row in table[:6]] == ["done", "done", "done", "failed", "not done", "not done"]
    assert table[0]["paper_ap50_low"] == "10.0" and table[3]["paper_ap50"] == ""
    assert table[6]["source"] == "paper" and table[6]["paper_ap50"] == "36.99" and table[6]["coco_mask_ap"] == ""

    record = as_json(plan, SEGMENTATION, outcomes, "python ...")
    assert record["measured"][3] | {"facts": {}} == {
        "model": "ResNet34+FPN", "config": "mask_rcnn_R_34_full_FPN", "seed": 1, "state": "failed",
        "reason": "out of memory", "figures": {}, "training_minutes": None, "facts": {},
    }  # fmt: skip
    assert record["means"]["ResNet18+FPN"]["paper_ap"] == {"mean": 21.0, "deviation": math.sqrt(2), "seeds": 2}
    assert len(record["paper"]["rows"]) == 8 and record["settings"]["recipe"] == "paper"


@pytest.mark.parametrize(
    "patients, unit, words",
    [
        (None, "slice", "95 % interval, Wilson for proportions, else bootstrap over slices, 100 resamples"),
        (3, "patient", "95 % interval, bootstrap over patients, 100 resamples"),
    ],
)
def test_a_page_says_how_intervals_of_classes_were_made(tmp_path, patients, unit, words):
    plan = make(tmp_path, "R18", tables=(2, 3))
    _, run = plan.runs
    names = (column.metric for column in COLUMNS[CLASSIFICATION])
    results = {
        "measures": {name: {"value": 0.5, "interval": {"low": 0.4, "high": 0.6}} for name in names},
        "slices": 3,
        "patients": patients,
        "classes": ["control"],
        "slices_by_class": [3],
        "confusion": {"counts": [[3]]},
        "intervals": {"resamples": 100, "unit": unit, "note": ""},
    }
    for path in (run.final, run.results):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results))
    page = markdown(plan, CLASSIFICATION, [outcome_of(run, {})], "python ...")
    assert words in page and "in the paper's program (its text: box coordinates)" in page


def test_a_page_without_departures_follows_the_program_where_the_text_does_not_tell(tmp_path):
    lesions = replace(LESIONS, split=PAPER_SPLIT, slices={"train": 650, "val": 100})
    plan = make_plan(Options(tmp_path, (MODELS["R18"],)), [2], lesions, None)
    page = markdown(plan, SEGMENTATION, [Outcome(run, "not done") for run in plan.runs], "python ...")
    assert "All as in the paper, or in its program and lists where its text is silent or differs." in page


def test_a_table_before_anything_has_run(tmp_path):
    plan = make(tmp_path, "R18-T1", tables=(2, 3))
    outcomes = [Outcome(run, "not done") for run in plan.runs if run.kind == CLASSIFICATION]
    paths = write_table(plan, CLASSIFICATION, outcomes, "python ...")
    assert [path.name for path in paths] == ["table3.md", "table3.csv", "table3.json"]
    page = paths[0].read_text(encoding="utf-8")
    assert "Not done yet: COVID-CT-Mask-Net R18-T1, seed 0." in page and "92.24 %" in page
