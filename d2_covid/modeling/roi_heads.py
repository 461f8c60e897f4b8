"""ROI heads of the segmentation model and of the classifier.

Shape shorthand: N images, R RoIs over all images, Ri of image i, K lesion classes, D ranked detections an image,
C image classes.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ..errors import UserError, check_choice
from . import roi_features
from .box_predictor import LesionBoxPredictor
from .image_classifier import LOSSES, ImageClassifier, image_loss
from .ranking import FEATURES, PADDING, RankedBatch, rank_detections
from .roi_targets import BatchedTraining


@ROI_HEADS_REGISTRY.register()
class LesionROIHeads(BatchedTraining, StandardROIHeads):
    """``StandardROIHeads`` with :class:`LesionBoxPredictor` (softmax or sigmoid scores) and quick features of RoIs."""

    @configurable
    def __init__(self, *, fast_pooling: bool = True, **kwargs):
        """
        Args:
            fast_pooling: compute the heads' features by :mod:`.roi_features` instead of pooler, then head.
            kwargs: as for ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.fast_pooling = fast_pooling

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["fast_pooling"] = cfg.MODEL.ROI_HEADS.FAST_POOLING
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = LesionBoxPredictor(cfg, ret["box_head"].output_shape)
        return ret

    def box_features(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """The box head's features (R, F) of N images' boxes."""
        features = [features[name] for name in self.box_in_features]
        if not self.fast_pooling:
            return self.box_head(self.box_pooler(features, boxes))
        return roi_features.box_features(self.box_pooler, self.box_head, features, boxes)

    def _forward_box(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """As Detectron2's: losses in training, detections in inference."""
        if self.train_on_pred_boxes or not self.fast_pooling:
            return super()._forward_box(features, proposals)
        predictions = self.box_predictor(self.box_features(features, [x.proposal_boxes for x in proposals]))
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0]

    def mask_logits(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """The mask head's logits (R, K, 2 M, 2 M) of N images' boxes, M x M the size of their pooled features."""
        features = [features[name] for name in self.mask_in_features]
        if not self.fast_pooling:
            return self.mask_head.layers(self.mask_pooler(features, boxes))
        return roi_features.mask_logits(self.mask_pooler, self.mask_head, features, boxes)

    def _forward_mask(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """As Detectron2's: losses in training, the instances with their masks in inference."""
        known = self.mask_on and self.mask_pooler is not None and type(self.mask_head) is MaskRCNNConvUpsampleHead
        if not known or not self.fast_pooling:
            return super()._forward_mask(features, instances)
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        logits = self.mask_logits(features, boxes)
        if self.training:
            loss = mask_rcnn_loss(logits, instances, self.mask_head.vis_period)
            return {"loss_mask": loss * self.mask_head.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances


@dataclass(frozen=True)
class RankingOptions:
    """How an image's detections become its ranked batch: the keyword arguments of :func:`rank_detections`."""

    num_rois: int
    features: str
    score_thresh: float
    nms_thresh: float
    drop_empty: bool
    padding: str
    padding_seed: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "RankingOptions":
        """The options in ``MODEL.CLASSIFIER``.

        Raises:
            UserError: a name that is not known.
        """
        node = cfg.MODEL.CLASSIFIER
        check_choice("MODEL.CLASSIFIER.FEATURES", node.FEATURES, FEATURES)
        check_choice("MODEL.CLASSIFIER.PADDING", node.PADDING, PADDING)
        return cls(
            num_rois=node.NUM_ROIS,
            features=node.FEATURES,
            score_thresh=node.SCORE_THRESH,
            nms_thresh=node.NMS_THRESH,
            drop_empty=node.DROP_EMPTY,
            padding=node.PADDING,
            padding_seed=node.PADDING_SEED,
        )


@ROI_HEADS_REGISTRY.register()
class CovidROIHeads(LesionROIHeads):
    """The segmentation model's heads, frozen in inference mode, and module S on their ranked detections.

    In training it takes the images' classes and returns the image loss. In inference it returns the very instances
    that the segmentation model would, masks included where ``MODEL.MASK_ON`` is set, and the image logits, which
    depend on neither masks nor the thresholds of the instances.
    """

    @configurable
    def __init__(
        self,
        *,
        image_classifier: nn.Module,
        ranking: RankingOptions,
        loss: str = "bce",
        class_weights: Sequence[float] = (),
        **kwargs,
    ):
        """
        Args:
            image_classifier: module S, (N, D, 5) to (N, C).
            ranking: how detections are ranked.
            loss: ``"bce"`` or ``"ce"``.
            class_weights: C numbers, or empty.
            kwargs: as for ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.image_classifier = image_classifier
        self.ranking = ranking
        self.loss = loss
        self.class_weights = tuple(class_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        node = cfg.MODEL.CLASSIFIER
        check_choice("MODEL.CLASSIFIER.LOSS", node.LOSS, LOSSES)
        if node.CLASS_WEIGHTS and len(node.CLASS_WEIGHTS) != node.NUM_CLASSES:
            raise UserError(
                f"MODEL.CLASSIFIER.CLASS_WEIGHTS has {len(node.CLASS_WEIGHTS)} numbers for {node.NUM_CLASSES} classes."
            )
        if node.CLASS_WEIGHTS and not (min(node.CLASS_WEIGHTS) >= 0 and 0 < sum(node.CLASS_WEIGHTS) < math.inf):
            raise UserError(
                f"MODEL.CLASSIFIER.CLASS_WEIGHTS {tuple(node.CLASS_WEIGHTS)}: each is 0 or more, and not all are 0."
            )
        ret["image_classifier"] = ImageClassifier(cfg)
        ret["ranking"] = RankingOptions.from_config(cfg)
        ret["loss"] = node.LOSS
        ret["class_weights"] = node.CLASS_WEIGHTS
        return ret

    def train(self, mode: bool = True) -> "CovidROIHeads":
        """Training mode is for module S alone; the detector's heads stay in inference mode."""
        super().train(False)
        self.training = mode
        self.image_classifier.train(mode)
        return self

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: torch.Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor | RankedBatch]]:
        """
        Args:
            targets: (N,) int64 image classes; needed in training only.

        Returns:
            In training: no instances, and ``{"loss_image": scalar}``.
            In inference: the N images' instances, and ``{"image_logits": (N, C), "ranked": RankedBatch}``.
        """
        del images
        predictions = self.predict(features, proposals)
        ranked = self.rank(predictions, proposals)
        if self.training:
            return [], self.image_losses(ranked.rows, targets)
        image_logits = self.image_classifier(ranked.rows)
        instances, _ = self.box_predictor.inference(predictions, proposals)
        instances = self.forward_with_given_boxes(features, instances)
        return instances, {"image_logits": image_logits, "ranked": ranked}

    def predict(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (R, K + 1) and deltas (R, K * 4) of all proposals, in single precision.

        Also under autocast, so that training ranks as evaluation does: in bfloat16, scores near 1 are 1/256 apart.
        """
        found = self.box_features(features, [p.proposal_boxes for p in proposals])
        with torch.autocast(found.device.type, enabled=False):
            return self.box_predictor(found.float())

    def image_losses(self, rows: torch.Tensor, image_classes: torch.Tensor) -> dict[str, torch.Tensor]:
        """``{"loss_image": scalar}`` of ranked rows (N, D, 5) with their images' classes (N,), in single precision."""
        with torch.autocast(rows.device.type, enabled=False):  # it would round the scores again
            logits = self.image_classifier(rows)
        return {"loss_image": image_loss(logits, image_classes, self.loss, self.class_weights)}

    def rank(self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]) -> RankedBatch:
        """The ranked batch of the box head's predictions, differentiable in both."""
        scores = torch.cat(self.box_predictor.predict_probs(predictions, proposals))[:, :-1]
        boxes = torch.cat(self.box_predictor.predict_boxes(predictions, proposals))
        return rank_detections(
            scores,
            predictions[1],
            boxes,
            [len(p) for p in proposals],
            [p.image_size for p in proposals],
            **vars(self.ranking),
        )
