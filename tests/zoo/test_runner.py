"""The runner, on commands that only pretend to train: order, resuming, time limit, failures, records."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from d2_covid.engine.folder_lock import held
from d2_covid.errors import UserError
from d2_covid.zoo.grids import Row, run_folder
from d2_covid.zoo.machine import Machine
from d2_covid.zoo.records import read_record
from d2_covid.zoo.runner import Runner

import pytest
import torch

PRETEND = """
import json, os, pathlib, shutil, sys, time
run, seconds, status = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
run.mkdir(parents=True, exist_ok=True)
with open(run / "starts", "a") as file:
    print(os.environ["OMP_NUM_THREADS"], os.environ["DETECTRON2_DATASETS"], file=file)
record = {"status": "running", "max_iter": 40, "device": "cuda: NVIDIA X", "versions": {"torch": "2"},
    "config": {"SOLVER": {"IMS_PER_BATCH": 2}, "DATALOADER": {"FILTER_EMPTY_ANNOTATIONS": True}},
    "data": {"train": [{"name": "a_train", "slices": 9}], "test": [{"name": "a_val", "slices": 3}]}}
(run / "run.json").write_text(json.dumps(record))
(run / "metrics.json").write_text('{"iteration": 19, "time": 0.5}\\n{"iteration": 39, "time": 0.25}\\n{"iterat')
time.sleep(seconds)
if status:
    sys.exit("error: the loss is no longer finite.")
if (run / "starts").read_text().count("\\n") < int(sys.argv[4]):
    time.sleep(60)
shutil.copy(pathlib.Path(__file__).with_name("made.pth"), run / "model_final.pth")
results = {"metrics": {"segm/AP50": {"value": 12.3456789, "interval": {"low": 1.0, "high": None}},
    "segm/APs": {"value": None, "interval": {}}}}
(run / "inference/a_val").mkdir(parents=True, exist_ok=True)
(run / "inference/a_val/results.json").write_text(json.dumps(results))
(run / "run.json").write_text(json.dumps(record | {"status": "finished", "iterations": 40}))
"""
FACTS = {
    "datasets": {
        "a_train": {"slices": 9, "slices_without_lesion": 2, "lesions": 11, "patients": ["1", "2"], "sha256": "aa"},
        "a_val": {"slices": 3, "slices_without_lesion": 1, "lesions": 4, "patients": ["3"], "sha256": "bb"},
    }
}


CONFIG = "configs/quick/mask_rcnn_R_18_T1_FPN_phantom.yaml"
SETS = ("DATASETS.TRAIN", "('a_train',)", "DATASETS.TEST", "('a_val',)")


def row(recipe, seed=1, **values):
    return Row(recipe, "R18-T1", "scratch", seed, "lesion", CONFIG, data=SETS, **values)


class Kitchen:
    """A folder with data, a script that pretends, and what was said."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "zoo.json").write_text(json.dumps(FACTS))
        (folder / "pretend.py").write_text(PRETEND)
        model = {"w": torch.zeros(3, 4), "n.num_batches_tracked": torch.tensor(1)}
        torch.save({"model": model}, folder / "made.pth")
        self.said: list[str] = []
        self.seconds, self.status, self.hangs = {}, {}, {}

    def run(self, *rows, **machine):
        def command(one):
            values = (self.seconds.get(one.recipe, 0), self.status.get(one.recipe, 0), self.hangs.get(one.recipe, 0))
            return [sys.executable, str(self.folder / "pretend.py"), str(self.place(one)), *map(str, values)]

        return Runner(self.folder, self.data, Machine(**machine), command, self.said.append).run(rows)

    def place(self, one):
        return self.folder / run_folder(one.name)

    def starts(self, one):
        return (self.place(one) / "starts").read_text().splitlines()


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path)


