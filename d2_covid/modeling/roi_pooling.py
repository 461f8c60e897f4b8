"""Detectron2's pooler without rounding boxes, and on a GPU without waiting for it.

Shape shorthand: N images, R RoIs over all images, C channels, M x M bins of a RoI.
"""

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torchvision.ops import roi_align

from .matching import to_device


def rois_of(boxes: list[Boxes]) -> torch.Tensor:
    """(R, 5) rows ``[image, x0, y0, x1, y1]`` of N images' boxes, in single precision, on their device."""
    tensor = torch.cat([x.tensor for x in boxes]).detach().float()
    images = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(x) for x in boxes]))
    return torch.cat((to_device(images, tensor.device, tensor.dtype)[:, None], tensor), dim=1)


def pool_boxes(pooler: nn.Module, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    """``pooler(features, boxes)``, (R, C, M, M).

    Boxes are read in single precision. Detectron2 rounds them to the type of the features, in bfloat16 to two pixels of
    512, and sends their counts to the device, which it has to wait for; that is spared with one feature level.
    """
    if type(pooler) is not ROIPooler or torch.jit.is_tracing():
        return pooler(features, boxes)
    level, device = pooler.level_poolers[0], features[0].device.type
    if len(pooler.level_poolers) != 1 or type(level) is not ROIAlign or device != "cuda":
        return _pool_in_float32(pooler, features, boxes)
    with torch.autocast("cuda", enabled=False):
        pooled = roi_align(
            features[0].float(),
            rois_of(boxes),
            level.output_size,
            level.spatial_scale,
            level.sampling_ratio,
            level.aligned,
        )
    return pooled.to(features[0].dtype)


def _pool_in_float32(pooler: ROIPooler, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    dtype = features[0].dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return pooler(features, boxes)
    with torch.autocast(features[0].device.type, enabled=False):
        return pooler([x.float() for x in features], boxes).to(dtype)
