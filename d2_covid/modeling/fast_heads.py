"""The RoI heads as inference needs them, on all RoIs of a batch at once.

Shape shorthand: N images, R RoIs over all images, C channels, M x M bins of a RoI, K lesion classes.
"""

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from .fast_boxes import FastBoxPredictor, Predictions, can_be_fast_predictor
from .fast_convs import FastConv, can_be_fast
from .fast_mask_head import FastMaskHead, can_be_fast_mask_head
from .ranking import RankedBatch
from .roi_align import feature_table, groups_by_reach, roi_align_matrix
from .roi_features import can_be_quick, first_convolution, pool, roi_options
from .roi_heads import CovidROIHeads, LesionROIHeads
from .roi_pooling import pool_boxes, rois_of

ROIS_AT_ONCE = 256
"""RoIs that are pooled, then go through the box head, on a CPU: what they take, 13 MB, stays in the cache."""


class FastPooler(nn.Module):
    """A pooler that reads boxes in single precision, whatever the type of the features."""

    def __init__(self, pooler: ROIPooler, quick: bool = True):
        """
        Args:
            pooler: kept, for devices and shapes that :mod:`.roi_features` does not know.
            quick: whether to use that module at all.
        """
        super().__init__()
        self.plain, self.quick = pooler, quick
        self.output_size = tuple(pooler.output_size)

    def can_be_quick(self, features: list[torch.Tensor]) -> bool:
        """Whether RoIs are pooled by a sparse matrix."""
        return self.quick and can_be_quick(self.plain, features)

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, C, M, M), channels last, of the features' type."""
        if self.can_be_quick(features):
            return pool(self.plain, features, boxes)
        pooled = pool_boxes(self.plain, [x.float() for x in features], boxes)
        return pooled.to(dtype=features[0].dtype, memory_format=torch.channels_last)


