"""Carrying out a plan: each run once, failures by themselves, nothing thrown away."""

import json
import os
from pathlib import Path

from d2_covid import config
from d2_covid.engine.folder_lock import held
from d2_covid.errors import UserError
from d2_covid.tables import run as tables_run
from d2_covid.tables.models import MODELS
from d2_covid.tables.options import Options
from d2_covid.tables.plan import make_plan
from d2_covid.tables.run import STATE, carry_out, run_logged, waiting_runs, whole_beside
from d2_covid.tables.sources import ClassSet, LesionSet

import pytest

LESIONS = LesionSet(Path("ct/cncb"), ("--val-fraction", "0.2"), {"train": 8, "val": 2}, {"train": 4, "val": 1}, "aa")
SLICES = {"train": [4, 4, 4], "test": [1, 1, 1]}
CLASSES = ClassSet(Path("ct/x"), Path("ct/train.txt"), Path("ct/test.txt"), 6, SLICES, "bb")


def plan_for(output, *names, tables=(2,), **others):
    return make_plan(Options(output, tuple(MODELS[name] for name in names), **others), tables, LESIONS, CLASSES)


class Scripts:
    """Stands in for the scripts: leaves what they leave, or fails where the command holds a word."""

    def __init__(self, plan, fail="", error=None):
        self.plan, self.fail, self.commands = plan, fail, []
        self.error = error or UserError("out of memory")

    def __call__(self, command, log, environment):
        self.commands.append(command)
        assert environment["DETECTRON2_DATASETS"] == str((self.plan.options.output / "data").resolve())
        job = next(job for job in [*self.plan.preparations, *self.plan.runs] if self._is(job, command))
        folder = getattr(job, "folder", None)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "begun").touch()
        if self.fail and self.fail in " ".join(command):
            raise self.error
        for path in getattr(job, "outputs", None) or (job.final, job.results):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def _is(self, job, command):
        return str(job.folder) == command[-1] if hasattr(job, "folder") else job.script in command[0]


def do(plan, scripts, said=None, after=lambda failures: None):
    say = (said if said is not None else []).append
    return carry_out(plan, Path("."), seconds={}, machine="", say=say, after_run=after, execute=scripts)


def test_a_run_that_fails_costs_no_other_its_row_and_is_tried_again(tmp_path):
    plan = plan_for(tmp_path, "R18", "R18-T1", "R34")
    said, seen = [], []
    failures = do(plan, Scripts(plan, "R18-T1"), said, lambda failed: seen.append(len(failed)))
    assert {run.model.name: reason for run, reason in failures.items()} == {"R18-T1": "out of memory"}
    assert [run.final.is_file() for run in plan.runs] == [True, False, True] and seen == [0, 1, 1]
    assert "    FAILED: out of memory" in said
    scripts = Scripts(plan)
    assert do(plan, scripts, said := []) == {}
    assert len(scripts.commands) == 1 and scripts.commands[0][-1].endswith("R18-T1/seed_0")
    assert sum("done before" in line for line in said) == 3
    assert (plan.runs[1].folder / "begun").is_file() and not list(plan.runs[1].folder.parent.glob("*.before*"))


def test_an_interrupted_run_goes_on_in_its_folder(tmp_path):
    plan = plan_for(tmp_path, "R18", "R34")
    with pytest.raises(KeyboardInterrupt):
        do(plan, Scripts(plan, "R34", KeyboardInterrupt()))
    (plan.runs[1].folder / "checkpoint").touch()
    do(plan, Scripts(plan))
    assert (plan.runs[1].folder / "checkpoint").is_file() and plan.runs[1].final.is_file()


def test_a_new_version_of_the_program_costs_no_finished_run(tmp_path, monkeypatch):
    do(plan := plan_for(tmp_path, "R18", tables=(2, 3)), Scripts(plan))
    before = config.add_covid_config

    def with_a_new_key(cfg):
        before(cfg)
        cfg.MODEL.ROI_HEADS.SOMETHING_NEW, cfg.TEST.FAST = 0, not cfg.TEST.FAST

    monkeypatch.setattr(config, "add_covid_config", with_a_new_key)
    assert "SOMETHING_NEW" in plan.runs[0].config().MODEL.ROI_HEADS
    scripts = Scripts(plan)
    assert waiting_runs(plan) == [] and do(plan, scripts) == {} and scripts.commands == []


def test_a_folder_that_is_moved_or_named_otherwise_keeps_its_finished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    do(plan := plan_for(Path("first"), "R18", tables=(2, 3)), Scripts(plan))
    Path("first").rename("second")
    for output in (tmp_path / "second", Path("second")):
        plan = plan_for(output, "R18", tables=(2, 3))
        assert waiting_runs(plan) == [] and do(plan, scripts := Scripts(plan)) == {} and scripts.commands == []


def test_a_classifier_waits_for_its_mask_r_cnn_and_is_trained_anew_with_it(tmp_path):
    plan = plan_for(tmp_path, "R18", tables=(2, 3))
    detector, classifier = plan.runs
    assert waiting_runs(plan) == [detector, classifier]
    do(plan, Scripts(plan))
    assert waiting_runs(plan) == []
    detector.results.unlink()  # evaluated again, which may change the model
    assert waiting_runs(plan) == [detector, classifier]
    do(plan, Scripts(plan))
    detector.final.write_text("another")
    assert waiting_runs(plan) == [classifier]
    do(plan, scripts := Scripts(plan))
    assert len(scripts.commands) == 1 and classifier.folder.with_name("seed_0.before_1").is_dir()


