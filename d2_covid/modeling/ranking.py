"""The ranked RoI batch: an image's detections in the order of their scores, always D of them (paper, section 3).

Pure functions on tensors, over all images at once. The detections are chosen without gradient; scores and deltas of
the chosen ones keep theirs.

Shape shorthand: N images, R RoIs over all images, Ri of image i, K lesion classes, D ranked detections an image.
A *candidate* is a pair of a RoI and one of its K classes.
"""

from dataclasses import dataclass

import torch

from .fast_nms import nms_by_image

FEATURES = ("deltas", "boxes")
PADDING = ("even", "sampled")


@dataclass(frozen=True)
class RankedBatch:
    """Ranked detections of N images. Rows of one image descend in score; repeats stand next to each other.

    An image without any detection has rows, boxes and scores of zeros, and -1 for RoI, class and detection.
    """

    rows: torch.Tensor
    """(N, D, 5): ``[score, 4 box numbers]``, differentiable."""
    boxes: torch.Tensor
    """(N, D, 4): x0, y0, x1, y1 in pixels of the network's input, clipped to the image."""
    roi: torch.Tensor
    """(N, D) int64: which of its image's Ri RoIs a row comes from."""
    classes: torch.Tensor
    """(N, D) int64: its lesion class, 0 to K - 1."""
    detection: torch.Tensor
    """(N, D) int64: rank of its detection, 0 to ``kept - 1``; equal for repeats of one detection."""
    kept: torch.Tensor
    """(N,) int64: different detections among the rows, at most D."""


def padding_draws(num_rois: int, seed: int) -> torch.Tensor:
    """What ``sampled`` padding draws for an image: (D,) int64."""
    return torch.randint(2**31 - 1, (num_rois,), generator=torch.Generator().manual_seed(seed))


def repeat_in_place(
    kept: torch.Tensor, num_rois: int, padding: str = "even", seed: int = 0, draws: torch.Tensor | None = None
) -> torch.Tensor:
    """Which of its ``kept`` ranked detections stands in each of an image's D rows.

    Order never breaks and, with at most D detections, every one of them appears. ``even`` repeats each D / kept times,
    rounded up or down, the longer runs spread over the ranking: 3 detections in 5 rows stand as 0 0 1 2 2, the paper's
    example. ``sampled`` draws the missing rows with replacement; an image's draw depends on the seed and its own
    number of detections only, never on its neighbours in the batch.

    Args:
        kept: (N,) int64, each from 0 to D.
        num_rois: D.
        draws: the seed's :func:`padding_draws`, where they are at hand.

    Returns:
        (N, D) int64; -1 for an image with no detection.
    """
    rows = torch.arange(num_rois, device=kept.device)
    n = kept[:, None]
    if padding == "even":
        index = torch.div((2 * rows + 1) * n, 2 * num_rois, rounding_mode="floor")
    elif padding == "sampled":
        draws = (padding_draws(num_rois, seed) if draws is None else draws).to(kept.device)
        index = torch.where(rows < n, rows, draws % n.clamp(min=1)).sort(dim=1).values
    else:
        raise ValueError(f"padding must be one of {', '.join(PADDING)}, not {padding!r}")
    return torch.where(n > 0, index, -1)


