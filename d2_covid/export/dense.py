"""The dense part of a detector: from slices to feature maps and what the RPN says at every location.

Shape shorthand: N images of H x W pixels, A anchors at each of the h x w locations of a level.
"""

import torch
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..modeling.proposal_generator import LesionRPN
from .layers import folded_copy, plain_layers


class GrayInput(nn.Module):
    """Gray slices as what the first convolution reads: (N, 2, h, w), gray around 0, and 1 where the slice is.

    Three equal channels, normalised, are one gray channel and a constant; the zeros that a convolution pads with stand
    for the mean of each channel, and so has the constant an end at the slice's edge. :meth:`fold_into` makes the
    convolution's weights what they have to be.

    Args:
        pixel_mean, pixel_std: of three channels.
        divisibility: height and width become multiples of it.
    """

    def __init__(self, pixel_mean: torch.Tensor, pixel_std: torch.Tensor, divisibility: int):
        super().__init__()
        self.mean, self.std = pixel_mean.double().flatten(), pixel_std.double().flatten()
        self.center = round(float(self.mean.mean()))
        self.divisibility = max(divisibility, 1)

    def fold_into(self, conv: nn.Conv2d) -> None:
        """Let ``conv``, which reads three normalised channels, read what :meth:`forward` gives."""
        weight = conv.weight.detach().double() / self.std[:, None, None]
        constant = (weight * (self.center - self.mean)[:, None, None]).sum(1, keepdim=True)
        folded = torch.cat((weight.sum(1, keepdim=True), constant), 1)
        conv.weight = nn.Parameter(folded.to(conv.weight.dtype), requires_grad=False)
        conv.in_channels = 2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Args: image: (N, H, W) ``uint8``."""
        gray = image[:, None].float() - self.center
        x = torch.cat((gray, torch.ones_like(gray)), 1)
        height, width = image.shape[-2:]
        # Said so that an exporter, which does not know the size, sees that the strides divide the result; and without
        # a negative number, since ONNX divides those otherwise.
        step = self.divisibility
        rows, columns = ((length + step - 1) // step * step for length in (height, width))
        return F.pad(x, (0, columns - width, 0, rows - height))


class DensePart(nn.Module):
    """Backbone, FPN and the RPN's head of a model in inference mode, BatchNorm folded in; reads gray slices.

    Args:
        model: a ``GeneralizedRCNN``; it stays as it is.

    Raises:
        UserError: its backbone or RPN is none that can be exported.
    """

    def __init__(self, model: GeneralizedRCNN):
        super().__init__()
        backbone, rpn = model.backbone, model.proposal_generator
        if type(backbone) is not FPN or model.pixel_mean.numel() != 3:
            raise UserError(f"Only a ResNet with FPN can be exported, not a {type(backbone).__name__}.")
        if type(rpn) not in (RPN, LesionRPN) or type(rpn.rpn_head) is not StandardRPNHead:
            raise UserError(f"Only a standard RPN can be exported, not a {type(rpn).__name__}.")
        self.backbone, self.rpn_head = folded_copy(backbone), plain_layers(folded_copy(rpn.rpn_head))
        self.gray = GrayInput(model.pixel_mean, model.pixel_std, backbone.size_divisibility)
        self.gray.fold_into(self.backbone.bottom_up.stem.conv1)
        self.rpn_features = tuple(rpn.in_features)
        self.feature_names = tuple(backbone.output_shape())

    def parts(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Feature maps by name, and of each of the RPN's levels the logits (N, A, h, w) and deltas (N, A * 4, h, w).

        Args:
            image: (N, H, W) ``uint8``.
        """
        features = self.backbone(self.gray(image))
        logits, deltas = self.rpn_head([features[name] for name in self.rpn_features])
        return features, logits, deltas

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Feature maps, then logits of each level of the RPN, then deltas; as :meth:`parts` but flat."""
        features, logits, deltas = self.parts(image)
        return (*(features[name] for name in self.feature_names), *logits, *deltas)
