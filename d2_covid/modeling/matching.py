"""Boxes matched with ground truth and sampled, for a whole batch at once.

The definitions are those of Detectron2's ``Matcher`` and ``subsample_labels``. What differs is how they are computed:
ground truth is padded to one number of boxes an image, samples to one size, and what does not count is masked out, so
that no image has operations of its own and a GPU is never waited for.

Shape shorthand: N images, G ground-truth boxes of an image after padding, M boxes that are matched with them, S boxes
sampled.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher

PAIRS_AT_ONCE = 1 << 25
"""Overlaps that are held at a time: 128 MiB in single precision, a few times over."""


def to_device(values: Sequence | torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of host values on ``device``, without waiting for what the device is doing."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def padded(parts: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors of different lengths as one.

    Args:
        parts: N tensors (Mi, ...).
        length: at least the greatest Mi.

    Returns:
        (N, length, ...), zeros behind each part, and (N, length) bool, where there are none.
    """
    device = parts[0].device
    counts = to_device([len(part) for part in parts], device)
    valid = torch.arange(length, device=device) < counts[:, None]
    result = parts[0].new_zeros(len(parts), length, *parts[0].shape[1:])
    places = [i * length + j for i, part in enumerate(parts) for j in range(len(part))]
    result.flatten(0, 1)[to_device(places, device, torch.int64)] = torch.cat(parts)
    return result, valid


def first_true(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the ``count`` true elements of a vector, in order; the caller knows how many there are."""
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0]
    return mask.to(torch.uint8).sort(descending=True, stable=True).indices[:count]


@dataclass(frozen=True)
class GroundTruth:
    """Ground-truth boxes of a batch, padded.

    Attributes:
        boxes: (N, G, 4) XYXY; zeros where nothing is. G is 1 or more.
        valid: (N, G) bool.
        counts: the number of boxes of each image.
    """

    boxes: torch.Tensor
    valid: torch.Tensor
    counts: list[int]

    @classmethod
    def of(cls, boxes: Sequence[torch.Tensor]) -> "GroundTruth":
        """From each image's (Gi, 4) boxes."""
        counts = [len(x) for x in boxes]
        return cls(*padded(list(boxes), max(1, *counts)), counts)


def pairwise_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Overlap of every box with every other of its image: the numbers of Detectron2's ``pairwise_iou``.

    Args:
        boxes: (N, G, 4).
        others: (N, M, 4), or (1, M, 4) for all images.

    Returns:
        (N, G, M) intersection over union, 0 where boxes don't touch.
    """
    x0, y0, x1, y1 = boxes[..., None].unbind(2)
    u0, v0, u1, v1 = others[:, None].unbind(3)
    width = torch.minimum(x1, u1).sub_(torch.maximum(x0, u0)).clamp_(min=0)
    height = torch.minimum(y1, v1).sub_(torch.maximum(y0, v0)).clamp_(min=0)
    both = width.mul_(height)
    either = ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0)).sub_(both)
    # Boxes without area have neither: 0 / 0.
    return torch.where(both > 0, both / either, both)


def match_boxes(truth: GroundTruth, boxes: torch.Tensor, matcher: Matcher) -> tuple[torch.Tensor, torch.Tensor]:
    """Match boxes with ground truth by Detectron2's rules.

    Args:
        boxes: (N, M, 4), or (1, M, 4) for all images.
        matcher: thresholds, labels, and whether a ground-truth box takes its best boxes however bad they are.

    Returns:
        matched: (N, M) int64, each box's ground-truth box; 0 where the image has none.
        labels: (N, M) int8.
    """
    num_images, most = truth.valid.shape
    step = max(1, PAIRS_AT_ONCE // max(1, most * boxes.shape[1]))
    parts = [
        _match(truth, boxes if len(boxes) == 1 else boxes[i : i + step], slice(i, i + step), matcher)
        for i in range(0, num_images, step)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([matched for matched, _ in parts]), torch.cat([labels for _, labels in parts])


def _match(
    truth: GroundTruth, boxes: torch.Tensor, images: slice, matcher: Matcher
) -> tuple[torch.Tensor, torch.Tensor]:
    valid = truth.valid[images, :, None]
    iou = pairwise_iou(truth.boxes[images], boxes).masked_fill_(~valid, -1)
    best, matched = iou.max(dim=1)
    # The first label is that of images without ground truth too, as in Detectron2.
    labels = torch.full_like(best, matcher.labels[0], dtype=torch.int8)
    for threshold, label in zip(matcher.thresholds[1:-1], matcher.labels[1:]):
        labels.masked_fill_(best >= threshold, label)
    if matcher.allow_low_quality_matches:
        labels.masked_fill_(((iou == iou.amax(dim=2, keepdim=True)) & valid).any(dim=1), 1)
    return matched, labels


@dataclass(frozen=True)
class Sample:
    """Boxes drawn from each image's foreground and background.

    Attributes:
        positive: (N, P) indices of foreground boxes.
        is_positive: (N, P) bool: which of them count.
        negative: (N, Q) indices of background boxes.
        is_negative: (N, Q) bool.
    """

    positive: torch.Tensor
    is_positive: torch.Tensor
    negative: torch.Tensor
    is_negative: torch.Tensor


def sample_labels(
    foreground: torch.Tensor, background: torch.Tensor, num_samples: int, positive_fraction: float
) -> Sample:
    """Draw boxes at random, as Detectron2's ``subsample_labels`` does.

    At most ``num_samples * positive_fraction`` come from the foreground, and from the background the rest of
    ``num_samples``.

    Args:
        foreground, background: (N, M) bool; no box is both.
    """
    most = int(num_samples * positive_fraction)
    keys = torch.rand(foreground.shape, device=foreground.device)
    positive, is_positive = _draw(keys, foreground, most)
    negative, is_negative = _draw(keys, background, num_samples)
    room = num_samples - is_positive.sum(dim=1, keepdim=True)
    rank = torch.arange(negative.shape[1], device=negative.device)
    return Sample(positive, is_positive, negative, is_negative & (rank < room))


def _draw(keys: torch.Tensor, mask: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ``mask`` holds: the indices of the highest keys, and whether there was one to take."""
    best, index = torch.where(mask, keys, -1).topk(min(number, mask.shape[1]), dim=1)
    return index, best >= 0


def box_deltas(transform: Box2BoxTransform, boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The numbers of ``transform.get_deltas``, which stops to check its input.

    Args:
        boxes, targets: (..., 4), all with area.
    """
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    shift = targets[..., :2] + 0.5 * target_size - (boxes[..., :2] + 0.5 * size)
    wx, wy, ww, wh = transform.weights
    dx, dy = (shift / size).unbind(-1)
    dw, dh = torch.log(target_size / size).unbind(-1)
    return torch.stack((wx * dx, wy * dy, ww * dw, wh * dh), dim=-1)