class FastBoxHead(nn.Module):
    """Stands in for Detectron2's ``FastRCNNConvFCHead``: its weights in the order in which pooled features lie in
    memory, channels last."""

    def __init__(self, head: FastRCNNConvFCHead, channels: int, size: tuple[int, int]):
        """
        Args:
            channels, size: C, and M x M, of the input.
        """
        super().__init__()
        self.convs = nn.Sequential(*(FastConv.from_conv(conv) for conv in head.conv_norm_relus))
        if head.conv_norm_relus:
            channels = head.conv_norm_relus[-1].out_channels
        first = head.fcs[0].weight.detach().view(-1, channels, *size)
        self.weight = nn.Parameter(first.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(head.fcs[0].bias.detach(), requires_grad=False)
        self.fcs = nn.ModuleList(head.fcs[1:])
        self.channels = head.fcs[-1].out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C, M, M), best channels last, to (R, F)."""
        x = self.convs(x.contiguous(memory_format=torch.channels_last))
        if x.device.type == "cpu" and len(x):
            # As a convolution without padding, which runs a fifth faster than as a matrix product.
            x = F.relu_(F.conv2d(x, self.weight, self.bias)).flatten(1)
        else:
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)
            x = F.relu_(F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias))
        for layer in self.fcs:
            x = F.relu_(layer(x))
        return x


class FastROIHeads(nn.Module):
    """Stands in for ``StandardROIHeads`` or :class:`LesionROIHeads` in inference."""

    def __init__(self, heads: StandardROIHeads):
        super().__init__()
        quick = getattr(heads, "fast_pooling", True)
        self.num_classes = heads.num_classes
        self.box_in_features = list(heads.box_in_features)
        self.box_pooler = FastPooler(heads.box_pooler, quick)
        size = heads.box_pooler.output_size
        self.box_head = FastBoxHead(heads.box_head, _channels(heads.box_head, size), size)
        self.box_predictor = FastBoxPredictor(heads.box_predictor)
        self.mask_on, self.keypoint_on = heads.mask_on, False
        if self.mask_on:
            self.mask_in_features = list(heads.mask_in_features)
            self.mask_pooler = FastPooler(heads.mask_pooler, quick)
            self.mask_head = FastMaskHead(heads.mask_head)

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: None = None,
    ) -> tuple[list[Instances], dict]:
        """N images' instances with boxes, scores, classes and, if the model has them, masks of their boxes."""
        del images, targets
        instances, _ = self.box_predictor.inference(self.predict(features, proposals), proposals)
        return self.forward_with_given_boxes(features, instances), {}

    def predict(self, features: dict[str, torch.Tensor], proposals: list[Instances]) -> Predictions:
        """Class logits (R, K + 1) and deltas (R, K * 4) of all proposals, in single precision."""
        return self.box_predictor(self.box_features(features, [p.proposal_boxes for p in proposals]))

    def box_features(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """The box head's features (R, F) of N images' boxes."""
        maps = [features[name] for name in self.box_in_features]
        if not self.box_pooler.can_be_quick(maps):
            return self.box_head(self.box_pooler(maps, boxes))
        rois, options = rois_of(boxes), roi_options(self.box_pooler.plain, maps)
        table, (height, width) = feature_table(maps[0]), options["output_size"]
        out = table.new_empty(len(rois), self.box_head.channels)
        for group in groups_by_reach(rois, options["output_size"], options["spatial_scale"]):
            matrix = roi_align_matrix(rois[group], **options)
            for part, rows in zip(group.split(ROIS_AT_ONCE), matrix.parts(ROIS_AT_ONCE * height * width), strict=True):
                pooled = rows.apply(table).view(len(part), height, width, -1).permute(0, 3, 1, 2)
                out[part] = self.box_head(pooled)
        return out

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Give the instances, which know boxes and classes, ``pred_masks`` (Ri, 1, 2 M, 2 M), if the model has them."""
        if self.mask_on:
            maps = [features[name] for name in self.mask_in_features]
            mask_rcnn_inference(self.mask_logits(maps, [x.pred_boxes for x in instances]), instances)
        return instances

    def mask_logits(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, K, 2 M, 2 M) of N images' boxes."""
        pooler, head = self.mask_pooler, self.mask_head
        if not head.convs or not pooler.can_be_quick(features):
            return head.layers(pooler(features, boxes))
        # An image at a time: memory that its RoIs leave is taken by those of the next.
        images = [i for i, found in enumerate(boxes) if len(found)] or [0]
        return torch.cat([self._quick_mask_logits([x[i : i + 1] for x in features], [boxes[i]]) for i in images])

    def _quick_mask_logits(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        pooler, head = self.mask_pooler, self.mask_head
        first, *others = head.convs
        x = F.relu_(first_convolution(pooler.plain, first, features, boxes))
        for conv in others:
            x = conv(x)
        return head.upsampled(x)


class FastCovidROIHeads(FastROIHeads):
    """Stands in for :class:`CovidROIHeads` in inference."""

    rank = CovidROIHeads.rank

    def __init__(self, heads: CovidROIHeads):
        super().__init__(heads)
        self.image_classifier = heads.image_classifier
        self.ranking = heads.ranking

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor | RankedBatch]]:
        """The N images' instances, and ``{"image_logits": (N, C), "ranked": RankedBatch}``."""
        del images, targets
        predictions = self.predict(features, proposals)
        ranked = self.rank(predictions, proposals)
        image_logits = self.image_classifier(ranked.rows)
        instances, _ = self.box_predictor.inference(predictions, proposals)
        instances = self.forward_with_given_boxes(features, instances)
        return instances, {"image_logits": image_logits, "ranked": ranked}


def fast_heads(heads: nn.Module) -> FastROIHeads | None:
    """A fast equivalent of the heads, which takes over their weights; None if one of their parts is not known."""
    kinds = {StandardROIHeads: FastROIHeads, LesionROIHeads: FastROIHeads, CovidROIHeads: FastCovidROIHeads}
    if type(heads) not in kinds or heads.keypoint_on or type(heads.box_pooler) is not ROIPooler:
        return None
    box_head = heads.box_head
    if type(box_head) is not FastRCNNConvFCHead or not box_head.fcs or not can_be_fast_predictor(heads.box_predictor):
        return None
    if not all(can_be_fast(conv) for conv in box_head.conv_norm_relus):
        return None
    if heads.mask_on and not (type(heads.mask_pooler) is ROIPooler and can_be_fast_mask_head(heads.mask_head)):
        return None
    return kinds[type(heads)](heads)


def _channels(head: FastRCNNConvFCHead, size: tuple[int, int]) -> int:
    """Channels that enter the head's first layer."""
    if head.conv_norm_relus:
        return head.conv_norm_relus[0].in_channels
    return head.fcs[0].in_features // (size[0] * size[1])
