"""Pasting all masks in one go against Detectron2's, one after the other."""

from d2_covid.modeling import fast_masks
from d2_covid.modeling.fast_masks import paste_everywhere, paste_in_boxes, paste_masks

import pytest
import torch
from detectron2.layers.mask_ops import _do_paste_mask, paste_masks_in_image


def make_masks(count: int, height: int, width: int):
    """Smooth random masks in boxes of all sizes, at the slice's edges too."""
    low = torch.rand(count, 1, 5, 5)
    masks = torch.nn.functional.interpolate(low, size=28, mode="bilinear", align_corners=False)[:, 0]
    corner = torch.rand(count, 2) * torch.tensor([width - 1.0, height - 1.0])
    side = torch.rand(count, 2) ** 3 * torch.tensor([width, height]) + 0.05
    boxes = torch.cat((corner, (corner + side).minimum(torch.tensor([float(width), height]))), 1)
    boxes[0] = torch.tensor([0.0, 0, width, height])
    return masks, boxes


@pytest.mark.parametrize("paste", [paste_masks, paste_in_boxes, paste_everywhere])
@pytest.mark.parametrize("height, width", [(64, 64), (40, 90)])
def test_pixels_are_those_of_detectron2(paste, height, width, monkeypatch):
    monkeypatch.setattr(fast_masks, "PIXELS_AT_ONCE", 7 * height * width)
    masks, boxes = make_masks(40, height, width)
    found = paste(masks, boxes, height, width, 0.5)
    expected = paste_masks_in_image(masks, boxes, (height, width))
    assert found.shape == expected.shape == (40, height, width) and found.dtype == torch.bool
    values, _ = _do_paste_mask(masks[:, None], boxes, height, width, skip_empty=False)
    assert expected.any(dim=(1, 2)).sum() > 10
    assert (values[found != expected] - 0.5).abs().max() < 1e-4 if (found != expected).any() else True
    assert (found != expected).float().mean() < 1e-4


def test_half_precision_masks_and_no_masks():
    masks, boxes = make_masks(5, 32, 32)
    half = masks.half()
    assert torch.equal(paste_masks(half, boxes, 32, 32), paste_masks(half.float(), boxes, 32, 32))
    for paste in (paste_in_boxes, paste_everywhere):
        assert paste(masks[:0], boxes[:0], 32, 48, 0.5).shape == (0, 32, 48)
