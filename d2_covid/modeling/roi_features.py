"""From the feature map to what the heads make of each RoI, the quick way on a CPU where it is exact.

RoIAlign is a product with a sparse matrix (:mod:`.roi_align`), and the first convolution of the mask head is taken
before it instead of after it (:mod:`.roi_conv`). One place decides where that holds, :func:`can_be_quick`; other
poolers, several feature levels and other devices take Detectron2's path.

Boxes are read in single precision, on that path too (:mod:`.roi_pooling`). Detectron2 itself rounds them to the type of
the features, in bfloat16 to two pixels of 512.

Shape shorthand: N images, R RoIs over all images, C channels, M x M bins of a RoI, K classes of masks.
"""

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from .roi_align import feature_table, interpolate, roi_align, roi_align_matrix
from .roi_conv import convolved_rois, roi_align_conv
from .roi_pooling import pool_boxes, rois_of

ROIS_AT_ONCE = 256
"""RoIs pooled at a time where nothing is kept of them; 13 MB for the paper's box head."""

CELLS_PER_BIN = 0.5
"""The mask head's convolution is taken on the map if the RoIs touch fewer cells than they have bins, times this."""

LINES_AT_ONCE = 3000
"""Rows of cells, over all RoIs, whose taps are interpolated at a time; 65 MB for the paper's mask head."""

BINS_AT_ONCE = 1024
"""Bins that the mask head's deconvolution takes at a time where nothing is kept of them; 2 MB for the paper's."""


def can_be_quick(pooler: nn.Module | None, features: list[torch.Tensor]) -> bool:
    """Whether this module does what ``pooler`` does with these feature maps."""
    if type(pooler) is not ROIPooler or len(pooler.level_poolers) != 1:
        return False
    if torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling():
        return False
    level = pooler.level_poolers[0]
    return type(level) is ROIAlign and level.aligned and features[0].device.type == "cpu"


def roi_options(pooler: ROIPooler, features: list[torch.Tensor]) -> dict:
    """What :func:`.roi_align.roi_align_matrix` asks for, besides the RoIs."""
    images, _, height, width = features[0].shape
    level = pooler.level_poolers[0]
    return {
        "map_size": (images, height, width),
        "output_size": tuple(pooler.output_size),
        "spatial_scale": level.spatial_scale,
        "sampling_ratio": level.sampling_ratio,
    }


