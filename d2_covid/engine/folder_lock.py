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


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold ``folder``, which is there, for a training of this process; however the process ends, it lets go.

    Where the system, or the file system, knows no such locks, nothing is held.

    Raises:
        UserError: another training holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"Another training runs in {folder}: wait for its end, or stop it, or give another OUTPUT_DIR."
        ) from error
    except OSError:
        pass
    try:
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
                stack.enter_context(held(folder))
                break
            except UserError:
                if not told:
                    say()
                told = True
                time.sleep(_POLL)
        yield


def is_held(folder: str | Path) -> bool:
    """Whether a training runs in ``folder``, as far as the system can tell; none runs in one that is not there."""
    if not Path(folder).is_dir():
        return False
    try:
        with held(folder):
            return False
    except UserError:
        return True
