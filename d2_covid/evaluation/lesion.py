"""Detectron2 evaluator of lesion detection and segmentation."""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm

from ..data.datasets import in_one_folder
from ..data.files import atomic_write, write_json
from ..data.lesion_masks import encode_mask
from ..errors import UserError
from .lesion_scores import TASKS, evaluate_predictions

logger = logging.getLogger(__name__)

RESULTS_VERSION = 1
"""Version of what stands in ``results.json``."""


class LesionEvaluator(DatasetEvaluator):
    """COCO AP of boxes and masks, the paper's AP, and Dice, sensitivity, specificity of the united lesion mask.

    Every figure comes with its 95 % interval over patients. With ``output_dir``, ``evaluate`` writes there:

    - ``results.json``: the figures with interval, n, and what slices without ground truth did;
    - ``coco_instances_results.json``: the detections in COCO's format, to score again
      (:func:`~d2_covid.evaluation.lesion_scores.evaluate_predictions`).

    Args:
        dataset_name: registered dataset, with ``thing_classes`` in its metadata.
        max_detections, paper_score_threshold, union_score_threshold, bootstrap, seed, tasks: see
            :func:`~d2_covid.evaluation.lesion_scores.evaluate_predictions`. Without ``"segm"`` among the tasks, masks
            are not kept.
        output_dir: folder for the two files; None writes none.
        distributed: gather predictions from all processes; False evaluates this process's alone.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        max_detections: int = 128,
        paper_score_threshold: float = 0.75,
        union_score_threshold: float = 0.5,
        bootstrap: int = 1000,
        seed: int = 0,
        output_dir: str | Path | None = None,
        distributed: bool = True,
        tasks: Sequence[str] = TASKS,
    ):
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._dataset_dicts = DatasetCatalog.get(dataset_name)
        self._classes = tuple(metadata.thing_classes)
        # COCO's category ids where the dataset comes from a COCO json, else 1 to K.
        mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {k + 1: k for k in range(len(self._classes))}
        self._category_ids = [category for category, _ in sorted(mapping.items(), key=lambda pair: pair[1])]
        self._settings = {
            "max_detections": max_detections,
            "paper_score_threshold": paper_score_threshold,
            "union_score_threshold": union_score_threshold,
            "bootstrap": bootstrap,
            "seed": seed,
            "tasks": tuple(tasks),
        }
        self._output_dir = Path(output_dir) if output_dir else None
        self._distributed = distributed
        self.reset()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None, bootstrap: int | None = None
    ) -> "LesionEvaluator":
        """An evaluator with the values of ``cfg``; ``bootstrap`` replaces ``cfg.TEST.BOOTSTRAP`` if given."""
        return cls(
            dataset_name,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            paper_score_threshold=cfg.TEST.PAPER_AP_SCORE_THRESH,
            union_score_threshold=cfg.TEST.UNION_SCORE_THRESH,
            bootstrap=cfg.TEST.BOOTSTRAP if bootstrap is None else bootstrap,
            # Below 0 the config asks for a random seed; intervals are to repeat all the same.
            seed=max(cfg.SEED, 0),
            output_dir=output_dir,
            tasks=TASKS if cfg.MODEL.MASK_ON else ("bbox",),
        )

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: dict[Any, list[dict[str, Any]]] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the ``instances`` of each output, masks as RLE so that memory stays flat.

        Raises:
            UserError: the model predicts a class that the dataset does not have.
        """
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            self._check_classes(instances)
            rows = instances_to_coco(instances, item["image_id"], self._category_ids, "segm" in self._settings["tasks"])
            self._predictions[item["image_id"]] = rows

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]]:
        """Score the predictions of all processes; log a table; write the files.

        Returns:
            ``{"bbox": {...}, "segm": {...}, "paper_ap": {...}, "union": {...}}``; empty on all but the main process.
        """
        gathered = [self._predictions]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(self._predictions, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        # A slice that two processes have seen counts once.
        by_image = {image_id: rows for part in gathered for image_id, rows in part.items()}
        predictions = [row for rows in by_image.values() for row in rows]
        if self._output_dir:
            with atomic_write(self._output_dir / "coco_instances_results.json") as file:
                file.write(_json_lines(predictions))
        dicts = self._dataset_dicts
        if in_one_folder(self._dataset_name, dicts):
            dicts = [dict(item, patient_id="") for item in dicts]
        scores = evaluate_predictions(
            dicts,
            predictions,
            self._classes,
            category_ids=self._category_ids,
            processed=by_image.keys(),
            **self._settings,
        )
        if self._output_dir:
            record = {"version": RESULTS_VERSION, "dataset": self._dataset_name, **scores.as_dict()}
            write_json(self._output_dir / "results.json", record)
        facts = scores.facts
        of_patients = f" of {facts['patients']} patients" if facts["patients"] else ""
        logger.info(
            "%s: %d slices%s, %d without ground truth.\n%s",
            *(self._dataset_name, facts["slices"], of_patients, facts["slices_without_ground_truth"], scores.table()),
        )
        return scores.nested()

    def _check_classes(self, instances: Instances) -> None:
        highest = int(instances.pred_classes.max()) if len(instances) else 0
        if highest >= len(self._classes):
            raise UserError(
                f"The model predicts lesion class {highest}, and {self._dataset_name} has only "
                f"{len(self._classes)} ({', '.join(self._classes)}). Set DATASETS.MASK_TYPE, DATASETS.TEST and "
                "MODEL.ROI_HEADS.NUM_CLASSES to what the model was trained on."
            )


def instances_to_coco(
    instances: Instances, image_id: Any, category_ids: Sequence[int], with_masks: bool = True
) -> list[dict[str, Any]]:
    """COCO results of one slice's detections.

    Args:
        instances: D detections on the CPU: ``pred_boxes``, ``scores``, ``pred_classes`` and, from a model with masks,
            ``pred_masks`` (D, H, W) bool.
        image_id: of the slice.
        category_ids: ``category_id`` to write for each class.
        with_masks: False leaves masks out.
    """
    boxes = BoxMode.convert(instances.pred_boxes.tensor.double().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    rows = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(
            boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True
        )
    ]
    if with_masks and instances.has("pred_masks"):
        for row, mask in zip(rows, instances.pred_masks, strict=True):
            row["segmentation"] = encode_mask(mask.numpy())
    return rows


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """A json list with one row a line: small, and still readable by line."""
    return "[" + ",\n".join(json.dumps(row) for row in rows) + "]\n"
