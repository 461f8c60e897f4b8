"""Many scans through one model: streamed, each with a folder of its own, and an account of the whole."""

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch

from ..data.discovery import discover
from ..data.files import write_json
from ..data.limits import one_line
from ..data.volumes import Problem, Series, renamed
from ..engine.run_record import device_name, now, versions
from ..errors import UserError
from .dicom_seg import NO_LESION
from .kept_tags import check_keywords, read_tags
from .output_folder import RECORD, SUMMARY, alone_in, refuse_foreign, refuse_nested
from .outputs import DONE, choose_outputs, file_sizes, overlay_writer, whole_folder, write_outputs
from .predictions_json import NOTICE, SCHEMA_VERSION, input_path, model_facts
from .predictor import Predictor
from .result_folders import ResultFolders, sources_of
from .resume import config_sha256, result_key, slices_of_result, whole_result
from .series_result import SeriesResult
from .summary_table import SummaryRow, write_summary
from .unread import in_folders_of, with_unread

Report = Callable[[str], None]
"""Takes a line that the user should see."""


@dataclass(frozen=True)
class BatchOptions:
    """How to run over many scans.

    Attributes:
        save: names out of :data:`.outputs.NEEDS`; None: all that can be.
        resume: leave a series as it is if its folder is whole, and was made of the same files by the same model with
            the same options.
        keep_tags: DICOM keywords whose values may go into the outputs.
        debug: let unforeseen errors end the run.
        window_given: the window was asked for, so that the first series it does nothing to is worth a warning.
    """

    save: Sequence[str] | None = None
    resume: bool = False
    assume_window: bool = False
    keep_tags: tuple[str, ...] = ()
    seed: int = 0
    debug: bool = False
    command: tuple[str, ...] = ()
    window_given: bool = False


class Progress:
    """Where a run tells how far it is; this one keeps silent."""

    def found(self, scans: int) -> None:
        """So many scans will come."""

    def advance(self, share: float, name: str = "") -> None:
        """That much of one scan, ``name``, is done."""


