"""All lesion metrics of a set of predictions, each with its interval and what it was worked out from."""

import logging
import math
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.patient_ids import stated_id
from ..errors import UserError
from .bootstrap import Interval, bootstrap_intervals
from .lesion_metrics import MetricFamily, coco_family, paper_family, union_family
from .slice_instances import SliceInstances, collect_slices

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")


@dataclass(frozen=True)
class Figure:
    """One metric's value.

    Attributes:
        value: percent for ``bbox``, ``segm`` and ``paper_ap``, in [0, 1] for ``union``; nan where undefined.
        interval: over patients, or over slices where patients are unknown.
        slices: slices that it was worked out from.
        instances: ground-truth lesions behind it.
        note: what must be said about it, above all what slices without ground truth did.
    """

    value: float
    interval: Interval
    slices: int
    instances: int
    note: str


@dataclass(frozen=True)
class LesionScores:
    """The figures by name (``segm/AP``), and the facts and settings that they rest on."""

    figures: Mapping[str, Figure]
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]

    def nested(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """What Detectron2's evaluators return: ``{"segm": {"AP": value}}``."""
        results: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        for name, figure in self.figures.items():
            task, metric = name.split("/", 1)
            results.setdefault(task, OrderedDict())[metric] = figure.value
        return results

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``results.json``; None for what is undefined."""
        return {
            **self.facts,
            "settings": dict(self.settings),
            "metrics": {
                name: {
                    "value": figure.value if math.isfinite(figure.value) else None,
                    "interval": figure.interval.as_dict(),
                    "slices": figure.slices,
                    "patients": self.facts["patients"],
                    "instances": figure.instances,
                    "note": figure.note,
                }
                for name, figure in self.figures.items()
            },
        }

    def table(self) -> str:
        """The figures to read in a log: value, interval, n; then each note, after the metrics it belongs to."""
        rows, notes = [], {}
        for name, figure in self.figures.items():
            digits = 3 if name.startswith("union/") else 2
            ends = figure.interval
            interval = f"[{ends.low:.{digits}f}, {ends.high:.{digits}f}]" if ends.exists else "none"
            rows.append((name, f"{figure.value:.{digits}f}", interval, figure.slices, ends.groups, figure.instances))
            for note in filter(None, (figure.note, ends.note)):
                notes.setdefault(note, []).append(name)
        level = next(iter(self.figures.values())).interval.level
        head = ("metric", "value", f"{100 * level:g} % interval", "slices", self.facts["resampled"], "lesions")
        text = tabulate(rows, headers=head, tablefmt="simple", disable_numparse=True)
        return "\n".join([text, *(f"{self._shortened(names)}: {note}" for note, names in notes.items())])

    def _shortened(self, names: Sequence[str]) -> str:
        """``names`` with the task alone in the place of all of its metrics."""
        short = []
        for task, metrics in self.nested().items():
            mine = [name for name in names if name.startswith(f"{task}/")]
            short += [task] if len(mine) == len(metrics) else mine
        return ", ".join(short)


def evaluate_predictions(
    dataset_dicts: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    *,
    category_ids: Sequence[int] | None = None,
    processed: Collection[Hashable] | None = None,
    tasks: Sequence[str] = TASKS,
    max_detections: int = 128,
    paper_score_threshold: float = 0.75,
    union_score_threshold: float = 0.5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> LesionScores:
    """Score predictions, fresh or read back from ``coco_instances_results.json``.

    Args:
        dataset_dicts: Detectron2's, with ``patient_id``. If any lacks it, slices are resampled in place of patients.
        predictions: COCO results (:func:`~d2_covid.evaluation.slice_instances.collect_slices`).
        classes: names of the K lesion classes.
        category_ids: ``category_id`` of each class in ``predictions``, default 1 to K.
        processed: image ids that the model has seen, default all. A slice that it hasn't seen counts as one without a
            detection; how many there are is said.
        tasks: ``"bbox"`` for COCO AP of boxes; ``"segm"`` for COCO AP of masks, the paper's AP and the overlap of the
            united masks. ``"segm"`` is passed over, and the log says so, where one side has only boxes.
        max_detections: detections of a slice and class that COCO AP takes.
        paper_score_threshold: detections scoring above it enter the paper's AP.
        union_score_threshold: detections scoring at least this are united for Dice, sensitivity, specificity.
        bootstrap: resamples of patients behind each interval; 0 for none.
        seed: of the resampling.

    Raises:
        UserError: the dataset is empty, or predictions and dataset don't fit.
    """
    if not dataset_dicts:
        raise UserError("The dataset has no slices, so there is nothing to evaluate on.")
    slices = collect_slices(dataset_dicts, predictions, classes, category_ids)
    unnamed = sum(not stated_id(item.get("patient_id")) for item in dataset_dicts)
    groups = [item.image_id if unnamed else item.patient for item in slices]
    facts = _facts(slices, None if unnamed else len(set(groups)), classes, processed)
    facts["resampled"] = "slices" if unnamed else "patients"
    if unnamed:
        message = "%d of %d slices name no patient: intervals resample slices, and are likely too narrow."
        logger.warning(message, unnamed, len(slices))

    families = _families(slices, classes, tasks, max_detections, paper_score_threshold, union_score_threshold)
    if bootstrap:
        logger.info("Resampling %d %s %d times for the intervals ...", len(set(groups)), facts["resampled"], bootstrap)

    def weighted(weights: np.ndarray) -> dict[str, float]:
        return {f"{part.task}/{name}": value for part in families for name, value in part.weighted(weights).items()}

    unit = "slice" if unnamed else "patient"
    intervals = bootstrap_intervals(weighted, groups, resamples=bootstrap, seed=seed, unit=unit)
    figures = {
        f"{part.task}/{name}": Figure(
            value, intervals[f"{part.task}/{name}"], part.slices[name], part.instances[name], part.notes[name]
        )
        for part in families
        for name, value in part.values.items()
    }
    settings = {
        "max_detections": max_detections,
        "paper_score_threshold": paper_score_threshold,
        "union_score_threshold": union_score_threshold,
        "bootstrap": bootstrap,
        "seed": seed,
    }
    return LesionScores(figures, facts, settings)


def _families(
    slices: Sequence[SliceInstances],
    classes: Sequence[str],
    tasks: Sequence[str],
    max_detections: int,
    paper_score_threshold: float,
    union_score_threshold: float,
) -> list[MetricFamily]:
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"tasks are {' and '.join(TASKS)}, not {tasks!r}")
    families = [coco_family(slices, classes, "bbox", max_detections)] if "bbox" in tasks else []
    if "segm" in tasks:
        no_masks = [
            side
            for side, lacking in (
                ("the ground truth", any(item.truth_masks is None for item in slices)),
                ("the predictions", any(item.masks is None for item in slices)),
            )
            if lacking
        ]
        if not no_masks:
            families.append(coco_family(slices, classes, "segm", max_detections))
            families.append(paper_family(slices, classes, paper_score_threshold))
            families.append(union_family(slices, classes, union_score_threshold))
        elif not families:
            raise UserError(f"There are no masks in {' and '.join(no_masks)}; evaluate boxes alone.")
        else:
            logger.warning("There are no masks in %s: only boxes are evaluated.", " and ".join(no_masks))
    return families


def _facts(
    slices: Sequence[SliceInstances],
    patients: int | None,
    classes: Sequence[str],
    processed: Collection[Hashable] | None,
) -> dict[str, Any]:
    unseen = 0 if processed is None else sum(item.image_id not in processed for item in slices)
    if unseen:
        logger.warning("%d of %d slices never reached the model and count as without detections.", unseen, len(slices))
    return {
        "classes": list(classes),
        "slices": len(slices),
        "patients": patients,
        "instances": {name: sum(len(s.truth_indices(k)) for s in slices) for k, name in enumerate(classes)},
        "detections": sum(len(item.scores) for item in slices),
        "slices_without_ground_truth": sum(not len(item.truth_indices()) for item in slices),
        "slices_without_detections": sum(not len(item.scores) for item in slices),
        "slices_not_processed": unseen,
    }
