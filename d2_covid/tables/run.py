"""Does what a plan says, once; a run that fails costs no other its row."""

import codecs
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..engine.aside import set_aside
from ..engine.children import stop
from ..engine.folder_lock import claimed, held_in_turn, is_held
from ..engine.steps import Steps
from ..errors import UserError
from .jobs import Preparation, Run, command_of
from .plan import Plan, earlier_runs
from .settings import check_settings, note_settings

STATE = ".steps.json"
EDITION = "1"
"""Raised when finished runs no longer serve. A new version of d2_covid alone costs nobody weeks of training."""
_TAIL = 4000


def waiting_runs(plan: Plan) -> list[Run]:
    """The runs that :func:`carry_out` would do; those of classifiers whose Mask R-CNN it would train are among them."""
    steps = Steps(plan.options.output / STATE, 0, edition=EDITION)
    waiting: list[Run] = []
    for run in plan.runs:
        anew = run.detector in {other.final for other in waiting}
        if anew or not steps.is_done(run.name, run.inputs(), run.outputs):
            waiting.append(run)
    return waiting


def whole_beside(plan: Plan) -> list[Run]:
    """Of :func:`.plan.earlier_runs`, those that have ended, and from what they would start from now."""
    steps = Steps(plan.options.output / STATE, 0, edition=EDITION)
    stale = {run.final for run in waiting_runs(plan)}
    found = []
    for run in earlier_runs(plan):  # detectors come first
        if run.detector not in stale and steps.is_done(run.name, run.inputs(), run.outputs):
            found.append(run)
        else:
            stale.add(run.final)
    return found


def carry_out(
    plan: Plan,
    checkout: Path,
    *,
    seconds: Mapping[Run, float | None],
    machine: str,
    say: Callable[[str], None],
    after_run: Callable[[dict[Run, str]], None],
    execute: Callable[[Sequence[str], Path, Mapping[str, str]], None] | None = None,
) -> dict[Run, str]:
    """Prepare the data, then do every run that is not done, in order.

    Other commands may be at work in the same output folder: a run that one of them is training is left to it.

    Args:
        checkout: folder that holds ``tools/`` and ``datasets/``.
        seconds: what each run takes, roughly.
        machine: what they hold for, in words.
        say: takes each line for the user.
        after_run: called after each run with the failures so far.
        execute: runs a script with its arguments, given the log to write and the environment; None for
            :func:`run_logged`.

    Returns:
        Why each run that failed did.

    Raises:
        UserError: data could not be prepared, or the output folder holds runs of other settings.
    """
    output = plan.options.output
    check_settings(output, plan.settings)
    note_settings(output, plan.settings, {kind: plan.departures(kind) for kind in plan.settings})
    steps = Steps(output / STATE, len(plan.preparations) + len(plan.runs), say, machine, EDITION)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "DETECTRON2_DATASETS": str(plan.options.data.resolve())}
    progress = sys.stderr.isatty()

    def do(job: Preparation | Run, log: str) -> None:
        (execute or run_logged)(command_of(job, checkout, progress), output / "logs" / log, environment)

    plan.options.data.mkdir(exist_ok=True)
    with held_in_turn(plan.options.data, lambda: say("Another command prepares the data here; waiting for it.")):
        for job in plan.preparations:
            log = f"{Path(job.script).stem}.log"
            steps.run(job.name, job.inputs, job.outputs, None, lambda resume, job=job, log=log: do(job, log))

    failures: dict[Run, str] = {}
    for run in plan.runs:

        def work(resume: bool, run: Run = run) -> None:
            if run.detector is not None and not run.detector.is_file():
                raise UserError(f"its Mask R-CNN {run.detector} is not there")
            if not resume:
                set_aside(run.folder)
            do(run, f"{run.kind}_{run.model.name}_seed_{run.seed}.log")

        with _ours(run, plan) as ours:
            if not ours:
                steps.leave_out(run.name, "another command is training it, or its Mask R-CNN, and is left to do so")
                continue
            try:
                steps.run(run.name, run.inputs(), run.outputs, seconds.get(run), work)
            except UserError as error:
                failures[run] = str(error)
                say(f"    FAILED: {error}")
        after_run(failures)
    return failures


@contextlib.contextmanager
def _ours(run: Run, plan: Plan) -> Iterator[bool]:
    """Whether a run is this command's to do (:func:`.folder_lock.claimed`); its Mask R-CNN may be another's, too."""
    with claimed(_claim(run, plan), run.folder) as ours:
        start = next((other for other in plan.runs if other.final == run.detector), None)
        waits = start is not None and not start.final.is_file()
        yield ours and not (waits and (is_held(_claim(start, plan)) or is_held(start.folder)))


def _claim(run: Run, plan: Plan) -> Path:
    """Folder that the command which does a run holds: the run's own may be set aside."""
    return plan.options.output / ".claims" / f"{run.kind}_{run.model.name}_seed_{run.seed}"


def run_logged(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run a Python script with this interpreter. Its stdout goes to ``log``, its stderr to ours and to ``log``.

    What interrupts this ends the script, which gets time to save where it stands.

    Raises:
        UserError: it failed; the message has its last line and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail, decoder = b"", codecs.getincrementaldecoder("utf-8")("replace")
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        try:
            while chunk := os.read(process.stderr.fileno(), 65536):
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
                tail = (tail + chunk)[-_TAIL:]
            status = process.wait()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                with contextlib.suppress(OSError):  # the terminal may be gone
                    print("\nEnding what runs, which may save first; a second Ctrl-C ends it at once.", file=sys.stderr)
            stop([process])
            raise
        file.write(tail)
    if status:
        lines = tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
        reason = f"ended by signal {-status}" if status < 0 else last.removeprefix("error: ").rstrip(".")
        raise UserError(f"{reason} ({log})")
