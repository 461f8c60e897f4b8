"""What a model says about one slice, as plain values; masks as COCO run-length codes only.

Pixels are those of the slice as :class:`~d2_covid.data.volumes.Series` presents it: row 0 most anterior, column 0 at
the patient's right.
"""

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances

from ..data.lesion_masks import encode_mask
from .explanation import Explanation


@dataclass(frozen=True)
class LesionInstance:
    """One detection.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the slice.
        mask: COCO RLE, ``{"size": [H, W], "counts": str}``; None, like the areas, from a model without masks.
        area_mm2: None where the slice's pixels have no known size.
        lesion: number of the lesion of the series that it is a part of (:class:`.linking.Lesion`); None without masks,
            or without a place in the patient.
    """

    box: tuple[float, float, float, float]
    score: float
    class_name: str
    mask: dict[str, Any] | None = None
    area_px: int | None = None
    area_mm2: float | None = None
    lesion: int | None = None


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each of the n detections that the classifier ranked adds to the logit of the slice's class.

    Attributes:
        boxes: (n, 4) float32; scores: (n,) float32; classes: (n,) int16, of the lesion classes.
        rows: (n,) int16: how many of the D ranked rows each fills.
        contributions: (n,) float32, gradient times input, summed over a detection's rows.
        shares: (n,) float32, -1 to 1: contributions over the sum of their absolute values.
        removal: (n,) float32: by how much the logit falls without the detection.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    contributions: np.ndarray
    shares: np.ndarray
    removal: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class SliceResult:
    """One slice.

    Attributes:
        index: number of the slice in its series, from 0.
        name: file, or file and number in it.
        instances: by falling score.
        lesion_area_px: pixels in any instance, by class name; where instances overlap, the higher score has the pixel.
            None from a model without masks.
        pixel_area_mm2: on average; None where it is not known.
        lung_mask, lung_area_px: the lung, lesions not added.
        image_class, image_scores: predicted class and scores by name; None from a model that doesn't classify.
        contributions: to ``image_class``.
    """

    index: int
    name: str
    height: int
    width: int
    instances: tuple[LesionInstance, ...]
    lesion_area_px: dict[str, int] | None
    pixel_area_mm2: float | None
    lung_mask: dict[str, Any] | None = None
    lung_area_px: int | None = None
    lung_and_lesions_area_px: int | None = None
    image_class: str | None = None
    image_scores: dict[str, float] | None = None
    contributions: Contributions | None = None

    @property
    def has_lesion(self) -> bool:
        """Whether any pixel is a lesion's; from a model without masks, whether anything was detected."""
        return any(self.lesion_area_px.values()) if self.lesion_area_px is not None else bool(self.instances)

    @property
    def lesion_area_mm2(self) -> float | None:
        """Area of all lesions together."""
        if self.lesion_area_px is None or self.pixel_area_mm2 is None:
            return None
        return sum(self.lesion_area_px.values()) * self.pixel_area_mm2


def paint_labels(masks: Sequence[np.ndarray], classes: Sequence[int], height: int, width: int) -> np.ndarray:
    """Masks in falling score as one label map: 0 background, 1 the first lesion class, 2 the second.

    Where masks overlap, the one with the higher score has the pixel.

    Returns:
        (height, width) uint8.
    """
    labels = np.zeros((height, width), np.uint8)
    for mask, number in reversed(list(zip(masks, classes, strict=True))):
        labels[np.asarray(mask, bool)] = number + 1
    return labels


def label_map(result: SliceResult, lesion_classes: Sequence[str]) -> np.ndarray:
    """The label map of a slice result, as :func:`paint_labels` makes it: (H, W) uint8."""
    found = [instance for instance in result.instances if instance.mask is not None]
    masks = [mask_util.decode(instance.mask) for instance in found]
    classes = [lesion_classes.index(instance.class_name) for instance in found]
    return paint_labels(masks, classes, result.height, result.width)


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """(H, W) bool of a COCO RLE."""
    return mask_util.decode(rle).astype(bool)


def lesion_instances(
    instances: Instances, lesion_classes: Sequence[str], pixel_area_mm2: float | None
) -> tuple[LesionInstance, ...]:
    """A model's detections of one slice, on the CPU and in descending score, as plain values."""
    boxes = instances.pred_boxes.tensor.numpy().astype(float).round(3).tolist()
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    masks: list[dict[str, Any] | None] = [None] * len(boxes)
    areas: list[int | None] = [None] * len(boxes)
    if instances.has("pred_masks"):
        arrays = instances.pred_masks.numpy()
        masks = [encode_mask(mask) for mask in arrays]
        areas = [int(mask.sum()) for mask in arrays]
    return tuple(
        LesionInstance(
            box=(box[0], box[1], box[2], box[3]),
            score=score,
            class_name=lesion_classes[number],
            mask=mask,
            area_px=area,
            area_mm2=None if area is None or pixel_area_mm2 is None else area * pixel_area_mm2,
        )
        for box, score, number, mask, area in zip(boxes, scores, classes, masks, areas, strict=True)
    )


def pack_contributions(explanation: Explanation, detection: torch.Tensor) -> Contributions:
    """An explanation as arrays; ``detection`` is the (D,) detection of each ranked row."""
    instances = explanation.instances
    count = len(instances)
    return Contributions(
        boxes=instances.pred_boxes.tensor.numpy().astype(np.float32),
        scores=instances.scores.numpy().astype(np.float32),
        classes=instances.pred_classes.numpy().astype(np.int16),
        rows=np.bincount(detection.cpu().numpy(), minlength=count).astype(np.int16),
        contributions=explanation.contributions.numpy().astype(np.float32),
        shares=explanation.shares.numpy().astype(np.float32),
        removal=explanation.removal.numpy().astype(np.float32),
    )
