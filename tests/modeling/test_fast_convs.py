"""Folding, merging and Winograd's algorithm against the convolutions they replace, borders included."""

from d2_covid.modeling.fast_backbone import FastFPN, FastStem, fast_backbone
from d2_covid.modeling.fast_convs import ConstantInput, FastConv, can_be_fast, fold_norms
from d2_covid.modeling.fast_winograd import transformed_weight, winograd_conv

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn import functional as F


def random_norms(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and weights as training would."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.2)
    return module.eval()


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
@pytest.mark.parametrize("relu", [False, True])
def test_a_folded_convolution_is_convolution_then_norm(norm, relu):
    activation = nn.ReLU() if relu else None
    conv = Conv2d(5, 7, 3, stride=2, padding=1, bias=not norm, norm=get_norm(norm, 7), activation=activation)
    random_norms(conv)
    x = torch.randn(2, 5, 9, 12)
    assert can_be_fast(conv)
    assert torch.allclose(FastConv.from_conv(conv)(x), conv(x), atol=1e-5)
    expected = conv(x)
    fold_norms(conv)
    assert conv.norm is None and torch.allclose(conv(x), expected, atol=1e-5)


def test_a_residual_is_added_before_relu():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x, residual = torch.randn(2, 1, 4, 6, 6).unbind()
    kept = residual.clone()
    assert torch.allclose(FastConv.from_conv(conv, relu=True)(x, residual), F.relu(conv(x) + residual), atol=1e-5)
    assert torch.equal(residual, kept)


def test_what_can_not_be_folded_is_told():
    assert not can_be_fast(Conv2d(4, 4, 3, norm=nn.GroupNorm(2, 4)))
    assert not can_be_fast(Conv2d(4, 4, 3, activation=nn.GELU()))
    assert not can_be_fast(nn.Conv2d(4, 4, 3, padding="same"))
    assert not can_be_fast(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert not can_be_fast(Conv2d(4, 4, 3, norm=nn.BatchNorm2d(4, track_running_stats=False)))
    assert not can_be_fast(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="GroupNorm"):
        FastConv.from_conv(Conv2d(4, 4, 3, norm=nn.GroupNorm(2, 4)))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 7), (16, 10)])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (7, 2), (3, 2), (1, 1)])
def test_the_border_of_a_constant_input(size, kernel, stride):
    weight, constant = torch.randn(6, 4, kernel, kernel), torch.randn(4)
    layer = ConstantInput((weight * constant[:, None, None]).sum(1), stride=stride, padding=kernel // 2)
    expected = F.conv2d(constant[None, :, None, None].expand(2, 4, *size), weight, None, stride, kernel // 2)
    found = layer.inside.float()[None, :, None, None].expand_as(expected).clone()
    assert torch.allclose(layer.correct(found, *size), expected, atol=1e-5)


def test_borders_of_many_sizes_are_not_all_kept():
    layer = ConstantInput(torch.randn(3, 3, 3), padding=1)
    for size in range(3, 30):
        out = layer.inside.float()[None, :, None, None].expand(1, 3, size, size).clone()
        expected = F.conv2d(torch.ones(1, 1, size, size), layer.kernel.float()[:, None], padding=1)
        assert torch.allclose(layer.correct(out, size, size), expected, atol=1e-5)
    assert len(layer._strips) == layer.KEPT_SIZES


def test_a_border_stays_in_double_precision():
    layer = ConstantInput(torch.randn(3, 3, 3), padding=1).to(torch.bfloat16)
    assert layer.kernel.dtype == torch.float64
    out = torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)
    assert layer.correct(out, 4, 4).dtype == torch.bfloat16 and out.abs().max() > 0


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 12), (2, 5, 6), (1, 3, 3), (3, 1, 9), (2, 13, 16)])
def test_winograd_is_the_convolution(shape):
    num_images, height, width = shape
    x = torch.randn(num_images, 20, height, width).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(12, 20, 3, 3) / 13, torch.randn(12)
    found = winograd_conv(x, transformed_weight(weight), bias)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() < 2e-5 * exact.abs().max()


def test_winograd_of_many_images_is_that_of_each(monkeypatch):
    x = torch.randn(5, 8, 12, 8)
    weight, bias = torch.randn(8, 8, 3, 3), torch.randn(8)
    monkeypatch.setattr("d2_covid.modeling.fast_winograd.TILE_CHANNELS_AT_ONCE", 2 * 6 * 8)
    matrices = transformed_weight(weight)
    together = winograd_conv(x, matrices, bias)
    assert torch.allclose(together, torch.cat([winograd_conv(one[None], matrices, bias) for one in x]), atol=1e-4)


def test_winograd_is_for_what_it_can_do():
    def made(*args, **options):
        layer = FastConv.from_conv(nn.Conv2d(*args, **options))
        layer.use_winograd()
        return layer

    assert made(128, 128, 3, padding=1).matrices is not None
    for other in (made(128, 128, 3, padding=1, stride=2), made(64, 128, 3, padding=1), made(128, 128, 1)):
        assert other.matrices is None
    layer = made(128, 130, 3, padding=1)
    x = torch.randn(1, 128, 6, 6)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-4)
    assert layer(x.double().bfloat16().float()).dtype == torch.float32


@pytest.fixture
def backbone(tiny_cfg):
    def build(*opts):
        return random_norms(build_backbone(tiny_cfg(*opts)))

    return build


MEAN, STD = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


@pytest.mark.parametrize("size", [(32, 32), (33, 48), (64, 40)])
def test_the_stem_reads_one_channel_two_or_three(backbone, size):
    plain = backbone().bottom_up.stem
    fast = FastStem(plain, MEAN, STD).to(memory_format=torch.channels_last)
    gray = torch.randint(0, 256, (2, 1, *size)).float()
    normal = (gray.expand(-1, 3, -1, -1) - MEAN) / STD
    expected = plain(normal)
    scale = expected.abs().max()
    inside = torch.ones_like(gray)
    for x in (gray, torch.cat((gray, inside), 1), normal):
        found = fast(x.contiguous(memory_format=torch.channels_last))
        assert (found - expected).abs().max() < 1e-5 * scale
        assert found.is_contiguous(memory_format=torch.channels_last)
    padding = (0, 5, 0, 3)
    padded = torch.cat((F.pad(gray, padding), F.pad(inside, padding)), 1)
    assert (fast(padded) - plain(F.pad(normal, padding))).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(
    "opts, merged",
    [
        (("MODEL.FPN.OUT_CHANNELS", "128"), True),
        (("MODEL.FPN.OUT_CHANNELS", "192"), True),
        (("MODEL.FPN.OUT_CHANNELS", "16"), False),
        (("MODEL.FPN.OUT_CHANNELS", "128", "MODEL.FPN.NORM", "BN"), True),
    ],
)
def test_one_level_of_fpn(backbone, opts, merged):
    plain = backbone(*opts)
    for layer in (*plain.lateral_convs, *plain.output_convs):
        if layer.bias is not None:
            layer.bias.data.normal_(0, 0.5)
    x = torch.randn(2, 3, 40, 56)
    expected = plain(x)["p3"]
    fast = fast_backbone(plain, MEAN, STD)
    assert type(fast) is FastFPN and (fast.border is not None) == merged
    assert fast.size_divisibility == plain.size_divisibility and fast.output_shape() == plain.output_shape()
    assert (fast(x)["p3"] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_norm_that_can_not_be_folded_leaves_the_backbone(backbone):
    assert fast_backbone(backbone("MODEL.RESNETS.NORM", "GN"), MEAN, STD) is None
