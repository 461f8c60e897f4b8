"""Hooks of the trainer: checkpoints, evaluation with the best model kept, metrics, progress."""

import contextlib
import json
import logging
import math
import sys
from pathlib import Path
from typing import Callable

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.files import atomic_write
from ..errors import UserError
from .checkpoint import BEST, FINAL, CheckpointFolder, periodic_name, read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
# First parts of the names of what is the better the higher; losses on the test sets, val/..., are not.
_LESION_FIGURES, _IMAGE_FIGURES = ("segm", "bbox", "paper_ap", "union"), ("image", "patient")
_ERRORS = ("image/ece", "image/brier")  # the better the lower
LOGGERS = ("d2_covid", "detectron2", "fvcore")
"""The loggers of a run."""


def is_due(period: int, done: int, max_iter: int) -> bool:
    """Whether something that happens every ``period`` iterations (0: never) and at the end happens after ``done``."""
    return done == max_iter or (period > 0 and done % period == 0)


def best_metric(cfg: CfgNode) -> str:
    """``TEST.BEST_METRIC`` as evaluations name it: of several test sets, the first one's where it names none of them.

    Raises:
        UserError: the model's evaluation has no such figures, or the lower it is the better.
    """
    metric, sets = cfg.TEST.BEST_METRIC, list(dict.fromkeys(cfg.DATASETS.TEST))
    prefixes = [f"{name}/" for name in sets] if len(sets) > 1 else [""]
    prefix = next((prefix for prefix in prefixes if metric.startswith(prefix)), "")
    lesion_figures = _LESION_FIGURES if cfg.MODEL.MASK_ON else ("bbox",)
    parts = _IMAGE_FIGURES if cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet" else lesion_figures
    figure = metric.removeprefix(prefix)
    if figure.split("/")[0] not in parts:
        known = ", ".join(f"{part}/..." for part in parts)
        raise UserError(f"TEST.BEST_METRIC {metric} is no figure of this model's evaluation; they are {known}.")
    if figure in _ERRORS:
        raise UserError(
            f"TEST.BEST_METRIC {metric} is the better the lower, and the model with the highest is kept; take another, "
            "such as image/balanced_accuracy."
        )
    return metric if prefix else prefixes[0] + metric


class SaveCheckpoint(HookBase):
    """Save a checkpoint every ``period`` iterations, and ``model_final.pth`` at the end (on the main process)."""

    def __init__(self, folder: CheckpointFolder, period: int, keep: int) -> None:
        self._folder, self._period, self._keep = folder, period, keep

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if comm.is_main_process() and is_due(self._period, done, self.trainer.max_iter):
            name = FINAL if done == self.trainer.max_iter else periodic_name(self.trainer.iter)
            self._folder.save(name, self.trainer.state_dict(), keep=self._keep)


