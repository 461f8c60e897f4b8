"""Truncated ResNets with one level of Feature Pyramid Network (paper, Figure 1a)."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone

from ..errors import UserError

STAGES = ("res2", "res3", "res4", "res5")
TRUNCATION = {"res5": "full", "res4": "T1", "res3": "T2"}
"""The last ResNet stage kept, and the paper's name for the model that ends there."""


def truncation_of(cfg: CfgNode) -> str:
    """The paper's name of the backbone's truncation: ``full``, ``T1`` or ``T2``; ``fpn4`` for a multi-level FPN."""
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    return TRUNCATION.get(features[0], features[0]) if len(features) == 1 else f"fpn{len(features)}"


@BACKBONE_REGISTRY.register()
def build_truncated_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ResNet up to the stage in ``MODEL.FPN.IN_FEATURES``, and one FPN level on it.

    The stock FPN builder always adds a max-pooled level; the paper's models have one level alone. Stages after
    the one kept are never built.

    Returns:
        An ``FPN`` with one output of ``MODEL.FPN.OUT_CHANNELS`` channels, named as Detectron2 names it: ``p5`` for the
        full model, ``p4`` for T1, ``p3`` for T2.

    Raises:
        UserError: more than one feature, or ``MODEL.RESNETS.OUT_FEATURES`` that differs.
    """
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    if len(in_features) != 1 or in_features[0] not in STAGES:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES must be one of {', '.join(STAGES)} for a truncated backbone, not {in_features}."
        )
    if list(cfg.MODEL.RESNETS.OUT_FEATURES) != in_features:
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES {list(cfg.MODEL.RESNETS.OUT_FEATURES)} and MODEL.FPN.IN_FEATURES "
            f"{in_features} must name the same stage."
        )
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
