"""From a lesion dataset dict to what Mask R-CNN takes."""

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import BlendTransform, TransformList

from ..errors import UserError
from .augmentation import Augmentation
from .preprocessing import network_input, read_slice, resize_transform

MASKS_AT_ONCE = 255
"""As many as one byte a pixel can number."""


class LesionDatasetMapper:
    """Reads a slice and its lesions, augments them in training, and resizes them to the network's input.

    Takes a lesion dataset dict and gives a copy of it with

    * ``image``: (3, h, w) ``uint8`` tensor, from :func:`.preprocessing.network_input`;
    * ``instances``: ``gt_boxes`` (tight around the masks), ``gt_classes`` and ``gt_masks`` (``BitMasks``), all three
      also where the slice has no lesion. Lesions that augmentation or resizing leaves without a pixel are dropped.

    ``height`` and ``width`` stay those of the file, as Detectron2 expects. The mapper draws random numbers only from
    ``dataset_dict["sample_seed"]``, so neither the order of the data nor the number of workers changes a sample;
    without augmentation and with one training size it draws none. In evaluation nothing is random, and the instances
    are there for the validation loss.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        min_sizes: Sequence[int],
        max_size: int,
        sampling: str = "choice",
        augmentation: Augmentation | None = None,
    ):
        """
        Args:
            is_train: whether to augment.
            min_sizes: lengths of the shorter edge to draw from.
            max_size: most that the longer edge may have.
            sampling: ``"choice"`` of the sizes, or a ``"range"`` between two.
            augmentation: what to vary (None: nothing).
        """
        ends = sampling == "range" and len(min_sizes) == 2 and min_sizes[0] <= min_sizes[1]
        if not ends and (sampling != "choice" or not min_sizes):
            raise UserError(
                f"INPUT.MIN_SIZE_TRAIN {list(min_sizes)} with INPUT.MIN_SIZE_TRAIN_SAMPLING {sampling!r}: give sizes "
                "to choose from with 'choice', or the two ends, the smaller first, with 'range'."
            )
        self.is_train = is_train
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.sampling = sampling
        self.augmentation = augmentation if is_train and augmentation is not None else Augmentation()
        self.draws = self.augmentation.enabled or len(set(self.min_sizes)) > 1

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of ``__init__`` from the ``INPUT`` keys of a config."""
        train_sizes = cfg.INPUT.MIN_SIZE_TRAIN
        train_sizes = (train_sizes,) if isinstance(train_sizes, int) else tuple(train_sizes)
        return {
            "is_train": is_train,
            "min_sizes": train_sizes if is_train else (cfg.INPUT.MIN_SIZE_TEST,),
            "max_size": cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST,
            "sampling": cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING if is_train else "choice",
            "augmentation": Augmentation.from_config(cfg) if is_train else None,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            UserError: the file can't be read, or has another size than the dataset says.
            ValueError: the sample is to be augmented and has no ``sample_seed``.
        """
        dataset_dict = copy.copy(dataset_dict)
        image = read_slice(dataset_dict["file_name"])
        check_size(dataset_dict, *image.shape)
        annotations = [a for a in dataset_dict.pop("annotations", []) if not a.get("iscrowd", 0)]

        image, transforms, min_size = self._drawn(dataset_dict, image)
        dataset_dict["image"] = network_input(image, min_size, self.max_size)
        resize = resize_transform(*image.shape, min_size, self.max_size)
        if (resize.new_h, resize.new_w) != image.shape:
            transforms = transforms + resize
        dataset_dict["instances"] = lesion_instances(annotations, transforms, dataset_dict["image"].shape[1:])
        return dataset_dict

    def _drawn(self, dataset_dict: dict[str, Any], image: np.ndarray) -> tuple[np.ndarray, TransformList, int]:
        """The slice, (H, W) ``uint8``, after the transforms drawn for it, these, and the length of its shorter edge.

        Raises:
            ValueError: the sample is to be augmented and has no ``sample_seed``.
        """
        transforms, min_size = TransformList([]), self.min_sizes[0]
        if self.draws:
            if "sample_seed" not in dataset_dict:
                raise ValueError("a sample that is to be augmented needs 'sample_seed' in its dataset dict")
            rng = np.random.default_rng(dataset_dict["sample_seed"])
            transforms = self.augmentation.draw(rng, image)
            min_size = self._draw_size(rng)
        return np.ascontiguousarray(augmented(image, transforms)), transforms, min_size

    def _draw_size(self, rng: np.random.Generator) -> int:
        if self.sampling == "range":
            return int(rng.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        return int(rng.choice(self.min_sizes))


def check_size(dataset_dict: dict[str, Any], height: int, width: int) -> None:
    """Refuse a slice whose file has another size than its dataset dict says (:class:`UserError`)."""
    if (dataset_dict["height"], dataset_dict["width"]) != (height, width):
        raise UserError(
            f"{dataset_dict['file_name']} is {width}x{height}, but its dataset says "
            f"{dataset_dict['width']}x{dataset_dict['height']}; prepare the dataset again from the files as they are."
        )


def augmented(image: np.ndarray, transforms: TransformList) -> np.ndarray:
    """``transforms.apply_image(image)`` of an (H, W) ``uint8`` slice.

    Changes of brightness and contrast depend on a pixel's value alone, and are worked out for the 256 values.
    """
    values = None
    for transform in transforms.transforms:
        if isinstance(transform, BlendTransform) and np.ndim(transform.src_image) == 0:
            values = transform.apply_image(np.arange(256, dtype=np.uint8) if values is None else values)
            continue
        if values is not None:
            image, values = _look_up(image, values), None
        image = transform.apply_image(image)
    return image if values is None else _look_up(image, values)


def _look_up(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    return cv2.LUT(np.ascontiguousarray(image), values)


def lesion_instances(
    annotations: Sequence[dict[str, Any]], transforms: TransformList, image_size: tuple[int, int]
) -> Instances:
    """Ground-truth instances of one slice after ``transforms``.

    Args:
        annotations: with ``segmentation`` (COCO RLE of the file's size) and contiguous ``category_id``.
        transforms: from the file's pixels to the network's input; masks go through ``apply_segmentation`` (nearest).
        image_size: (h, w) of the network's input.

    Returns:
        R instances with ``gt_boxes``, ``gt_classes`` and ``gt_masks``; those without a pixel left are not among them.
    """
    masks = transformed_masks([annotation["segmentation"] for annotation in annotations], transforms, image_size)
    corners = [cv2.boundingRect(mask.view(np.uint8)) for mask in masks]
    kept = [i for i, (_, _, width, _) in enumerate(corners) if width > 0]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (corners[i] for i in kept)]
    instances = Instances(tuple(int(n) for n in image_size))
    instances.gt_masks = BitMasks(torch.from_numpy(masks if len(kept) == len(masks) else masks[kept]))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    instances.gt_classes = torch.tensor([annotations[i]["category_id"] for i in kept], dtype=torch.int64)
    return instances


def transformed_masks(
    segmentations: Sequence[dict[str, Any]], transforms: TransformList, image_size: tuple[int, int]
) -> np.ndarray:
    """Masks after ``transforms``, (R, h, w) bool.

    Masks without a pixel in common, as components are, go through the transforms together, 255 at a time as one image
    of their numbers.
    """
    out = np.zeros((len(segmentations), *image_size), dtype=bool)
    for first in range(0, len(segmentations), MASKS_AT_ONCE):
        part = slice(first, first + MASKS_AT_ONCE)
        planes = mask_util.decode(list(segmentations[part])).transpose(2, 1, 0)  # contiguous: columns first
        numbers = np.zeros(planes.shape[1:], dtype=np.uint8)
        for number, plane in enumerate(planes, start=1):
            numbers += plane * np.uint8(number)
        if np.count_nonzero(numbers) == sum(map(cv2.countNonZero, planes)):
            numbers = transforms.apply_segmentation(np.ascontiguousarray(numbers.T))
            np.equal(numbers, np.arange(1, len(planes) + 1, dtype=np.uint8)[:, None, None], out=out[part])
        else:
            for i, plane in enumerate(planes, start=first):
                out[i] = transforms.apply_segmentation(np.ascontiguousarray(plane.T))
    return out
