"""3x3 convolution by Winograd's minimal filtering F(4x4, 3x3): a quarter of the multiplications, for a CPU.

Each 4x4 block of the output comes from a 6x6 tile of the input. In the basis of values at 0, 1, -1, 2, -2 and infinity
of both directions the convolution is a product for each of the 36 places of a tile, summed over channels: 36 matrix
products. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, give the method.

In single precision the error is some 5 times that of the direct sum: 5e-6 of the largest output, measured.
"""

import torch
from torch.nn import functional as F

MIN_CHANNELS = 128
"""With fewer the transforms cost what the multiplications save."""

TILE_CHANNELS_AT_ONCE = 32768
"""Tiles times channels in one pass: the transformed input then takes 5 MB, and stays in the cache."""

_FILTER = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip


def transformed_weight(weight: torch.Tensor) -> torch.Tensor:
    """Weights (O, I, 3, 3) as the 36 matrices (36, I, O) of :func:`winograd_conv`, in single precision."""
    places = torch.einsum("xj,oiyj,ky->xkio", _FILTER, weight.detach().double().cpu(), _FILTER)
    return places.reshape(36, *places.shape[2:]).float().contiguous()


def winograd_conv(x: torch.Tensor, matrices: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolution with stride 1 and zero padding 1.

    Args:
        x: (N, I, H, W) float32 on a CPU.
        matrices: from :func:`transformed_weight`.
        bias: (O,).

    Returns:
        (N, O, H, W), channels last.
    """
    num_images, channels, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    step = max(1, TILE_CHANNELS_AT_ONCE // (rows * columns * channels))
    out = x.new_empty(num_images, rows, 4, columns, 4, len(bias))
    for first in range(0, num_images, step):
        _convolve(padded[first : first + step], matrices, out[first : first + step])
    out = out.view(num_images, 4 * rows, 4 * columns, -1)[:, :height, :width]
    return torch.add(out, bias, out=out).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _convolve(x: torch.Tensor, matrices: torch.Tensor, out: torch.Tensor) -> None:
    """Padded input (N, 4 h + 2, 4 w + 2, I) to blocks (N, h, 4, w, 4, O)."""
    num_images, rows, _, columns, _, channels_out = out.shape
    channels = x.shape[-1]
    by_row = x.new_empty(6, num_images, rows, x.shape[2], channels)
    _input_transform([x[:, i : i + 4 * rows - 3 : 4] for i in range(6)], by_row)
    tiles = x.new_empty(6, 6, num_images, rows, columns, channels)
    _input_transform([by_row[:, :, :, j : j + 4 * columns - 3 : 4] for j in range(6)], tiles)
    products = torch.bmm(tiles.view(36, -1, channels), matrices)
    products = products.view(6, 6, num_images, rows, columns, channels_out)
    by_column = x.new_empty(4, 6, num_images, rows, columns, channels_out)
    _output_transform(list(products), list(by_column))
    for j in range(4):
        _output_transform(list(by_column[j]), [out[:, :, i, :, j] for i in range(4)])


def _input_transform(d: list[torch.Tensor], out: torch.Tensor) -> None:
    """Six samples in a row to their six places."""
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)
    even, odd = torch.add(d[4], d[2], alpha=-4), torch.add(d[3], d[1], alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    even, odd = torch.sub(d[4], d[2], out=even), torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])


def _output_transform(m: list[torch.Tensor], out: list[torch.Tensor]) -> None:
    """Six places to four outputs in a row."""
    sum_1, difference_1 = m[1] + m[2], m[1] - m[2]
    sum_2, difference_2 = m[3] + m[4], m[3] - m[4]
    torch.add(sum_1, sum_2, out=out[0]).add_(m[0])
    torch.add(difference_1, difference_2, alpha=2, out=out[1])
    torch.add(sum_1, sum_2, alpha=4, out=out[2])
    torch.add(difference_1, difference_2, alpha=8, out=out[3]).add_(m[5])