def test_rows_run_beside_each_other_and_leave_records(kitchen):
    rows = [row("a"), row("b")]
    assert kitchen.run(*rows, jobs=2, cores=7) == {rows[0].name: "finished", rows[1].name: "finished"}
    assert kitchen.starts(rows[0]) == [f"3 {kitchen.data}"]
    record = read_record(kitchen.folder, rows[0].name)
    assert (record["parameters"], record["training_slices"], record["batch"]) == (12, 7, 2)
    assert (record["iterations"], record["step_seconds"], record["device"]) == (40, 15.0, "NVIDIA X")
    assert record["metrics"] == {"segm/AP50": {"value": 12.3457, "low": 1.0, "high": None}}
    assert record["data"]["test"] == [
        {"name": "a_val", "slices": 3, "patients": 1, "lesions": 4, "slices_without_lesion": 1, "sha256": "bb"}
    ]
    assert record["status"] == "finished" and len(record["sessions"]) == 1 and record["seconds"] >= 0
    assert len(record["weights_sha256"]) == 64 and record["jobs"] == 2
    assert str(kitchen.folder) not in json.dumps(record)
    assert [line.split()[0] for line in kitchen.said] == ["[1/2]", "[2/2]"]
    assert all("finished" in line and "segm/AP50 12.35" in line for line in kitchen.said)


def test_what_has_finished_is_passed_over_until_its_recipe_changes(kitchen):
    one = row("a")
    kitchen.run(one)
    assert kitchen.run(one) == {one.name: "finished"} and "done before" in kitchen.said[-1]
    assert len(kitchen.starts(one)) == 1
    other = replace(one, opts=("SOLVER.BASE_LR", "0.1"))
    kitchen.run(other)
    assert len(kitchen.starts(other)) == 1 and "done before" not in kitchen.said[-1]
    assert read_record(kitchen.folder, other.name)["opts"] == ["SOLVER.BASE_LR", "0.1"]


def test_what_is_trained_anew_is_kept_with_its_record(kitchen):
    one, log = row("a"), kitchen.folder / "logs" / "a-R18-T1-scratch-s1.log"
    kitchen.run(one)
    before = read_record(kitchen.folder, one.name)
    log.write_text("it went well\n")
    kitchen.run(replace(one, opts=("SOLVER.BASE_LR", "0.1")))
    aside = kitchen.place(one).with_name(f"{one.name}.before_1")
    assert (aside / "model_final.pth").is_file() and (aside / "starts").read_text().count("\n") == 1
    assert json.loads((aside / f"{one.name}.json").read_text()) == before
    assert (aside / log.name).read_text() == "it went well\n" and "it went well" not in log.read_text()
    assert f"{one.name}: settings, start or data changed; what was trained before is kept in {aside}" in kitchen.said


def test_a_row_that_another_command_is_training_is_left_to_it(kitchen):
    one = row("a")
    kitchen.run(one)
    other = replace(one, opts=("SOLVER.BASE_LR", "0.1"))  # for which the folder would be set aside
    with held(kitchen.place(one)):
        assert kitchen.run(other) == {one.name: "not started: another command is training it"}
    assert len(kitchen.starts(one)) == 1 and read_record(kitchen.folder, one.name)["opts"] == []


def test_a_row_that_another_command_is_about_to_train_is_left_to_it(kitchen, monkeypatch):
    """Its training takes seconds to hold its folder."""
    pytest.importorskip("fcntl", reason="this system knows no locks of folders")
    one, place, theirs = row("a"), kitchen.place, []

    def meanwhile(asked):  # as the command is made
        if not theirs:
            theirs.append(None)
            theirs.append(kitchen.run(one))
        return place(asked)

    monkeypatch.setattr(kitchen, "place", meanwhile)
    assert kitchen.run(one) == {one.name: "finished"}
    assert theirs == [None, {one.name: "not started: another command is training it"}]
    assert len(kitchen.starts(one)) == 1 and kitchen.run(one) == {one.name: "finished"}


