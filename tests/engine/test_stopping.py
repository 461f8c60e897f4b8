"""A training that a signal stops saves where it stands, between two updates, and goes on to the same weights."""

import json
import os
import signal
import subprocess
import threading
import time

from d2_covid.data.files import atomic_write
from d2_covid.engine import checkpoint as checkpoint_module
from d2_covid.engine import hooks, loader, trainer
from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.engine.children import ended_by_signals
from d2_covid.engine.stopping import StopOnSignal
from d2_covid.engine.trainer import Trainer
from d2_covid.errors import UserError

import pytest

from .conftest import assert_same_tensors


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Signals as they are in a terminal: tests that run in the background (``&``, nohup) inherit ignored ones."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(folder):
    return read_checkpoint(folder / "model_final.pth")["model"]


def raising_at(count: int, function, *signals: signal.Signals):
    """``function``, but its ``count``-th call sends this process ``signals`` first."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            for number in signals:
                os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return wrapped


def within_an_update(monkeypatch, count, *signals):
    monkeypatch.setattr(trainer, "training_step", raising_at(count, trainer.training_step, *signals))


def while_reading(monkeypatch, count, *signals):
    before = trainer.train_batches
    monkeypatch.setattr(trainer, "train_batches", lambda *a, **k: SlowBatches(before(*a, **k), count, signals))


def in_evaluation(monkeypatch, count, *signals):
    monkeypatch.setattr(hooks.Evaluate, "_evaluate", raising_at(count, hooks.Evaluate._evaluate, *signals))


def before_the_schedule(monkeypatch, count, *signals):
    schedule = trainer.hooks.LRScheduler
    monkeypatch.setattr(schedule, "after_step", raising_at(count, schedule.after_step, *signals))


class SlowBatches:
    """Batches, during the ``count``-th of which signals come."""

    def __init__(self, batches, count, signals):
        self._batches, self._count, self._signals = batches, count, signals

    def __iter__(self):
        for index, batch in enumerate(self._batches, 1):
            if index == self._count:
                for number in self._signals:
                    os.kill(os.getpid(), number)
            yield batch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("when", "count", "last"),
    [
        (within_an_update, 4, 3),
        (before_the_schedule, 3, 2),
        (while_reading, 4, 2),
        (in_evaluation, 2, 3),
        (within_an_update, 6, 5),
    ],
)
def test_stopped_and_resumed(when, count, last, number, tiny, tmp_path, reference, monkeypatch):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    # No checkpoint but the one of the stop, so that every update since the start hangs on it.
    opts = ("SOLVER.CHECKPOINT_PERIOD", 100)
    with monkeypatch.context() as patch:
        when(patch, count, number)
        with pytest.raises(KeyboardInterrupt):
            Trainer(tiny(*opts)).train()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    folder = tmp_path / "run"
    name = "model_final.pth" if last == 5 else f"model_{last:07d}.pth"
    assert [path.name for path in sorted(folder.glob("model_[0-9f]*.pth"))] == [name]
    assert read_checkpoint(folder / name)["iteration"] == last
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted" and record["iterations"] == last + 1
    assert record["sessions"][-1]["last_iteration"] == last
    Trainer(tiny(*opts), resume=True).train()
    assert_same_tensors(weights(folder), weights(reference))
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    best, whole = (read_checkpoint(f / "model_best.pth")["d2_covid"]["best"] for f in (folder, reference))
    assert best == whole


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_stopped_within_a_command(name, tiny, tmp_path, monkeypatch):
    """Which by itself would be interrupted within the update."""
    within_an_update(monkeypatch, 2, getattr(signal, name))
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        Trainer(tiny("SOLVER.CHECKPOINT_PERIOD", 100, "DATASETS.TEST", "()")).train()
    assert [path.name for path in (tmp_path / "run").glob("model_0*.pth")] == ["model_0000001.pth"]


def test_a_second_signal_stops_at_once_and_saves_nothing(tiny, tmp_path, monkeypatch):
    within_an_update(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny()).train()
    assert [path.name for path in (tmp_path / "run").glob("model_0*.pth")] == ["model_0000001.pth"]


def test_an_interrupt_of_another_kind_within_an_update_saves_nothing(tiny, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StopOnSignal, "before_train", lambda self: None)  # as where signals are handled otherwise
    monkeypatch.setattr(trainer.MixedPrecision, "update", interrupted)
    run = Trainer(tiny())
    run.done += 1
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not list((tmp_path / "run").glob("model_*.pth"))


def test_stopped_before_the_first_update(tiny, tmp_path, monkeypatch):
    while_reading(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny(), progress=True).train()
    assert not list((tmp_path / "run").glob("model_*.pth"))


def test_stopped_in_an_evaluation_that_is_caught_up_on(tiny, tmp_path, reference, monkeypatch):
    """There the hooks that come later, such as the progress bar, have not begun."""
    in_evaluation(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny()).train()
    monkeypatch.undo()
    in_evaluation(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny(), resume=True, progress=True).train()
    monkeypatch.undo()
    Trainer(tiny(), resume=True).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(reference))


def test_full_disk_while_stopping(tiny, tmp_path, monkeypatch, caplog):
    def full(path, mode="w"):
        if "model_" in str(path):
            raise UserError(f"Cannot write {path}: No space left on device.")
        return atomic_write(path, mode)

    within_an_update(monkeypatch, 2, signal.SIGTERM)
    monkeypatch.setattr(checkpoint_module, "atomic_write", full)
    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny("SOLVER.CHECKPOINT_PERIOD", 100)).train()
    assert "No space left" in caplog.text


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_signals_that_are_handled_otherwise_are_left_alone(handler, tiny, monkeypatch):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        within_an_update(monkeypatch, 1, signal.SIGTERM)
        Trainer(tiny("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")).train()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_trains_in_another_thread(tiny, tmp_path):
    """Where Python allows no handler."""
    run = Trainer(tiny("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()"))
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_command_stopped_from_outside(tiny_command, tmp_path, reference):
    """The whole command with the processes that read for it, as a terminal or a scheduler stops it."""
    opts = ("DATALOADER.NUM_WORKERS", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(tiny_command(*opts), env=environment, start_new_session=True, **pipes)
    deadline = time.monotonic() + 60
    while not (tmp_path / "model_0000000.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "interrupted" and "Traceback" not in said, said
    done = subprocess.run(tiny_command(*opts, flags=["--resume"]), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_tensors(weights(tmp_path), weights(reference))


def test_readers_say_nothing_of_a_batch_that_nobody_takes(capsys):
    for error in (ConnectionResetError("gone"), EOFError(), ValueError("bad slice")):
        loader._not_of_connections(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: bad slice\n"
