"""Boxes as the exported model makes them: anchors, decoding, clipping. Pure functions on tensors."""

from typing import Sequence

import torch


def anchors(cell_anchors: torch.Tensor, height: int, width: int, stride: int, offset: float) -> torch.Tensor:
    """The A anchors of every location of an (height, width) feature map: (height * width * A, 4) XYXY."""
    x = (torch.arange(width, dtype=torch.float32) + offset) * stride
    y = (torch.arange(height, dtype=torch.float32) + offset) * stride
    x, y = x[None, :].expand(height, -1), y[:, None].expand(-1, width)
    shifts = torch.stack((x, y, x, y), dim=-1)
    return (shifts[:, :, None] + cell_anchors).reshape(-1, 4)


def decode(deltas: torch.Tensor, boxes: torch.Tensor, weights: Sequence[float], scale_clamp: float) -> torch.Tensor:
    """Boxes moved and scaled by encoded regression: Detectron2's ``Box2BoxTransform.apply_deltas``.

    Args:
        deltas: (..., 4): dx, dy, dw, dh.
        boxes: (..., 4) XYXY, of a shape that fits.
        weights: what deltas are divided by.
        scale_clamp: most that dw and dh may be.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    widths, heights = x1 - x0, y1 - y0
    x, y = x0 + 0.5 * widths, y0 + 0.5 * heights
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), weights))
    x, y = dx * widths + x, dy * heights + y
    widths = torch.exp(dw.clamp(max=scale_clamp)) * widths
    heights = torch.exp(dh.clamp(max=scale_clamp)) * heights
    return torch.stack((x - 0.5 * widths, y - 0.5 * heights, x + 0.5 * widths, y + 0.5 * heights), dim=-1)


def clip(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes (..., 4) XYXY inside an image."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)), dim=-1)


def larger_than(boxes: torch.Tensor, length: float) -> torch.Tensor:
    """Whether both sides of boxes (..., 4) are longer than ``length``: (...) bool."""
    return (boxes[..., 2] - boxes[..., 0] > length) & (boxes[..., 3] - boxes[..., 1] > length)
