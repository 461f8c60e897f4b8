"""The region proposal network that trains a whole batch at once.

Shape shorthand: N images, L feature levels, A anchors at a location, M anchors over all levels, P proposals an image.
"""

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import smooth_l1_loss
from torch.nn import functional as F

from .matching import GroundTruth, box_deltas, match_boxes, sample_labels
from .proposals import ProposalBatch, find_proposals
from .scalars import put_scalars


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN(RPN):
    """Detectron2's ``RPN``, which trains without a loop over images.

    Weights, inference, labels of anchors, quotas, losses and proposals are Detectron2's. The anchors that enter the
    loss are drawn with the same chances, by other random numbers. A GPU is waited for once a batch, by suppression.

    Where Detectron2 stops at proposals that are not finite, ``loss_rpn_cls`` becomes NaN, which a training loop looks
    for anyway.
    """

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[ProposalBatch | list[Instances], dict[str, torch.Tensor]]:
        """As Detectron2's; in training the proposals are a :class:`.proposals.ProposalBatch`, a sequence of
        ``Instances``."""
        if not (self.training and self._is_plain()):
            return super().forward(images, features, gt_instances)
        features = [features[name] for name in self.in_features]
        anchors = [boxes.tensor for boxes in self.anchor_generator(features)]
        logits, deltas = self.rpn_head(features)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
        losses = self.batch_losses(anchors, logits, deltas, gt_instances)
        with torch.no_grad():
            proposals, finite = find_proposals(
                anchors,
                logits,
                deltas,
                images.image_sizes,
                self.box2box_transform,
                pre_nms_topk=self.pre_nms_topk[True],
                post_nms_topk=self.post_nms_topk[True],
                nms_thresh=self.nms_thresh,
                min_box_size=self.min_box_size,
            )
        losses["loss_rpn_cls"] = losses["loss_rpn_cls"].where(finite, torch.nan)
        return proposals, losses

    def _is_plain(self) -> bool:
        return self.box_reg_loss_type == "smooth_l1" and type(self.box2box_transform) is Box2BoxTransform

    def batch_losses(
        self,
        anchors: list[torch.Tensor],
        logits: list[torch.Tensor],
        deltas: list[torch.Tensor],
        gt_instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """``loss_rpn_cls`` and ``loss_rpn_loc``, of a sample of the anchors.

        Args:
            anchors: L tensors (HWA, 4).
            logits: L tensors (N, HWA).
            deltas: L tensors (N, HWA, 4).
        """
        anchors, logits, deltas = torch.cat(anchors), _joined(logits), _joined(deltas)
        num_images = len(gt_instances)
        with torch.no_grad():
            truth = GroundTruth.of([x.gt_boxes.tensor for x in gt_instances])
            matched, labels = match_boxes(truth, anchors[None], self.anchor_matcher)
            foreground, background = labels == 1, labels == 0
            if self.anchor_boundary_thresh >= 0:
                inside = [Boxes(anchors).inside_box(x.image_size, self.anchor_boundary_thresh) for x in gt_instances]
                inside = torch.stack(inside)
                foreground, background = foreground & inside, background & inside
            sample = sample_labels(foreground, background, self.batch_size_per_image, self.positive_fraction)
            target_boxes = _rows(truth.boxes, matched.gather(1, sample.positive))
            chosen_anchors = anchors[sample.positive]
            # An anchor that does not count is its own target: its deltas are finite.
            target_boxes = torch.where(sample.is_positive[..., None], target_boxes, chosen_anchors)
            target_deltas = box_deltas(self.box2box_transform, chosen_anchors, target_boxes)
            counted = torch.cat((sample.is_positive, sample.is_negative), dim=1)
            targets = torch.zeros(counted.shape, device=counted.device)
            targets[:, : sample.positive.shape[1]] = 1
            put_scalars(
                {
                    "rpn/num_pos_anchors": sample.is_positive.sum() / num_images,
                    "rpn/num_neg_anchors": sample.is_negative.sum() / num_images,
                }
            )
        chosen_logits = logits.gather(1, torch.cat((sample.positive, sample.negative), dim=1))
        objectness = F.binary_cross_entropy_with_logits(chosen_logits.float(), targets, reduction="none")
        chosen_deltas = _rows(deltas, sample.positive)
        localization = smooth_l1_loss(chosen_deltas.float(), target_deltas, beta=self.smooth_l1_beta, reduction="none")
        normalizer = self.batch_size_per_image * num_images
        losses = {
            "loss_rpn_cls": objectness.where(counted, 0).sum() / normalizer,
            "loss_rpn_loc": localization.where(sample.is_positive[..., None], 0).sum() / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}


def _joined(levels: list[torch.Tensor]) -> torch.Tensor:
    return levels[0] if len(levels) == 1 else torch.cat(levels, dim=1)


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """From (N, M, 4) the rows (N, S) of each image: (N, S, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
