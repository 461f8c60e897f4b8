"""From a mask of CNCB values to the lesions in it: components, boxes, areas and COCO run-length codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from scipy import ndimage

from ..errors import UserError
from .preprocessing import open_image

BACKGROUND, LUNG, GGO, CONSOLIDATION = range(4)
"""What the values of a mask mean."""

MASK_TYPES: dict[str, tuple[str, ...]] = {
    "merge": ("lesion",),
    "ggo": ("GGO",),
    "both": ("GGO", "consolidation"),
}
"""Lesion classes of each mask type, in the order of their contiguous category index."""

# Which mask values make up each class of MASK_TYPES.
_CLASS_VALUES: dict[str, tuple[tuple[int, ...], ...]] = {
    "merge": ((GGO, CONSOLIDATION),),
    "ggo": ((GGO,),),
    "both": ((GGO,), (CONSOLIDATION,)),
}

# Tools differ on whether the last pixel counts, and on where a pixel's middle is.
_BOX_TOLERANCE = 2.0
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class Lesion(NamedTuple):
    """One 8-connected component of a class."""

    category: int  # contiguous index into MASK_TYPES[mask_type]
    mask: np.ndarray  # (H, W) bool
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # x, y, width, height in pixels, tight around the mask


@dataclass(frozen=True)
class DroppedComponent:
    """A component that became background, and why."""

    category: int
    area: int
    bbox: tuple[int, int, int, int]
    reason: str


def require_mask_type(mask_type: str) -> None:
    """Refuse anything but a key of :data:`MASK_TYPES`, in a :class:`UserError`."""
    if mask_type not in MASK_TYPES:
        raise UserError(f"Unknown mask type {mask_type!r}; there are {', '.join(MASK_TYPES)}.")


def lesion_class_names(mask_type: str, count: int) -> tuple[str, ...]:
    """Names of the ``count`` lesion classes of a model that learnt, or is to learn, masks of a type.

    Raises:
        UserError: unknown mask type, or one of another number of classes.
    """
    require_mask_type(mask_type)
    names = MASK_TYPES[mask_type]
    if len(names) != count:
        raise UserError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {count}, but DATASETS.MASK_TYPE {mask_type!r} has {len(names)} lesion "
            f"class(es) ({', '.join(names)}); change one of them."
        )
    return names


def read_mask(path: str | Path) -> np.ndarray:
    """Read the values of a mask file: palette indices, gray levels of 8 or 16 bit, or equal colour channels.

    Returns:
        (H, W) ``uint8`` array of values 0..3.

    Raises:
        UserError: unreadable file, unequal colour channels, one bit a pixel, or a value other than 0..3; the message
            names the file.
    """
    image = open_image(path)
    if image.mode in ("LA", "RGB", "RGBA"):
        channels = np.asarray(image)
        colour = channels[..., : 1 if image.mode == "LA" else 3]
        if (colour != colour[..., :1]).any():
            raise UserError(f"{path} is a colour picture, not a mask; save its values 0 to 3 as gray or palette PNG.")
        values = colour[..., 0]
    elif image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "1" and values.any():
            raise UserError(f"{path} has one bit a pixel, which may mean lung or lesion; save lesions as 2 (GGO) or 3.")
    else:
        raise UserError(f"{path} has the colour mode {image.mode}; save masks as gray or palette PNG.")
    check_mask_values(values, path)
    return values.astype(np.uint8)


def check_mask_values(mask: np.ndarray, source: str | Path = "the mask") -> None:
    """Refuse values other than 0 background, 1 lung, 2 GGO, 3 consolidation.

    Raises:
        UserError: names ``source`` and the values.
    """
    if mask.size and (mask.min() < BACKGROUND or mask.max() > CONSOLIDATION):
        others = [int(v) for v in np.unique(mask) if not BACKGROUND <= v <= CONSOLIDATION]
        listed = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        raise UserError(
            f"{source} holds the value{'s' * (len(others) > 1)} {listed}; "
            "a mask has 0 background, 1 lung, 2 GGO, 3 consolidation."
        )


def lesion_components(
    mask: np.ndarray, mask_type: str, min_area: int = 100, source: str | Path = "the mask"
) -> tuple[list[Lesion], list[DroppedComponent]]:
    """The lesions of one slice (paper, section 3, point 3).

    A class is told by the values in the mask, never by their order. A lesion is an 8-connected component of its class;
    with ``merge``, of GGO and consolidation taken together.

    Args:
        mask: (H, W) integers, values 0..3.
        mask_type: a key of :data:`MASK_TYPES`.
        min_area: components of this many pixels or fewer become background (0 keeps all).
        source: what to call the mask in an error.

    Returns:
        The lesions kept, by class and then in the order of their first pixel, and the components dropped.

    Raises:
        UserError: unknown mask type, or a value other than 0..3.
    """
    require_mask_type(mask_type)
    check_mask_values(mask, source)
    kept: list[Lesion] = []
    dropped: list[DroppedComponent] = []
    for category, values in enumerate(_CLASS_VALUES[mask_type]):
        is_class = np.zeros(CONSOLIDATION + 1, dtype=bool)
        is_class[list(values)] = True
        of_class = is_class[mask]
        if not of_class.any():
            continue
        labels, count = ndimage.label(of_class, structure=_EIGHT_CONNECTED)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            area = int(areas[label])
            bbox = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            if area > min_area:
                kept.append(Lesion(category, labels == label, area, bbox))
            else:
                dropped.append(DroppedComponent(category, area, bbox, f"{min_area} pixels or fewer"))
    return kept, dropped


def encode_mask(mask: np.ndarray) -> dict:
    """COCO run-length code of an (H, W) mask, ready for json: ``{"size": [H, W], "counts": str}``."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def box_fits(box: Sequence[float], rle: dict) -> bool:
    """Whether each edge of an [x, y, width, height] box is within 2 pixels of its mask's (a run-length code)."""
    (x, y, w, h), (left, top, width, height) = box, mask_util.toBbox(rle)
    differences = x - left, y - top, x + w - left - width, y + h - top - height
    return max(map(abs, differences)) <= _BOX_TOLERANCE


def coco_annotation(lesion: Lesion, annotation_id: int, image_id: int) -> dict:
    """One entry of a COCO json's ``annotations``; category ids there count from 1."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": lesion.category + 1,
        "segmentation": encode_mask(lesion.mask),
        "bbox": list(lesion.bbox),
        "area": lesion.area,
        "iscrowd": 0,
    }
