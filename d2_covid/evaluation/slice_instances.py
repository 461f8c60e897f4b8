"""What every lesion metric reads: one slice's true and predicted lesions, checked once.

Shape shorthand: N slices, G true lesions and D detections of one slice, K lesion classes.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from ..data.annotations import polygons_to_rle
from ..data.run_lengths import check_covers
from ..errors import UserError

Rle = dict[str, Any]
"""A mask as pycocotools' compressed run-length encoding: ``{"size": [H, W], "counts": bytes or str}``."""


@dataclass
class SliceInstances:
    """Lesions of one slice. ``truth_masks`` or ``masks`` is None where only boxes are known.

    Attributes:
        image_id, patient: as in the dataset dict; ``patient`` is the slice itself where the dict names none.
        height, width: of the slice, in pixels.
        truth_boxes: (G, 4) float64, XYWH in pixels. truth_classes: (G,) in [0, K). truth_crowd: (G,) bool, COCO's
            ``iscrowd``: a region that is neither lesion nor background; no metric counts what is found in it.
        boxes, classes, scores: the same of the D detections, in descending score (ties as they came).
    """

    image_id: Hashable
    patient: Hashable
    height: int
    width: int
    truth_boxes: np.ndarray
    truth_classes: np.ndarray
    truth_crowd: np.ndarray
    truth_masks: list[Rle] | None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    masks: list[Rle] | None = field(default_factory=list)

    def truth_indices(self, of_class: int | None = None, crowd: bool = False) -> np.ndarray:
        """Which of the G are lesions, or else crowd regions: indices, of all classes or one."""
        chosen = self.truth_crowd == crowd
        return np.flatnonzero(chosen if of_class is None else chosen & (self.truth_classes == of_class))


def collect_slices(
    dataset_dicts: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    category_ids: Sequence[int] | None = None,
) -> list[SliceInstances]:
    """Bring ground truth and predictions together, slice by slice, in the order of ``dataset_dicts``.

    Args:
        dataset_dicts: Detectron2's standard ones; ``category_id`` in [0, K), ``annotations`` may be missing or empty,
            segmentations are RLE or polygons.
        predictions: COCO results: ``image_id``, ``category_id``, ``score``, ``bbox`` (XYWH) and, with masks,
            ``segmentation`` (RLE).
        classes: the K names.
        category_ids: ``category_id`` of each class in ``predictions``; default 1 to K.

    Raises:
        UserError: two slices share an image id, or something doesn't fit: a class id, an image id, a mask's size, a
            score that is no number, or only some lesions having masks. The message names it and says what to do.
    """
    contiguous = {category: index for index, category in enumerate(category_ids or range(1, len(classes) + 1))}
    slices = {item["image_id"]: _truth(item, classes) for item in dataset_dicts}
    if len(slices) != len(dataset_dicts):
        raise UserError("Two slices of the dataset have the same image_id; each needs its own.")
    found: dict[Hashable, list[Mapping[str, Any]]] = {}
    for prediction in predictions:
        _check_prediction(prediction, slices, contiguous, classes)
        found.setdefault(prediction["image_id"], []).append(prediction)
    for image_id, rows in found.items():
        _add_detections(slices[image_id], rows, contiguous)
    lacking = [item for item in slices.values() if item.truth_masks is None]
    if lacking and any(item.truth_masks for item in slices.values()):
        raise UserError(f"Slice {lacking[0].image_id} of the dataset has a lesion without a mask, others have masks.")
    lacking = [item for item in slices.values() if item.masks is None]
    if lacking and any(item.masks for item in slices.values()):
        raise UserError(f"A prediction for slice {lacking[0].image_id} has no mask, and others have.")
    return list(slices.values())


