"""The evaluator of the image classifier, and the file of its predictions, from which everything can be scored again."""

import csv
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.files import write_csv, write_json
from ..data.patient_ids import stated_id
from ..data.slice_datasets import check_image_classes
from ..errors import UserError
from .calibration import image_scores
from .classification_results import (
    DEFAULT_INTERVALS,
    IntervalOptions,
    SlicePredictions,
    classification_results,
    flat_values,
)

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any], SlicePredictions, Path], None]
"""Writes a page from the results, the predictions and the path that it goes to."""

SCHEMA_VERSION = 1
_COLUMNS = ("file", "patient_id", "scan_id", "label", "predicted")


class ImageClassEvaluator(DatasetEvaluator):
    """Scores ``image_logits`` of the classifier against ``image_class`` of the slices.

    Scores are taken from the logits in double precision: among the model's own, in single precision, all those of a
    sure classifier are 1, and a curve over them sees ties.

    Writes ``results.json`` (all of :func:`.classification_results.classification_results`), ``predictions.csv`` (logits
    and scores of each slice, see :func:`read_predictions`) and, given a ``report``, ``classification.html``.
    """

    def __init__(
        self,
        dataset_name: str,
        image_classes: Sequence[str],
        *,
        temperature: float = 1.0,
        output_dir: str | Path | None = None,
        intervals: IntervalOptions = DEFAULT_INTERVALS,
        patient_k: int = 3,
        report: Report | None = None,
    ) -> None:
        """
        Args:
            dataset_name: named in the results.
            image_classes: names of the C classes.
            temperature: of the scores, as the model has it (``MODEL.CLASSIFIER.TEMPERATURE``).
            output_dir: folder for the files; None writes none.
            intervals: how the confidence intervals are drawn.
            patient_k: slices behind ``any_k`` and ``top_k_mean``.
            report: writes the page; None for no page.
        """
        self._dataset_name = dataset_name
        self._image_classes = tuple(image_classes)
        self._temperature = temperature
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._intervals = intervals
        self._patient_k = patient_k
        self._report = report
        self.reset()

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_dir: str | Path | None = None,
        bootstrap: int | None = None,
        report: Report | None = None,
    ) -> "ImageClassEvaluator":
        """An evaluator with the values of ``cfg``; ``bootstrap`` replaces ``cfg.TEST.BOOTSTRAP`` if given.

        Raises:
            UserError: the dataset has another number of classes than the model.
        """
        check_image_classes(cfg, [dataset_name])
        return cls(
            dataset_name,
            MetadataCatalog.get(dataset_name).image_classes,
            temperature=cfg.MODEL.CLASSIFIER.TEMPERATURE,
            output_dir=output_dir,
            # Below 0 the config asks for a random seed; intervals are to repeat all the same.
            intervals=IntervalOptions(cfg.TEST.BOOTSTRAP if bootstrap is None else bootstrap, max(cfg.SEED, 0)),
            patient_k=cfg.TEST.PATIENT_K,
            report=report,
        )

    def reset(self) -> None:
        self._rows: list[tuple] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take a batch: slice dataset dicts, and outputs with ``image_logits`` (C,)."""
        for sample, output in zip(inputs, outputs):
            self._rows.append(
                (
                    sample["image_id"],
                    str(sample["file_name"]),
                    stated_id(sample.get("patient_id")),
                    stated_id(sample.get("scan_id")),
                    int(sample["image_class"]),
                    output["image_logits"].detach().double().cpu().numpy(),
                )
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gather the slices of all processes, score them, write the files.

        Returns:
            ``{"image": {...}}``, with ``"patient"`` too where patients are known (:func:`.flat_values`); empty on all
            but the main process.
        """
        comm.synchronize()
        gathered = comm.gather(self._rows)
        if not comm.is_main_process():
            return OrderedDict()
        # Processes may share a slice (an even split rounds up): it counts once.
        unique = {row[0]: row for rows in gathered for row in rows}
        predictions = self._predictions([unique[image_id] for image_id in sorted(unique)])
        results = {
            "schema_version": SCHEMA_VERSION,
            "dataset": self._dataset_name,
            **classification_results(predictions, self._intervals, self._patient_k),
        }
        if note := results["intervals"]["note"]:
            logger.warning("%s: %s", self._dataset_name, note)
        if self._output_dir is not None:
            write_json(self._output_dir / "results.json", results)
            write_predictions(self._output_dir / "predictions.csv", predictions)
            if self._report is not None:
                self._report(results, predictions, self._output_dir / "classification.html")
        return OrderedDict(flat_values(results))

    def _predictions(self, rows: list[tuple]) -> SlicePredictions:
        num_classes = len(self._image_classes)
        _, files, patients, scans, truth, logits = zip(*rows) if rows else ((),) * 6
        logits = np.array(logits, dtype=float).reshape(len(rows), num_classes)
        return SlicePredictions(
            files=files,
            patient_ids=patients,
            scan_ids=scans,
            truth=np.array(truth, dtype=np.int64),
            logits=logits,
            scores=image_scores(logits, self._temperature),
            class_names=self._image_classes,
        )


def write_predictions(path: str | Path, predictions: SlicePredictions) -> None:
    """One line a slice: file, patient, scan, true and predicted class by name, and logit and score of each class."""
    names = list(predictions.class_names)
    header = [*_COLUMNS, *(f"logit {name}" for name in names), *(f"score {name}" for name in names)]
    rows = [
        [
            predictions.files[index],
            predictions.patient_ids[index],
            predictions.scan_ids[index],
            names[predictions.truth[index]],
            names[predicted],
            *map(repr, predictions.logits[index].tolist()),
            *map(repr, predictions.scores[index].tolist()),
        ]
        for index, predicted in enumerate(predictions.predicted)
    ]
    write_csv(path, [header, *rows])


def read_predictions(path: str | Path) -> SlicePredictions:
    """Read what :func:`write_predictions` wrote, to the last digit.

    Raises:
        UserError: no such file, or not such a file; the message names it.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Cannot read the predictions {path}: {error}.") from error
    header = rows[0] if rows else []
    names = [column.removeprefix("logit ") for column in header if column.startswith("logit ")]
    expected = [*_COLUMNS, *(f"logit {name}" for name in names), *(f"score {name}" for name in names)]
    if not names or header != expected:
        raise UserError(f"{path} is not a predictions.csv of this program: its first line is another.")
    number, first = {name: index for index, name in enumerate(names)}, len(_COLUMNS)
    try:
        values = np.array([[float(v) for v in row[first:]] for row in rows[1:]]).reshape(len(rows) - 1, 2 * len(names))
        truth = np.array([number[row[3]] for row in rows[1:]], dtype=np.int64)
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again to write it anew.") from error
    return SlicePredictions(
        files=[row[0] for row in rows[1:]],
        patient_ids=[row[1] for row in rows[1:]],
        scan_ids=[row[2] for row in rows[1:]],
        truth=truth,
        logits=values[:, : len(names)],
        scores=values[:, len(names) :],
        class_names=names,
    )
