"""Ending what a command has started: asked first, then made to; and what ends the command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

from d2_covid.engine.children import end_own, ended_by_signals, stop

import pytest

# Says when it listens; saves when it is asked to end, or, given a word, goes on.
CHILD = """
import signal, sys, time
def asked(*_):
    if len(sys.argv) < 3:
        open(sys.argv[1], "w").write("saved")
        sys.exit(130)
signal.signal(signal.SIGTERM, asked)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts such a child, by itself as a command does; returns it once it listens."""
    started = []

    def start(*words):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "saved"), *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_is_ended_may_save_first(start, tmp_path):
    process = start()
    stop([process])
    assert process.returncode == 130 and (tmp_path / "saved").read_text() == "saved"
    stop([process])  # it has ended: nothing happens


def test_what_does_not_listen_is_killed(start):
    process = start("deaf")
    began = time.monotonic()
    stop([process], grace=0.2)
    assert process.returncode == -signal.SIGKILL and time.monotonic() - began < 5


def test_a_second_interruption_ends_it_at_once(start, monkeypatch):
    process, wait, times = start("deaf"), subprocess.Popen.wait, []

    def interrupted(self, timeout=None):
        times.append(timeout)
        if len(times) == 1:
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stop([process], grace=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_end_a_command_interrupt_it(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_signals():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        with ended_by_signals():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


def _sleep(ready, deaf: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
    ready.set()
    time.sleep(60)


@pytest.mark.parametrize("deaf", [False, True])
def test_processes_of_its_own_are_ended(deaf):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_sleep, args=(ready, deaf))
    child.start()
    assert ready.wait(30)
    end_own(wait=0.1, grace=2.0)
    assert child.exitcode == (-signal.SIGKILL if deaf else -signal.SIGTERM)