@dataclass
class BatchRun:
    """A run over ``inputs`` into the folder ``output``.

    ``output`` gets a folder for each series, named by its identifier, ``run.json`` and ``summary.csv``.
    """

    predictor: Predictor
    inputs: Sequence[str | Path]
    output: Path
    options: BatchOptions
    report: Report
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        self.save = choose_outputs(self.options.save)
        check_keywords(self.options.keep_tags)
        refuse_nested(self.inputs, self.output)
        refuse_foreign(self.output)
        self.rows: list[SummaryRow] = []
        self._entries: list[dict[str, Any]] = []
        self._problems: list[Problem] = []
        self._told_of_window = False
        self._started = now(), time.monotonic()

    def run(self) -> int:
        """Predict on everything.

        Returns:
            Exit status: 0 all done, 1 some failed, 2 there was nothing to start on.

        Raises:
            UserError: the output folder can't be written to, or another run writes into it.
        """
        with alone_in(self.output):
            self._folders = ResultFolders(self.output)
            return self._run()

    def _run(self) -> int:
        self._write_record("running")
        try:
            (self.output / SUMMARY).unlink(missing_ok=True)  # of an earlier run; this one may be killed
        except OSError as error:
            raise UserError(f"Cannot remove {self.output / SUMMARY}: {error.strerror or error}.") from error
        try:
            for item in discover(self.inputs, assume_window=self.options.assume_window, on_found=self.progress.found):
                if isinstance(item, Problem):
                    self._problem(item)
                else:
                    self._series(item)
                del item
        except BaseException:
            with suppress(UserError):  # what ends the run is the news, not that its record can't be written either
                self._write_ending("interrupted")
            raise
        failed = any(problem.failed for problem in self._problems)
        failed = failed or any(row.status in ("failed", "partly") for row in self.rows)
        try:
            self._write_ending("finished")
        except UserError as error:
            self.report(f"error: {error}")
            return 1
        if not self._entries:
            if not failed:
                self.report("error: There is nothing to predict on: all that the inputs hold was left out.")
            return 2
        return 1 if failed else 0

    def _write_ending(self, status: str) -> None:
        write_summary(self.output / SUMMARY, self.rows)
        self._write_record(status)

    def _problem(self, problem: Problem) -> None:
        self._problems.append(problem)
        self.report(f"{'error' if problem.failed else 'note'}: {problem.message}")
        if problem.failed:
            path = problem.path
            self.rows.append(SummaryRow(series=path, status="failed", message=problem.message, path=path))

    def _series(self, series: Series) -> None:
        started = time.monotonic()
        for warning in series.warnings:
            self.report(f"warning: {warning}")
        if self.options.window_given and not series.hounsfield and not self._told_of_window:
            self._told_of_window = True
            self.report(
                f"warning: {one_line(series.identifier)}: --window does nothing to it: it is not in Hounsfield units. "
                "Such series, as of PNG images, are taken as gray of a window already applied."
            )
        series = with_unread(series, in_folders_of(series, self._problems))
        entry: dict[str, Any] = {
            "identifier": series.identifier,
            "path": input_path(series),
            "kind": series.kind,
            "slices": series.num_slices,
            "warnings": list(series.warnings),
        }
        folder = None
        try:
            sources = sources_of(series)
            series = renamed(series, self._folders.claim(series.identifier, sources))
            entry["identifier"], folder = series.identifier, self.output / series.identifier
            key = result_key(self.predictor, series, self.save, self.options.assume_window, self.options.keep_tags)
            done = whole_result(folder, key) if self.options.resume else None
            if done is not None:
                row = SummaryRow(**(done["row"] | {"status": "whole already"}))
                entry |= {name: done[name] for name in ("warnings", "left_out")} | {"folder": folder.name}
                entry["failed_slices"] = []  # else it would not be whole
                self.progress.advance(1.0, series.identifier)
            else:
                row = self._predict(series, sources, folder, key, entry)
            for warning in entry["warnings"][len(series.warnings) :]:
                self.report(f"warning: {warning}")
            for one in entry["failed_slices"]:
                self.report(f"error: {one['message']}")
        except Exception as error:
            if self.options.debug and not isinstance(error, UserError):
                raise
            message = failure_message(series, error)
            self.report(f"error: {message}")
            row = SummaryRow(
                series=series.identifier, status="failed", kind=series.kind, slices=series.num_slices, message=message
            )
            entry["error"] = message
            if folder is not None and (folder / DONE).is_file():
                entry["earlier_result"] = folder.name
                self.report(f"warning: {series.identifier}: its earlier result stays in {folder}.")
        row.seconds, row.path = round(time.monotonic() - started, 2), entry["path"]
        entry |= {"status": row.status, "seconds": row.seconds}
        self.rows.append(row)
        self._entries.append(entry)

    def _predict(self, series: Series, sources: list[str], folder: Path, key: str, entry: dict[str, Any]) -> SummaryRow:
        unread: list[str] = []
        tags = read_tags(series, self.options.keep_tags, unread.append)
        series = replace(series, warnings=(*series.warnings, *unread))
        share, before = 1.0 / series.num_slices, slices_of_result(folder)
        with whole_folder(folder) as part:
            draw = overlay_writer(part, self.predictor) if "overlays" in self.save else None
            drawing = 0.0

            def on_slice(result, gray) -> None:
                nonlocal drawing
                if draw is not None:
                    started = time.perf_counter()
                    draw(result, gray)
                    drawing += time.perf_counter() - started
                self.progress.advance(share, series.identifier)

            result = self.predictor.series(series, on_slice=on_slice)
            started = time.perf_counter()
            left_out = write_outputs(part, result, series, self.predictor, self.save, tags)
            seconds = result.seconds | {
                "overlays": round(drawing, 3),
                "write": round(time.perf_counter() - started, 3),
            }
            row = summary_row(result)
            said = {"warnings": [*result.warnings, *self._missed(series, left_out)], "left_out": left_out}
            done = {"key": key, "sources": sources, "folder": folder.name, "row": vars(row), "files": file_sizes(part)}
            write_json(part / DONE, done | said)
        if before > series.num_slices:
            self.report(
                f"warning: {series.identifier}: the earlier result, of {before} slices, is replaced by this one of "
                f"{series.num_slices}."
            )
        entry |= said | {
            "folder": folder.name,
            "seconds_by_stage": seconds,
            "failed_slices": [{"index": one.index, "message": one.message} for one in result.failed_slices],
        }
        return row

    def _missed(self, series: Series, left_out: Mapping[str, str]) -> list[str]:
        """Warnings of what is missing though it was asked for by name, or a DICOM series should have it."""
        if self.options.save is None and not (series.kind == "dicom" and self.predictor.with_masks):
            return []
        reasons = {name: reason for name, reason in left_out.items() if reason != NO_LESION}
        return [f"{series.identifier}: no {name}: {reason}." for name, reason in reasons.items()]

    def _write_record(self, status: str) -> None:
        predictor, (started, clock) = self.predictor, self._started
        totals: dict[str, float] = {}
        for entry in self._entries:
            for stage, seconds in entry.get("seconds_by_stage", {}).items():
                totals[stage] = round(totals.get(stage, 0.0) + seconds, 3)
        record = {
            "schema_version": SCHEMA_VERSION,
            "notice": NOTICE,
            "status": status,
            "started": started,
            "ended": None if status == "running" else now(),
            "seconds": round(time.monotonic() - clock, 3),
            "seconds_by_stage": totals,
            "command": list(self.options.command),
            "inputs": [str(item) for item in self.inputs],
            "versions": versions() | library_versions(),
            "device": device_name(predictor.cfg.MODEL.DEVICE),
            "threads": torch.get_num_threads(),
            "seed": self.options.seed,
            "model": model_facts(predictor)
            | {"weights": str(predictor.source.weights), "config_sha256": config_sha256(predictor)},
            "warnings": list(predictor.source.warnings),
            "options": {
                "save": list(self.save),
                "resume": self.options.resume,
                "assume_window": self.options.assume_window,
                "keep_tags": list(self.options.keep_tags),
                "batch_size": predictor.batch_size,
                "dtype": predictor.cfg.TEST.DTYPE,
            },
            "series": self._entries,
            "failures": [vars(problem) for problem in self._problems if problem.failed],
            "left_out": [vars(problem) for problem in self._problems if not problem.failed],
        }
        write_json(self.output / RECORD, record)


