"""Backbones, heads and meta architectures; importing this package registers them with Detectron2."""

from .backbone import build_truncated_resnet_fpn_backbone
from .box_predictor import LesionBoxPredictor
from .complexity import count_parameters
from .freezing import freeze_for_classification
from .image_classifier import ImageClassifier, image_loss, image_scores
from .meta_arch import CovidCTMaskNet
from .proposal_generator import LesionRPN
from .ranking import RankedBatch, rank_detections, repeat_in_place
from .roi_heads import CovidROIHeads, LesionROIHeads, RankingOptions

__all__ = [
    "CovidCTMaskNet",
    "CovidROIHeads",
    "ImageClassifier",
    "LesionBoxPredictor",
    "LesionROIHeads",
    "LesionRPN",
    "RankedBatch",
    "RankingOptions",
    "build_truncated_resnet_fpn_backbone",
    "count_parameters",
    "freeze_for_classification",
    "image_loss",
    "image_scores",
    "rank_detections",
    "repeat_in_place",
]
