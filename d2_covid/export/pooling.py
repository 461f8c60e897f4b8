"""RoIAlign of an exported model, from one feature map or from the level of a pyramid that suits each box."""

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import nn
from torchvision.ops import roi_align

from ..errors import UserError


class Pooler(nn.Module):
    """Detectron2's ``ROIPooler``, as the exporters understand it.

    Args:
        pooler: of RoIAlign.

    Raises:
        UserError: it pools otherwise.
    """

    def __init__(self, pooler: ROIPooler):
        super().__init__()
        levels = list(pooler.level_poolers)
        if any(type(level) is not ROIAlign for level in levels):
            raise UserError(f"Only RoIAlign can be exported, not {type(levels[0]).__name__}; see MODEL.ROI_*_HEAD.")
        self.size = tuple(pooler.output_size)
        self.options = tuple((level.spatial_scale, level.sampling_ratio, level.aligned) for level in levels)
        self.canonical = (pooler.canonical_box_size, pooler.canonical_level)
        self.least, self.most = pooler.min_level, pooler.max_level

    def forward(self, features: list[torch.Tensor], image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: (N, C, h, w), a level each.
            image: (R,) int64, which of the N images a box lies in.
            boxes: (R, 4) XYXY in pixels of the network's input.

        Returns:
            (R, C, *size).
        """
        rois = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
        if len(features) == 1:
            return self._pool(features[0], rois, 0)
        level = self._levels(boxes)
        pooled, order = [], []
        for number, feature in enumerate(features):
            (index,) = (level == number).nonzero(as_tuple=True)
            pooled.append(self._pool(feature, rois[index], number))
            order.append(index)
        place = torch.cat(order)
        at = torch.zeros_like(place).index_put((place,), torch.arange(place.shape[0]))
        return torch.cat(pooled)[at]

    def _pool(self, feature: torch.Tensor, rois: torch.Tensor, number: int) -> torch.Tensor:
        return roi_align(feature, rois, self.size, *self.options[number])

    def _levels(self, boxes: torch.Tensor) -> torch.Tensor:
        size, level = self.canonical
        lengths = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = torch.floor(level + torch.log2(lengths / size + 1e-8))
        return levels.clamp(self.least, self.most).long() - self.least
