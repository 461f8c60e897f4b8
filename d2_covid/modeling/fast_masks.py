"""Masks of a slice's detections in the slice's own pixels, all of an image in one go.

Shape shorthand: R detections of an image, M x M mask probabilities each.
"""

import numpy as np
import torch

PIXELS_AT_ONCE = 1 << 28
"""Interpolated values that a GPU holds at a time: a gigabyte in single precision."""


def paste_masks(
    masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float = 0.5
) -> torch.Tensor:
    """What Detectron2's ``paste_masks_in_image`` gives: every mask resized to its box, true from ``threshold`` on.

    Bilinear interpolation works on rows and columns apart: two small matrix products a mask, and only inside its box.

    Args:
        masks: (R, M, M) probabilities.
        boxes: (R, 4) XYXY in pixels of the ``height`` x ``width`` slice, none of them empty.

    Returns:
        (R, height, width) bool.
    """
    paste = paste_in_boxes if masks.device.type == "cpu" else paste_everywhere
    return paste(masks.float(), boxes, height, width, threshold)


def paste_everywhere(
    masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float
) -> torch.Tensor:
    """:func:`paste_masks` over whole slices, as many as memory allows in one go: what suits a GPU."""
    pasted = torch.empty(len(masks), height, width, dtype=torch.bool, device=masks.device)
    step = max(1, PIXELS_AT_ONCE // max(1, height * width))
    for first in range(0, len(masks), step):
        part = slice(first, first + step)
        across = _weights(boxes[part, 0], boxes[part, 2], width, masks.shape[2])
        down = _weights(boxes[part, 1], boxes[part, 3], height, masks.shape[1])
        values = torch.bmm(torch.bmm(down, masks[part]), across.transpose(1, 2))
        torch.ge(values, threshold, out=pasted[part])
    return pasted


def paste_in_boxes(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """:func:`paste_masks` box by box, and only there: what suits a CPU."""
    # NumPy's zeros take memory only where something is written: most of a slice lies outside a lesion's box.
    pasted = torch.from_numpy(np.zeros((len(masks), height, width), dtype=bool))
    if not len(masks):
        return pasted
    edges = torch.tensor([width, height])
    first = (boxes[:, :2].floor().long() - 1).clamp_(min=0)
    last = (boxes[:, 2:].ceil().long() + 1).minimum(edges)
    longest = (last - first).amax(0).clamp(min=0).tolist()
    across = _weights(boxes[:, 0], boxes[:, 2], longest[0], masks.shape[2], first[:, 0])
    down = _weights(boxes[:, 1], boxes[:, 3], longest[1], masks.shape[1], first[:, 1])
    across = torch.bmm(masks, across.transpose(1, 2))
    for mask, rows, columns, (left, top), (right, bottom) in zip(pasted, down, across, first.tolist(), last.tolist()):
        if top < bottom and left < right:
            values = torch.mm(rows[: bottom - top], columns[:, : right - left])
            torch.ge(values, threshold, out=mask[top:bottom, left:right])
    return pasted


def _weights(
    start: torch.Tensor, end: torch.Tensor, length: int, size: int, first: torch.Tensor | None = None
) -> torch.Tensor:
    """Bilinear interpolation along one axis: (R, length, size) weights of mask cells for every pixel; zeros lie around
    the mask, as Detectron2 pads it.

    Args:
        start, end: (R,) edges of the boxes.
        first: (R,) the first pixel; None: 0.
    """
    pixels = torch.arange(length, dtype=torch.float32, device=start.device) + 0.5
    if first is not None:
        pixels = pixels + first[:, None]
    place = (pixels - start[:, None]) / (end - start)[:, None] * size - 0.5
    cells = torch.arange(size, dtype=torch.float32, device=start.device)
    return (1 - (place[..., None] - cells).abs_()).clamp_(min=0)
