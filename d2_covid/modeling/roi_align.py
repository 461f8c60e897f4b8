"""RoIAlign on a CPU as a product with a sparse matrix, which is exact and runs on every core.

RoIAlign is linear in the features: each output bin is a weighted sum of a few cells of the feature map, and the weights
are products of one factor for its row and one for its column. Here the matrix is written down for all RoIs of a batch,
and applied to the map as a table of cells by ``embedding_bag``; the gradient is the same with the matrix transposed.
torchvision's operator (``torchvision.ops.roi_align``), whose results these are, runs on one core and strides over
channels.

Shape shorthand: N images, R RoIs over all images, C channels, H x W cells of the feature map, h x w bins of a RoI.
A table is a channels-last feature map with a row for each cell of each image: (N * H * W, C).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Iterator

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

DENSE_ENTRIES = 9
"""Up to so many entries of a row, cells that a bin does not read are cheaper multiplied by 0 than left out."""

ENTRIES_AT_ONCE = 1 << 22
"""Entries of a matrix that are computed at a time, zeros included: 34 MB, twice over while zeros are left out."""


@dataclass(frozen=True)
class AxisWeights:
    """RoIAlign along one axis: bin i of RoI r is the sum of the cells ``cells[r, i]``, weighted.

    ``cells`` (R, bins, n) int32, within the map; ``weights`` (R, bins, n), 0 for those that the bin does not read.
    """

    cells: torch.Tensor
    weights: torch.Tensor


def axis_weights(low: torch.Tensor, high: torch.Tensor, *, bins: int, sampling_ratio: int, cells: int) -> AxisWeights:
    """What each bin reads along one axis, as torchvision's operator samples it.

    Args:
        low, high: (R,) where the RoIs begin and end, in cells; the centre of the first cell is at 0.
        bins: bins of a RoI along the axis.
        sampling_ratio: samples of a bin; 0: as many as the bin has cells, rounded up.
        cells: length of the feature map.
    """
    size = (high - low) / bins
    if sampling_ratio > 0:
        grid = torch.full_like(low, sampling_ratio)
        most = sampling_ratio
    else:
        grid = size.ceil().clamp(min=0)
        most = max(1, int(grid.max())) if len(grid) else 1
    # Tensors are (samples, bins, R), or (samples, cells read, bins, R): RoIs last, so that inner loops are long.
    step = torch.arange(max(bins, most), dtype=low.dtype, device=low.device)[:, None]
    # In torchvision's order of operations: neighbours of a cell's border must fall on the same side of it.
    begin = low + step[:bins] * size
    inside = (step[:most] + 0.5) * size / grid.clamp(min=1)
    at = begin + inside[:, None]
    sampled = (step[:most] < grid)[:, None]
    share = ((at >= -1) & (at <= cells) & sampled) / grid.clamp(min=1)
    at = torch.where(sampled, at, at[:1]).clamp_(0, cells - 1)
    nearest = at.floor()
    first = nearest.amin(0)
    reach = int((nearest.amax(0) - first).max()) + 2 if at.numel() else 2
    if reach > 2 * most:
        # Samples lie far apart: two cells each, none in between.
        after = at - nearest
        read = torch.stack((nearest, nearest + 1), dim=1).flatten(0, 1)
        weights = (torch.stack((1 - after, after), dim=1) * share[:, None]).flatten(0, 1)
    else:
        read = first + torch.arange(reach, dtype=at.dtype, device=at.device)[:, None, None]
        weights = ((1 - (at[:, None] - read).abs_()).clamp_(min=0) * share[:, None]).sum(0)
    cells_read = read.clamp_(max=cells - 1).int()
    return AxisWeights(*(x.permute(2, 1, 0).contiguous() for x in (cells_read, weights)))


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows: row i holds ``weights[k]`` in column ``columns[k]``, starts[i] <= k < starts[i + 1].

    ``columns`` and ``starts`` are int32; ``num_columns`` is the matrix's width.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    num_columns: int

    @classmethod
    def of(cls, columns: torch.Tensor, weights: torch.Tensor, num_columns: int) -> "SparseRows":
        """Rows of equally many entries: ``columns`` and ``weights`` (rows, n)."""
        rows, entries = columns.shape
        starts = torch.arange(0, (rows + 1) * entries, max(entries, 1), dtype=torch.int32, device=columns.device)
        return cls(columns.reshape(-1), weights.reshape(-1), starts, num_columns)

    @classmethod
    def joined(cls, parts: list["SparseRows"]) -> "SparseRows":
        """Matrices of one width, the rows of one after those of the other."""
        ends = torch.cat([part.starts[1:] - part.starts[:-1] for part in parts]).cumsum(0, dtype=torch.int32)
        columns, weights = (torch.cat([getattr(part, name) for part in parts]) for name in ("columns", "weights"))
        return cls(columns, weights, F.pad(ends, (1, 0)), parts[0].num_columns)

    def without_zeros(self) -> "SparseRows":
        """The same matrix without entries whose weight is 0."""
        used = self.weights != 0
        kept = used.nonzero()[:, 0]
        starts = F.pad(used.cumsum(0, dtype=torch.int32), (1, 0))[self.starts]
        return SparseRows(self.columns[kept], self.weights[kept], starts, self.num_columns)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def parts(self, rows: int) -> Iterator["SparseRows"]:
        """The matrix, so many rows at a time; at least one part, though it may have no rows."""
        for first in range(0, max(1, len(self)), rows):
            starts = self.starts[first : min(first + rows, len(self)) + 1]
            entries = slice(int(starts[0]), int(starts[-1]))
            yield SparseRows(self.columns[entries], self.weights[entries], starts - starts[0], self.num_columns)

    def apply(self, table: torch.Tensor) -> torch.Tensor:
        """The product with ``table`` (num_columns, C), in its type."""
        if not len(self) or not len(self.columns):
            return table.new_zeros(len(self), table.shape[1])
        return F.embedding_bag(
            self.columns,
            table,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights.to(table.dtype),
            include_last_offset=True,
        )

    @cached_property
    def transposed(self) -> "SparseRows":
        """The transposed matrix, without zeros."""
        matrix = self.without_zeros()
        columns, order = matrix.columns.sort(stable=True)
        rows = torch.arange(len(matrix), dtype=torch.int32, device=columns.device)
        rows = rows.repeat_interleave(matrix.starts.diff(), output_size=len(columns))
        starts = torch.searchsorted(
            columns, torch.arange(self.num_columns + 1, dtype=torch.int32, device=columns.device), out_int32=True
        )
        return SparseRows(rows[order], matrix.weights[order], starts, len(matrix))


class _Apply(torch.autograd.Function):
    """``matrix.apply(table)`` with the gradient of the table."""

    @staticmethod
    def forward(ctx, table: torch.Tensor, matrix: SparseRows) -> torch.Tensor:
        ctx.matrix = matrix
        return matrix.apply(table)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.matrix.transposed.apply(gradient.contiguous()), None


def interpolate(table: torch.Tensor, matrix: SparseRows) -> torch.Tensor:
    """Rows of ``matrix`` times ``table`` (cells, C): (rows, C). Differentiable in the table."""
    if table.requires_grad and torch.is_grad_enabled():
        return _Apply.apply(table, matrix)
    return matrix.apply(table)


def feature_table(features: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as a table (N * H * W, C); a view where the map is channels-last."""
    # Of one image reshape() alone would make a view with the channels far apart, which embedding_bag is slow on.
    return features.permute(0, 2, 3, 1).contiguous().view(-1, features.shape[1])


