from d2_covid.modeling.roi_align import (
    SparseRows,
    feature_table,
    groups_by_reach,
    interpolate,
    roi_align,
    roi_align_matrix,
)
from d2_covid.modeling.roi_conv import convolved_rois, roi_align_conv

import pytest
import torch
import torchvision
from torch.nn import functional as F

HEIGHT, WIDTH = 11, 14


def rois_over(scale, images=2, count=40, dtype=torch.float32):
    """RoIs of all sizes, inside, across and outside the map, with and without area."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.tensor([WIDTH, HEIGHT]) / scale
    centre = torch.rand(count, 2, generator=generator) * corner
    half = torch.exp(torch.rand(count, 2, generator=generator) * 6 - 1) / 2
    boxes = torch.cat([centre - half, centre + half], dim=1)
    boxes[0] = 0
    boxes[1, 2:] = boxes[1, :2]  # a point
    boxes[2] = boxes[2, [2, 3, 0, 1]]  # turned round
    boxes[3] = torch.cat([torch.zeros(2), corner])  # the whole map
    boxes[4] = torch.cat([-corner, 2 * corner])
    boxes[5] += 10000
    boxes[6] -= 10000
    image = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat([image, boxes], dim=1).to(dtype)


def feature_map(dtype=torch.float32, channels=8, channels_last=True):
    features = torch.randn(2, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4), dtype=dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return features.contiguous(memory_format=memory).requires_grad_()


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("scale", [1 / 4, 1 / 16])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (3, 5)])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_is_torchvisions_roi_align(sampling_ratio, size, scale, channels_last):
    features, rois = feature_map(channels_last=channels_last), rois_over(scale)
    expected = torchvision.ops.roi_align(features, rois, size, scale, sampling_ratio, aligned=True)
    pooled = roi_align(features, rois, output_size=size, spatial_scale=scale, sampling_ratio=sampling_ratio)
    assert pooled.shape == expected.shape and pooled.is_contiguous(memory_format=torch.channels_last)
    assert close(pooled, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    (wanted,), (found,) = (torch.autograd.grad(x, features, gradient) for x in (expected, pooled))
    assert close(found, wanted)


def test_groups_by_reach_hold_every_roi_once_in_order():
    rois = rois_over(1 / 4)
    groups = groups_by_reach(rois, (3, 5), 1 / 4)
    assert len(groups) == 2 and all(group.diff().gt(0).all() for group in groups)
    assert torch.cat(groups).sort().values.tolist() == list(range(len(rois)))
    options = {"map_size": (2, HEIGHT, WIDTH), "output_size": (3, 5), "spatial_scale": 1 / 4, "sampling_ratio": 2}
    whole = roi_align_matrix(rois, **options)
    table = feature_table(feature_map().detach())
    expected = whole.apply(table).view(len(rois), 15, -1)
    for group in groups:
        assert close(roi_align_matrix(rois[group], **options).apply(table).view(len(group), 15, -1), expected[group])
    small, large = (len(roi_align_matrix(rois[group], **options).columns) / len(group) for group in groups)
    assert small < large and small < len(whole.columns) / len(rois)
    assert groups_by_reach(rois[:0], (3, 5), 1 / 4) == []


def test_gradient_in_double_precision():
    features, rois = feature_map(torch.float64, channels=2), rois_over(1 / 8, count=9, dtype=torch.float64)
    options = {"output_size": (3, 3), "spatial_scale": 1 / 8, "sampling_ratio": 2}
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, **options), features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rois(dtype):
    features, rois = feature_map(dtype), torch.zeros(0, 5)
    pooled = roi_align(features, rois, output_size=(7, 7), spatial_scale=1 / 8, sampling_ratio=0)
    assert pooled.shape == (0, 8, 7, 7) and pooled.dtype == dtype
    pooled.sum().backward()
    assert features.grad.shape == features.shape and not features.grad.any()


def test_bfloat16_reads_boxes_in_single_precision():
    """Detectron2 rounds the boxes with the features, in bfloat16 by up to a pixel at 300; that costs far more."""
    features, rois = feature_map(), rois_over(1 / 16)
    options = {"output_size": (7, 7), "spatial_scale": 1 / 16, "sampling_ratio": 2}
    exact = roi_align(features, rois, **options)
    half = roi_align(features.bfloat16(), rois, **options)
    rounded = torchvision.ops.roi_align(
        features.bfloat16().float(), rois.bfloat16().float(), (7, 7), 1 / 16, 2, aligned=True
    )
    assert half.dtype == torch.bfloat16
    assert close(half, exact, 0.01)
    assert (half - exact).abs().mean() < (rounded - exact).abs().mean()


def test_sparse_rows():
    dense = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0], [0.0, 4.0, 0.0]])
    columns = torch.arange(3, dtype=torch.int32).repeat(4, 1)
    matrix, table = SparseRows.of(columns, dense, 3), torch.randn(3, 4)
    for form in (matrix, matrix.without_zeros()):
        assert torch.allclose(form.apply(table), dense @ table)
        assert torch.allclose(form.transposed.apply(dense @ table), dense.T @ dense @ table)
        assert torch.allclose(torch.cat([x.apply(table) for x in form.parts(3)]), dense @ table)
    assert matrix.without_zeros().columns.tolist() == [1, 0, 2, 1]
    assert matrix.transposed.starts.tolist() == [0, 1, 3, 4]


def test_table_rows_lie_in_one_piece():
    """embedding_bag is 20 times slower on others."""
    for images in (1, 2):
        for features in (feature_map()[:images], feature_map(channels_last=False)[:images]):
            table = feature_table(features)
            assert table.is_contiguous()
            assert torch.equal(table[1], features[0, :, 0, 1])


def test_matrix_computed_in_parts(monkeypatch):
    rois = rois_over(1 / 4)
    options = {"map_size": (2, HEIGHT, WIDTH), "output_size": (3, 3), "spatial_scale": 1 / 4}
    for sampling_ratio in (0, 1):
        whole = roi_align_matrix(rois, sampling_ratio=sampling_ratio, **options)
        with monkeypatch.context() as patch:
            patch.setattr("d2_covid.modeling.roi_align.ENTRIES_AT_ONCE", 1000)
            parts = roi_align_matrix(rois, sampling_ratio=sampling_ratio, **options)
        for name in ("columns", "weights", "starts"):
            assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_parts_of_the_matrix_give_the_whole():
    features, rois = feature_map(), rois_over(1 / 4)
    matrix = roi_align_matrix(
        rois, map_size=(2, HEIGHT, WIDTH), output_size=(3, 3), spatial_scale=1 / 4, sampling_ratio=0
    )
    table = feature_table(features)
    whole = interpolate(table, matrix)
    assert torch.equal(torch.cat([interpolate(table, x) for x in matrix.parts(50)]), whole)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 16])
@pytest.mark.parametrize("size", [(14, 14), (3, 5), (1, 1)])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_convolution_on_the_map(sampling_ratio, size, scale):
    features, rois = feature_map(), rois_over(scale)
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(6, 8, 3, 3, generator=generator).requires_grad_()
    bias = torch.randn(6, generator=generator).requires_grad_()
    options = {"output_size": size, "spatial_scale": scale, "sampling_ratio": sampling_ratio}
    pooled = torchvision.ops.roi_align(features, rois, size, scale, sampling_ratio, aligned=True)
    expected = F.conv2d(pooled, weight, bias, padding=1)
    convolved = convolved_rois(rois, map_size=(2, HEIGHT, WIDTH), **options)
    found = roi_align_conv(features, weight, bias, convolved, size)
    assert found.shape == expected.shape and close(found, expected)
    gradient = torch.randn(expected.shape, generator=generator)
    parameters = (features, weight, bias)
    for a, b in zip(*(torch.autograd.grad(x, parameters, gradient) for x in (found, expected)), strict=True):
        assert close(a, b, 2e-5)


def test_convolution_of_no_rois():
    features, weight = feature_map(), torch.randn(6, 8, 3, 3, requires_grad=True)
    options = {"output_size": (14, 14), "spatial_scale": 1 / 8, "sampling_ratio": 2}
    convolved = convolved_rois(torch.zeros(0, 5), map_size=(2, HEIGHT, WIDTH), **options)
    out = roi_align_conv(features, weight, None, convolved, (14, 14))
    assert out.shape == (0, 6, 14, 14)
    out.sum().backward()
    assert not weight.grad.any() and not features.grad.any()
