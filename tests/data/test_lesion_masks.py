"""From mask values to lesions."""

from d2_covid.data.lesion_masks import MASK_TYPES, coco_annotation, encode_mask, lesion_components, read_mask
from d2_covid.errors import UserError

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage


def _mask(*patches, shape=(40, 50)) -> np.ndarray:
    """Background with rectangles (value, top, left, height, width)."""
    mask = np.zeros(shape, dtype=np.uint8)
    for value, top, left, height, width in patches:
        mask[top : top + height, left : left + width] = value
    return mask


def _found(mask, mask_type, **options):
    return [(les.category, les.area, les.bbox) for les in lesion_components(mask, mask_type, **options)[0]]


GGO = (2, 5, 5, 12, 10)
CONSOLIDATION = (3, 20, 30, 11, 11)


@pytest.mark.parametrize(
    "patches, mask_type, expected",
    [
        ([GGO, CONSOLIDATION], "merge", [(0, 120, (5, 5, 10, 12)), (0, 121, (30, 20, 11, 11))]),
        ([GGO, CONSOLIDATION], "ggo", [(0, 120, (5, 5, 10, 12))]),
        ([GGO, CONSOLIDATION], "both", [(0, 120, (5, 5, 10, 12)), (1, 121, (30, 20, 11, 11))]),
        # A slice with only consolidation has no GGO, whatever position its value has among those present.
        ([CONSOLIDATION], "both", [(1, 121, (30, 20, 11, 11))]),
        ([CONSOLIDATION], "ggo", []),
        ([CONSOLIDATION], "merge", [(0, 121, (30, 20, 11, 11))]),
        ([], "both", []),
    ],
)
@pytest.mark.parametrize("lung", [False, True], ids=["no lung", "lung"])
def test_class_is_told_by_value(patches, mask_type, expected, lung):
    mask = _mask(*patches)
    if lung:
        mask[mask == 0] = 1
    assert _found(mask, mask_type) == expected


def test_merged_lesion_is_the_union_before_components():
    # 60 pixels each: both are too small alone, and one lesion together.
    mask = _mask((2, 10, 10, 6, 10), (3, 16, 10, 6, 10))
    assert _found(mask, "merge") == [(0, 120, (10, 10, 10, 12))]
    kept, dropped = lesion_components(mask, "both")
    assert kept == []
    assert [(d.category, d.area) for d in dropped] == [(0, 60), (1, 60)]


@pytest.mark.parametrize("area, kept", [(99, False), (100, False), (101, True)])
def test_100_pixels_or_fewer_become_background(area, kept):
    mask = np.zeros((1, 300), dtype=np.uint8)
    mask[0, 50 : 50 + area] = 2
    lesions, dropped = lesion_components(mask, "merge")
    assert len(lesions) == kept and len(dropped) == (not kept)
    if dropped:
        assert (dropped[0].area, dropped[0].bbox, dropped[0].reason) == (area, (50, 0, area, 1), "100 pixels or fewer")


def test_smallest_area_is_configurable():
    mask = _mask((2, 0, 0, 1, 1), (2, 5, 5, 2, 2))
    assert [area for _, area, _ in _found(mask, "ggo", min_area=0)] == [1, 4]
    assert [area for _, area, _ in _found(mask, "ggo", min_area=1)] == [4]


def test_diagonal_neighbours_are_one_lesion():
    mask = _mask((2, 0, 0, 11, 11), (2, 11, 11, 11, 11))
    assert _found(mask, "merge") == [(0, 242, (0, 0, 22, 22))]


def test_lesions_may_touch_every_border():
    mask = np.full((20, 30), 3, dtype=np.uint8)
    assert _found(mask, "both") == [(1, 600, (0, 0, 30, 20))]


@pytest.mark.parametrize("values", [[7], [4, 255], [-1]])
def test_other_values_are_refused_with_file_and_values(values):
    mask = np.zeros((20, 20), dtype=np.int16)
    mask[0, : len(values)] = values
    with pytest.raises(UserError, match=rf"a/b\.png holds the values? {', '.join(map(str, values))};"):
        lesion_components(mask, "merge", source="a/b.png")


def test_unknown_mask_type_is_refused():
    with pytest.raises(UserError, match="'lesions'; there are merge, ggo, both"):
        lesion_components(_mask(), "lesions")


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (12, 15), elements=st.integers(0, 3)), st.sampled_from(list(MASK_TYPES)), st.integers(0, 6))
def test_kept_and_dropped_lesions_cover_the_class_once(mask, mask_type, min_area):
    kept, dropped = lesion_components(mask, mask_type, min_area)
    values = {"merge": [2, 3], "ggo": [2], "both": [2, 3]}[mask_type]
    union = np.sum([les.mask for les in kept], axis=0) if kept else np.zeros(mask.shape)
    assert union.max() <= 1
    assert not union[~np.isin(mask, values)].any()
    assert sum(les.area for les in kept) + sum(d.area for d in dropped) == np.isin(mask, values).sum()
    for lesion in kept:
        annotation = coco_annotation(lesion, 1, 1)
        assert lesion.area == lesion.mask.sum() == mask_util.area(annotation["segmentation"]) > min_area
        assert annotation["bbox"] == mask_util.toBbox(annotation["segmentation"]).tolist()
        assert ndimage.label(lesion.mask, np.ones((3, 3)))[1] == 1
        np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), lesion.mask)


def test_run_length_code_is_json():
    code = encode_mask(np.eye(5, dtype=bool))
    assert code["size"] == [5, 5] and isinstance(code["counts"], str)


def _palette(mask):
    image = Image.fromarray(mask, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


@pytest.mark.parametrize(
    "make",
    [
        Image.fromarray,
        _palette,
        lambda m: Image.fromarray(np.dstack([m, m, m])),
        lambda m: Image.fromarray(np.dstack([m, m, m, np.full_like(m, 255)])),
        lambda m: Image.fromarray(np.dstack([m, m, m, np.full_like(m, 0)])),
        lambda m: Image.fromarray(np.dstack([m, np.full_like(m, 9)]), mode="LA"),
        lambda m: Image.fromarray(m.astype(np.uint16)),
    ],
    ids=["L", "palette", "RGB", "RGBA", "RGBA transparent", "LA", "16-bit"],
)
def test_masks_of_any_format_hold_the_same_values(make, tmp_path):
    mask = _mask((1, 0, 0, 30, 30), GGO, CONSOLIDATION)
    make(mask).save(tmp_path / "mask.png")
    read = read_mask(tmp_path / "mask.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)


def test_one_bit_a_pixel_does_not_tell_lung_from_lesion(tmp_path):
    mask = _mask(GGO) > 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png has one bit a pixel.* save lesions as 2"):
        read_mask(tmp_path / "mask.png")
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "mask.png")
    assert not read_mask(tmp_path / "mask.png").any()


def test_a_colour_picture_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"mask\.png is a colour picture"):
        read_mask(tmp_path / "mask.png")
