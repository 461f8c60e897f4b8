"""Backbones, heads and meta architectures; importing this package registers them with Detectron2."""

from .backbone import build_truncated_resnet_fpn_backbone

__all__ = ["build_truncated_resnet_fpn_backbone"]
