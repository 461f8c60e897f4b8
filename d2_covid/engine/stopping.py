"""Ends a training where its state is whole, when a user or a scheduler asks it to."""

import os
import signal
import threading
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm

from .children import interrupt

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, interrupt)


class StopOnSignal(HookBase):
    """Turns Ctrl-C, SIGTERM and SIGHUP into a ``KeyboardInterrupt`` between two updates, never within one.

    An update is held together from :meth:`hold`, which the trainer calls once it has a batch, to :meth:`after_step`,
    which comes behind the hook of the learning rate. A second signal ends it at once.

    Signals that the program handles otherwise, or ignores as ``nohup`` does, are left alone, and so are those of
    several processes, which would not stop at the same iteration.
    """

    def __init__(self) -> None:
        self.holding = False
        self._asked = False
        self._pid = os.getpid()
        self._before: dict[int, signal.Handlers] = {}

    def before_train(self) -> None:
        if comm.get_world_size() > 1 or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) in _DEFAULTS:
                self._before[number] = signal.signal(number, self._handle)

    def hold(self) -> None:
        """Let no signal through until :meth:`after_step`."""
        self.holding = True

    def after_step(self) -> None:
        self.trainer.done = self.trainer.iter + 1
        self.holding = False
        if self._asked:
            raise KeyboardInterrupt

    def after_train(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that reads data: its parent tells it when to end
            return
        if self.holding and not self._asked:
            self._asked = True
            return
        raise KeyboardInterrupt
