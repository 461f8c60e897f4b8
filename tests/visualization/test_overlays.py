"""Geometry of drawing: what a mask covers changes, what it doesn't stays."""

from d2_covid.visualization.instances import InstanceArrays
from d2_covid.visualization.overlays import (
    class_colour,
    display_scale,
    draw_instances,
    font,
    outline,
    place_labels,
    to_rgb,
)

import numpy as np
import pytest


def disc(size: int, centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def arrays(*masks: np.ndarray, classes=None, scores=None) -> InstanceArrays:
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return InstanceArrays(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes or [0] * len(masks), int),
        np.array(masks) if masks else np.zeros((0, 8, 8), bool),
        None if scores is None else np.array(scores, float),
    )


def grey(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_inside_the_mask_change_and_no_others(size, channels):
    image = grey(size) if channels == 1 else np.repeat(grey(size)[:, :, None], 3, axis=2)
    before = image.copy()
    mask = disc(size, (size // 3, size // 2), size // 8)
    drawn = draw_instances(image, arrays(mask), ["lesion"], scale=1, boxes=False, labels=False)
    assert drawn.shape == (size, size, 3) and drawn.dtype == np.uint8
    changed = (drawn != to_rgb(image)).any(axis=2)
    assert changed[mask].all()
    assert not changed[~mask].any()
    assert (image == before).all()


@pytest.mark.parametrize(("size", "scale"), [(256, 2), (512, 1), (300, 2), (1024, 1), (64, 8)])
def test_small_slices_are_shown_at_512_pixels_or_more(size, scale):
    assert display_scale(size, size) == scale
    drawn = draw_instances(grey(size), arrays(), ["lesion"])
    assert drawn.shape == (size * scale, size * scale, 3)


def test_an_enlarged_mask_stays_where_it_was():
    mask = disc(256, (100, 60), 20)
    drawn = draw_instances(np.zeros((256, 256), np.uint8), arrays(mask), ["lesion"], boxes=False, labels=False)
    changed = drawn.any(axis=2)
    blown_up = np.kron(mask, np.ones((2, 2), bool))
    assert (changed & blown_up).sum() / (changed | blown_up).sum() > 0.95


def test_no_instances_leave_the_slice_as_it_is():
    image = grey(64)
    assert (draw_instances(image, arrays(), ["lesion"], scale=1) == to_rgb(image)).all()


def test_outline_is_on_the_border_and_inside_the_mask():
    mask = disc(100, (50, 50), 30)
    mask &= ~disc(100, (50, 50), 10)  # a hole has a border too
    thin = outline(mask, thickness=1)
    inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    assert not (thin & ~mask).any()
    assert not (thin & inner).any()
    assert thin.sum() == (mask & ~inner).sum()
    thick = outline(mask, thickness=2)
    assert not (thick & ~mask).any() and thick.sum() > 1.5 * thin.sum()


def test_a_dashed_outline_is_about_half_of_the_whole_one():
    mask = disc(200, (100, 100), 60)
    whole, dashed = outline(mask, 1), outline(mask, 1, dash=5)
    assert not (dashed & ~whole).any()
    assert 0.4 < dashed.sum() / whole.sum() < 0.6


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_a_tiny_lesion_is_drawn_in_its_full_colour(pixels):
    mask = np.zeros((64, 64), bool)
    mask[30, 30 : 30 + pixels] = True
    drawn = draw_instances(np.zeros((64, 64), np.uint8), arrays(mask), ["lesion"], scale=1, boxes=False, labels=False)
    assert (drawn[mask] == class_colour(0)).all()


def test_a_mask_on_the_edge_of_the_slice_is_outlined_along_the_edge():
    mask = np.zeros((64, 64), bool)
    mask[:20, :20] = True
    drawn = draw_instances(np.zeros((64, 64), np.uint8), arrays(mask), ["lesion"], scale=1, boxes=False, labels=False)
    assert (drawn[0, :20] == class_colour(0)).all() and (drawn[:20, 0] == class_colour(0)).all()


def test_colour_tells_the_class():
    masks = disc(128, (40, 40), 15), disc(128, (90, 90), 15)
    drawn = draw_instances(
        np.zeros((128, 128), np.uint8), arrays(*masks, classes=[0, 1]), ["GGO", "consolidation"], scale=1, labels=False
    )
    assert (drawn[40, 25] == class_colour(0)).all()
    assert (drawn[90, 75] == class_colour(1)).all()
    assert class_colour(0) != class_colour(1)


def test_fills_that_overlap_do_not_add_up():
    mask = disc(128, (64, 64), 30)
    image = np.full((128, 128), 100, np.uint8)
    once = draw_instances(image, arrays(mask), ["lesion"], scale=1, boxes=False, labels=False)
    many = draw_instances(image, arrays(*[mask] * 20), ["lesion"], scale=1, boxes=False, labels=False)
    assert (once == many).all()


def test_boxes_are_drawn_without_masks_and_unmatched_ones_are_dashed():
    boxes = np.array([[10, 10, 50, 50], [60.2, 60.7, 100.4, 300]], float)
    instances = InstanceArrays(boxes, np.zeros(2, int))
    drawn = draw_instances(
        np.zeros((128, 128), np.uint8), instances, ["lesion"], matched=np.array([True, False]), scale=1, labels=False
    )
    top = drawn[10, 10:50].any(axis=1)
    left_of_second = drawn[60:, 60].any(axis=1)
    assert top.all() and drawn[49, 10:50].any(axis=1).all()
    assert 0.3 < left_of_second.mean() < 0.7  # and the part outside the slice is no error
    assert not drawn[11:49, 11:49].any()


def test_labels_change_the_picture_only_when_asked_for():
    mask = disc(512, (250, 250), 20)
    instances = arrays(mask, scores=[0.93])
    without = draw_instances(np.zeros((512, 512), np.uint8), instances, ["lesion"], labels=False)
    drawn = draw_instances(np.zeros((512, 512), np.uint8), instances, ["lesion"])
    ys, xs = np.nonzero((drawn != without).any(axis=2))
    assert len(ys) > 50
    assert ys.max() < 232 and xs.min() >= 230  # above the box, flush with its left side


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 9), (118, 118, 127, 127), (0, 118, 9, 127), (118, 0, 127, 9), (0, 0, 127, 127)]
)
def test_labels_stay_on_the_canvas(box):
    place = place_labels([box], [(60, 14)], [0], (128, 128, 3))[0]
    assert place[0] >= 0 and place[1] >= 0 and place[2] < 128 and place[3] < 128
    assert (place[2] - place[0] + 1, place[3] - place[1] + 1) == (60, 14)


def test_labels_of_neighbours_do_not_cover_each_other():
    boxes = [(100, 100, 130, 130), (104, 100, 134, 130), (108, 100, 138, 130), (112, 100, 142, 130)]
    places = place_labels(boxes, [(60, 14)] * 4, range(4), (512, 512))
    taken = np.zeros((512, 512), int)
    for left, top, right, bottom in places:
        taken[top : bottom + 1, left : right + 1] += 1
    assert taken.max() == 1


def test_what_is_no_slice_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        draw_instances(np.zeros((8, 8), np.float32), arrays(), ["lesion"])
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\)"):
        to_rgb(np.zeros((2, 8, 8, 3), np.uint8))


def test_the_font_scales():
    assert font(24).getlength("lesion") > 1.8 * font(12).getlength("lesion")