def roi_axes(
    rois: torch.Tensor,
    map_size: tuple[int, int, int],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> tuple[AxisWeights, AxisWeights]:
    """Rows and columns of RoIs; arguments as for :func:`roi_align_matrix`."""
    edges = rois[:, 1:] * spatial_scale - 0.5
    return tuple(
        axis_weights(edges[:, axis], edges[:, axis + 2], bins=bins, sampling_ratio=sampling_ratio, cells=cells)
        for axis, bins, cells in ((1, output_size[0], map_size[1]), (0, output_size[1], map_size[2]))
    )


def roi_align_matrix(
    rois: torch.Tensor,
    *,
    map_size: tuple[int, int, int],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> SparseRows:
    """The matrix (R * h * w, N * H * W) of RoIAlign, bins by row, then column.

    Args:
        rois: (R, 5) rows ``[image, x0, y0, x1, y1]`` in pixels.
        map_size: N, H, W.
        output_size: h, w.
        spatial_scale: cells per pixel.
        sampling_ratio: as for :func:`axis_weights`.
    """
    images, height, width = map_size
    rows, columns = roi_axes(rois, map_size, output_size, spatial_scale, sampling_ratio)
    entries = rows.cells.shape[-1] * columns.cells.shape[-1]
    y = (rows.cells + (rois[:, 0].int() * height)[:, None, None]) * width
    parts = []
    for part in _slices(len(rois), max(1, ENTRIES_AT_ONCE // (entries * output_size[0] * output_size[1]))):
        cells = torch.add(*_crossed(y[part], columns.cells[part]))
        weights = torch.mul(*_crossed(rows.weights[part], columns.weights[part]))
        matrix = SparseRows.of(cells.view(-1, entries), weights.view(-1, entries), images * height * width)
        parts.append(matrix.without_zeros() if entries > DENSE_ENTRIES else matrix)
    return parts[0] if len(parts) == 1 else SparseRows.joined(parts)


def _crossed(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, h, n) and (R, w, m), to be combined to (R, h, w, n * m): each with each.

    The last dimension is written out: broadcast along n and m it makes inner loops of so few steps, which take thrice
    as long.
    """
    across = rows[..., None].expand(-1, -1, -1, columns.shape[-1]).flatten(2)
    down = columns[:, :, None].expand(-1, -1, rows.shape[-1], -1).flatten(2)
    return across[:, :, None], down[:, None]


def groups_by_reach(rois: torch.Tensor, output_size: tuple[int, int], spatial_scale: float) -> list[torch.Tensor]:
    """Indices of RoIs in groups whose matrices are small: the widest bin of a group sets how many cells all bins read.

    Two groups: bins of up to two cells along both axes, which read three at most, unless a bin has many samples; and
    the others. Arguments as for :func:`roi_align_matrix`.
    """
    height, width = output_size
    size = (rois[:, 3:] - rois[:, 1:3]) * spatial_scale
    small = (size <= size.new_tensor([2 * width, 2 * height])).all(dim=1)
    groups = (small.nonzero()[:, 0], small.logical_not_().nonzero()[:, 0])
    return [group for group in groups if len(group)]


def _slices(total: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, max(1, total), step)]


def roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    *,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 2,
) -> torch.Tensor:
    """torchvision's ``roi_align(..., aligned=True)``, quick on a CPU; differentiable in the features.

    Boxes are read in single precision or better, whatever the type of the features.

    Args:
        features: (N, C, H, W), best channels-last.
        rois: (R, 5) rows ``[image, x0, y0, x1, y1]`` in pixels; constants.
        output_size, spatial_scale, sampling_ratio: as for :func:`roi_align_matrix`.

    Returns:
        (R, C, h, w), channels-last in memory.
    """
    images, channels, height, width = features.shape
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    matrix = roi_align_matrix(
        rois.detach().to(dtype),
        map_size=(images, height, width),
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
    )
    pooled = interpolate(feature_table(features), matrix)
    return pooled.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)
