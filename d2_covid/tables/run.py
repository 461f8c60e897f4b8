"""Does what a plan says, once; a run that fails costs no other its row."""

import codecs
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import write_json
from ..engine.steps import Steps
from ..errors import UserError
from .plan import Plan, Preparation, Run, command_of

STATE, SETTINGS = ".steps.json", "settings.json"
EDITION = "1"
"""Raised when finished runs no longer serve. A new version of d2_covid alone costs nobody weeks of training."""
_TAIL = 4000


def check_settings(plan: Plan) -> None:
    """Refuse an output folder whose runs were made with other settings: a table has one recipe and one set of data.

    Raises:
        UserError: names the first setting that differs, and both values.
    """
    known = _read_json(plan.options.output / SETTINGS)
    for kind, settings in plan.settings.items():
        for name, value in settings.items():
            before = known.get(kind, {}).get(name, value)
            if before != value:
                raise UserError(
                    f"The {kind} runs in {plan.options.output} have {name} {before!r}, and now it is {value!r}; give "
                    "another --output, or the same settings."
                )


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
    check_settings(plan)
    output = plan.options.output
    known = _read_json(output / SETTINGS)
    write_json(output / SETTINGS, known | plan.settings)
    steps = Steps(output / STATE, len(plan.preparations) + len(plan.runs), say, machine, EDITION)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "DETECTRON2_DATASETS": str(plan.options.data.resolve())}
    progress = sys.stderr.isatty()

    def do(job: Preparation | Run, log: str) -> None:
        (execute or run_logged)(command_of(job, checkout, progress), output / "logs" / log, environment)

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

        try:
            inputs = [*run.inputs(), _digest(run.detector)]
            steps.run(run.name, inputs, [run.final, run.results], seconds.get(run), work)
        except UserError as error:
            failures[run] = str(error)
            say(f"    FAILED: {error}")
        after_run(failures)
    return failures


def run_logged(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Run a Python script with this interpreter. Its stdout goes to ``log``, its stderr to ours and to ``log``.

    Raises:
        UserError: it failed; the message has its last line and the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail, decoder = b"", codecs.getincrementaldecoder("utf-8")("replace")
    with open(log, "ab") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.PIPE, env=environment)
        try:
            while chunk := os.read(process.stderr.fileno(), 65536):
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
                tail = (tail + chunk)[-_TAIL:]
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        file.write(tail)
    if status:
        lines = tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
        reason = f"ended by signal {-status}" if status < 0 else last.removeprefix("error: ").rstrip(".")
        raise UserError(f"{reason} ({log})")


def set_aside(folder: Path) -> Path | None:
    """Rename a run that is not to be gone on with, so that nothing of it is lost; None where there is none."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before_{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def _digest(path: Path | None) -> str | None:
    """SHA-256 of a file, None where there is none: a classifier is trained anew when its Mask R-CNN changes."""
    if path is None or not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; give another --output, or restore it.") from error