class Evaluate(HookBase):
    """Every ``period`` iterations and at the end: validation loss, evaluation, and ``model_best.pth`` if it is better.

    Comes after the checkpoint, so that a failing evaluation costs no training. A run that was killed between the two
    catches up on the evaluation when it is resumed; whether it has to is seen from ``metrics.json``, which is written
    last. The best value so far stands in ``model_best.pth`` itself.

    Args:
        functions: each takes whether this is the run's last evaluation, and returns numbers by name.
        best_metric: name among them; the higher the better.
    """

    def __init__(
        self, folder: Path, period: int, functions: list[Callable[[bool], dict[str, float]]], best_metric: str
    ) -> None:
        self._best_path = folder / BEST
        self._metrics = folder / METRICS
        self._period, self._functions, self._best_metric = period, functions, best_metric
        self._best = -math.inf
        self.latest: dict[str, float] = {}

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start == 0:
            return
        if self._best_path.is_file():
            best = read_checkpoint(self._best_path).get("d2_covid", {}).get("best", {})
            if best.get("metric") == self._best_metric:
                self._best = best["value"]
        due = is_due(self._period, start, self.trainer.max_iter) and last_iteration(self._metrics) < start - 1
        if comm.all_gather(due)[0]:  # the main process writes the file, and decides
            logger.info("evaluating after iteration %d, which the run was stopped in", start - 1)
            self.trainer.storage.iter = start - 1
            self._evaluate(start)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if is_due(self._period, done, self.trainer.max_iter):
            self._evaluate(done)

    def _evaluate(self, done: int) -> None:
        self.trainer.synchronize_statistics()
        self.latest = {}
        for function in self._functions:
            self.latest |= function(done == self.trainer.max_iter)
        comm.synchronize()
        if comm.is_main_process():
            # A figure that is undefined, such as the AP of a size that no lesion has, has no place in a json or a plot.
            numbers = {name: value for name, value in self.latest.items() if math.isfinite(value)}
            self.trainer.storage.put_scalars(**numbers, smoothing_hint=False)
            self._keep_best(done - 1)

    def _keep_best(self, iteration: int) -> None:
        value = self.latest.get(self._best_metric)
        if value is None:
            logger.warning(
                "no best checkpoint: TEST.BEST_METRIC %s is not among %s", self._best_metric, ", ".join(self.latest)
            )
        elif math.isnan(value):
            logger.warning("no best checkpoint after iteration %d: %s is undefined there", iteration, self._best_metric)
        elif value > self._best:
            self._best = value
            checkpoint = self.trainer.weights()
            checkpoint["d2_covid"]["best"] = {"metric": self._best_metric, "value": value, "iteration": iteration}
            write_checkpoint(self._best_path, checkpoint)
            logger.info("best %s so far: %.4f after iteration %d", self._best_metric, value, iteration)


class WriteMetrics(HookBase):
    """Log, ``metrics.json`` and TensorBoard: every 20 iterations, after each evaluation, and at the end.

    What an interrupted run wrote at or after the iteration that it resumes from is dropped first.
    """

    PERIOD = 20

    def __init__(self, folder: Path, eval_period: int) -> None:
        self._folder, self._eval_period = folder, eval_period
        self._writers: list[EventWriter] = []

    def before_train(self) -> None:
        start = self.trainer.start_iter
        drop_metrics_from(self._folder / METRICS, start)
        self._writers = [
            CommonMetricPrinter(self.trainer.max_iter),
            JSONWriter(str(self._folder / METRICS)),
            TensorboardXWriter(str(self._folder), purge_step=start),
        ]
        self._write()  # an evaluation that was caught up on

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.PERIOD == 0 or is_due(self._eval_period, done, self.trainer.max_iter):
            self._write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        printer, *others = self._writers
        if self.trainer.storage.histories().get("total_loss"):
            printer.write()
        for writer in others:
            writer.write()


class ProgressBar(HookBase):
    """A bar on stderr with the loss and the time left; log lines stand above it, and leave the losses to it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._redirect = contextlib.ExitStack()

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc="training",
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self._redirect.enter_context(logging_redirect_tqdm([logging.getLogger(name) for name in LOGGERS]))
        for handler in logging.getLogger("detectron2").handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(_not_the_printer)

    def after_step(self) -> None:
        loss = self.trainer.storage.history("total_loss").median(20)
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._redirect.close()
        if self._bar is not None:  # None: the run ended before it began
            self._bar.close()


def drop_metrics_from(path: Path, iteration: int) -> None:
    """Keep the lines of a ``metrics.json`` before ``iteration``; a line that was cut short goes too."""
    if path.is_file():
        kept = [line for line, at in _metric_lines(path) if at < iteration]
        with atomic_write(path) as file:
            file.writelines(line + "\n" for line in kept)


def last_iteration(path: Path) -> int:
    """The last iteration that a ``metrics.json`` tells of; -1 where it tells of none."""
    return max((at for _, at in _metric_lines(path)), default=-1) if path.is_file() else -1


def _metric_lines(path: Path) -> list[tuple[str, int]]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append((line, json.loads(line)["iteration"]))
        except (ValueError, KeyError):
            logger.warning("%s: dropping a line that was cut short", path)
    return lines


def _not_the_printer(record: logging.LogRecord) -> bool:
    return record.name != CommonMetricPrinter.__module__
