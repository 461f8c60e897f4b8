"""What is drawn on a slice: boxes, classes, masks and scores as plain arrays, wherever they come from."""

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
from detectron2.structures import BoxMode, Instances
from pycocotools import mask as coco_mask

from ..evaluation.slice_instances import to_rle


@dataclass(frozen=True)
class InstanceArrays:
    """The instances of one slice, of its ground truth or predicted.

    Attributes:
        boxes: (R, 4) float, XYXY in pixels of the slice.
        classes: (R,) int, 0..K-1.
        masks: (R, H, W) bool, or None where only boxes are known.
        scores: (R,) float in 0..1, or None for ground truth.
        crowd: (R,) bool, regions that COCO calls ``iscrowd`` and counts for no lesion; None: there are none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def lesions(self) -> np.ndarray:
        """(R,) bool: which are lesions, and no crowd region."""
        return np.ones(len(self), bool) if self.crowd is None else ~self.crowd

    def select(self, keep: np.ndarray) -> "InstanceArrays":
        """The instances that ``keep``, a boolean mask or indices, picks."""
        return InstanceArrays(
            self.boxes[keep],
            self.classes[keep],
            None if self.masks is None else self.masks[keep],
            None if self.scores is None else self.scores[keep],
            None if self.crowd is None else self.crowd[keep],
        )

    def above(self, score: float) -> "InstanceArrays":
        """The instances that score at least ``score``; ground truth, which has no scores, stays whole."""
        return self if self.scores is None else self.select(self.scores >= score)


def from_dataset_dict(record: Mapping[str, Any]) -> InstanceArrays:
    """Ground truth of a lesion dataset dict (Detectron2's standard one, masks as COCO RLE)."""
    annotations = record.get("annotations", ())
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    masks = [
        _decode(a["segmentation"], record["height"], record["width"]) for a in annotations if a.get("segmentation")
    ]
    crowd = np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)
    return _pack(boxes, classes, masks, None, record["height"], record["width"], crowd)


def from_coco_results(
    results: Sequence[Mapping[str, Any]], height: int, width: int, class_of: Mapping[int, int]
) -> InstanceArrays:
    """Predictions of one slice as they stand in ``coco_instances_results.json``.

    Args:
        class_of: category id of the json -> contiguous class.
    """
    boxes = [BoxMode.convert(list(r["bbox"]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for r in results]
    classes = [class_of[r["category_id"]] for r in results]
    masks = [_decode(r["segmentation"], height, width) for r in results if "segmentation" in r]
    return _pack(boxes, classes, masks, [r["score"] for r in results], height, width)


def from_instances(instances: Instances) -> InstanceArrays:
    """Predictions of one slice as the model returns them."""
    instances = instances.to("cpu")
    masks = instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None
    return InstanceArrays(
        instances.pred_boxes.tensor.numpy().astype(float),
        instances.pred_classes.numpy().astype(int),
        masks,
        instances.scores.numpy().astype(float),
    )


def match(truth: InstanceArrays, predictions: InstanceArrays, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which ground-truth instances were found and which predictions found one.

    As COCO matches: predictions in descending score, each takes the still free ground truth of its class that it
    overlaps best, with at least ``iou``. Masks are compared, or boxes where one side has no masks. Crowd regions are
    nothing to find; :func:`in_crowd` tells the predictions in them.

    Returns:
        found: (G,) bool over the ground truth; correct: (R,) bool over the predictions.
    """
    found, correct = np.zeros(len(truth), bool), np.zeros(len(predictions), bool)
    if not len(truth) or not len(predictions):
        return found, correct
    overlaps = _overlaps(predictions, truth)
    overlaps[:, ~truth.lesions] = 0.0
    scores = predictions.scores if predictions.scores is not None else np.zeros(len(predictions))
    for row in np.argsort(-scores, kind="stable"):
        candidates = np.where(found, 0.0, overlaps[row])
        best = int(candidates.argmax())
        if candidates[best] >= iou:
            found[best] = correct[row] = True
    return found, correct


def in_crowd(truth: InstanceArrays, predictions: InstanceArrays, correct: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """Which predictions COCO counts neither as right nor as wrong, (R,) bool: those that found no lesion and lie, with
    at least ``iou`` of their area, in a crowd region of their class.

    Args:
        correct: (R,) bool, from :func:`match`.
    """
    if not len(predictions) or truth.lesions.all():
        return np.zeros(len(predictions), bool)
    return ~correct & (_overlaps(predictions, truth)[:, ~truth.lesions] >= iou).any(axis=1)


def _overlaps(predictions: InstanceArrays, truth: InstanceArrays) -> np.ndarray:
    """Intersection over union, (R, G) float, over the prediction's area in crowd regions; 0 between classes."""
    if predictions.masks is not None and truth.masks is not None:
        left, right = (_encode(instances.masks) for instances in (predictions, truth))
    else:
        left, right = (_xywh(instances.boxes) for instances in (predictions, truth))
    overlaps = np.array(coco_mask.iou(left, right, (~truth.lesions).tolist()), dtype=float)
    return np.where(predictions.classes[:, None] == truth.classes[None, :], overlaps, 0.0)


def _encode(masks: np.ndarray) -> list[dict]:
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float)


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    return coco_mask.decode(to_rle(segmentation, height, width)).astype(bool)


def _pack(boxes, classes, masks, scores, height: int, width: int, crowd=None) -> InstanceArrays:
    whole = len(masks) == len(boxes)
    return InstanceArrays(
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(classes, dtype=int),
        np.array(masks, dtype=bool).reshape(-1, height, width) if whole else None,
        None if scores is None else np.array(scores, dtype=float),
        crowd,
    )
