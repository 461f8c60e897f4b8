"""Box predictor whose class scores come from a softmax or from independent sigmoids (paper, section 3, point 1).

Shape shorthand: N images, R RoIs over all images, K lesion classes.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances

from ..errors import check_choice

SCORE_FUNCTIONS = ("softmax", "sigmoid")


class LesionBoxPredictor(FastRCNNOutputLayers):
    """Detectron2's box predictor with a choice of score function at test time.

    ``softmax``: a RoI's K lesion classes and the background share one unit of probability, so that rarely more than one
    of its classes passes the score threshold. ``sigmoid``: the score of a lesion class is the sigmoid of its own
    logit, whatever the RoI's other logits are. Training is the same for both: cross-entropy over K + 1 classes.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, score_function: str = "softmax", **kwargs):
        """
        Args:
            input_shape: shape of the features of one RoI.
            score_function: one of :data:`SCORE_FUNCTIONS`.
            kwargs: as for ``FastRCNNOutputLayers``.
        """
        super().__init__(input_shape, **kwargs)
        check_choice("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", score_function, SCORE_FUNCTIONS)
        self.score_function = score_function

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["score_function"] = cfg.MODEL.ROI_BOX_HEAD.SCORE_FUNCTION
        return ret

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, ...]:
        """Class scores of each image's RoIs: N tensors of shape (Ri, K + 1). The last column, the background's, is
        read by nobody; under ``sigmoid`` rows do not sum to 1."""
        if self.score_function == "softmax":
            return super().predict_probs(predictions, proposals)
        pred_class_logits, _ = predictions
        return pred_class_logits.sigmoid().split([len(p) for p in proposals])
