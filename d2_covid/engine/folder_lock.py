"""One training at a time in a folder."""

import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Iterator

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_POLL = 0.2
PATIENCE = 8.0
"""Seconds in which the readers of a training that was killed have noticed it, and let go as well."""


@contextmanager
def held(folder: str | Path, patience: float | None = None) -> Iterator[None]:
    """Hold ``folder``, which is there, for a training of this process on this machine.

    However the process ends, the folder is let go with it and with the processes that it forked. Where the system, or
    the file system, knows no such locks, nothing is held.

    Args:
        patience: seconds to wait for another to let go; None: :data:`PATIENCE`.

    Raises:
        UserError: another training holds it.
    """
    if fcntl is None:
        yield
        return
    limit = time.monotonic() + (PATIENCE if patience is None else patience)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= limit:
                raise UserError(
                    f"Another training runs in {folder}: wait for its end, or stop it, or give another OUTPUT_DIR."
                )
            time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_in_turn(folder: str | Path, say: Callable[[], None] = lambda: None) -> Iterator[None]:
    """:func:`held`, as soon as nobody else holds it; ``say`` is called where that takes waiting."""
    told = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(folder, patience=0))
                break
            except UserError:
                if not told:
                    say()
                told = True
                time.sleep(_POLL)
        yield


@contextmanager
def claimed(claim: Path, folder: Path) -> Iterator[bool]:
    """Whether the training of ``folder`` is this command's to do, and then nobody else's until the body ends: another
    command may have taken it, or a training have outlived its command.

    Args:
        claim: a folder to hold meanwhile, made where there is none: ``folder`` itself may be set aside.
    """
    claim.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(claim, patience=0))
        except UserError:
            yield False
            return
        yield not is_held(folder)


def is_held(folder: str | Path) -> bool:
    """Whether a training runs in ``folder``, as far as the system can tell; none runs in one that is not there."""
    if fcntl is None or not Path(folder).is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)  # shared: several may look at once
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Whether nobody else has the lock; also where there are none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
