"""Proposals of a whole batch: the best anchors decoded, clipped and suppressed, in tensors of one size.

Shape shorthand: N images, L feature levels, M anchors of a level, k anchors chosen, P proposals of an image after
padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Iterator

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from .fast_nms import nms_by_image
from .matching import padded, to_device

PAIRS_AT_ONCE = 1 << 26
"""Overlaps that suppression on a GPU holds at a time: 256 MiB in single precision, a few times over."""

_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class ProposalBatch(Sequence):
    """Proposals of N images. Read as a sequence it is Detectron2's: N ``Instances`` by descending logit.

    To be read so it has to wait for the device.

    Attributes:
        boxes: (N, P, 4) XYXY, within the image.
        logits: (N, P), descending.
        valid: (N, P) bool; the proposals of an image come before its padding.
        image_sizes: (h, w) of each image.
    """

    boxes: torch.Tensor
    logits: torch.Tensor
    valid: torch.Tensor
    image_sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, proposals: Sequence[Instances]) -> "ProposalBatch":
        """From each image's ``proposal_boxes`` and ``objectness_logits``."""
        if isinstance(proposals, cls):
            return proposals
        most = max(len(x) for x in proposals)
        boxes, valid = padded([x.proposal_boxes.tensor for x in proposals], most)
        logits, _ = padded([x.objectness_logits for x in proposals], most)
        return cls(boxes, logits, valid, [x.image_size for x in proposals])

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index):
        return self.instances()[index]

    def __iter__(self) -> Iterator[Instances]:
        return iter(self.instances())

    def instances(self) -> list[Instances]:
        """Detectron2's form of it."""
        return [
            Instances(size, proposal_boxes=Boxes(boxes[:count]), objectness_logits=logits[:count])
            for size, boxes, logits, count in zip(
                self.image_sizes, self.boxes, self.logits, self.valid.sum(dim=1).tolist()
            )
        ]


def find_proposals(
    anchors: list[torch.Tensor],
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    transform: Box2BoxTransform,
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
    min_box_size: float = 0.0,
) -> tuple[ProposalBatch, torch.Tensor]:
    """The proposals that Detectron2's ``find_top_rpn_proposals`` finds among the decoded anchors.

    Only the anchors chosen by their logits are decoded.

    Args:
        anchors: L tensors (M, 4).
        logits: L tensors (N, M).
        deltas: L tensors (N, M, 4).
        image_sizes: (h, w) of each image, to which boxes are clipped.
        pre_nms_topk: anchors that enter suppression, on each level.
        post_nms_topk: proposals that an image keeps.
        nms_thresh: of two boxes of a level that overlap more, the one with the lower logit goes.
        min_box_size: boxes with a side of this length or less go before suppression.

    Returns:
        The proposals, and a bool scalar: whether all that was chosen is finite. What is not has been left out.
    """
    num_images, device = len(image_sizes), logits[0].device
    boxes, scores, levels = [], [], []
    for level, (places, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas)):
        best, index = best_first(level_logits.float(), pre_nms_topk)
        chosen = level_deltas.gather(1, index[..., None].expand(-1, -1, 4))
        decoded = transform.apply_deltas(chosen.reshape(-1, 4), places[index.flatten()])
        boxes.append(decoded.view(num_images, -1, 4))
        scores.append(best)
        levels.append(torch.full_like(index, level))
    boxes, scores = (x[0] if len(x) == 1 else torch.cat(x, dim=1) for x in (boxes, scores))
    levels = torch.cat(levels, dim=1) if len(levels) > 1 else None
    finite = torch.isfinite(boxes).all(dim=-1) & torch.isfinite(scores)
    limits = to_device(image_sizes, device, boxes.dtype).flip(1).repeat(1, 2)[:, None]
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    valid = finite & (boxes[..., 2:] - boxes[..., :2] > min_box_size).all(dim=-1)
    if len(anchors) > 1:
        order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        scores, levels, valid = (x.gather(1, order) for x in (scores, levels, valid))
    keep = suppress(boxes, levels, valid, nms_thresh)
    # What stays moves to the front.
    order = keep.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :post_nms_topk]
    kept = ProposalBatch(
        boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores.gather(1, order), keep.gather(1, order), image_sizes
    )
    return kept, finite.all()


