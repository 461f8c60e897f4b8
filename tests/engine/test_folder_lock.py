"""Two trainings never write to one folder."""

import subprocess
import sys
import threading

from d2_covid.engine import folder_lock
from d2_covid.engine.folder_lock import held, held_in_turn, is_held
from d2_covid.engine.run import run_training
from d2_covid.errors import UserError

import pytest

pytest.importorskip("fcntl", reason="this system knows no locks of folders")

HOLD = """
import sys
from d2_covid.engine.folder_lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def test_a_training_is_refused_where_another_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    opts = ("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"), pytest.raises(UserError, match="Another training runs in .*run"):
        run_training(tiny(*opts))
    assert not list((tmp_path / "run").glob("model_*.pth"))
    run_training(tiny(*opts), resume=True)
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_a_process_that_is_killed_lets_go(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError), held(tmp_path, patience=0):
        pass
    process.kill()
    process.communicate()
    with held(tmp_path):
        pass


def test_a_training_waits_a_little_for_the_readers_of_one_that_was_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    threading.Timer(0.5, process.kill).start()
    with held(tmp_path, patience=60):
        assert is_held(tmp_path)
    process.communicate()


def test_looking_whether_a_folder_is_held_holds_up_nobody(tmp_path):
    with held(tmp_path, patience=0):
        assert is_held(tmp_path) and is_held(tmp_path)
    assert not is_held(tmp_path)


def test_who_waits_says_so_and_goes_on_when_the_other_lets_go(tmp_path):
    assert not is_held(tmp_path) and not is_held(tmp_path / "not there")
    other, said = held(tmp_path), []
    other.__enter__()
    assert is_held(tmp_path)

    def say():
        said.append("waiting")
        other.__exit__(None, None, None)

    with held_in_turn(tmp_path, say):
        assert said == ["waiting"] and is_held(tmp_path)
    with pytest.raises(UserError, match="of the body"), held_in_turn(tmp_path, say):
        raise UserError("of the body")
    assert said == ["waiting"]
