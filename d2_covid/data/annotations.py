"""What one annotation of a COCO json holds: its mask, its box, and whether it is a crowd region; what is malformed is
refused."""

from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..errors import UserError
from .limits import one_line
from .run_lengths import run_lengths

# Tools differ on whether the last pixel counts: a box may stick out of its image by this many pixels.
_BOX_TOLERANCE = 1.0


def to_rle(json_file: Path, segmentation: Any, height: int, width: int, what: str) -> dict[str, Any]:
    """Polygons or run-length code as compressed run-length code.

    Raises:
        UserError: there is none, or it is malformed, empty, of another size than the image, or doesn't cover it.
    """
    if not segmentation:
        raise UserError(f"{json_file}: {what} has no segmentation; Mask R-CNN needs a mask for every lesion.")
    try:
        rle = segmentation
        if isinstance(segmentation, list):
            if not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation):
                raise ValueError("a polygon is a list x1, y1, x2, y2, ... of three points or more")
            rle = polygons_to_rle(segmentation, height, width)
        size, runs, counts = list(rle["size"]), run_lengths(rle["counts"]), rle["counts"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        message = f"{json_file}: {what} has a segmentation that is neither polygons nor run-length code ({reason})."
        raise UserError(message) from error
    if size != [height, width]:
        shown = "x".join(map(str, size[::-1]))
        raise UserError(f"{json_file}: {what} has a mask of {shown} on an image of {width}x{height}.")
    # pycocotools decodes the masks of a slice one behind the other: one that is too short would shift those after it.
    if runs.sum() != height * width:
        raise UserError(
            f"{json_file}: {what} has a run-length code of {runs.sum()} pixels on an image of {width}x{height}, which "
            f"has {height * width}; its runs, the last one of background too, must add up to that."
        )
    if not runs[1::2].any():
        raise UserError(f"{json_file}: {what} has a segmentation without a pixel.")
    if not isinstance(counts, (str, bytes)):
        counts = mask_util.frPyObjects({"size": size, "counts": runs.tolist()}, height, width)["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """The union of polygons, each x1, y1, x2, y2, ... in pixels, as compressed run-length code.

    Raises:
        ValueError: a coordinate is no finite number, or further outside of the ``height`` x ``width`` image than that
            is wide or high: pycocotools takes memory for every pixel that an edge passes.
    """
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).ravel()
        if not np.isfinite(points).all():
            raise ValueError("a polygon has a coordinate that is no finite number")
        for values, size in ((points[0::2], width), (points[1::2], height)):
            far = values[(values < -size) | (values > 2 * size)]
            if far.size:
                raise ValueError(f"a polygon has the coordinate {far[0]:g}, far outside of its {width}x{height} image")
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width))


def check_box(json_file: Path, box: Any, height: int, width: int, what: str) -> None:
    """Refuse a box that is not [x, y, width, height], is empty, or is outside its image (:class:`UserError`)."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(n, (int, float)) for n in box):
        raise UserError(f"{json_file}: {what} has the box {box}; a box is [x, y, width, height].")
    x, y, w, h = box
    inside = min(x, y) >= -_BOX_TOLERANCE and x + w <= width + _BOX_TOLERANCE and y + h <= height + _BOX_TOLERANCE
    if not (inside and w > 0 and h > 0):
        raise UserError(
            f"{json_file}: {what} has the box {box} (x, y, width, height), "
            f"which is empty or outside its {width}x{height} image."
        )


def read_crowd(json_file: Path, annotation: dict[str, Any], what: str) -> int:
    """``iscrowd`` of an annotation, 0 or 1; absent and null are 0, what is neither is refused (:class:`UserError`)."""
    crowd = annotation.get("iscrowd")
    if crowd is not None and crowd not in (0, 1):
        raise UserError(f"{json_file}: {what} has iscrowd {one_line(crowd, 80)}; it is 0 or 1.")
    return int(crowd or 0)


def crowd_message(source: str | Path, crowd: int, total: int) -> str:
    """What is to be said of ``crowd`` regions among the ``total`` annotations of ``source``."""
    share = f"all {total}" if crowd == total else f"{crowd} of {total}"
    # Some tools write it for every mask that is a run-length code.
    return (
        f"{source}: {share} annotations have iscrowd 1, and are neither trained on nor evaluated; set it to 0 where "
        "they are lesions."
    )
