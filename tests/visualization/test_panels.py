"""Panels: the right pictures in the right order, captions with true counts, files whole."""

from dataclasses import replace

from d2_covid.errors import UserError
from d2_covid.visualization import panels
from d2_covid.visualization.instances import InstanceArrays
from d2_covid.visualization.panels import caption, contact_sheet, save_png, side_by_side, slice_panel

import numpy as np
import pytest
from PIL import Image


def one(left: int, score: float | None = None) -> InstanceArrays:
    mask = np.zeros((1, 128, 128), bool)
    mask[0, 40:60, left : left + 20] = True
    scores = None if score is None else np.array([score])
    return InstanceArrays(np.array([[left, 40.0, left + 20, 60]]), np.array([0]), mask, scores)


IMAGE = np.full((128, 128), 90, np.uint8)


@pytest.mark.parametrize(
    ("truth", "predictions", "pictures"),
    [(None, None, 1), (one(10), None, 2), (None, one(10, 0.9), 2), (one(10), one(12, 0.9), 3)],
)
def test_a_panel_has_a_picture_for_what_is_known(truth, predictions, pictures):
    panel = slice_panel(IMAGE, ["lesion"], truth, predictions, name="patient 1 · 7.png", scale=2)
    gap = 6
    assert panel.shape[1] == pictures * 256 + (pictures - 1) * gap
    assert panel.shape[0] > 256 and panel.dtype == np.uint8


def test_slice_truth_and_prediction_stand_from_left_to_right():
    panel = slice_panel(IMAGE, ["lesion"], one(10), one(90, 0.9), scale=1)
    bar = (panel.shape[0] - 128) // 2
    pictures = [panel[bar : bar + 128, x : x + 128].astype(int) for x in (0, 134, 268)]
    coloured = [np.abs(p - 90).sum(axis=2) > 0 for p in pictures]
    assert not coloured[0].any()
    assert coloured[1][45:55, 12:28].all() and not coloured[1][45:55, 92:108].any()
    assert coloured[2][45:55, 92:108].all() and not coloured[2][45:55, 12:28].any()


@pytest.mark.parametrize(
    ("truth", "predictions", "found", "correct", "text"),
    [
        (None, None, None, None, "p"),
        (one(10), None, None, None, "p · 1 lesion"),
        (one(10), one(10, 0.9), np.array([True]), np.array([True]), "p · 1 lesion, 1 found · 1 predicted, 1 right"),
        (
            one(10).select([]),
            one(10, 0.9),
            np.zeros(0, bool),
            np.array([False]),
            "p · 0 lesions · 1 predicted, 0 right",
        ),
    ],
)
def test_captions_count(truth, predictions, found, correct, text):
    assert caption("p", truth, predictions, found, correct) == text


def test_crowd_regions_and_what_lies_in_them_are_neither_counted_nor_dashed(monkeypatch):
    truth = replace(one(10), crowd=np.array([True]))
    drawn, said = [], []
    monkeypatch.setattr(panels, "draw_instances", lambda image, *_, matched, **__: drawn.append(matched) or image)
    monkeypatch.setattr(panels, "side_by_side", lambda pictures, titles, *said_of, note: said.append((*said_of, note)))
    slice_panel(IMAGE, ["lesion"], truth, one(10, 0.9), name="p", scale=1)
    slice_panel(IMAGE, ["lesion"], truth, name="p", scale=1)
    assert drawn[0].tolist() == drawn[1].tolist() == [True]
    assert [text for text, *_ in said] == ["p · 0 lesions · 0 predicted", "p · 0 lesions"]
    assert not any(note for *_, note in said)


def test_a_long_caption_keeps_to_its_sheet():
    sheet = side_by_side([np.zeros((128, 128, 3), np.uint8)], ["slice"], "patient " * 40, ["lesion"])
    assert sheet.shape[1] == 128


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_contact_sheet_holds_every_panel_and_is_about_square(count):
    panels = [np.full((100, 150 + 10 * (i % 3), 3), 255, np.uint8) for i in range(count)]
    sheet = contact_sheet(panels, height=50, gap=4)
    thumbs = sum((150 + 10 * (i % 3)) // 2 * 50 for i in range(count))
    assert (sheet == 255).all(axis=2).sum() == thumbs
    assert 0.6 < sheet.shape[1] / sheet.shape[0] < 4


def test_png_comes_back_as_it_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "slice.png", image)
    assert (np.asarray(Image.open(tmp_path / "new" / "slice.png")) == image).all()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["slice.png"]


def test_a_png_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/slice.png"):
        save_png(tmp_path / "file" / "slice.png", np.zeros((4, 4, 3), np.uint8))
