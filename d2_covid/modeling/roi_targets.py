"""What the ROI heads learn from, for a whole batch at once: sampled RoIs, box targets, mask targets, and the losses.

Shape shorthand: N images, P proposals of an image after padding, R RoIs sampled over all images, F of them foreground,
K lesion classes, T ground-truth masks over all images, M x M mask cells.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Sequence

import torch
from detectron2.layers import cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from fvcore.nn import smooth_l1_loss
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from .matching import GroundTruth, box_deltas, first_true, match_boxes, padded, sample_labels, to_device
from .proposals import ProposalBatch
from .scalars import put_scalars

PIXELS_AT_ONCE = 1 << 26
"""Mask pixels that are held in single precision at a time: 256 MiB."""


@dataclass(frozen=True)
class SampledRoIs:
    """RoIs drawn for training, image after image, an image's foreground before its background.

    Attributes:
        rois: (R, 5) rows ``[image, x0, y0, x1, y1]``.
        gt_classes: (R,) int64, K for background.
        gt_boxes: (R, 4) of the matched ground truth; any box for background.
        foreground: (F,) int64: which of the R are foreground.
        gt_index: (F,) int64: their ground truth, counted over the images.
        counts, foreground_counts: RoIs of each image.
    """

    rois: torch.Tensor
    gt_classes: torch.Tensor
    gt_boxes: torch.Tensor
    foreground: torch.Tensor
    gt_index: torch.Tensor
    counts: list[int]
    foreground_counts: list[int]


@torch.no_grad()
def sample_rois(
    proposals: Sequence[Instances],
    targets: list[Instances],
    *,
    matcher: Matcher,
    num_classes: int,
    batch_size_per_image: int,
    positive_fraction: float,
    append_gt: bool = True,
) -> SampledRoIs:
    """Detectron2's ``ROIHeads.label_and_sample_proposals``; the device is waited for once, to learn how many there are.

    Args:
        proposals: N images'; a :class:`.proposals.ProposalBatch` is read as it is.
        targets: N images' ``gt_boxes`` and ``gt_classes``.
        matcher: IoU thresholds and labels.
        num_classes: K.
        batch_size_per_image, positive_fraction: how many RoIs an image gives, and at most what share of foreground.
        append_gt: whether ground-truth boxes are proposals too.
    """
    batch = ProposalBatch.of(proposals)
    boxes, valid, device = batch.boxes, batch.valid, batch.boxes.device
    truth = GroundTruth.of([x.gt_boxes.tensor for x in targets])
    classes, _ = padded([x.gt_classes for x in targets], truth.boxes.shape[1])
    if append_gt:
        boxes, valid = torch.cat((boxes, truth.boxes), dim=1), torch.cat((valid, truth.valid), dim=1)
    matched, labels = match_boxes(truth, boxes, matcher)
    some = to_device([count > 0 for count in truth.counts], device)[:, None]
    sample = sample_labels(
        valid & some & (labels == 1), valid & ((labels == 0) | ~some), batch_size_per_image, positive_fraction
    )
    index = torch.cat((sample.positive, sample.negative), dim=1)
    chosen = torch.cat((sample.is_positive, sample.is_negative), dim=1)
    numbers = torch.stack((sample.is_positive.sum(dim=1), chosen.sum(dim=1))).tolist()
    foreground_counts, counts = numbers
    put_scalars(
        {
            "roi_head/num_fg_samples": sample.is_positive.sum() / len(targets),
            "roi_head/num_bg_samples": sample.is_negative.sum() / len(targets),
        }
    )

    flat = first_true(chosen.flatten(), sum(counts))
    image = flat // index.shape[1]
    box = image * boxes.shape[1] + index.flatten()[flat]
    is_foreground = sample.is_positive.new_zeros(chosen.shape)
    is_foreground[:, : sample.is_positive.shape[1]] = sample.is_positive
    is_foreground = is_foreground.flatten()[flat]
    gt_of_image = matched.flatten()[box]
    gt = image * truth.boxes.shape[1] + gt_of_image
    foreground = first_true(is_foreground, sum(foreground_counts))
    first_gt = to_device([0, *accumulate(truth.counts[:-1])], device)
    return SampledRoIs(
        rois=torch.cat((image.to(boxes.dtype)[:, None], boxes.view(-1, 4)[box]), dim=1),
        gt_classes=classes.flatten()[gt].where(is_foreground, num_classes),
        gt_boxes=truth.boxes.view(-1, 4)[gt],
        foreground=foreground,
        gt_index=(first_gt[image] + gt_of_image)[foreground],
        counts=counts,
        foreground_counts=foreground_counts,
    )


def box_losses(
    predictor: FastRCNNOutputLayers, predictions: tuple[torch.Tensor, torch.Tensor], sampled: SampledRoIs
) -> dict[str, torch.Tensor]:
    """``loss_cls`` and ``loss_box_reg``, as ``FastRCNNOutputLayers.losses`` gives them (smooth L1)."""
    logits, deltas = predictions
    classes, foreground = sampled.gt_classes, sampled.foreground
    deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4).index_select(0, foreground)
    deltas = of_class(deltas, classes[foreground])
    target = box_deltas(predictor.box2box_transform, sampled.rois[foreground, 1:], sampled.gt_boxes[foreground])
    regression = smooth_l1_loss(deltas, target, predictor.smooth_l1_beta, reduction="sum") / max(len(classes), 1)
    _log_classes(logits.detach(), sampled)
    losses = {"loss_cls": cross_entropy(logits, classes), "loss_box_reg": regression}
    return {name: loss * predictor.loss_weight.get(name, 1.0) for name, loss in losses.items()}


def of_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """From (F, K, ...) what belongs to each RoI's class: (F, ...); from (F, 1, ...) what there is."""
    if values.shape[1] == 1:
        return values[:, 0]
    index = classes.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)[:, 0]


