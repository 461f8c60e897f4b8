"""COCO's average precision of boxes and masks, and the same for any weighting of the slices.

pycocotools' ``COCOeval`` matches detections with ground truth and gives the point values. It can't weight slices, and a
bootstrap asks for a thousand weightings, so :meth:`AveragePrecision.weighted` accumulates its matches in NumPy; tests
hold it equal to pycocotools, also on slices that really occur several times.

Shape shorthand: N slices, D detections of a class over all slices, K lesion classes, T = 10 IoU thresholds.
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .slice_instances import SliceInstances

AREAS = {"all": "AP", "small": "APs", "medium": "APm", "large": "APl"}
"""COCO's ranges of lesion size (pixels: below 32^2, to 96^2, above), and Detectron2's names for AP in each."""


class AveragePrecision:
    """COCO AP of one task over the slices of a dataset.

    Args:
        slices: N of them.
        classes: the K names.
        task: ``"bbox"`` or ``"segm"``; the latter needs masks on both sides.
        max_detections: highest-scoring detections of a slice and class that count. COCO's own value is 100; it should
            be what the model may give (``TEST.DETECTIONS_PER_IMAGE``). Below 1: all.

    Attributes:
        values: percent by name: AP (mean over IoU 0.50:0.05:0.95), AP50, AP75, APs, APm, APl, and with K > 1
            ``AP-<class>``; nan where undefined. As in COCO, a mean over classes leaves out those without ground truth.
        instances: ground-truth lesions behind each name (crowd regions and other sizes not counted).
        notes: by name, why a value is nan, or which classes a mean leaves out.
    """

    def __init__(self, slices: Sequence[SliceInstances], classes: Sequence[str], task: str, max_detections: int):
        self.classes = tuple(classes)
        # COCOeval prints.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*_coco_pair(slices, classes, task), iouType=task)
            limit = max_detections if max_detections > 0 else max(len(item.scores) for item in slices)
            evaluation.params.maxDets = [limit]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][..., 0]  # (T, recall points, K, areas)
        # (areas, K, T); COCOeval writes -1 for undefined.
        points = np.where(precision < 0, np.nan, precision).mean(axis=1).transpose(2, 1, 0)
        self._iou_thresholds = evaluation.params.iouThrs
        self._curves = _curves(evaluation, len(slices))
        self._defined = np.isfinite(points).all(axis=-1)  # (areas, K)
        self.values = self._named(points)
        self.instances, self.notes = self._counts()

    def weighted(self, weights: np.ndarray) -> dict[str, float]:
        """The values with slice n occurring ``weights[n]`` times.

        A mean over classes is nan where a class with ground truth in the whole dataset has none in the weighting: it
        would be a mean of something else.

        Args:
            weights: (N,) integers, 0 for a slice left out.
        """
        return self._named(np.array([[curve.average_precision(weights) for curve in row] for row in self._curves]))

    def _named(self, points: np.ndarray) -> dict[str, float]:
        def mean(chosen: np.ndarray) -> float:
            return float(100 * chosen.mean()) if chosen.size else math.nan

        values = {}
        for area, name in enumerate(AREAS.values()):
            of_classes = points[area][self._defined[area]]  # (K defined, T)
            values[name] = mean(of_classes)
            if area == 0:
                for threshold in (50, 75):
                    values[f"AP{threshold}"] = mean(of_classes[:, np.isclose(self._iou_thresholds, threshold / 100)])
        if len(self.classes) > 1:
            values |= {f"AP-{name}": mean(points[0, k]) for k, name in enumerate(self.classes)}
        return values

    def _counts(self) -> tuple[dict[str, int], dict[str, str]]:
        lesions = np.array([[curve.truths.sum() for curve in row] for row in self._curves])  # (areas, K)
        instances, notes = {}, {}
        for area, (size, name) in enumerate(AREAS.items()):
            absent = ", ".join(label for label, count in zip(self.classes, lesions[area], strict=True) if not count)
            of_size = "" if size == "all" else f" of {size} size"
            for key in (name, "AP50", "AP75") if area == 0 else (name,):
                instances[key] = int(lesions[area].sum())
                if not instances[key]:
                    notes[key] = f"Undefined: no ground truth{of_size}."
                elif absent:
                    notes[key] = f"Without {absent}: no ground truth{of_size}."
        if len(self.classes) > 1:
            for label, count in zip(self.classes, lesions[0], strict=True):
                instances[f"AP-{label}"] = int(count)
                if not count:
                    notes[f"AP-{label}"] = f"Undefined: no ground truth of {label}."
        return instances, notes


@dataclass
class _Curve:
    """Precision and recall of one class and area range, as far as slice weights leave them open.

    Attributes:
        truths: (N,) ground-truth lesions of each slice.
        slice_index: T arrays: slice of each detection that counts, in descending score.
        true_positives: T arrays: positions in ``slice_index`` of the detections that match.
        recalls: COCO's 101 recall points.
    """

    truths: np.ndarray
    slice_index: list[np.ndarray]
    true_positives: list[np.ndarray]
    recalls: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """(T,) AP by COCO's 101-point interpolation, nan without ground truth.

        Only true positives can start a step of the interpolated curve, so precision is worked out there alone.
        """
        truths = weights @ self.truths
        if truths == 0:
            return np.full(len(self.slice_index), np.nan)
        averages = np.zeros(len(self.slice_index))
        for t, (slice_index, hits) in enumerate(zip(self.slice_index, self.true_positives, strict=True)):
            if not hits.size:
                continue
            of_detections = weights[slice_index]
            found = np.cumsum(of_detections[hits])
            precision = found / (np.cumsum(of_detections)[hits] + np.spacing(1))
            highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
            step = np.searchsorted(found / truths, self.recalls, side="left")
            averages[t] = np.append(highest_from_here, 0.0)[step].mean()
        return averages


def _curves(evaluation: COCOeval, count: int) -> list[list[_Curve]]:
    """[areas][K] curves from what COCOeval matched: ``evalImgs`` runs over classes, then areas, then slices."""
    params = evaluation.params
    per_image = np.empty(len(evaluation.evalImgs), dtype=object)
    per_image[:] = evaluation.evalImgs
    per_image = per_image.reshape(len(params.catIds), len(params.areaRng), count)
    return [
        [_curve(per_image[k, area], params.recThrs, len(params.iouThrs)) for k in range(len(params.catIds))]
        for area in range(len(params.areaRng))
    ]


def _curve(images: Sequence[Mapping[str, Any] | None], recalls: np.ndarray, thresholds: int) -> _Curve:
    truths = np.array([0 if image is None else np.sum(np.asarray(image["gtIgnore"]) == 0) for image in images])
    seen = [(index, image) for index, image in enumerate(images) if image is not None]
    scores = np.concatenate([np.zeros(0)] + [image["dtScores"] for _, image in seen])
    # Stable, as in COCOeval: equal scores keep the order of the slices.
    order = np.argsort(-scores, kind="mergesort")
    detections = [len(image["dtScores"]) for _, image in seen]
    slice_index = np.repeat([index for index, _ in seen], detections).astype(int)[order]
    empty = np.zeros((thresholds, 0), dtype=bool)
    matched = np.concatenate([empty] + [image["dtMatches"] > 0 for _, image in seen], axis=1)[:, order]
    counts = ~np.concatenate([empty] + [image["dtIgnore"].astype(bool) for _, image in seen], axis=1)[:, order]
    return _Curve(
        truths=truths,
        slice_index=[slice_index[row] for row in counts],
        true_positives=[np.flatnonzero(hits[row]) for hits, row in zip(matched, counts, strict=True)],
        recalls=recalls,
    )


def _coco_pair(slices: Sequence[SliceInstances], classes: Sequence[str], task: str) -> tuple[COCO, COCO]:
    """Ground truth and detections as COCO objects with slices numbered 0 to N - 1 and classes 1 to K.

    Not through ``COCO.loadRes``, which fails where there is no detection at all.
    """
    truths: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for index, item in enumerate(slices):
        sides = (
            (truths, item.truth_classes, item.truth_boxes, item.truth_masks, item.truth_crowd, None),
            (detections, item.classes, item.boxes, item.masks, np.zeros(len(item.boxes), dtype=bool), item.scores),
        )
        for rows, labels, boxes, masks, crowd, scores in sides:
            # COCO sizes a true lesion by its mask in both tasks, and a detection by what the task compares.
            use_mask = task == "segm" or (scores is None and masks is not None)
            # One by one: pycocotools fails on lists of more than 255.
            areas = [mask_util.area(mask) for mask in masks] if use_mask and masks else boxes[:, 2] * boxes[:, 3]
            for i, label in enumerate(labels):
                # Ids start at 1: COCOeval takes a match with id 0 for none.
                row = {"id": len(rows) + 1, "image_id": index, "category_id": int(label) + 1}
                row |= {"bbox": boxes[i].tolist(), "area": float(areas[i]), "iscrowd": int(crowd[i])}
                if task == "segm":
                    row["segmentation"] = masks[i]
                if scores is not None:
                    row["score"] = float(scores[i])
                rows.append(row)
    images = [{"id": index, "height": item.height, "width": item.width} for index, item in enumerate(slices)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    pair = COCO(), COCO()
    for coco, rows in zip(pair, (truths, detections), strict=True):
        coco.dataset = {"images": images, "categories": categories, "annotations": rows}
        coco.createIndex()
    return pair