def _top_candidates(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    image_of: torch.Tensor,
    class_of: torch.Tensor,
    num_images: int,
    nms_thresh: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class-wise NMS and a stable sort of the M candidates of all images.

    Args:
        scores, boxes, image_of, class_of: (M,), (M, 4), (M,), (M,).

    Returns:
        order: indices of the candidates that stay, image after image, by descending score; of equal scores the
            earlier candidate first.
        count: (N,) how many of them each image has.
    """
    counts = torch.bincount(image_of, minlength=num_images).tolist()
    order, kept = nms_by_image(boxes, scores, class_of, counts, nms_thresh)
    return order, torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def rank_detections(
    scores: torch.Tensor,
    deltas: torch.Tensor,
    boxes: torch.Tensor,
    roi_counts: list[int],
    image_sizes: list[tuple[int, int]],
    *,
    num_rois: int,
    features: str,
    score_thresh: float,
    nms_thresh: float,
    drop_empty: bool,
    padding: str,
    padding_seed: int,
) -> RankedBatch:
    """Rank each image's detections by score and fill exactly D rows with them.

    Every lesion class of every RoI that scores above ``score_thresh`` is a candidate. Those with an empty box (no
    area once clipped to the image), or with a number that is not finite, go; class-wise NMS, a stable sort and the
    best D remain; :func:`repeat_in_place` fills what is missing.

    Args:
        scores: (R, K) class scores, without the background's.
        deltas: (R, K * 4) encoded box regression, or (R, 4) if it is class-agnostic.
        boxes: decoded boxes in pixels, of the shape of ``deltas``.
        roi_counts: Ri for each of the N images.
        image_sizes: (height, width) of each image, without batch padding.
        num_rois: D.
        features: ``"deltas"`` or ``"boxes"``: the four numbers beside a score. ``boxes`` are x0, y0, x1, y1 divided by
            the image's width and height, so that resolution does not matter.

    Returns:
        The ranked batch; gradients of ``rows`` reach ``scores`` and ``deltas`` (or ``boxes``).
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, not {features!r}")
    num_images, num_classes, device = len(roi_counts), scores.shape[1], scores.device
    counts = torch.tensor(roi_counts, dtype=torch.int64, device=device)
    image_of_roi = torch.repeat_interleave(torch.arange(num_images, device=device), counts)
    height_width = torch.tensor(image_sizes, dtype=boxes.dtype, device=device).reshape(num_images, 2)
    limits = height_width.flip(1).repeat(1, 2)[image_of_roi, None]  # (R, 1, 4): width, height, width, height

    deltas = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4).expand(-1, num_classes, -1)
    boxes = boxes.reshape(len(boxes), boxes.shape[1] // 4, 4).expand(-1, num_classes, -1)
    finite = torch.isfinite(scores) & torch.isfinite(deltas).all(-1) & torch.isfinite(boxes).all(-1)
    boxes = torch.minimum(boxes.clamp(min=0), limits)

    with torch.no_grad():
        wanted = finite & (scores > score_thresh)
        if drop_empty:
            wanted &= (boxes[..., 2:] > boxes[..., :2]).all(-1)
        roi, cls = wanted.nonzero(as_tuple=True)
        order, count = _top_candidates(
            scores[roi, cls], boxes[roi, cls], image_of_roi[roi], cls, num_images, nms_thresh
        )
        kept = count.clamp(max=num_rois)
        start = count.cumsum(0) - count
        detection = repeat_in_place(kept, num_rois, padding, padding_seed)
        found = detection >= 0
        candidate = order[(start[:, None] + detection)[found]]  # one for each row that is not empty
        roi, cls = roi[candidate], cls[candidate]
        first_roi = (counts.cumsum(0) - counts)[image_of_roi[roi]]

    row_boxes = boxes[roi, cls]
    numbers = deltas[roi, cls] if features == "deltas" else row_boxes / limits[roi, 0]
    rows = torch.cat((scores[roi, cls, None], numbers.to(scores.dtype)), dim=1)
    return RankedBatch(
        rows=_spread(rows, found, 0),
        boxes=_spread(row_boxes.detach(), found, 0),
        roi=_spread(roi - first_roi, found, -1),
        classes=_spread(cls, found, -1),
        detection=detection,
        kept=kept,
    )


def _spread(values: torch.Tensor, where: torch.Tensor, fill: float) -> torch.Tensor:
    """``values`` (M, ...) put, in order, in the M true places of ``where`` (N, D); ``fill`` elsewhere."""
    out = values.new_full((*where.shape, *values.shape[1:]), fill)
    return out.masked_scatter(where.reshape(*where.shape, *[1] * (values.dim() - 1)).expand_as(out), values)