def summary_row(result: SeriesResult) -> SummaryRow:
    """A series' line of the summary."""
    share = result.lesion_share_of_lung
    failed = len(result.failed_slices)
    return SummaryRow(
        series=result.identifier,
        status="partly" if failed else "done",
        kind=result.kind,
        slices=result.num_slices,
        slices_with_lesion=sum(one.has_lesion for one in result.slices),
        lesions=result.lesion_count,
        lesion_ml=None if result.lesion_volume_ml is None else round(result.lesion_volume_ml, 3),
        lung_share_percent=None if share is None else round(100 * share, 3),
        image_class=result.image_class,
        message=f"{failed} slice(s) can't be read" if failed else "",
    )


def failure_message(series: Series, error: Exception) -> str:
    """Why a series failed, in one line."""
    if isinstance(error, UserError):
        return one_line(error, 1000)
    name = series.identifier
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{name}: not enough memory; use --device cpu, or a smaller --batch-size."
    if isinstance(error, OSError):
        return f"{name}: {one_line(error, 200)}."
    return f"{name}: unforeseen {type(error).__name__}; --debug shows where. Other series are not affected."


def library_versions() -> dict[str, str]:
    """Versions of what reads and writes medical files, where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("pydicom", "nibabel", "SimpleITK", "highdicom"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
