"""From the files that the runs left to the figures of the tables."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.hooks import METRICS
from ..engine.run_record import read_record
from ..zoo.records import step_seconds
from .jobs import Run
from .models import CLASSIFICATION, SEGMENTATION, TableModel


@dataclass(frozen=True)
class Column:
    """A figure of a table.

    Args:
        head: over the column.
        key: csv column and json name.
        metric: name in ``results.json``.
        scale: by which the value there is multiplied.
        paper: name of the paper's own figure in its row; empty where it has none.
    """

    head: str
    key: str
    metric: str
    scale: float = 1.0
    paper: str = ""


COLUMNS = {
    SEGMENTATION: (
        Column("AP@0.5IoU", "paper_ap50", "paper_ap/AP50", paper="ap50"),
        Column("AP@0.75IoU", "paper_ap75", "paper_ap/AP75", paper="ap75"),
        Column("AP@[0.5:0.95]", "paper_ap", "paper_ap/AP", paper="ap"),
        Column("COCO mask AP50", "coco_mask_ap50", "segm/AP50"),
        Column("COCO mask AP75", "coco_mask_ap75", "segm/AP75"),
        Column("COCO mask AP", "coco_mask_ap", "segm/AP"),
        Column("COCO box AP", "coco_box_ap", "bbox/AP"),
        Column("Dice", "dice", "union/dice", 100.0),
    ),
    CLASSIFICATION: (
        Column("COVID-19", "sensitivity_covid", "sensitivity-COVID-19", 100.0, "covid"),
        Column("Pneumonia", "sensitivity_pneumonia", "sensitivity-common_pneumonia", 100.0, "pneumonia"),
        Column("Normal", "sensitivity_control", "sensitivity-control", 100.0, "control"),
        Column("Overall", "accuracy", "accuracy", 100.0, "accuracy"),
        Column("Balanced accuracy", "balanced_accuracy", "balanced_accuracy", 100.0),
        Column("Macro F1", "macro_f1", "macro_f1", 100.0),
        Column("F1 of COVID-19", "f1_covid", "f1-COVID-19", 100.0),
        Column("ROC AUC", "auc", "auc", 100.0),
    ),
}
"""All in percent. The columns that the paper has come first, in its order."""


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; None for what is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A run, and what came of it: ``state`` is "done", "failed" or "not done".

    Args:
        reason: why it failed.
        figures: by :attr:`Column.key`; empty unless it is done.
        minutes: of training, iterations alone; None where unknown.
        facts: numbers of slices and patients, device, versions, notes.
    """

    run: Run
    state: str
    reason: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    minutes: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Mean of a figure over the seeds, and its standard deviation (None with one seed)."""

    mean: float | None
    deviation: float | None
    seeds: int


def outcome_of(run: Run, failures: Mapping[Run, str], whole: bool = True) -> Outcome:
    """Read what a run left.

    Args:
        failures: why runs failed.
        whole: it has ended, and from what it would start from now: files lie there before, and after that changed.
    """
    if run in failures:
        return Outcome(run, "failed", failures[run])
    if not (whole and run.results.is_file() and run.final.is_file()):
        return Outcome(run, "not done")
    results = json.loads(run.results.read_text(encoding="utf-8"))
    figures = {column.key: _figure(results, column) for column in COLUMNS[run.kind]}
    return Outcome(run, "done", "", figures, training_minutes(run.folder / METRICS), _facts(run, results))


def by_model(outcomes: Sequence[Outcome]) -> dict[TableModel, list[Outcome]]:
    """The outcomes of each model, seed by seed."""
    found: dict[TableModel, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.run.model, []).append(outcome)
    return found


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of what is defined."""
    known = [value for value in values if value is not None]
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known) if known else None, deviation, len(known))


def training_minutes(metrics: Path) -> float | None:
    """Minutes that the iterations of a run took, from its ``metrics.json``; None where no line tells a time."""
    _, seconds = step_seconds(metrics)
    return seconds / 60 if seconds else None


def _figure(results: Mapping[str, Any], column: Column) -> Figure:
    entry = results["metrics" if "metrics" in results else "measures"].get(column.metric)
    if entry is None:
        return Figure(None)
    interval = entry.get("interval") or {}
    return Figure(*(_scaled(x, column.scale) for x in (entry["value"], interval.get("low"), interval.get("high"))))


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value * scale


def _facts(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    record = read_record(run.folder) or {}
    facts = {
        "training_slices": run.training_slices,
        "slices": results["slices"],
        "patients": results["patients"],
        "iterations": record.get("iterations"),
        "device": record.get("device"),
        "versions": record.get("versions"),
    }
    if run.kind == SEGMENTATION:
        settings = results["settings"]
        return facts | {
            "lesions": results["instances"],
            "slices_without_lesion": results["slices_without_ground_truth"],
            "resamples": settings["bootstrap"],
            "resampled": results["resampled"],
            "settings": settings,
            "notes": _notes(run.kind, results["metrics"]),
        }
    intervals = results["intervals"]
    return facts | {
        "slices_by_class": dict(zip(results["classes"], results["slices_by_class"], strict=True)),
        "confusion": results["confusion"]["counts"],
        "resamples": intervals["resamples"],
        "resampled": f"{intervals['unit']}s",
        "notes": [intervals["note"]] * bool(intervals["note"]) + _notes(run.kind, results["measures"]),
    }


def _notes(kind: str, metrics: Mapping[str, Any]) -> list[str]:
    """What is said of the figures in the table, each thing once, with the figures that it is said of."""
    said: dict[str, list[str]] = {}
    for column in COLUMNS[kind]:
        entry = metrics.get(column.metric, {})
        for note in (entry.get("note"), entry.get("reason"), (entry.get("interval") or {}).get("note")):
            if note:
                said.setdefault(note, []).append(column.head)
    everywhere = len(COLUMNS[kind])
    return [f"{'All' if len(heads) == everywhere else ', '.join(heads)}: {note}" for note, heads in said.items()]
