"""A 3x3 convolution of RoIAlign's output, taken on the feature map instead, which is exact and far less work.

Both are linear and nothing lies between them. So each of the nine taps of the convolution, a C to O matrix, is applied
to the cells of the feature map that the RoIs touch, once for all of them, and the RoIs interpolate the results: bin
(u, v) is the sum over taps (a, b) of what bin (u + a - 1, v + b - 1) reads of tap (a, b). Bins beyond the border of a
RoI count as 0, as the convolution's zero padding has it. Columns and rows are summed one after the other.

Shape shorthand: N images, R RoIs over all images, C channels in, O out, H x W cells of the feature map, h x w bins of a
RoI, P cells that RoIs touch, L lines: the rows of cells that each RoI touches, over all RoIs.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .roi_align import AxisWeights, SparseRows, feature_table, interpolate, roi_axes


@dataclass(frozen=True)
class ConvolvedRoIs:
    """How RoIs interpolate the taps.

    ``cells`` (P,) int64: rows of the feature table that are touched. ``along_rows``: (L * w, 3 * P), from taps
    (P * 3, 3 * O), a row for each cell and b, to lines (L * w, 3 * O). ``along_columns``: (R * h * w, 3 * L * w), from
    lines as (3 * L * w, O) to bins.
    """

    cells: torch.Tensor
    along_rows: SparseRows
    along_columns: SparseRows


def convolved_rois(
    rois: torch.Tensor,
    *,
    map_size: tuple[int, int, int],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> ConvolvedRoIs:
    """Arguments as for :func:`.roi_align.roi_align_matrix`."""
    images, height, width = map_size
    rows, columns = roi_axes(rois, map_size, output_size, spatial_scale, sampling_ratio)
    image = rois[:, 0].long()
    (top, bottom), (left, right) = _touched(rows), _touched(columns)
    cells = _cells(image, top, bottom, left, right, map_size)
    number = torch.zeros(images * height * width, dtype=torch.int32)
    number[cells] = torch.arange(len(cells), dtype=torch.int32)

    num_lines = bottom - top
    first_line = num_lines.cumsum(0) - num_lines
    roi = torch.arange(len(rois)).repeat_interleave(num_lines)
    y = top[roi] + torch.arange(len(roi)) - first_line[roi]
    x, weights = _with_neighbours(columns.cells), _with_neighbours(columns.weights)
    tap = torch.arange(3, dtype=torch.int32)[:, None]
    line = (image[roi] * height + y) * width
    at = number[line[:, None, None, None] + x[roi]] * 3 + tap
    entries = 3 * x.shape[-1]
    along_rows = SparseRows.of(at.view(-1, entries), weights[roi].view(-1, entries), 3 * len(cells))

    y, weights = _with_neighbours(rows.cells), _with_neighbours(rows.weights)
    # What a bin does not read has a weight of 0, and may be any of the RoI's lines.
    first, last, number = ((x.int())[:, None, None, None] for x in (top, bottom - 1, first_line - top))
    line = (y.clamp(first, last) + number) * output_size[1]
    at = (line[:, :, None] + torch.arange(output_size[1], dtype=torch.int32)[:, None, None]) * 3 + tap
    entries = 3 * y.shape[-1]
    weights = weights[:, :, None].expand(at.shape).reshape(-1, entries)
    along_columns = SparseRows.of(at.view(-1, entries), weights, 3 * len(roi) * output_size[1])
    return ConvolvedRoIs(cells, along_rows, along_columns)


def _touched(axis: AxisWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """First cell (R,) that each RoI reads along an axis, and the one after the last; 0 and 1 where it reads none."""
    used = (axis.weights != 0).flatten(1)
    at = axis.cells.flatten(1).long()
    end = ((at + 1) * used).amax(1).clamp(min=1)
    return torch.minimum(at.masked_fill(~used, 1 << 30).amin(1), end - 1), end


def _cells(
    image: torch.Tensor,
    top: torch.Tensor,
    bottom: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    map_size: tuple[int, int, int],
) -> torch.Tensor:
    """Rows of the feature table inside any of the RoIs' rectangles, ascending."""
    images, height, width = map_size
    # Corners of rectangles, whose running sums along both axes count the rectangles over each cell.
    corners = torch.zeros(images, height + 1, width + 1, dtype=torch.int32)
    one = torch.ones_like(image, dtype=torch.int32)
    for y, x, sign in ((top, left, one), (top, right, -one), (bottom, left, -one), (bottom, right, one)):
        corners.index_put_((image, y, x), sign, accumulate=True)
    return corners.cumsum(1).cumsum(2)[:, :-1, :-1].flatten().nonzero()[:, 0]


def _with_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Of each bin (R, bins, n): the bin before, itself, the bin after, (R, bins, 3, n); zeros beyond the RoI."""
    padded = F.pad(x, (0, 0, 1, 1))
    return torch.stack([padded[:, i : i + x.shape[1]] for i in range(3)], dim=2)


def roi_align_conv(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rois: ConvolvedRoIs,
    output_size: tuple[int, int],
) -> torch.Tensor:
    """``F.conv2d(roi_align(features, ...), weight, bias, padding=1)``; differentiable in the first three.

    Args:
        features: (N, C, H, W), best channels-last.
        weight: (O, C, 3, 3).
        bias: (O,) or None.

    Returns:
        (R, O, h, w), channels-last in memory.
    """
    channels = weight.shape[0]
    table = feature_table(features)
    if len(rois.cells) < len(table):
        table = table[rois.cells]
    taps = F.linear(table, weight.permute(3, 2, 0, 1).reshape(9 * channels, -1))
    lines = interpolate(taps.view(-1, 3 * channels), rois.along_rows)
    bins = interpolate(lines.view(-1, channels), rois.along_columns)
    if bias is not None:
        # In place: they are the largest tensor of the mask head, and nothing else has them.
        bins += bias.to(bins.dtype)
    return bins.view(-1, *output_size, channels).permute(0, 3, 1, 2)
