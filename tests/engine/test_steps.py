"""Steps are done once, again when their inputs change, and told when they may go on."""

import json
import subprocess
import time

from d2_covid.engine.steps import Steps, about, run_script
from d2_covid.errors import UserError

import pytest


def one_step(folder, inputs, work=None, said=None, name="cooking"):
    steps = Steps(folder / "state.json", total=1, say=(said if said is not None else []).append)
    product = folder / "product"
    calls = []

    def default(resume):
        calls.append(resume)
        product.write_text("made")

    done = steps.run(name, inputs, [product], 120, work or default)
    return done, calls


def test_a_step_is_done_once_and_announced(tmp_path):
    said = []
    assert one_step(tmp_path, {"a": 1}, said=said) == (True, [False])
    assert one_step(tmp_path, {"a": 1}, said=said) == (False, [])
    assert said[0] == "1/1 cooking, about 2 min on two cores"
    assert said[-1] == "1/1 cooking: done before"


def test_a_step_is_done_again_when_inputs_change_or_its_product_is_gone(tmp_path):
    one_step(tmp_path, {"a": 1})
    assert one_step(tmp_path, {"a": 2}) == (True, [False])
    (tmp_path / "product").unlink()
    assert one_step(tmp_path, {"a": 2}) == (True, [True])


def test_an_interrupted_step_may_go_on_with_the_same_inputs_alone(tmp_path):
    def interrupted(resume):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_step(tmp_path, [1], work=interrupted)
    assert one_step(tmp_path, [1]) == (True, [True])
    with pytest.raises(KeyboardInterrupt):
        one_step(tmp_path, [2], work=interrupted)
    assert one_step(tmp_path, [3]) == (True, [False])


def test_a_step_that_makes_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="'cooking' ended without .*product"):
        one_step(tmp_path, 1, work=lambda resume: None)


def test_processes_that_share_a_state_file_keep_each_others_steps(tmp_path):
    ours, theirs = (Steps(tmp_path / "state.json", total=2, say=lambda line: None) for _ in range(2))
    product = tmp_path / "product"

    def meanwhile(resume):
        theirs.run("baking", 1, [], None, lambda resume: product.touch())

    ours.run("cooking", 1, [product], None, meanwhile)
    for steps in (ours, theirs):
        assert steps.is_done("cooking", 1, [product]) and steps.is_done("baking", 1, [])
        assert not steps.is_done("cooking", 2, [product]) and not steps.is_done("cooking", 1, [tmp_path / "other"])


def test_a_damaged_state_file_is_named(tmp_path):
    (tmp_path / "state.json").write_text('{"cook')
    with pytest.raises(UserError, match="state.json is damaged"):
        Steps(tmp_path / "state.json", total=1)


def test_scripts_run_with_their_output_in_a_log_and_failures_are_told(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text("import sys; print('quiet'); print('loud', file=sys.stderr); sys.exit(int(sys.argv[1]))")
    run_script([script, "0"], tmp_path / "logs" / "log.txt")
    with pytest.raises(UserError, match=r"script.py failed with status 3.*log.txt"):
        run_script([script, "3"], tmp_path / "logs" / "log.txt")
    assert (tmp_path / "logs" / "log.txt").read_text().split() == ["quiet", "quiet"]
    out, err = capfd.readouterr()
    assert out == "" and err.split() == ["loud", "loud"]


def test_a_script_that_is_interrupted_may_save_first(tmp_path, monkeypatch):
    script, ready, saved = (tmp_path / name for name in ("script.py", "ready", "saved"))
    script.write_text(
        "import pathlib, signal, sys, time\nready, saved = map(pathlib.Path, sys.argv[1:])\n"
        "def asked(*_):\n    time.sleep(0.5)\n    saved.touch()\n    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, asked)\nready.touch()\ntime.sleep(60)\n"
    )
    wait, calls = subprocess.Popen.wait, []

    def interrupted(self, timeout=None):
        calls.append(timeout)
        while len(calls) == 1:
            if ready.exists():
                raise KeyboardInterrupt
            time.sleep(0.01)
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_script([script, ready, saved], tmp_path / "log.txt")
    assert saved.exists()


@pytest.mark.parametrize(("seconds", "words"), [(5, "about 5 s"), (89, "about 89 s"), (100, "about 2 min")])
def test_durations_in_words(seconds, words):
    assert about(seconds) == words


def test_the_state_holds_no_absolute_time(tmp_path):
    one_step(tmp_path, 1)
    assert set(json.loads((tmp_path / "state.json").read_text())["cooking"]) == {"key", "done"}
