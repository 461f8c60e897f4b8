"""From a lesion dataset dict to what Mask R-CNN takes."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Instances
from fvcore.transforms.transform import TransformList

from ..errors import UserError
from .augmentation import Augmentation
from .preprocessing import network_input, read_slice, resize_transform


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
        if sampling not in ("choice", "range") or (sampling == "range" and len(min_sizes) != 2) or not min_sizes:
            raise UserError(
                f"INPUT.MIN_SIZE_TRAIN {list(min_sizes)} with INPUT.MIN_SIZE_TRAIN_SAMPLING {sampling!r}: give sizes "
                "to choose from with 'choice', or the two ends with 'range'."
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

        transforms, min_size = TransformList([]), self.min_sizes[0]
        if self.draws:
            if "sample_seed" not in dataset_dict:
                raise ValueError("a sample that is to be augmented needs 'sample_seed' in its dataset dict")
            rng = np.random.default_rng(dataset_dict["sample_seed"])
            transforms = self.augmentation.draw(rng, image)
            min_size = self._draw_size(rng)
        image = np.ascontiguousarray(transforms.apply_image(image))
        dataset_dict["image"] = network_input(image, min_size, self.max_size)
        transforms = transforms + resize_transform(*image.shape, min_size, self.max_size)
        dataset_dict["instances"] = lesion_instances(annotations, transforms, dataset_dict["image"].shape[1:])
        return dataset_dict

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
    masks, classes = [], []
    for annotation in annotations:
        mask = transforms.apply_segmentation(mask_util.decode(annotation["segmentation"]))
        if mask.any():
            masks.append(mask.astype(bool))
            classes.append(annotation["category_id"])
    instances = Instances(tuple(int(n) for n in image_size))
    stacked = np.stack(masks) if masks else np.zeros((0, *image_size), dtype=bool)
    instances.gt_masks = BitMasks(torch.from_numpy(stacked))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances
