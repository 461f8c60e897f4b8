"""Runs the trainings of a grid beside each other, each in a process of its own, and keeps a record of each.

Started again, it passes over what has finished, goes on with what was interrupted, and does the rest. What was trained
with other settings, or on other data, is set aside and trained anew.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.files import sha256_of
from ..engine.aside import set_aside
from ..engine.children import stop
from ..engine.folder_lock import claimed
from ..engine.run_record import now
from ..errors import UserError
from .data import read_facts
from .grids import Row, final_weights, record_file, run_folder
from .machine import Machine
from .records import FAILED, FINISHED, NOT_FINISHED, read_record, row_facts, run_facts, sets_of, write_record

RUNNING = "running"
_DONE_BEFORE = "done before"
_ELSEWHERE = "not started: another command is training it"
_POLL = 0.2

Say = Callable[[str], None]


@dataclass
class _Job:
    row: Row
    process: subprocess.Popen
    log: Path
    started: float
    key: str
    record: dict[str, Any]
    claim: ExitStack = field(default_factory=ExitStack)  # keeps other commands from the row until it is closed


class Runner:
    """Runs rows below one folder, which then holds ``runs/<row>`` (the training), ``logs/<row>.log`` (what it said) and
    ``records/<row>.json``; what was set aside, with its log and its record, lies in ``runs/<row>.before_<number>``.

    Args:
        folder: of the zoo.
        data: folder of the data (:func:`.data.prepare_data`).
        machine: how to run.
        command: from a row to the command that trains it, arguments of ``tools/train_net.py`` included.
        say: takes each line for the user.

    Raises:
        UserError: the data is not there.
    """

    def __init__(
        self, folder: Path, data: Path, machine: Machine, command: Callable[[Row], Sequence[str]], say: Say = print
    ) -> None:
        self.folder, self.data, self.machine, self._command, self._say = folder, data, machine, command, say
        self._facts = read_facts(data)["datasets"]

    def run(self, rows: Sequence[Row]) -> dict[str, str]:
        """Run ``rows`` in order, as many at a time as the machine is to; returns how each ended, by name.

        A row that starts from another's model waits for it; one that can't be started costs no other its training. At
        the time limit what runs is stopped, and its record says so.

        Raises:
            UserError: a row starts from a model that is neither there nor made by another row.
        """
        deadline = None if self.machine.time_limit is None else time.monotonic() + self.machine.time_limit
        ends: dict[str, str] = {}
        waiting, total = list(rows), len(rows)
        made, needed = {row.name for row in rows}, {row.needs for row in rows}
        self._check_starts(rows, made)
        active: list[_Job] = []
        try:
            while waiting or active:
                if deadline is not None and time.monotonic() >= deadline:
                    break
                for row in list(waiting):
                    if len(active) >= self.machine.jobs:
                        break
                    why_not = _held(row, made, ends)
                    if why_not is None:
                        continue
                    waiting.remove(row)
                    begun = why_not or self._begin(row, needed)
                    if isinstance(begun, _Job):
                        active.append(begun)
                    else:
                        ends[row.name] = FINISHED if begun == _DONE_BEFORE else begun
                        self._tell(len(ends), total, row.name, begun)
                for job in list(active):
                    status = job.process.poll()
                    if status is not None:
                        active.remove(job)
                        end = FINISHED if status == 0 else f"{FAILED}: {_reason(job, status)}"
                        ends[job.row.name] = self._end(job, end)
                        job.claim.close()
                        self._tell(len(ends), total, job.row.name, ends[job.row.name])
                if active:
                    time.sleep(_POLL)
        finally:
            interrupted = sys.exc_info()[0] is not None
            stop([job.process for job in active])
            for job in active:
                why = "interrupted" if interrupted else f"time limit of {self.machine.time_limit:g} s"
                ends[job.row.name] = self._end(job, f"{NOT_FINISHED}: {why}")
                job.claim.close()
                self._tell(len(ends), total, job.row.name, ends[job.row.name])
        for row in waiting:
            ends[row.name] = "not started"
            self._tell(len(ends), total, row.name, ends[row.name])
        return ends

    def _check_starts(self, rows: Sequence[Row], made: set[str]) -> None:
        for row in rows:
            if row.weights and row.needs not in made and not self._weights(row).is_file():
                how = f"run the grid that makes {row.needs}, before or beside it" if row.needs else "look at its path"
                raise UserError(f"{row.name} starts from {self._weights(row)}, which is not there: {how}.")

    def _weights(self, row: Row) -> Path:
        return self.folder / row.weights

    def _begin(self, row: Row, needed: Container[str | None]) -> _Job | str:
        """Start a row, or go on with it: from then on it is this command's alone. Else, how it has ended.

        Args:
            needed: names of rows whose model others are to start from.
        """
        with ExitStack() as stack:
            claim = self.folder / ".claims" / row.name
            if not stack.enter_context(claimed(claim, self.folder / run_folder(row.name))):
                return _ELSEWHERE
            try:
                job = self._start(row, row.name in needed)
            except UserError as error:
                return f"{FAILED}: {error}"
            if job is None:
                return _DONE_BEFORE
            job.claim = stack.pop_all()
            return job

    def _start(self, row: Row, needed: bool) -> _Job | None:
        """Start a row, or go on with it; None if it has finished before, and its model is there where it is needed."""
        start = sha256_of(self._weights(row)) if row.weights else None
        facts, key = {**row_facts(row), "start_sha256": start}, self._key(row, start)
        before = read_record(self.folder, row.name)
        same = before is not None and (before.get("key") == key or self._tells_of(before, facts))
        there = (self.folder / final_weights(row.name)).is_file()
        if same and before["status"] == FINISHED and (there or not needed):
            return None
        log = self.folder / "logs" / f"{row.name}.log"
        if not same:
            self._set_aside(row, log)
        goes_on = same and (self.folder / run_folder(row.name)).is_dir()
        sessions = list(before.get("sessions", [])) if goes_on else []
        if same and before["status"] == RUNNING:
            sessions.append({"ended": None, "seconds": None, "status": f"{NOT_FINISHED}: nobody saw its end"})
        read = before.get("data") if same else None
        record = {
            **facts,
            "key": key,
            "data": read or sets_of(row, self._facts),  # what tells, should this be killed, whether to go on
            "status": RUNNING,
            "jobs": self.machine.jobs,
            "threads": self.machine.threads,
            "sessions": sessions,
        }
        write_record(self.folder, record)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str(self.data.resolve()),
            "OMP_NUM_THREADS": str(self.machine.threads),
            "PYTHONWARNINGS": "ignore",
        }
        with open(log, "ab") as file:
            process = subprocess.Popen(
                list(self._command(row)), stdout=file, stderr=file, env=environment, start_new_session=True
            )
        return _Job(row, process, log, time.monotonic(), key, record)

    def _end(self, job: _Job, status: str) -> str:
        session = {"ended": now(), "seconds": round(time.monotonic() - job.started, 1), "status": status}
        sessions = [*job.record["sessions"], session]
        spent = [session["seconds"] for session in sessions]
        seconds = None if None in spent else round(sum(spent), 1)
        record = {**job.record, "status": status, "seconds": seconds, "sessions": sessions}
        try:
            record |= run_facts(self.folder / run_folder(job.row.name), self._facts)
        except (UserError, KeyError) as error:
            if status == FINISHED:
                record["status"] = f"{FAILED}: its record can't be made ({error})"
        if record["status"] == FINISHED and not {"metrics", "weights_sha256"} <= record.keys():
            record["status"] = f"{FAILED}: it ended without {'metrics' if 'metrics' not in record else 'a model'}"
        write_record(self.folder, record)
        return record["status"]

    def _set_aside(self, row: Row, log: Path) -> None:
        run = self.folder / run_folder(row.name)
        for file in (self.folder / record_file(row.name), log):
            if file.is_file():
                run.mkdir(parents=True, exist_ok=True)
                file.rename(run / file.name)
        aside = set_aside(run)
        if aside is not None:
            self._say(f"{row.name}: settings, start or data changed; what was trained before is kept in {aside}")

    def _key(self, row: Row, start: str | None) -> str:
        sets = [self._facts.get(name, {}).get("sha256") for name in sorted(self._facts)]
        plain = [row_facts(row), start, sets]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def _tells_of(self, record: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
        """Whether a record is of a row with these facts, and the sets that it read are as they were.

        The key changes with each set, also with those that a row never reads.
        """
        # Runners of earlier versions that were killed left records without data, and the key doesn't tell which set
        # changed. They count as the same: a training that outlived its runner keeps its model, and one whose own slices
        # changed refuses to go on with them.
        read = [dataset for split in record.get("data", {}).values() for dataset in split]
        same = all(record.get(name) == value for name, value in facts.items())
        return same and all(self._is_as_read(dataset) for dataset in read)

    def _is_as_read(self, dataset: Mapping[str, Any]) -> bool:
        hashes = dataset.get("sha256"), self._facts.get(dataset["name"], {}).get("sha256")
        return None in hashes or hashes[0] == hashes[1]  # earlier versions noted no hash of COVID-CT

    def _tell(self, done: int, total: int, name: str, end: str) -> None:
        try:
            record = read_record(self.folder, name) or {}
        except UserError:  # damaged, which is why it has failed
            record = {}
        if end not in (_DONE_BEFORE, record.get("status")):  # it tells of an earlier time
            record = {}
        figures = record.get("metrics", {})
        shown = [
            f"{metric} {figures[metric]['value']:.4g}"
            for metric in ("segm/AP", "segm/AP50", "union/dice", "image/accuracy", "image/balanced_accuracy")
            if figures.get(metric, {}).get("value") is not None
        ]
        took = [f"{record['seconds']:.0f} s"] if record.get("seconds") is not None and end != _DONE_BEFORE else []
        shown = shown if record.get("status") == FINISHED else []
        self._say(f"[{done}/{total}] {name}: {', '.join([end, *took, *shown])}")


def _held(row: Row, made: set[str], ends: Mapping[str, str]) -> str | None:
    """None: the row has to wait for another; "": it can start; else why it never will.

    Args:
        made: rows of this run.
        ends: of rows that have ended.
    """
    if row.needs not in made:
        return ""
    end = ends.get(row.needs)
    if end is None or end == FINISHED:
        return None if end is None else ""
    return f"not started: {row.needs} is {end.split(':')[0]}"


def _reason(job: _Job, status: int) -> str:
    """The last line that a failed training said."""
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("error: ") if lines else f"status {status}"
    return said if status != -getattr(signal, "SIGKILL", 9) else "killed, as for want of memory"
