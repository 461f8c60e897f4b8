"""Work in steps, each done once: a run that is started again goes on where the last one stopped."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Sequence

from .. import __version__
from ..data.files import write_json
from ..errors import UserError
from .children import stop
from .folder_lock import held_in_turn

logger = logging.getLogger(__name__)


class Steps:
    """Runs steps in order; one whose inputs are those of its last, completed run is passed over.

    Several processes may share a state file, as long as each does steps of its own.

    Args:
        state_file: json file that remembers what is done.
        total: number of steps, for the announcements.
        say: takes each line for the user.
        machine: what the announced times hold for, in words.
        edition: of what does the steps, d2_covid's version if None; those of another are done anew.

    Raises:
        UserError: the state file is damaged.
    """

    def __init__(
        self,
        state_file: str | Path,
        total: int,
        say: Callable[[str], None] = logger.info,
        machine: str = "on two cores",
        edition: str | None = None,
    ):
        self._state_file = Path(state_file)
        self._machine, self._edition = machine, __version__ if edition is None else edition
        self._total, self._number, self._say = total, 0, say
        self._read()

    def run(
        self, name: str, inputs: Any, outputs: Sequence[Path], seconds: float | None, work: Callable[[bool], None]
    ) -> bool:
        """Announce a step and do it.

        Args:
            name: in words; unique among the steps.
            inputs: plain values that decide what comes out.
            outputs: files that are there when it is done.
            seconds: what it takes, roughly; None where nobody knows.
            work: does it; is told whether to go on with what an interrupted run of the same inputs left.

        Returns:
            Whether it was done now.
        """
        self._number += 1
        key = self._key(inputs)
        head = f"{self._number}/{self._total} {name}"
        same = self._read().get(name, {}).get("key") == key
        if self.is_done(name, inputs, outputs):
            self._say(f"{head}: done before")
            return False
        self._say(head if seconds is None else f"{head}, {about(seconds)} {self._machine}")
        self._note(name, key, done=False)
        started = time.monotonic()
        work(same)
        missing = [path for path in outputs if not path.exists()]
        if missing:
            raise UserError(f"The step {name!r} ended without {missing[0]}.")
        self._note(name, key, done=True)
        self._say(f"    took {time.monotonic() - started:.0f} s")
        return True

    def leave_out(self, name: str, why: str) -> None:
        """Announce a step that others do."""
        self._number += 1
        self._say(f"{self._number}/{self._total} {name}: {why}")

    def is_done(self, name: str, inputs: Any, outputs: Sequence[Path]) -> bool:
        """Whether :meth:`run` would pass over the step."""
        before = self._read().get(name, {})
        same = before.get("key") == self._key(inputs)
        return same and bool(before.get("done")) and all(path.exists() for path in outputs)

    def _key(self, inputs: Any) -> str:
        return hashlib.sha256(json.dumps([self._edition, inputs], sort_keys=True).encode()).hexdigest()

    def _read(self) -> dict[str, Any]:
        if not self._state_file.is_file():
            return {}
        try:
            return dict(json.loads(self._state_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._state_file} is damaged; delete it to start anew.") from error

    def _note(self, name: str, key: str, done: bool) -> None:
        folder = self._state_file.parent
        with held_in_turn(folder) if folder.is_dir() else nullcontext():  # what others note meanwhile stays
            write_json(self._state_file, self._read() | {name: {"key": key, "done": done}})


def run_script(command: Sequence[str | Path], log: Path) -> None:
    """Run a Python script with this interpreter: progress bars and errors (stderr) show, the rest is added to ``log``.

    What interrupts this ends the script, which gets time to save where it stands.

    Raises:
        UserError: it failed; the message names it and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, *map(str, command)]
        process = subprocess.Popen(command, stdout=file, env=environment, start_new_session=True)
        try:
            status = process.wait()
        except BaseException:
            stop([process])
            raise
    if status:
        raise UserError(f"{Path(command[1]).name} failed with status {status}; what it said is in {log.resolve()}.")


def about(seconds: float) -> str:
    """A rough duration in words."""
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.1f} {unit}" if seconds < 10 * size else f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {round(seconds / 60)} min"
