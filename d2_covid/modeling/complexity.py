"""Parameters and multiply-adds of a detector, part by part."""

import math
from collections import Counter
from typing import Iterator

import torch
from detectron2.modeling import GeneralizedRCNN
from fvcore.nn import FlopCountAnalysis
from torch import nn

_SETTINGS = ("pixel_mean", "pixel_std", "num_batches_tracked")
"""Buffers that hold settings or counters: the paper's totals count weights and BatchNorm statistics only."""


def is_counted(name: str) -> bool:
    """Whether a parameter or buffer of this name counts as a parameter in the paper's Table 1."""
    return not name.endswith(_SETTINGS) and "anchor_generator" not in name


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Total (weights and BatchNorm statistics, as in the paper's Table 1) and trainable parameters of ``model``."""
    parameters = list(model.parameters())
    buffers = (buffer for name, buffer in model.named_buffers() if is_counted(name))
    total = sum(p.numel() for p in parameters) + sum(b.numel() for b in buffers)
    return total, sum(p.numel() for p in parameters if p.requires_grad)


def fpn_input_surplus(model: GeneralizedRCNN, channels: int = 512) -> int:
    """Parameters that a one-level FPN would have on top, if it read ``channels`` maps instead of its backbone's own.

    The paper's counts for some truncated models are those of an FPN that reads 512 maps, though its text says 256
    and 128.
    """
    lateral = model.backbone.lateral_convs[0]
    return (channels - lateral.in_channels) * lateral.out_channels


@torch.no_grad()
def count_multiply_adds(model: GeneralizedRCNN, size: int = 512) -> Counter:
    """Multiply-adds for one ``size`` x ``size`` image, by part, at the largest number of RoIs the config allows.

    The RPN passes on as many proposals as ``RPN.POST_NMS_TOPK_TEST``, and the mask head sees as many detections as
    ``TEST.DETECTIONS_PER_IMAGE``; an image with fewer costs less. Pooling, NMS, pasting and the classifier's
    module S, which costs a few millions at most, are not counted.

    Args:
        size: side of the image, 1 or more; counted is what the model pads it to, a multiple of its stride.

    Returns:
        ``{"backbone": ..., "rpn": ..., "box": ..., "mask": ...}``; a part that is absent counts 0.
    """
    was_training = model.training
    model.eval()
    try:
        return Counter({name: _multiply_adds(part, inputs) for name, part, inputs in _parts(model, size)})
    finally:
        model.train(was_training)


def _multiply_adds(part: nn.Module, inputs: torch.Tensor | list[torch.Tensor]) -> int:
    analysis = FlopCountAnalysis(part, (inputs,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return int(analysis.total())


def _parts(model: GeneralizedRCNN, size: int) -> Iterator[tuple[str, nn.Module, torch.Tensor | list[torch.Tensor]]]:
    device = model.pixel_mean.device
    stride = max(model.backbone.size_divisibility, 1)  # 0 asks for none
    side = math.ceil(size / stride) * stride
    image = torch.zeros(1, 3, side, side, device=device)
    yield "backbone", model.backbone, image
    rpn, heads = model.proposal_generator, model.roi_heads
    features = model.backbone(image)
    yield "rpn", rpn.rpn_head, [features[name] for name in rpn.in_features]

    proposals = rpn.post_nms_topk[False]
    channels = features[heads.box_in_features[0]].shape[1]
    rois = torch.zeros(proposals, channels, *heads.box_pooler.output_size, device=device)
    yield "box", nn.Sequential(heads.box_head, heads.box_predictor), rois
    if heads.mask_on:
        kept = heads.box_predictor.test_topk_per_image
        rois = torch.zeros(kept, channels, *heads.mask_pooler.output_size, device=device)
        # The head's own forward post-processes instances; its layers are what costs.
        yield "mask", nn.Sequential(*heads.mask_head.children()), rois
