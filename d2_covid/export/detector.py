"""The whole detector as one module without Detectron2's structures: from slices to detections, masks, image scores.

Shape shorthand: N images, P proposals at most and R in all of them, K lesion classes, M detections in all images, D
ranked detections an image, C image classes.
"""

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn

from ..errors import UserError
from ..modeling.box_predictor import LesionBoxPredictor
from ..modeling.roi_heads import CovidROIHeads, LesionROIHeads
from .boxes import clip, decode
from .dense import DensePart
from .layers import folded_copy, plain_layers
from .operators import PLAIN, Operators, suppress_classes
from .pooling import Pooler
from .proposals import Proposals
from .ranked import RankedPart


class WholeModel(nn.Module):
    """A segmentation model or classifier in inference mode; takes slices as they are, and gives what it detects.

    Shapes follow what is found: an image without any detection gives none. Boxes are in pixels of the input.

    Args:
        model: a ``GeneralizedRCNN`` or ``CovidCTMaskNet``; it stays as it is.
        operators: :data:`.operators.PLAIN` or :data:`.operators.ONNX`.

    Raises:
        UserError: it has a part that can't be exported.
    """

    def __init__(self, model: GeneralizedRCNN, operators: Operators = PLAIN):
        super().__init__()
        heads = model.roi_heads
        _check_heads(heads)
        self.operators = operators
        self.dense = DensePart(model)
        self.proposals = Proposals(model.proposal_generator, operators)

        predictor = heads.box_predictor
        self.box_features = tuple(heads.box_in_features)
        self.box_pooler = Pooler(heads.box_pooler)
        self.box_head = plain_layers(folded_copy(heads.box_head))
        self.class_logits, self.deltas = folded_copy(predictor.cls_score), folded_copy(predictor.bbox_pred)
        # The second is a later Detectron2's, MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE.
        self.sigmoid = getattr(predictor, "score_function", "softmax") == "sigmoid"
        self.sigmoid |= getattr(predictor, "use_sigmoid_ce", False)
        self.weights = tuple(predictor.box2box_transform.weights)
        self.scale_clamp = predictor.box2box_transform.scale_clamp
        self.num_classes = self.class_logits.out_features - 1
        self.score_threshold = predictor.test_score_thresh
        self.nms_threshold = predictor.test_nms_thresh
        self.most_detections = predictor.test_topk_per_image

        self.with_masks = heads.mask_on
        if self.with_masks:
            self.mask_features = tuple(heads.mask_in_features)
            self.mask_pooler = Pooler(heads.mask_pooler)
            self.mask_head = nn.Sequential(*plain_layers(folded_copy(heads.mask_head)).children())
        self.ranked = RankedPart(heads, model.temperature, operators) if isinstance(heads, CovidROIHeads) else None

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: (N, H, W) ``uint8``.

        Returns:
            What :func:`.outputs.outputs_of` describes: ``image_index`` (M,) int64, ascending; ``boxes`` (M, 4) XYXY;
            ``scores`` (M,), descending in each image; ``classes`` (M,) int64; ``masks`` (M, 28, 28) probabilities over
            the boxes; then what :class:`.ranked.RankedPart` gives.
        """
        height, width = image.shape[-2:]
        features, logits, deltas = self.dense.parts(image)
        proposals, found = self.proposals(logits, deltas, height, width)  # (N, P, 4), (N, P)
        of_image, at = found.nonzero(as_tuple=True)
        boxes = proposals[of_image, at]
        scores, deltas, boxes = self._box_head(features, of_image, boxes)

        finite = torch.isfinite(scores).all(1) & torch.isfinite(boxes).flatten(1).all(1)
        clipped = clip(boxes, height, width)
        lesion = scores[:, : self.num_classes]
        parts = [lesion[..., None], clipped, (finite[:, None] & (lesion > self.score_threshold))[..., None]]
        if self.ranked is not None:
            parts += [deltas, self.ranked.wanted(lesion, deltas, boxes, clipped)[..., None]]
        # From a list of what all images have to a table with a row for each image: (N, P, K, 6 or 11).
        table = torch.cat([part.to(lesion.dtype) for part in parts], dim=-1)
        table = table.new_zeros(*found.shape, *table.shape[1:]).index_put((of_image, at), table)

        detected = self._detections(table)
        masks = (self._masks(features, *detected),) if self.with_masks else ()
        of_image, boxes, scores, classes = detected
        ranked = () if self.ranked is None else self.ranked(table, height, width)
        return (of_image, boxes, scores, classes, *masks, *ranked)

    def _box_head(
        self, features: dict[str, torch.Tensor], of_image: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of R proposals: scores (R, K + 1), deltas (R, K, 4) and boxes (R, K, 4), not clipped."""
        x = self.box_head(self.box_pooler([features[name] for name in self.box_features], of_image, boxes)).flatten(1)
        logits = self.class_logits(x)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(1)
        deltas = self.deltas(x)
        # -1 could be any number to an exporter that does not know R.
        deltas = deltas.reshape(deltas.shape[0], deltas.shape[1] // 4, 4).expand(-1, self.num_classes, -1)
        return scores, deltas, decode(deltas, boxes[:, None], self.weights, self.scale_clamp)

    def _detections(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image, box, score and class of the M detections."""
        kept = suppress_classes(self.operators, table, table[..., 5] > 0, self.nms_threshold)
        scores = torch.where(kept, table[..., 0], float("-inf")).flatten(1)
        count = self.most_detections if self.most_detections >= 0 else scores.shape[1]
        scores, order = self.operators.largest(scores, count)
        of_image, rank = (scores > float("-inf")).nonzero(as_tuple=True)
        place = order[of_image, rank]
        boxes = table[..., 1:5].flatten(1, 2)[of_image, place]
        return of_image, boxes, scores[of_image, rank], place % self.num_classes

    def _masks(
        self,
        features: dict[str, torch.Tensor],
        of_image: torch.Tensor,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        logits = self.mask_head(self.mask_pooler([features[name] for name in self.mask_features], of_image, boxes))
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid()
        return logits[torch.arange(logits.shape[0]), classes].sigmoid()


def _check_heads(heads: nn.Module) -> None:
    if type(heads) not in (StandardROIHeads, LesionROIHeads, CovidROIHeads) or heads.keypoint_on:
        raise UserError(f"{type(heads).__name__} can't be exported: only the ROI heads of d2_covid; try --part dense.")
    for part, known in (
        (heads.box_head, FastRCNNConvFCHead),
        (heads.box_predictor, (FastRCNNOutputLayers, LesionBoxPredictor)),
        (heads.mask_head if heads.mask_on else None, (MaskRCNNConvUpsampleHead, type(None))),
    ):
        if not isinstance(part, known):
            raise UserError(f"{type(part).__name__} can't be exported: only d2_covid's own heads; try --part dense.")
