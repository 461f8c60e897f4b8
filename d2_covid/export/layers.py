"""Layers as the exporters take them: PyTorch's own, BatchNorm folded in."""

import copy

from detectron2.layers import Conv2d
from torch import nn

from ..modeling.fast_convs import fold_norms


def folded_copy(module: nn.Module) -> nn.Module:
    """A copy in single precision and inference mode, every BatchNorm folded into its convolution."""
    module = copy.deepcopy(module).float().eval().requires_grad_(False)
    fold_norms(module)
    return module


def plain_layers(module: nn.Module) -> nn.Module:
    """``module`` with PyTorch's convolutions in the place of Detectron2's, in place.

    Detectron2's ask whether their input is empty, which nobody knows before the model runs.
    """
    if isinstance(module, Conv2d):
        return _plain_conv(module)
    for name, child in module.named_children():
        setattr(module, name, plain_layers(child))
    return module


def _plain_conv(conv: Conv2d) -> nn.Module:
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    ).requires_grad_(False)
    plain.weight, plain.bias = conv.weight, conv.bias
    after = [layer for layer in (conv.norm, conv.activation) if layer is not None]
    # Detectron2 gives some of its own the function, not the module.
    return nn.Sequential(plain, *(_Function(layer) if not isinstance(layer, nn.Module) else layer for layer in after))


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