def best_first(scores: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``limit`` highest of each row in descending order, and their indices; of equal ones the earlier first.

    Args:
        scores: (N, M).

    Returns:
        (N, k) and (N, k), k being ``limit`` or, if that is less, M.
    """
    limit = min(limit, scores.shape[1])
    if scores.device.type != "cpu":
        values, index = scores.sort(dim=1, descending=True, stable=True)
        return values[:, :limit], index[:, :limit]
    # A whole sort takes twenty times as long as the choice of a thirtieth; but the choice leaves equal scores in any
    # order, and may take a later one for an earlier.
    index = []
    for row, lowest in zip(scores, scores.topk(limit, dim=1).values[:, -1:]):
        chosen = (~(row < lowest)).nonzero()[:, 0]
        index.append(chosen[row[chosen].sort(descending=True, stable=True).indices[:limit]])
    index = torch.stack(index)
    return scores.gather(1, index), index


def suppress(boxes: torch.Tensor, groups: torch.Tensor | None, valid: torch.Tensor, nms_thresh: float) -> torch.Tensor:
    """Non-maximum suppression of padded boxes.

    Args:
        boxes: (N, k, 4), the better ones first.
        groups: (N, k) int64, or None for one group; boxes of different groups don't suppress each other.
        valid: (N, k) bool; the others neither stay nor suppress.
        nms_thresh: overlap above which the later box goes.

    Returns:
        (N, k) bool: which boxes stay.
    """
    if boxes.device.type != "cpu":
        step = max(1, PAIRS_AT_ONCE // max(1, boxes.shape[1] ** 2))
        parts = [slice(i, i + step) for i in range(0, len(boxes), step)]
        groups = [None if groups is None else groups[part] for part in parts]
        return torch.cat([suppress_in_rounds(boxes[p], g, valid[p], nms_thresh) for p, g in zip(parts, groups)])
    index = valid.flatten().nonzero()[:, 0]
    ranks = -torch.arange(boxes.shape[1], dtype=boxes.dtype).expand_as(valid)
    counts = valid.sum(dim=1).tolist()
    groups = torch.zeros_like(index) if groups is None else groups.flatten()[index]
    order, _ = nms_by_image(boxes.view(-1, 4)[index], ranks.flatten()[index], groups, counts, nms_thresh)
    keep = torch.zeros_like(valid)
    keep.view(-1)[index[order]] = True
    return keep


def suppress_in_rounds(
    boxes: torch.Tensor, groups: torch.Tensor | None, valid: torch.Tensor, nms_thresh: float
) -> torch.Tensor:
    """:func:`suppress` for a device that does many things at once.

    Suppression goes through the boxes one after the other; here all of them are judged in every round by those that
    stayed in the round before, until nothing changes. A round settles at least the first box that was not settled,
    and in practice a handful of rounds settles all.
    """
    count = boxes.shape[1]
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[:, :, None], x1[:, None]).sub_(torch.maximum(x0[:, :, None], x0[:, None])).clamp_(min=0)
    height = torch.minimum(y1[:, :, None], y1[:, None]).sub_(torch.maximum(y0[:, :, None], y0[:, None])).clamp_(min=0)
    both = width.mul_(height)
    overlap = both.div_((area[:, :, None] + area[:, None]).sub_(both)) > nms_thresh
    if groups is not None:
        overlap &= groups[:, :, None] == groups[:, None]
    # Row: the box that is judged; column: a better one. In half precision, zeros and ones stay what they are, and a sum
    # of ones is never 0.
    better = overlap.tril_(-1).to(torch.float16 if boxes.device.type == "cuda" else torch.float32)
    keep = valid
    for _ in range(0, count, _ROUNDS):
        for _ in range(_ROUNDS):
            before = keep
            rivals = torch.bmm(better, before[..., None].to(better.dtype))[..., 0]
            keep = valid & (rivals == 0)
        if torch.equal(keep, before):
            break
    return keep
