"""Trainings that another command has started: they end when it is ended, and save where they stand."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

GRACE = 30.0
"""Seconds to save in: an update of a large batch on one thread, and a checkpoint."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``KeyboardInterrupt`` in the main thread, as Ctrl-C does, so that the body gets to
    :func:`stop` what it has started and to clean up. A signal that is ignored, as under ``nohup``, stays so."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number in numbers if before[number] is signal.SIG_DFL]
    try:
        for number in changed:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


def stop(processes: Sequence[subprocess.Popen], grace: float = GRACE) -> None:
    """End processes and what they have started: asked first, made to after ``grace`` seconds or at a second Ctrl-C.

    Args:
        processes: each started with ``start_new_session=True``, so that Ctrl-C reaches it through this alone: a second
            signal would keep a training from saving.
    """
    try:
        _end(processes, grace, by_force=False)
    finally:
        _end(processes, grace, by_force=True)


def _end(processes: Sequence[subprocess.Popen], seconds: float, *, by_force: bool) -> None:
    for process in processes:
        if not hasattr(os, "killpg"):  # Windows
            process.kill() if by_force else process.terminate()
            continue
        try:
            os.killpg(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)
        except (ProcessLookupError, PermissionError):  # it has ended; macOS says the latter
            pass
    limit = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass


def end_own(wait: float = 2.0, grace: float = GRACE) -> None:
    """End the processes that this one has started by ``multiprocessing``.

    Args:
        wait: seconds for those that Ctrl-C, a closed terminal or a scheduler has told already.
        grace: seconds to end in once they are told; then they are made to, as one is that waits for the others.
    """
    children = multiprocessing.active_children()
    for seconds, tell in ((wait, "terminate"), (grace, "kill"), (grace, None)):
        limit = time.monotonic() + seconds
        for child in children:
            child.join(max(0.0, limit - time.monotonic()))
        children = [child for child in children if child.is_alive()]
        for child in children if tell else ():
            getattr(child, tell)()


def interrupt(*_: object) -> None:
    """A handler of signals: ``KeyboardInterrupt``."""
    raise KeyboardInterrupt