def _log_classes(logits: torch.Tensor, sampled: SampledRoIs) -> None:
    if not len(logits):
        return
    predicted, background = logits.argmax(dim=1), logits.shape[1] - 1
    right = (predicted == sampled.gt_classes).float()
    scalars = {"fast_rcnn/cls_accuracy": right.mean()}
    if len(sampled.foreground):
        scalars["fast_rcnn/fg_cls_accuracy"] = right[sampled.foreground].mean()
        scalars["fast_rcnn/false_negative"] = (predicted[sampled.foreground] == background).float().mean()
    put_scalars(scalars)


@torch.no_grad()
def mask_targets(masks: list[torch.Tensor], sampled: SampledRoIs, size: int) -> torch.Tensor:
    """What Detectron2's ``BitMasks.crop_and_resize`` cuts out, without a copy of a mask for each RoI.

    Args:
        masks: N tensors (Ti, h, w) bool, each of its image's own size.
        size: M.

    Returns:
        (F, M, M) bool.
    """
    rois, parts = sampled.rois[sampled.foreground], []
    first_roi = first_mask = 0
    for start, end in _together([tuple(x.shape) for x in masks]):
        end_roi = first_roi + sum(sampled.foreground_counts[start:end])
        part = slice(first_roi, end_roi)
        image_masks = torch.cat(masks[start:end]) if end - start > 1 else masks[start]
        if part.start < part.stop:
            index = sampled.gt_index[part] - first_mask
            if len(image_masks) > len(index):  # single precision for as few as there are RoIs
                chosen, index = image_masks[index], torch.arange(len(index), device=rois.device)
            else:
                chosen = image_masks
            with torch.autocast(rois.device.type, enabled=False):
                parts.append(
                    roi_align(
                        chosen[:, None].float(),
                        torch.cat((index.to(rois.dtype)[:, None], rois[part, 1:]), dim=1),
                        (size, size),
                        sampling_ratio=0,
                        aligned=True,
                    )
                )
        first_roi, first_mask = end_roi, first_mask + len(image_masks)
    return torch.cat(parts)[:, 0] >= 0.5 if parts else rois.new_zeros(0, size, size, dtype=torch.bool)


