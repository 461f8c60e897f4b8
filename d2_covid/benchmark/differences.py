"""Whether two models with the same weights find the same: boxes, scores, classes and masks, detection by detection.

Shape shorthand: R detections of a slice, M the side of a soft mask.
"""

from dataclasses import asdict, dataclass
from typing import Sequence

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

AT_THRESHOLD = 1e-3
"""A pixel whose soft value is within this of 0.5 may fall on either side."""
MIN_SIDE = 0.01
"""Pixels. Boxes thinner than this, which image borders cut, are not compared: torchvision drops them."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between two models' detections.

    Attributes:
        detections: of the first model.
        unmatched: detections of either model that the other has no partner for.
        box_px: of any coordinate of matched boxes.
        score: of matched scores.
        soft_mask: of the M x M masks' probabilities.
        mask_pixels: pixels in which the soft masks, pasted by the same code, differ, but for those at the threshold.
        pasted_iou: mean overlap of the masks that each model pasted itself.
    """

    detections: int
    unmatched: int
    box_px: float
    score: float
    soft_mask: float
    mask_pixels: int
    pasted_iou: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def differences(ours: Instances, theirs: Instances, *, tolerance: float = 1e-3) -> Differences:
    """Compare the detections of one slice.

    Both may have been cut at a largest number of detections; if so, and one of them dropped thin boxes before the cut,
    the other lacks as many of its last ones. So the best of both are compared, as many as the shorter list has.

    Args:
        ours, theirs: in pixels of the slice, with ``pred_boxes``, ``scores`` and ``pred_classes``; ``soft_masks``
            (R, M, M) and ``pred_masks`` (R, H, W) are compared where both have them.
        tolerance: pixels within which two boxes are one.
    """
    ours, theirs = _comparable(ours.to("cpu"), theirs.to("cpu"))
    index, distance = _partners(ours, theirs)
    unmatched = int((distance > tolerance).sum() + (_partners(theirs, ours)[1] > tolerance).sum())
    matched = distance <= tolerance
    a, b = ours[matched], theirs[index[matched]]
    soft_mask, pixels, iou = 0.0, 0, 1.0
    if len(a) and a.has("soft_masks") and b.has("soft_masks"):
        soft_mask = float((a.soft_masks - b.soft_masks).abs().max())
        pixels = sum(
            _differing_pixels(a[i : i + 16], b[i : i + 16], ours.image_size) for i in range(0, len(a), 16)
        )  # in parts: each pixel of each mask, four times
    if len(a) and a.has("pred_masks") and b.has("pred_masks"):
        both = (a.pred_masks & b.pred_masks).sum((1, 2))
        either = (a.pred_masks | b.pred_masks).sum((1, 2))
        iou = float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())
    return Differences(
        detections=len(ours),
        unmatched=unmatched,
        box_px=float(distance[matched].max()) if len(a) else 0.0,
        score=float((a.scores - b.scores).abs().max()) if len(a) else 0.0,
        soft_mask=soft_mask,
        mask_pixels=pixels,
        pasted_iou=iou,
    )


def worst(found: Sequence[Differences]) -> Differences:
    """The largest differences of several slices; counts are sums, the overlap is a mean.

    Raises:
        ValueError: of no slice.
    """
    if not found:
        raise ValueError("nothing was compared")
    return Differences(
        detections=sum(one.detections for one in found),
        unmatched=sum(one.unmatched for one in found),
        box_px=max(one.box_px for one in found),
        score=max(one.score for one in found),
        soft_mask=max(one.soft_mask for one in found),
        mask_pixels=sum(one.mask_pixels for one in found),
        pasted_iou=sum(one.pasted_iou for one in found) / len(found),
    )


def _comparable(*both: Instances) -> list[Instances]:
    wide = []
    for one in both:
        sides = one.pred_boxes.tensor[:, 2:] - one.pred_boxes.tensor[:, :2]
        wide.append((len(one), one[(sides >= MIN_SIDE).all(1)]))
    # A list that lost none is longer by what the other lost before it was cut.
    lost = max(length - len(one) for length, one in wide)
    shortest = min(len(one) for _, one in wide)
    return [one[:shortest] if len(one) - shortest <= lost else one for _, one in wide]


def _partners(ours: Instances, theirs: Instances) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ours the nearest of theirs in its class, and the largest difference of their coordinates (R,)."""
    if not len(ours) or not len(theirs):
        return torch.zeros(len(ours), dtype=torch.int64), torch.full((len(ours),), torch.inf)
    distance = (ours.pred_boxes.tensor[:, None] - theirs.pred_boxes.tensor[None]).abs().amax(-1)
    distance[ours.pred_classes[:, None] != theirs.pred_classes[None]] = torch.inf
    # Of several at one place, the one that scores alike.
    index = (distance + (ours.scores[:, None] - theirs.scores[None]).abs() * 1e-3).argmin(1)
    return index, distance.gather(1, index[:, None])[:, 0]


def _differing_pixels(ours: Instances, theirs: Instances, size: tuple[int, int]) -> int:
    def pasted(instances: Instances, threshold: float) -> torch.Tensor:
        return paste_masks_in_image(instances.soft_masks, instances.pred_boxes, size, threshold)

    clear = pasted(ours, 0.5 - AT_THRESHOLD) == pasted(ours, 0.5 + AT_THRESHOLD)
    return int(((pasted(ours, 0.5) != pasted(theirs, 0.5)) & clear).sum())
