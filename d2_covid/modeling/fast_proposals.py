"""Detectron2's region proposal network in inference: the same proposals in the same order, for less work.

The best anchors are chosen by their logits; only theirs are placed and decoded, and no Python runs per anchor or box.

Shape shorthand: N images, L feature levels, A anchors at a location, k anchors chosen on a level.
"""

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from .fast_convs import FastConv, can_be_fast, folded
from .fast_nms import nms_by_image
from .proposal_generator import LesionRPN
from .proposals import best_first


class FastRPNHead(nn.Module):
    """Detectron2's ``StandardRPNHead`` with logits and deltas from one convolution.

    The last convolution stays in single precision, whatever the type of the features: anchors are ranked by it.
    """

    def __init__(self, head: StandardRPNHead):
        super().__init__()
        self.num_anchors = head.objectness_logits.out_channels
        hidden = head.conv if isinstance(head.conv, nn.Sequential) else [head.conv]
        self.hidden = nn.Sequential(*(FastConv.from_conv(conv) for conv in hidden))
        parts = [folded(conv) for conv in (head.objectness_logits, head.anchor_deltas)]
        self.predictor = FastConv(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]))

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        Returns:
            L tensors (N, h, w, A + 4 A): logits, then deltas, four after four.
        """
        dtype = self.predictor.weight.dtype
        return [self.predictor(self.hidden(x).to(dtype)).permute(0, 2, 3, 1) for x in features]


class FastRPN(nn.Module):
    """Stands in for a Detectron2 ``RPN`` in inference mode."""

    def __init__(self, rpn: RPN):
        super().__init__()
        self.in_features = list(rpn.in_features)
        self.rpn_head = FastRPNHead(rpn.rpn_head)
        self.anchor_generator = rpn.anchor_generator
        self.box2box_transform = rpn.box2box_transform
        self.pre_nms_topk, self.post_nms_topk = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        self.nms_thresh, self.min_box_size = rpn.nms_thresh, rpn.min_box_size

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: None = None
    ) -> tuple[list[Instances], dict]:
        """As Detectron2's ``RPN`` in inference: N instances with ``proposal_boxes`` and ``objectness_logits``."""
        del gt_instances
        return self.propose(self.predict(features), images.image_sizes), {}

    def predict(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The dense part: the head's L outputs."""
        return self.rpn_head([features[name] for name in self.in_features])

    def propose(self, predictions: list[torch.Tensor], image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """The rest: N images' proposals, by descending logit."""
        levels = [self._best(level, x) for level, x in enumerate(predictions)]
        boxes, logits = (torch.cat(parts, dim=1) for parts in zip(*levels))
        level_of = torch.cat(
            [torch.full(part.shape[1:], i, device=boxes.device) for i, (_, part) in enumerate(levels)]
        ).expand_as(logits)

        heights_widths = torch.tensor(image_sizes, dtype=boxes.dtype, device=boxes.device)
        finite = torch.isfinite(boxes).all(-1) & torch.isfinite(logits)
        boxes = torch.minimum(boxes.clamp_(min=0), heights_widths.flip(1).repeat(1, 2)[:, None])
        wanted = finite & (boxes[..., 2:] - boxes[..., :2] > self.min_box_size).all(-1)
        counts = wanted.sum(1).tolist()
        index = wanted.flatten().nonzero()[:, 0]
        boxes, logits, level_of = boxes.view(-1, 4)[index], logits.flatten()[index], level_of.flatten()[index]
        order, kept = nms_by_image(boxes, logits, level_of, counts, self.nms_thresh, self.post_nms_topk)
        return [
            Instances(size, proposal_boxes=Boxes(part_boxes), objectness_logits=part_logits)
            for size, part_boxes, part_logits in zip(image_sizes, boxes[order].split(kept), logits[order].split(kept))
        ]

    def _best(self, level: int, predictions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (N, k, 4) and logits (N, k) of a level's best anchors."""
        num_images, _, columns, channels = predictions.shape
        anchors = self.rpn_head.num_anchors
        logits, index = best_first(predictions[..., :anchors].flatten(1), self.pre_nms_topk)
        location, anchor = index // anchors, index % anchors
        first = location * channels + anchors + 4 * anchor
        where = (first[..., None] + torch.arange(4, device=first.device)).flatten(1)
        deltas = predictions.flatten(1).gather(1, where).view(-1, 4)

        cells = list(self.anchor_generator.cell_anchors)[level]
        stride = self.anchor_generator.strides[level]
        offset = self.anchor_generator.offset * stride
        shifts = torch.stack((location % columns, location // columns), dim=-1) * stride + offset
        placed = shifts.to(cells.dtype).repeat(1, 1, 2) + cells[anchor]
        boxes = self.box2box_transform.apply_deltas(deltas, placed.view(-1, 4))
        return boxes.view(num_images, -1, 4), logits


def can_be_fast_rpn(rpn: nn.Module) -> bool:
    """Whether :class:`FastRPN` stands in for it: Detectron2's own RPN, or ours, which predicts the same, with
    Detectron2's head, anchors and box transform."""
    if type(rpn) not in (RPN, LesionRPN) or type(rpn.rpn_head) is not StandardRPNHead:
        return False
    if type(rpn.anchor_generator) is not DefaultAnchorGenerator or type(rpn.box2box_transform) is not Box2BoxTransform:
        return False
    head = rpn.rpn_head
    hidden = head.conv if isinstance(head.conv, nn.Sequential) else [head.conv]
    convs = [*hidden, head.objectness_logits, head.anchor_deltas]
    return all(can_be_fast(conv) for conv in convs) and all(
        conv.kernel_size == (1, 1) and conv.stride == (1, 1) for conv in convs[-2:]
    )