def _together(shapes: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Runs of neighbouring images whose masks are of one size and not too many: pairs of first and end."""
    runs, start, pixels = [], 0, 0
    for i, (count, height, width) in enumerate(shapes):
        more = count * height * width
        if i > start and (shapes[i][1:] != shapes[start][1:] or pixels + more > PIXELS_AT_ONCE):
            runs.append((start, i))
            start, pixels = i, 0
        pixels += more
    return [*runs, (start, len(shapes))]


def mask_loss(logits: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Detectron2's ``mask_rcnn_loss``.

    Args:
        logits: (F, K, M, M), or (F, 1, M, M) if they are class-agnostic.
        classes: (F,) int64.
        targets: (F, M, M) bool.
    """
    if not len(logits):
        return logits.sum() * 0
    logits = of_class(logits, classes)
    _log_masks(logits.detach(), targets)
    return F.binary_cross_entropy_with_logits(logits, targets.float())


def _log_masks(logits: torch.Tensor, targets: torch.Tensor) -> None:
    wrong, cells = (logits > 0) != targets, targets.numel()
    positive, all_wrong, missed = targets.sum(), wrong.sum(), (wrong & targets).sum()
    put_scalars(
        {
            "mask_rcnn/accuracy": 1 - all_wrong / cells,
            "mask_rcnn/false_positive": (all_wrong - missed) / (cells - positive).clamp(min=1),
            "mask_rcnn/false_negative": missed / positive.clamp(min=1),
        }
    )


class BatchedTraining:
    """Lets :class:`.roi_heads.LesionROIHeads` train without a loop over images; mixed in before ``StandardROIHeads``.

    Labels, quotas, targets and losses are Detectron2's; the RoIs are drawn with the same chances, by other random
    numbers. A GPU is waited for once a batch. Heads of other kinds than the usual train as Detectron2 does.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: Sequence[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[Sequence[Instances], dict[str, torch.Tensor]]:
        """As ``StandardROIHeads``; in training the proposals come back as they were, and with the losses."""
        if not (self.training and trains_batched(self, targets)):
            return super().forward(images, features, proposals, targets)
        sampled = sample_rois(
            proposals,
            targets,
            matcher=self.proposal_matcher,
            num_classes=self.num_classes,
            batch_size_per_image=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            append_gt=self.proposal_append_gt,
        )
        losses = self._batch_box_losses(features, sampled)
        if self.mask_on:
            losses |= self._batch_mask_losses(features, sampled, [_masks(x) for x in targets])
        return proposals, losses

    def _batch_box_losses(self, features: dict[str, torch.Tensor], sampled: SampledRoIs) -> dict[str, torch.Tensor]:
        boxes = [Boxes(x) for x in sampled.rois[:, 1:].split(sampled.counts)]
        return box_losses(self.box_predictor, self.box_predictor(self.box_features(features, boxes)), sampled)

    def _batch_mask_losses(
        self, features: dict[str, torch.Tensor], sampled: SampledRoIs, masks: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        boxes = [Boxes(x) for x in sampled.rois[sampled.foreground, 1:].split(sampled.foreground_counts)]
        logits = self.mask_logits(features, boxes)
        targets = mask_targets(masks, sampled, logits.shape[-1])
        loss = mask_loss(logits, sampled.gt_classes[sampled.foreground], targets)
        return {"loss_mask": loss * self.mask_head.loss_weight}


def trains_batched(heads: nn.Module, targets: list[Instances]) -> bool:
    """Whether the heads and their ground truth are of the kind that :class:`BatchedTraining` knows."""
    predictor = heads.box_predictor
    if heads.keypoint_on or heads.train_on_pred_boxes or not targets:
        return False
    if type(predictor).losses is not FastRCNNOutputLayers.losses or predictor.box_reg_loss_type != "smooth_l1":
        return False
    # Of later versions of Detectron2: a sigmoid of each class in the loss, which its federated loss needs too.
    if type(predictor.box2box_transform) is not Box2BoxTransform or getattr(predictor, "use_sigmoid_ce", False):
        return False
    if not heads.mask_on:
        return True
    known = isinstance(heads.mask_head, BaseMaskRCNNHead) and heads.mask_pooler is not None
    masks_known = all(not len(x) or isinstance(x.gt_masks, BitMasks) for x in targets)
    return known and not heads.mask_head.vis_period and masks_known


def _masks(target: Instances) -> torch.Tensor:
    """An image's ground-truth masks (Ti, h, w) bool; Detectron2's own mapper gives none to an image without lesions."""
    if len(target):
        return target.gt_masks.tensor
    return torch.zeros(0, *target.image_size, dtype=torch.bool, device=target.gt_boxes.device)