def pool(pooler: ROIPooler, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    """What the pooler gives, (R, C, M, M), channels-last in memory where that is quick."""
    if not can_be_quick(pooler, features):
        return pool_boxes(pooler, features, boxes)
    return _pool(pooler, features, rois_of(boxes))


def _pool(pooler: ROIPooler, features: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
    options = roi_options(pooler, features)
    del options["map_size"]
    return roi_align(features[0], rois, **options)


def box_features(pooler: ROIPooler, head: nn.Module, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    """The box head's features (R, F) of N images' boxes: ``head(pooler(features, boxes))``."""
    known = type(head) is FastRCNNConvFCHead and not head.conv_norm_relus and head.fcs
    if not known or not can_be_quick(pooler, features):
        return head(pool(pooler, features, boxes))
    table = feature_table(features[0])
    matrix = roi_align_matrix(rois_of(boxes), **roi_options(pooler, features))
    bins = pooler.output_size[0] * pooler.output_size[1]
    first = head.fcs[0]
    keeps = torch.is_grad_enabled() and first.weight.requires_grad
    rows = max(1, len(matrix)) if keeps else ROIS_AT_ONCE * bins
    # The weights are put into the order of the memory, not the far larger RoIs into that of the weights.
    weight = first.weight.to(table.dtype).view(len(first.weight), -1, bins).transpose(1, 2).flatten(1)
    pooled = (interpolate(table, part).view(-1, weight.shape[1]) for part in matrix.parts(rows))
    x = torch.cat([F.linear(x, weight, first.bias) for x in pooled])
    for layer in list(head)[2:]:
        x = layer(x)
    return x


def mask_logits(pooler: ROIPooler, head: nn.Module, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    """The mask head's logits (R, K, 2 M, 2 M) of N images' boxes: ``head.layers(pooler(features, boxes))``."""
    if not _is_known(head) or not can_be_quick(pooler, features):
        return head.layers(pool(pooler, features, boxes))
    first = head.conv_norm_relus[0]
    x = first_convolution(pooler, first, features, boxes)
    for step in (first.norm, first.activation, *head.conv_norm_relus[1:]):
        x = x if step is None else step(x)
    return upsampled_logits(head, x)


def first_convolution(
    pooler: ROIPooler, conv: nn.Module, features: list[torch.Tensor], boxes: list[Boxes]
) -> torch.Tensor:
    """A 3x3 convolution of pooled features, (R, O, M, M), without the norm and activation that its layer has behind it.

    Args:
        conv: has ``weight`` (O, C, 3, 3) and ``bias``, and pads by 1; :func:`can_be_quick` holds.
    """
    parts = [_convolved(pooler, conv, features, part) for part in _by_lines(rois_of(boxes), pooler, features)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def upsampled_logits(head: MaskRCNNConvUpsampleHead, x: torch.Tensor) -> torch.Tensor:
    """The layers behind the mask head's convolutions: (R, C, M, M) to logits (R, K, 2 M, 2 M).

    Kernel and stride of the deconvolution are 2: each bin becomes 2 x 2 on its own, by a matrix product.
    """
    num_rois, channels, height, width = x.shape
    deconv, predictor = head.deconv, head.predictor
    bins = x.permute(0, 2, 3, 1).reshape(-1, channels)
    weight = deconv.weight.permute(2, 3, 1, 0).reshape(-1, channels)
    bias = None if deconv.bias is None else deconv.bias.repeat(4)
    step = max(1, len(bins)) if torch.is_grad_enabled() else BINS_AT_ONCE
    logits = torch.cat(
        [
            F.linear(F.relu_(F.linear(part, weight, bias)).view(-1, deconv.out_channels), predictor.weight.flatten(1))
            for part in bins.split(step)
        ]
    )
    if predictor.bias is not None:
        logits += predictor.bias.to(logits.dtype)
    logits = logits.view(num_rois, height, width, 2, 2, predictor.out_channels).permute(0, 5, 1, 3, 2, 4)
    return logits.reshape(num_rois, predictor.out_channels, 2 * height, 2 * width)


def _convolved(pooler: ROIPooler, conv: nn.Conv2d, features: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
    """A convolution of pooled features, without the norm and activation that Detectron2's layer has behind it."""
    options = roi_options(pooler, features)
    convolved = convolved_rois(rois, **options)
    height, width = options["output_size"]
    if len(convolved.cells) > CELLS_PER_BIN * len(rois) * height * width:
        return F.conv2d(_pool(pooler, features, rois), conv.weight, conv.bias, padding=1)
    return roi_align_conv(features[0], conv.weight, conv.bias, convolved, (height, width))


def _by_lines(rois: torch.Tensor, pooler: ROIPooler, features: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """RoIs in parts that touch no more than some :data:`LINES_AT_ONCE`."""
    height = (rois[:, 4] - rois[:, 2]) * pooler.level_poolers[0].spatial_scale
    lines = (height.clamp(min=0) + 2).clamp(max=features[0].shape[2]).cumsum(0)
    part = (lines / LINES_AT_ONCE).long()
    return rois.split(torch.bincount(part, minlength=1).tolist())


def _is_known(head: nn.Module) -> bool:
    """Whether a mask head's first convolution is that of :mod:`.roi_conv`, and its end that of
    :func:`upsampled_logits`."""
    if type(head) is not MaskRCNNConvUpsampleHead or not head.conv_norm_relus:
        return False
    conv, deconv = head.conv_norm_relus[0], head.deconv
    same = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "zeros"
    doubles = deconv.kernel_size == deconv.stride == (2, 2) and deconv.padding == deconv.output_padding == (0, 0)
    simple = all(layer.dilation == (1, 1) and layer.groups == 1 for layer in (conv, deconv))
    return same and doubles and simple and conv.stride == head.predictor.kernel_size == (1, 1)
