"""The backbone as inference needs it: ResNet and FPN without BatchNorm, reading one gray channel instead of three.

Every result is that of Detectron2's modules to float rounding, at the borders too.
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.nn import functional as F

from .fast_convs import ConstantInput, FastConv, can_be_fast, folded


class FastStem(nn.Module):
    """Detectron2's ``BasicStem`` on slices that nobody normalised, mean and deviation being part of its weights.

    The input's channels say what it is:

    - 1: gray values of slices that fill the tensor. Where the 7x7 windows stick out of the slice, the plain model sees
      normalised zeros, that is the mean; those few rows and columns get a correction of their own.
    - 2: gray values, and 1 where the slice is, 0 where the tensor is padded.
    - 3: normalised colour, as the plain model reads it.
    """

    stride = 4

    def __init__(self, stem: BasicStem, pixel_mean: torch.Tensor, pixel_std: torch.Tensor):
        """
        Args:
            pixel_mean, pixel_std: of three channels, any shape.
        """
        super().__init__()
        conv = stem.conv1
        weight, bias = folded(conv)
        options = {"stride": conv.stride, "padding": conv.padding}
        mean, std = (x.detach().double().reshape(1, -1, 1, 1).to(weight.device) for x in (pixel_mean, pixel_std))
        gray = (weight / std).sum(1, keepdim=True)
        offset = -(weight * mean / std).sum(1, keepdim=True)
        self.border = ConstantInput(offset[:, 0], stride=conv.stride[0], padding=conv.padding[0])
        self.gray = FastConv(gray, bias + self.border.inside, **options)
        self.padded_gray = FastConv(torch.cat((gray, offset), 1), bias, **options)
        self.colour = FastConv(weight, bias, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and len(x) > 1:
            # A slice's 16 MB are pooled before the next slice needs as many: new memory costs more than computing them.
            return torch.cat([self(image) for image in x.split(1)])
        channels = x.shape[1]
        if channels == 1:
            out = self.border.correct(self.gray(x), *x.shape[-2:])
        else:
            out = self.padded_gray(x) if channels == 2 else self.colour(x)
        # The maximum of the ReLU is the ReLU of the maximum, and that has a quarter of the pixels.
        return F.relu_(F.max_pool2d(out, kernel_size=3, stride=2, padding=1))


class FastBlock(nn.Module):
    """A residual block, basic or bottleneck."""

    def __init__(self, block: BasicBlock | BottleneckBlock):
        super().__init__()
        convs = _convs(block)
        self.convs = nn.ModuleList(FastConv.from_conv(conv, relu=True) for conv in convs)
        self.shortcut = None if block.shortcut is None else FastConv.from_conv(block.shortcut, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for conv in self.convs[:-1]:
            out = conv(out)
        return self.convs[-1](out, residual=x if self.shortcut is None else self.shortcut(x))


class FastResNet(nn.Module):
    """Detectron2's ``ResNet`` of basic or bottleneck blocks; returns the features that FPN reads."""

    def __init__(self, resnet: ResNet, pixel_mean: torch.Tensor, pixel_std: torch.Tensor):
        super().__init__()
        self.stem = FastStem(resnet.stem, pixel_mean, pixel_std)
        self.stages = nn.ModuleDict(
            {
                name: nn.Sequential(*(FastBlock(block) for block in stage))
                for name, stage in zip(resnet.stage_names, resnet.stages)
            }
        )
        self._out_features = tuple(resnet._out_features)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        features = {"stem": x}
        for name, stage in self.stages.items():
            x = stage(x)
            features[name] = x
        return {name: features[name] for name in self._out_features}


class FastFPN(nn.Module):
    """An FPN of one level: its 1x1 and its 3x3 convolution as one 3x3 convolution, where that is less work.

    Merged, the bias of the 1x1 convolution is a constant input of the 3x3 one, whose zero padding does not have it.
    """

    def __init__(self, fpn: FPN, bottom_up: nn.Module):
        super().__init__()
        self.bottom_up = bottom_up
        (self.in_feature,) = fpn.in_features
        (self.out_feature,) = fpn._out_features
        self.size_divisibility = fpn.size_divisibility
        self._shapes = fpn.output_shape()
        (lateral,), (output,) = fpn.lateral_convs, fpn.output_convs
        channels_in, channels = lateral.in_channels, lateral.out_channels
        self.lateral = self.border = None
        if 9 * channels_in >= channels_in + 9 * channels:
            self.lateral, self.output = FastConv.from_conv(lateral, relu=False), FastConv.from_conv(output, relu=False)
            return
        lateral_weight, lateral_bias = folded(lateral)
        weight, bias = folded(output)
        merged = torch.einsum("omyx,mi->oiyx", weight, lateral_weight[:, :, 0, 0])
        self.border = ConstantInput(torch.einsum("omyx,m->oyx", weight, lateral_bias), padding=output.padding[0])
        self.output = FastConv(merged, bias + self.border.inside, stride=output.stride, padding=output.padding)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.bottom_up(x)[self.in_feature]
        if self.border is None:
            return {self.out_feature: self.output(self.lateral(x))}
        return {self.out_feature: self.border.correct(self.output(x), *x.shape[-2:])}


def fast_backbone(backbone: nn.Module, pixel_mean: torch.Tensor, pixel_std: torch.Tensor) -> nn.Module | None:
    """A fast equivalent of a ResNet with FPN that reads three channels; None for any other backbone.

    Of a pyramid of several levels, Detectron2's FPN itself stays, around a fast ResNet.

    Args:
        backbone: several levels: it is changed, and returned; its BatchNorm must be folded already.
    """
    if type(backbone) is not FPN or not _can_be_fast(backbone.bottom_up) or pixel_mean.numel() != 3:
        return None
    bottom_up = FastResNet(backbone.bottom_up, pixel_mean, pixel_std)
    convs = [*backbone.lateral_convs, *backbone.output_convs]
    one_level = len(backbone.in_features) == 1 and backbone.top_block is None
    if one_level and all(can_be_fast(conv) and conv.groups == 1 for conv in convs):
        return FastFPN(backbone, bottom_up)
    backbone.bottom_up = bottom_up
    return backbone


def _can_be_fast(resnet: nn.Module) -> bool:
    if type(resnet) is not ResNet or type(resnet.stem) is not BasicStem or resnet.num_classes is not None:
        return False
    blocks = [block for stage in resnet.stages for block in stage]
    if not can_be_fast(resnet.stem.conv1) or resnet.stem.conv1.in_channels != 3:
        return False
    if any(type(block) not in (BasicBlock, BottleneckBlock) for block in blocks):
        return False
    return all(can_be_fast(conv) for block in blocks for conv in (*_convs(block), block.shortcut))


def _convs(block: nn.Module) -> list[nn.Module]:
    return [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