def test_a_row_that_can_not_be_started_costs_no_other_its_training(kitchen):
    bad, good = row("bad"), row("good")
    next_one = row("next", weights=f"{run_folder(bad.name)}/model_final.pth", needs=bad.name)
    kitchen.run(bad)
    path = kitchen.folder / "records" / f"{bad.name}.json"
    path.write_text("{")
    ends = kitchen.run(bad, next_one, good)
    assert ends[bad.name].startswith(f"failed: {path} is damaged") and ends[good.name] == "finished"
    assert ends[next_one.name] == f"not started: {bad.name} is failed" and path.read_text() == "{"


def test_a_finished_model_that_is_gone_is_made_again_for_those_who_need_it(kitchen):
    first = row("first")
    second = row("second", weights=f"{run_folder(first.name)}/model_final.pth", needs=first.name)
    kitchen.run(first)
    shutil.rmtree(kitchen.place(first))
    assert kitchen.run(first) == {first.name: "finished"} and "done before" in kitchen.said[-1]
    assert kitchen.run(first, second) == {first.name: "finished", second.name: "finished"}
    assert len(kitchen.starts(first)) == 1 and len(read_record(kitchen.folder, first.name)["sessions"]) == 1


def change(kitchen, **hashes):
    known = FACTS["datasets"]
    facts = {"datasets": known | {name: {**known.get(name, {}), "sha256": new} for name, new in hashes.items()}}
    (kitchen.data / "zoo.json").write_text(json.dumps(facts))


def test_data_that_changed_is_trained_on_anew(kitchen):
    one = row("a")
    kitchen.run(one)
    change(kitchen, a_train="cc")
    kitchen.run(one)
    assert "done before" not in kitchen.said[-1]


def test_data_that_a_row_does_not_read_may_change(kitchen):
    one = row("a")
    kitchen.run(one)
    change(kitchen, phantom_merge_train="dd")
    assert kitchen.run(one) == {one.name: "finished"} and "done before" in kitchen.said[-1]
    assert len(kitchen.starts(one)) == 1
    kitchen.run(replace(one, opts=("SOLVER.BASE_LR", "0.1")))
    assert "done before" not in kitchen.said[-1]


def test_a_set_whose_hash_was_not_known_counts_as_the_same(kitchen):
    one = row("a")
    change(kitchen, a_val=None)
    kitchen.run(one)
    change(kitchen, a_val="bb", phantom_merge_train="dd")
    assert kitchen.run(one) == {one.name: "finished"} and "done before" in kitchen.said[-1]


def test_at_the_time_limit_all_is_stopped_and_the_next_run_goes_on(kitchen):
    hanging, waiting = row("slow"), row("late")
    kitchen.hangs["slow"] = 2  # it ends when it is started a second time
    started = time.monotonic()
    ends = kitchen.run(hanging, waiting, jobs=1, time_limit=3)
    assert time.monotonic() - started < 9
    assert ends == {hanging.name: "not finished: time limit of 3 s", waiting.name: "not started"}
    record = read_record(kitchen.folder, hanging.name)
    assert record["status"].startswith("not finished") and record["iterations"] == 40 and "metrics" not in record
    assert read_record(kitchen.folder, waiting.name) is None
    assert kitchen.run(hanging, waiting) == {hanging.name: "finished", waiting.name: "finished"}
    record = read_record(kitchen.folder, hanging.name)
    assert len(kitchen.starts(hanging)) == 2 == len(record["sessions"])
    assert record["seconds"] == pytest.approx(sum(session["seconds"] for session in record["sessions"]), abs=0.2)


def test_what_a_training_has_started_ends_with_it(kitchen, tmp_path):
    script = "import os, pathlib, subprocess, sys, time\n"
    script += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    script += f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\ntime.sleep(60)\n"
    (tmp_path / "pretend.py").write_text(script)
    kitchen.run(row("a"), time_limit=2)
    child = int((tmp_path / "child").read_text())
    for _ in range(50):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("a process of the training lives on")


def test_a_training_that_fails_says_why_and_costs_no_other_its_result(kitchen):
    bad, good = row("bad"), row("good")
    kitchen.status["bad"] = 2
    ends = kitchen.run(bad, good)
    assert ends == {bad.name: "failed: the loss is no longer finite.", good.name: "finished"}
    assert read_record(kitchen.folder, bad.name)["status"] == ends[bad.name]
    kitchen.status["bad"] = 0
    assert kitchen.run(bad)[bad.name] == "finished"


