"""Convolutions as inference needs them: BatchNorm folded in, channels last, ReLU in place.

A convolution with zero padding sees something else at the border of an image than inside it. What is folded into it,
or merged with it, keeps that difference exactly: :class:`ConstantInput` holds it.
"""

from typing import Sequence

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F

from .fast_winograd import MIN_CHANNELS, transformed_weight, winograd_conv

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def folded(conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with its BatchNorm, if it has one, as it normalises in inference mode.

    Returns:
        In double precision, of the convolution's own shapes.

    Raises:
        ValueError: its norm is of another kind.
    """
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    norm = getattr(conv, "norm", None)
    if norm is None:
        return weight, bias
    if not can_fold(norm):
        raise ValueError(f"a {type(norm).__name__} can't be folded into a convolution")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = 0 if norm.bias is None else norm.bias.detach().double()
    return weight * scale[:, None, None, None], (bias - norm.running_mean.double()) * scale + shift


def can_fold(norm: nn.Module | None) -> bool:
    """Whether :func:`folded` takes a convolution with this norm: none, or a BatchNorm with running statistics."""
    return norm is None or (isinstance(norm, _NORMS) and norm.running_mean is not None)


def fold_norms(module: nn.Module) -> None:
    """Fold every BatchNorm inside ``module`` into the Detectron2 convolution that it belongs to, in place."""
    for conv in module.modules():
        if isinstance(conv, Conv2d) and conv.norm is not None and can_fold(conv.norm):
            weight, bias = folded(conv)
            conv.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
            conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=False)
            conv.norm = None


class FastConv(nn.Module):
    """A convolution with bias, then optionally a sum with a residual, then optionally ReLU."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        relu: bool = False,
    ):
        """
        Args:
            weight, bias: of any floating type; kept in single precision until the module is converted.
        """
        super().__init__()
        weight = weight.float().contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.options = (tuple(stride), tuple(padding), tuple(dilation), groups)
        self.relu = relu
        self.register_buffer("matrices", None, persistent=False)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, relu: bool | None = None) -> "FastConv":
        """A convolution, its BatchNorm folded in.

        Args:
            relu: whether ReLU follows; None: whether Detectron2's ``activation`` says so.
        """
        if relu is None:
            relu = isinstance(getattr(conv, "activation", None), nn.ReLU)
        return cls(
            *folded(conv),
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            relu=relu,
        )

    def use_winograd(self) -> None:
        """From now on compute by :mod:`.fast_winograd` where that is faster: 3x3, many channels, float32 on a CPU."""
        many = min(self.weight.shape[:2]) >= MIN_CHANNELS and self.weight.shape[2:] == (3, 3)
        plain = self.options == ((1, 1), (1, 1), (1, 1), 1)
        if many and plain and self.weight.dtype == torch.float32 and self.weight.device.type == "cpu":
            self.matrices = transformed_weight(self.weight)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self.matrices is not None and x.dtype == torch.float32 and x.device.type == "cpu":
            out = winograd_conv(x, self.matrices, self.bias)
        else:
            out = F.conv2d(x, self.weight, self.bias, *self.options)
        if residual is not None:
            out += residual
        return F.relu_(out) if self.relu else out


def can_be_fast(conv: nn.Module | None) -> bool:
    """Whether :meth:`FastConv.from_conv` takes this layer and loses nothing of it; None, no layer, is fine."""
    if conv is None:
        return True
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    activation = getattr(conv, "activation", None)
    return can_fold(getattr(conv, "norm", None)) and (activation is None or isinstance(activation, nn.ReLU))


class ConstantInput(nn.Module):
    """What a convolution with zero padding makes of a constant input: a constant inside, something else at the border.

    Its inside goes into a bias (:attr:`inside`); :meth:`correct` adds the border's difference, a few rows and columns.
    """

    KEPT_SIZES = 8

    def __init__(self, kernel: torch.Tensor, *, stride: int = 1, padding: int):
        """
        Args:
            kernel: (C, k, k), the convolution's weights summed against the constant.
        """
        super().__init__()
        self.register_buffer("kernel", kernel.double(), persistent=False)
        self.stride, self.padding = stride, padding
        self._strips: dict[tuple, list[tuple[tuple[slice, slice], torch.Tensor]]] = {}

    @property
    def inside(self) -> torch.Tensor:
        """(C,) double."""
        return self.kernel.sum((1, 2))

    def _apply(self, *args, **kwargs) -> "ConstantInput":
        """Follows the model to its device, and stays in double precision: it works once for each size of input."""
        kernel = self.kernel
        super()._apply(*args, **kwargs)
        self.kernel = kernel.to(self.kernel.device)
        self._strips.clear()
        return self

    def correct(self, out: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Add, in place, what the border of ``out`` lacks.

        Args:
            out: (N, C, h, w), the convolution of inputs of ``height`` x ``width``, its bias the constant's ``inside``.
        """
        for (rows, columns), strip in self._border(height, width, out):
            out[:, :, rows, columns] += strip
        return out

    def kept(self) -> list[torch.Tensor]:
        """The tensors that :meth:`correct` adds, of all sizes it remembers."""
        return [strip for border in self._strips.values() for _, strip in border]

    def _border(self, height: int, width: int, out: torch.Tensor) -> list[tuple[tuple[slice, slice], torch.Tensor]]:
        key = (height, width, out.dtype, out.device)
        if key not in self._strips:
            while len(self._strips) >= self.KEPT_SIZES:
                self._strips.pop(next(iter(self._strips)))
            self._strips[key] = self._make_border(height, width, out)
        return self._strips[key]

    def _make_border(self, height: int, width: int, out: torch.Tensor) -> list:
        size, stride, padding = self.kernel.shape[-1], self.stride, self.padding
        first = -(-padding // stride)
        bottom, right = ((length + padding - size) // stride + 1 for length in (height, width))
        bottom, right = max(bottom, first), max(right, first)
        ones = self.kernel.new_ones(1, 1, height, width)
        difference = F.conv2d(ones, self.kernel[:, None], -self.inside, stride, padding)
        regions = (
            (slice(0, first), slice(None)),
            (slice(bottom, None), slice(None)),
            (slice(first, bottom), slice(0, first)),
            (slice(first, bottom), slice(right, None)),
        )
        strips = ((region, difference[:, :, region[0], region[1]]) for region in regions)
        return [
            (region, strip.to(out.dtype).contiguous(memory_format=torch.channels_last))
            for region, strip in strips
            if strip.numel()
        ]
