"""The mask head as inference needs it: the deconvolution as a matrix product, a few RoIs at a time.

Shape shorthand: R RoIs over all images, K classes of masks, M x M their pooled features.
"""

import torch
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_inference
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from .fast_convs import FastConv, can_be_fast

BYTES_AT_ONCE = 2 << 20
"""What the widest intermediate result may take on a CPU, so that the next step finds it in the cache."""


class _Linear(nn.Module):
    """A linear layer of given weights; PyTorch's own draws random numbers first."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class FastMaskHead(nn.Module):
    """Stands in for Detectron2's ``MaskRCNNConvUpsampleHead`` in inference."""

    def __init__(self, head: MaskRCNNConvUpsampleHead):
        super().__init__()
        self.convs = nn.Sequential(*(FastConv.from_conv(conv) for conv in head.conv_norm_relus))
        # Kernel and stride are 2: each pixel becomes 2 x 2 on its own.
        weight = head.deconv.weight.detach()
        self.upsample = _Linear(weight.permute(2, 3, 1, 0).flatten(0, 2), head.deconv.bias.detach().repeat(4))
        self.predictor = _Linear(head.predictor.weight.detach().flatten(1), head.predictor.bias.detach())

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> list[Instances]:
        """Give the instances ``pred_masks``: (Ri, 1, 2 M, 2 M) probabilities of their own class."""
        mask_rcnn_inference(self.layers(x), instances)
        return instances

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Features (R, C, M, M) to logits (R, K, 2 M, 2 M), in single precision."""
        return self.upsampled(self.convs(x.contiguous(memory_format=torch.channels_last)))

    def upsampled(self, x: torch.Tensor) -> torch.Tensor:
        """The layers after the convolutions: (R, C, M, M) to logits (R, K, 2 M, 2 M), in single precision."""
        num_rois, _, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).flatten(0, 2)
        step = len(cells)
        if x.device.type == "cpu":
            step = max(1, BYTES_AT_ONCE // (len(self.upsample.bias) * cells.element_size()))
        classes, channels = self.predictor.weight.shape
        logits = cells.new_empty(len(cells) * 4, classes, dtype=torch.float32)
        for first in range(0, len(cells), max(1, step)):
            hidden = F.relu_(self.upsample(cells[first : first + step]))
            logits[4 * first : 4 * (first + step)] = self.predictor(hidden.view(-1, channels))
        logits = logits.view(num_rois, height, width, 2, 2, classes).permute(0, 5, 1, 3, 2, 4)
        return logits.reshape(num_rois, classes, 2 * height, 2 * width)


def can_be_fast_mask_head(head: nn.Module) -> bool:
    """Whether :class:`FastMaskHead` stands in for it."""
    if type(head) is not MaskRCNNConvUpsampleHead or not isinstance(head.deconv, nn.ConvTranspose2d):
        return False
    deconv = head.deconv
    plain = deconv.kernel_size == deconv.stride == (2, 2) and deconv.padding == (0, 0) and deconv.groups == 1
    return plain and all(can_be_fast(conv) for conv in head.conv_norm_relus) and head.predictor.kernel_size == (1, 1)