def test_runs_beside_the_plan_are_whole_and_from_the_same_start(tmp_path):
    start = tmp_path / "start.pth"
    start.write_text("first")
    do(everything := plan_for(tmp_path, "R18", seeds=(0, 1), init=str(start), tables=(2, 3)), Scripts(everything))
    plan = plan_for(tmp_path, "R18", seeds=(0,), init=str(start), tables=(2, 3))
    beside = {run.name for run in everything.runs if run.seed == 1}
    assert {run.name for run in whole_beside(plan)} == beside and len(beside) == 2
    killed = next(run for run in everything.runs if run.seed == 1)
    state = json.loads((tmp_path / STATE).read_text())
    (tmp_path / STATE).write_text(json.dumps(state | {killed.name: state[killed.name] | {"done": False}}))
    assert whole_beside(plan) == []  # of its classifier it is the Mask R-CNN
    (tmp_path / STATE).write_text(json.dumps(state))
    start.write_text("second")
    do(plan, Scripts(plan))
    assert waiting_runs(plan) == whole_beside(plan) == []


def test_a_run_that_another_command_is_training_is_left_to_it(tmp_path):
    pytest.importorskip("fcntl", reason="this system knows no locks of folders")
    plan, said = plan_for(tmp_path, "R18", "R34"), []
    busy, free = plan.runs
    busy.folder.mkdir(parents=True)
    (busy.folder / "checkpoint").touch()
    with held(busy.folder):
        assert do(plan, Scripts(plan), said) == {}
    assert f"2/3 {busy.name}: another command is training it, or its Mask R-CNN, and is left to do so" in said
    assert waiting_runs(plan) == [busy] and free.final.is_file() and (busy.folder / "checkpoint").is_file()


def test_a_run_that_another_command_is_about_to_train_is_left_to_it(tmp_path):
    """Its training takes seconds to start; and the classifier on it has to wait as well."""
    pytest.importorskip("fcntl", reason="this system knows no locks of folders")
    plan, mine, theirs, said = plan_for(tmp_path, "R18", tables=(2, 3)), [], [], []

    class Meanwhile(Scripts):
        def __call__(self, command, *arguments):
            if "train_net" in command[0] and not theirs:
                theirs.append(do(plan, Scripts(plan), said))
                assert not plan.runs[0].folder.exists() and len(said) == 4
            mine.append(command)
            super().__call__(command, *arguments)

    assert do(plan, Meanwhile(plan)) == {} and theirs == [{}]
    assert all("another command is training it, or its Mask R-CNN" in line for line in said[2:])
    assert waiting_runs(plan) == [] and not list(tmp_path.rglob("*.before_*"))


def test_a_preparation_that_fails_ends_it(tmp_path):
    plan = plan_for(tmp_path, "R18")
    with pytest.raises(UserError, match="out of memory"):
        do(plan, Scripts(plan, "prepare_cncb"))
    assert not plan.runs[0].folder.exists()


def test_other_settings_are_refused(tmp_path):
    do(plan := plan_for(tmp_path, "R18"), Scripts(plan))
    for same in (
        plan_for(tmp_path, "R34", seeds=(1, 2)),
        plan_for(tmp_path, "R18", device="cpu", overrides=("DATALOADER.NUM_WORKERS", "0")),
    ):
        do(same, Scripts(same))
    with pytest.raises(UserError, match="have epochs None, and now it is 3; give another --output"):
        do(plan_for(tmp_path, "R18", epochs=3), None)


def test_scripts_are_logged_and_the_last_line_is_the_reason(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nprint('quiet')\nprint('50 %\\r100 % ▏', end='\\n', file=sys.stderr)\n"
        "if len(sys.argv) > 1: sys.exit(f'error: {sys.argv[1]} in {os.environ[\"WHERE\"]}.')\n"
    )
    log, environment = tmp_path / "logs" / "x.log", {**os.environ, "WHERE": "here", "PYTHONIOENCODING": "utf-8"}
    run_logged([str(script)], log, environment)
    with pytest.raises(UserError, match=r"^no room in here \(.*x\.log\)$"):
        run_logged([str(script), "no room"], log, environment)
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(UserError, match=r"^ended by signal 9 \("):
        run_logged([str(script)], log, environment)
    out, err = capfd.readouterr()
    assert out == "" and err.count("100 % ▏") == 2 and "error: no room in here." in err
    assert log.read_text(encoding="utf-8").count("quiet") == 2 and "no room" in log.read_text(encoding="utf-8")


def test_what_is_interrupted_may_save_first(tmp_path, monkeypatch, capfd):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def asked(*_):\n    time.sleep(0.2)\n    pathlib.Path('saved').write_text(str(os.getsid(0) == os.getpid()))\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, asked)\nprint('ready', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    real, said = os.read, []

    def read(*arguments):
        if b"ready" in b"".join(said):
            raise KeyboardInterrupt
        said.append(real(*arguments))
        return said[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tables_run.os, "read", read)
        run_logged([str(script)], tmp_path / "x.log", dict(os.environ))
    # It is asked once: a terminal's Ctrl-C does not reach what is in a session of its own.
    assert (tmp_path / "saved").read_text() == "True"
    assert "a second Ctrl-C ends it at once" in capfd.readouterr().err


def test_train_net_is_run_with_this_interpreter(repository, tmp_path):
    command = [str(repository / "tools" / "train_net.py"), "--config-file", "nowhere.yaml"]
    with pytest.raises(UserError, match="^No config file nowhere.yaml"):
        run_logged(command, tmp_path / "x.log", dict(os.environ))
