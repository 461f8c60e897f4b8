"""The RPN's proposals: its best anchors, decoded, clipped, and thinned out.

Shape shorthand: N images, L levels, A anchors at each of a level's h x w locations, P proposals at most.
"""

import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from torch import nn

from .boxes import anchors, clip, decode, larger_than
from .operators import Operators


class Proposals(nn.Module):
    """Detectron2's ``find_top_rpn_proposals`` in inference mode.

    Args:
        rpn: it stays as it is.
        operators: see :mod:`.operators`.
    """

    def __init__(self, rpn: RPN, operators: Operators):
        super().__init__()
        self.operators = operators
        generator = rpn.anchor_generator
        for number, cell in enumerate(generator.cell_anchors):
            self.register_buffer(f"cell_anchors_{number}", cell.detach().float().clone(), persistent=False)
        self.strides, self.offset = tuple(generator.strides), generator.offset
        self.weights = tuple(rpn.box2box_transform.weights)
        self.scale_clamp = rpn.box2box_transform.scale_clamp
        self.nms_threshold, self.least_size = rpn.nms_thresh, rpn.min_box_size
        self.before, self.after = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]

    def forward(
        self, logits: list[torch.Tensor], deltas: list[torch.Tensor], height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            logits: L times (N, A, h, w); deltas: L times (N, A * 4, h, w).
            height, width: of the image.

        Returns:
            Boxes (N, P, 4) in descending score, and (N, P) bool: which of them are proposals.
        """
        levels = [self._level(number, *level, height, width) for number, level in enumerate(zip(logits, deltas))]
        scores, boxes, found = (torch.cat(parts, dim=1) for parts in zip(*levels))
        if len(levels) > 1:
            order = self.operators.largest(torch.where(found, scores, float("-inf")), self.after)[1]
            found = found.gather(1, order)
            boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        elif self.after < self.before:
            found = found & (found.long().cumsum(1) <= self.after)
        return boxes, found

    def _level(
        self, number: int, logits: torch.Tensor, deltas: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cell_anchors = getattr(self, f"cell_anchors_{number}")
        placed = anchors(cell_anchors, *logits.shape[-2:], self.strides[number], self.offset)
        # (N, A * 4, h, w) to (N, h * w * A, 4), the order of the anchors.
        deltas = deltas.unflatten(1, (cell_anchors.shape[0], 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        scores = logits.permute(0, 2, 3, 1).flatten(1)
        scores, order = self.operators.largest(scores, self.before)
        deltas = deltas.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = decode(deltas, placed[order], self.weights, self.scale_clamp)
        finite = torch.isfinite(scores) & torch.isfinite(boxes).all(-1)
        boxes = clip(boxes, height, width)
        wanted = finite & larger_than(boxes, self.least_size)
        return scores, boxes, self.operators.suppress(boxes, scores, wanted, self.nms_threshold)
