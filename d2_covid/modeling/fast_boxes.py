"""Detections from the box head's predictions, for a whole batch at once.

Shape shorthand: N images, R RoIs over all images, Ri of image i, K lesion classes.
"""

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import nn

from .box_predictor import LesionBoxPredictor
from .fast_nms import nms_by_image

Predictions = tuple[torch.Tensor, torch.Tensor]
"""Class logits (R, K + 1) and deltas (R, K * 4), or (R, 4) if they are class-agnostic."""


class FastBoxPredictor(nn.Module):
    """Stands in for Detectron2's box predictor, or :class:`LesionBoxPredictor`, in inference.

    Logits and deltas come in single precision, whatever the type of the features.
    """

    def __init__(self, predictor: FastRCNNOutputLayers):
        """
        Args:
            predictor: kept, and asked for scores and boxes.
        """
        super().__init__()
        self.plain = predictor
        self.num_classes = predictor.num_classes
        self.box2box_transform = predictor.box2box_transform
        self.test_score_thresh = predictor.test_score_thresh
        self.test_nms_thresh = predictor.test_nms_thresh
        self.test_topk_per_image = predictor.test_topk_per_image

    def forward(self, x: torch.Tensor) -> Predictions:
        return self.plain(x.float())

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> tuple[torch.Tensor, ...]:
        """N tensors (Ri, K + 1)."""
        return self.plain.predict_probs(predictions, proposals)

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> tuple[torch.Tensor, ...]:
        """N tensors (Ri, K * 4), or (Ri, 4)."""
        return self.plain.predict_boxes(predictions, proposals)

    def inference(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """As Detectron2's: N images' detections by descending score, and which of its Ri RoIs each comes from.

        Only what scores above the threshold is decoded.
        """
        num_rois = [len(p) for p in proposals]
        sizes = [p.image_size for p in proposals]
        probs, deltas = torch.cat(self.predict_probs(predictions, proposals)), predictions[1]
        finite = torch.isfinite(probs).all(1) & torch.isfinite(deltas).all(1)
        wanted = (probs[:, :-1] > self.test_score_thresh) & finite[:, None]
        roi, cls = wanted.nonzero(as_tuple=True)
        scores = probs[roi, cls]
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
        deltas = deltas[roi, cls if deltas.shape[1] > 1 else 0]
        boxes = self.box2box_transform.apply_deltas(
            deltas, torch.cat([p.proposal_boxes.tensor for p in proposals])[roi]
        )

        device = boxes.device
        image_of_roi = torch.repeat_interleave(
            torch.arange(len(sizes), device=device), torch.tensor(num_rois, device=device), output_size=len(probs)
        )
        image = image_of_roi[roi]
        limits = torch.tensor(sizes, dtype=boxes.dtype, device=device).flip(1).repeat(1, 2)
        boxes = torch.minimum(boxes.clamp_(min=0), limits[image])
        counts = torch.bincount(image, minlength=len(sizes)).tolist()
        order, kept = nms_by_image(boxes, scores, cls, counts, self.test_nms_thresh, self.test_topk_per_image)

        first_roi = torch.tensor([0, *num_rois[:-1]], device=device).cumsum(0)
        chosen = zip(sizes, *(x[order].split(kept) for x in (boxes, scores, cls, roi - first_roi[image])))
        instances, rois = [], []
        for size, boxes_of_image, scores_of_image, classes_of_image, rois_of_image in chosen:
            instances.append(
                Instances(size, pred_boxes=Boxes(boxes_of_image), scores=scores_of_image, pred_classes=classes_of_image)
            )
            rois.append(rois_of_image)
        return instances, rois


def can_be_fast_predictor(predictor: nn.Module) -> bool:
    """Whether :class:`FastBoxPredictor` stands in for it."""
    known = type(predictor) in (FastRCNNOutputLayers, LesionBoxPredictor)
    return known and type(predictor.box2box_transform) is Box2BoxTransform
