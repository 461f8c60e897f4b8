"""Slices to show: picked from a dataset or given as files, with their class and ground truth where these are known."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .datasets import ensure_registered
from .lesion_masks import CONSOLIDATION, GGO, read_mask
from .mappers import check_size
from .slice_lists import class_number


@dataclass(frozen=True)
class PickedSlice:
    """One slice.

    Attributes:
        file: of the image.
        name: what to call it.
        true_class: number of its class, or None.
        mask_file: its mask in CNCB's values, or None.
        annotations: its lesions, from a lesion dataset; None from elsewhere.
        lesion_classes: names of their classes.
    """

    file: Path
    name: str
    true_class: int | None = None
    mask_file: Path | None = None
    annotations: Sequence[dict[str, Any]] | None = None
    lesion_classes: Sequence[str] = field(default=())

    @property
    def has_lungs(self) -> bool:
        """Whether its ground truth marks the lungs."""
        return self.mask_file is not None

    def truth(self, shape: tuple[int, int]) -> np.ndarray | None:
        """(H, W) ``uint8`` in CNCB's values: the mask file as it is, else the lesions (crowd regions are
        none); None without either.

        Raises:
            UserError: the mask can't be read, or mask or lesions have another size than the image.
        """
        if self.mask_file is not None:
            values = read_mask(self.mask_file)
            if values.shape != tuple(shape):
                raise UserError(f"{self.mask_file} is {values.shape}, its image {self.file} is {tuple(shape)}.")
            return values
        if self.annotations is None:
            return None
        values = np.zeros(shape, np.uint8)
        for annotation in self.annotations:
            if annotation.get("iscrowd"):
                continue  # no lesion: training and evaluation pass over it too
            height, width = annotation["segmentation"]["size"]
            check_size({"file_name": self.file, "height": height, "width": width}, *shape)
            # By number: a data set of one's own may have other names for the two.
            consolidation = len(self.lesion_classes) == 2 and annotation["category_id"] == 1
            values[mask_util.decode(annotation["segmentation"]).astype(bool)] = CONSOLIDATION if consolidation else GGO
        return values


def file_slices(files: Sequence[Path], true_classes: Sequence[str], image_classes: Sequence[str]) -> list[PickedSlice]:
    """Image files, with the mask beside each that lies in CNCB's layout.

    Args:
        true_classes: none, one for all, or one each; names or numbers.

    Raises:
        UserError: another number of classes than files, or an unknown class.
    """
    if len(true_classes) not in (0, 1, len(files)):
        raise UserError(f"{len(true_classes)} true classes for {len(files)} images: give one for all, or one each.")
    numbers = [class_number(label, image_classes) for label in true_classes]
    if None in numbers:
        label = true_classes[numbers.index(None)]
        raise UserError(f"Unknown class {label!r}; the classes are {', '.join(image_classes)}.")
    if len(numbers) != len(files):
        numbers = (numbers or [None]) * len(files)
    return [
        PickedSlice(file, _short_name(file), number, partner_mask(file))
        for file, number in zip(files, numbers, strict=True)
    ]


def dataset_slices(name: str, number: int | None, seed: int) -> tuple[list[PickedSlice], Sequence[str]]:
    """Slices of a registered dataset, drawn with ``seed``: of a slice dataset equally many of each image class (as far
    as that goes), of a lesion dataset as they come.

    Args:
        number: how many; None for one of each image class that occurs (of a lesion dataset: 3).

    Returns:
        The slices, by class, and the names of the image classes; none of a lesion dataset.

    Raises:
        UserError: no such dataset, or it is empty.
    """
    ensure_registered([name])
    records = DatasetCatalog.get(name)
    if not records:
        raise UserError(f"Dataset {name} is empty.")
    metadata = MetadataCatalog.get(name)
    rng = np.random.default_rng(seed)
    groups: dict[int, list[dict]] = {}
    for record in rng.permutation(np.array(records, dtype=object)):
        groups.setdefault(record.get("image_class", -1), []).append(record)
    wanted = number or (len(groups) if -1 not in groups else 3)
    ordered = [groups[image_class] for image_class in sorted(groups, reverse=True)]
    taken = [[] for _ in ordered]
    while wanted and any(ordered):
        for group, chosen in zip(ordered, taken, strict=True):
            if group and wanted:
                chosen.append(group.pop())
                wanted -= 1
    lesion_classes = metadata.get("thing_classes", ())
    picked = [
        PickedSlice(
            Path(record["file_name"]),
            _short_name(Path(record["file_name"])),
            record.get("image_class"),
            partner_mask(Path(record["file_name"])),
            record.get("annotations"),
            lesion_classes,
        )
        for chosen in taken
        for record in chosen
    ]
    return picked, tuple(metadata.get("image_classes", ()))


def partner_mask(file: Path) -> Path | None:
    """``<root>/mask/<patient>/<slice>.png`` of ``<root>/image/<patient>/<slice>``; None where it isn't there."""
    for folder in file.parents:
        if folder.name == "image":
            mask = (folder.with_name("mask") / file.relative_to(folder)).with_suffix(".png")
            return mask if mask.is_file() else None
    return None


def _short_name(file: Path) -> str:
    return "/".join(file.parts[-2:])