def test_a_row_waits_for_the_model_that_it_starts_from(kitchen):
    first = row("first")
    second = row("second", weights=f"{run_folder(first.name)}/model_final.pth", needs=first.name)
    assert list(kitchen.run(second, first, jobs=2)) == [first.name, second.name]
    record = read_record(kitchen.folder, second.name)
    assert record["start_sha256"] == read_record(kitchen.folder, first.name)["weights_sha256"]
    assert kitchen.run(second) == {second.name: "finished"} and "done before" in kitchen.said[-1]


def test_a_row_whose_start_fails_is_not_started(kitchen):
    first = row("first")
    second = row("second", weights=f"{run_folder(first.name)}/model_final.pth", needs=first.name)
    kitchen.status["first"] = 1
    assert kitchen.run(first, second, jobs=2)[second.name] == f"not started: {first.name} is failed"
    with pytest.raises(UserError, match=f"run the grid that makes {first.name}"):
        kitchen.run(second)


def test_an_end_that_nobody_saw_is_no_end(kitchen):
    one = row("a")
    kitchen.run(one)
    path = kitchen.folder / "records" / f"{one.name}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "running", "sessions": []}))
    assert kitchen.run(one) == {one.name: "finished"}
    record = read_record(kitchen.folder, one.name)
    assert len(kitchen.starts(one)) == 2 and record["seconds"] is None  # the first session's are not known
    assert "nobody saw its end" in record["sessions"][0]["status"]


@pytest.fixture
def killed(kitchen, monkeypatch):
    """``killed(row)``: a runner that is killed beside a training of the row, which goes on to its end."""

    def run(one):
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "_end", lambda self, job, status: status)
            kitchen.run(one)
        return read_record(kitchen.folder, one.name)

    return run


def test_what_a_killed_runner_began_goes_on_beside_other_data(kitchen, killed):
    one = row("a")
    begun = killed(one)
    change(kitchen, covid_ct_train="dd")
    again = killed(one)
    assert begun["status"] == again["status"] == "running" and begun["data"] == again["data"]
    change(kitchen, covid_ct_train="ee")
    kitchen.run(one)
    assert len(kitchen.starts(one)) == 3 and read_record(kitchen.folder, one.name)["data"] == begun["data"]
    other = row("b")
    killed(other)
    change(kitchen, a_train="cc")
    kitchen.run(other)
    assert len(kitchen.starts(other)) == 1 and kitchen.place(other).with_name(f"{other.name}.before_1").is_dir()


def test_a_record_without_data_goes_on_where_its_key_does_not_tell(kitchen, killed):
    one = row("a")
    record = killed(one)
    del record["data"]  # as earlier versions left it
    (kitchen.folder / "records" / f"{one.name}.json").write_text(json.dumps(record))
    change(kitchen, covid_ct_train="dd")
    other = replace(one, opts=("SOLVER.BASE_LR", "0.1"))
    assert kitchen.run(one) == {one.name: "finished"} and len(kitchen.starts(one)) == 2
    kitchen.run(other)
    assert len(kitchen.starts(other)) == 1


def test_a_run_without_figures_has_not_finished(kitchen):
    (kitchen.folder / "pretend.py").write_text("")
    one = row("a")
    assert kitchen.run(one) == {one.name: "failed: it ended without metrics"}


def test_data_that_was_not_made_is_named(tmp_path):
    with pytest.raises(UserError, match="model_zoo.py data"):
        Runner(tmp_path, tmp_path, Machine(), lambda one: [])


def test_threads_are_shared_by_jobs():
    assert [Machine(jobs=jobs, cores=16).threads for jobs in (1, 6, 40)] == [16, 2, 1]
    assert Machine(workers=3, device="cuda").options()[-2:] == ["MODEL.DEVICE", "cuda"]
    assert "MODEL.DEVICE" not in Machine().options()