def to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Compressed RLE of a COCO segmentation: polygons, or run lengths with or without compression.

    Raises:
        ValueError: a polygon reaches far out of its slice.
    """
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], (str, bytes)):
            return dict(segmentation)
        return mask_util.frPyObjects(dict(segmentation), *segmentation["size"])
    return polygons_to_rle(segmentation, height, width)


def checked_rle(segmentation: Any, height: int, width: int, what: str) -> Rle:
    """:func:`to_rle` of a segmentation that must cover its slice of ``height`` x ``width`` pixels.

    Raises:
        UserError: begins with ``what``; a run-length code of another size, malformed, or too short or long, or a
            polygon that reaches far out of the slice.
    """
    # Before it is compressed: pycocotools takes runs of any length, or fails in its own words.
    if isinstance(segmentation, Mapping):
        size = tuple(segmentation.get("size") or ())
        if size != (height, width):
            shown = "x".join(map(str, size)) or "of no size"
            raise UserError(f"{what} is {shown}, and the slice {height}x{width} pixels.")
        try:
            check_covers(segmentation.get("counts", ""), height, width)
        except (ValueError, TypeError) as error:
            raise UserError(f"{what} has a run-length code that does not fit the slice: {error}.") from error
    try:
        return to_rle(segmentation, height, width)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} is no mask of the slice: {error}.") from error


def _truth(item: Mapping[str, Any], classes: Sequence[str]) -> SliceInstances:
    image_id, height, width = item["image_id"], item["height"], item["width"]
    annotations = item.get("annotations") or []
    for annotation in annotations:
        if not 0 <= annotation["category_id"] < len(classes):
            raise UserError(
                f"Slice {image_id} of the dataset has a lesion of class {annotation['category_id']}, and the dataset "
                f"has {_listed(classes)}; make its json anew, or register it with the mask type it was made with."
            )
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
    masks = None
    if all(annotation.get("segmentation") for annotation in annotations):
        what = f"A lesion mask of slice {image_id} of the dataset"
        masks = [checked_rle(annotation["segmentation"], height, width, what) for annotation in annotations]
    return SliceInstances(
        image_id=image_id,
        patient=item.get("patient_id", image_id),
        height=height,
        width=width,
        truth_boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        truth_classes=np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64),
        truth_crowd=np.array([annotation.get("iscrowd", 0) for annotation in annotations], dtype=bool),
        truth_masks=masks,
    )


def _add_detections(item: SliceInstances, rows: list[Mapping[str, Any]], contiguous: Mapping[int, int]) -> None:
    rows = sorted(rows, key=lambda row: -row["score"])
    item.boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    item.classes = np.array([contiguous[row["category_id"]] for row in rows], dtype=np.int64)
    item.scores = np.array([row["score"] for row in rows], dtype=np.float64)
    item.masks = None
    with_mask = sum("segmentation" in row for row in rows)
    if with_mask == len(rows):
        what = f"A predicted mask for slice {item.image_id}"
        item.masks = [checked_rle(row["segmentation"], item.height, item.width, what) for row in rows]
    elif with_mask:
        raise UserError(f"Only {with_mask} of the {len(rows)} predictions for slice {item.image_id} have a mask.")


def _check_prediction(
    prediction: Mapping[str, Any],
    slices: Mapping[Hashable, SliceInstances],
    contiguous: Mapping[int, int],
    classes: Sequence[str],
) -> None:
    image_id, category = prediction["image_id"], prediction["category_id"]
    if image_id not in slices:
        raise UserError(f"There is a prediction for slice {image_id}, which the dataset does not have.")
    if category not in contiguous:
        raise UserError(
            f"There is a prediction of category {category} for slice {image_id}, and the dataset has "
            f"{_listed(classes)}, categories {', '.join(map(str, contiguous))}. Evaluate a model on the mask type that "
            "it was trained on: DATASETS.MASK_TYPE and MODEL.ROI_HEADS.NUM_CLASSES must fit the dataset."
        )
    if not math.isfinite(prediction["score"]):
        raise UserError(f"A prediction for slice {image_id} has the score {prediction['score']}; was training stable?")


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} class{'es' if len(classes) != 1 else ''} ({', '.join(classes)})"
