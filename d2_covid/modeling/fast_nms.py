"""Non-maximum suppression of all images of a batch in one call, each image's result independent of its neighbours.

Shape shorthand: N images, M boxes over all images.
"""

import numpy as np
import torch
from torchvision.ops import nms

SHARE_OF_PAIRS = 1 / 16
"""Of all pairs of an image's boxes, the share that begins near each other up to which picking them out is quicker."""

FEW_BOXES = 200
"""Up to so many torchvision's loop over all pairs is quicker in any case."""


def nms_by_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    counts: list[int],
    nms_thresh: float,
    limit: int = -1,
) -> tuple[torch.Tensor, list[int]]:
    """Group-wise NMS of each image's boxes, as Detectron2's ``batched_nms`` on that image alone.

    Args:
        boxes: (M, 4) XYXY, image after image.
        scores: (M,).
        groups: (M,) int64, class or feature level; boxes of different groups don't suppress each other.
        counts: how many boxes each of the N images has.
        limit: keep an image's best ``limit`` only; below 0: all.

    Returns:
        order: indices of the boxes that stay, image after image, by descending score.
        kept: how many of them each image has.
    """
    if boxes.device.type != "cpu":
        return _nms_together(boxes, scores, groups, counts, nms_thresh, limit)
    kept, start = [], 0
    for count in counts:
        part = slice(start, start + count)
        keep = sparse_nms(boxes[part], scores[part], groups[part], nms_thresh)
        kept.append((keep[:limit] if limit >= 0 else keep) + start)
        start += count
    return torch.cat(kept), [len(keep) for keep in kept]


def sparse_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, nms_thresh: float) -> torch.Tensor:
    """Group-wise NMS of one image's boxes on a CPU, comparing only boxes that can overlap enough.

    If two boxes overlap by more than t, the right one begins within (1 - t) widths of the left one's begin: the
    intersection is higher than neither and has t times the area of both, so it must be t times as wide as both.
    Lesions' proposals are small against a slice, so that this leaves few pairs. Overlaps are computed as torchvision's
    ``nms`` computes them, and decide the same.

    Args:
        boxes: (M, 4) XYXY, single precision.
        scores, groups: (M,).

    Returns:
        Indices of the boxes that stay, by descending score; of equal ones the earlier first.
    """
    if len(boxes) < FEW_BOXES:
        return _plain_nms(boxes, scores, groups, nms_thresh)
    order = scores.sort(descending=True, stable=True).indices
    sorted_boxes = boxes[order].numpy()
    pairs = _near(sorted_boxes, nms_thresh)
    if pairs is None:
        return _plain_nms(boxes, scores, groups, nms_thresh)
    better, worse = _overlapping(sorted_boxes, groups[order].numpy(), pairs, nms_thresh)
    return order[torch.from_numpy(_greedy(better, worse, len(order)))]


def _plain_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, nms_thresh: float) -> torch.Tensor:
    if not len(boxes) or bool((groups == groups[0]).all()):
        return nms(boxes, scores.to(boxes.dtype), nms_thresh)
    # Groups are moved so far apart that they can't overlap; in double precision that rounds no box.
    span = boxes.max().double() - boxes.min().double() + 1
    return nms(boxes.double() + (groups * span)[:, None], scores.double(), nms_thresh)


def _near(boxes: np.ndarray, nms_thresh: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Pairs of boxes that begin near enough to each other, on both axes; None if they are too many to look for."""
    count = len(boxes)
    by_left = boxes[:, 0].argsort(kind="stable")
    left, top, right, bottom = boxes[by_left].astype(np.float64).T
    # A little wider, for what rounding may do to an overlap.
    reach = 1 - nms_thresh + 1e-3
    after = np.arange(1, count + 1)
    last = np.maximum(np.searchsorted(left, left + (right - left) * reach, side="right"), after)
    near = last - after
    total = int(near.sum())
    if total > SHARE_OF_PAIRS * count * count:
        return None
    first = np.repeat(np.arange(count), near)
    second = np.arange(total) + np.repeat(after - near.cumsum() + near, near)
    reach_down = top + (bottom - top) * reach
    higher, lower = top.take(first), top.take(second)
    # Whichever begins higher up must reach the other's begin.
    hit = (lower <= reach_down.take(first)) & (higher <= reach_down.take(second))
    return by_left[first[hit]], by_left[second[hit]]


def _overlapping(
    boxes: np.ndarray, groups: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], nms_thresh: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the pairs, those of one group that overlap by more than the threshold: the better box, the other one."""
    one, other = np.minimum(*pairs), np.maximum(*pairs)
    a, b = boxes[one], boxes[other]
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0)
    both = sides[:, 0] * sides[:, 1]
    extent = boxes[:, 2:] - boxes[:, :2]
    areas = extent[:, 0] * extent[:, 1]
    # Boxes without area have no overlap with each other: 0 / 0 is above no threshold.
    with np.errstate(invalid="ignore"):
        overlap = both / (areas[one] + areas[other] - both)
    hit = (overlap.astype(np.float64) > nms_thresh) & (groups[one] == groups[other])
    return one[hit], other[hit]


def _greedy(better: np.ndarray, worse: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` boxes stay if each one that stays removes the worse ones it overlaps.

    All are judged at once by those that stayed before, until nothing changes: a round settles at least the first box
    that was not settled, and so ends where going through them one by one would.
    """
    stays = np.ones(count, dtype=bool)
    while True:
        judged = np.ones(count, dtype=bool)
        judged[worse[stays[better]]] = False
        if (judged == stays).all():
            return stays.nonzero()[0]
        stays = judged


def _nms_together(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    counts: list[int],
    nms_thresh: float,
    limit: int,
) -> tuple[torch.Tensor, list[int]]:
    """All images at once, padded to one number of boxes; waits for the device to learn what is kept."""
    from .proposals import suppress  # which takes this module for a CPU

    device, most = boxes.device, max(counts, default=0)
    if not most:
        return torch.zeros(0, dtype=torch.int64, device=device), [0] * len(counts)
    counted = torch.tensor(counts, device=device)
    image = torch.repeat_interleave(torch.arange(len(counts), device=device), counted, output_size=len(boxes))
    order = scores.sort(descending=True, stable=True).indices
    order = order[image[order].sort(stable=True).indices]
    valid = torch.arange(most, device=device) < counted[:, None]
    rank = torch.arange(len(boxes), device=device) - (counted.cumsum(0) - counted)[image]
    place = image * most + rank
    padded_boxes = boxes.new_zeros(len(counts) * most, 4).index_copy_(0, place, boxes[order])
    padded_groups = groups.new_zeros(len(counts) * most).index_copy_(0, place, groups[order])
    keep = suppress(padded_boxes.view(-1, most, 4), padded_groups.view(-1, most), valid, nms_thresh)
    if limit >= 0:
        keep = keep & (keep.cumsum(1) <= limit)
    return order[keep.view(-1)[place].nonzero()[:, 0]], keep.sum(1).tolist()
