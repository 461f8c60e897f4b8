"""Pictures of why a slice has its class: colours by sign, widths by share, what is left out, and every empty case."""

from dataclasses import replace
from io import BytesIO

from d2_covid.visualization import decision
from d2_covid.visualization.decision import (
    AGAINST,
    FOR,
    Decision,
    draw_decision,
    figure_why,
    left_out,
    percent,
    telling_regions,
)

import numpy as np
import pytest
from PIL import Image

NAMES = ("control", "common pneumonia", "COVID-19")
IMAGE = np.full((512, 512), 90, np.uint8)
BOXES = np.array([[100, 100, 200, 180], [300, 300, 400, 420]], float)


def is_colour(picture, colour):
    return (picture == np.array(colour, np.uint8)).all(axis=2)


def line_width(picture, colour, row, start):
    """Pixels of ``colour`` from column ``start`` on, along ``row``."""
    line = is_colour(picture, colour)[row, start:]
    return int(np.argmin(line))


def a_decision(n=20, seed=0, **values):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (n, 2))
    contributions = rng.normal(size=n)
    item = Decision(
        name="p/1.png",
        image=rng.integers(0, 255, (64, 64), dtype=np.uint8),
        boxes=np.concatenate([corner, corner + rng.uniform(2, 20, (n, 2))], axis=1),
        contributions=contributions,
        shares=contributions / max(np.abs(contributions).sum(), 1e-30),
        removal=contributions * 1.1,
        image_logits=np.array([-1.0, 0.5, 3.0]),
        agreement=1.0 if n > 1 else float("nan"),
        true_class=2,
    )
    return replace(item, **values)


def test_a_box_has_the_colour_of_its_sign():
    before = IMAGE.copy()
    drawn = draw_decision(IMAGE, BOXES, np.array([0.7, -0.3]))
    assert drawn.shape == (512, 512, 3) and drawn.dtype == np.uint8
    supports, opposes = is_colour(drawn, FOR), is_colour(drawn, AGAINST)
    # Whole lines for the class; dashes, with gaps, against it.
    assert supports[100, 100:200].all() and supports[179, 100:200].all() and supports[100:180, 100].all()
    assert 0 < opposes[300, 300:400].sum() < 100
    assert not opposes[:280].any() and not supports[280:].any()
    assert (drawn[110:170, 110:190] == 90).all(), "what lies inside a region stays visible"
    assert (IMAGE == before).all()


def test_turning_the_shares_round_turns_the_colours_round():
    turned = draw_decision(IMAGE, BOXES, np.array([-0.7, 0.3]))
    assert is_colour(turned, AGAINST)[:280].any() and not is_colour(turned, FOR)[:280].any()
    assert is_colour(turned, FOR)[300, 300:400].all()


def test_a_larger_share_has_a_wider_line():
    drawn = draw_decision(IMAGE, BOXES, np.array([0.9, 0.1]))
    assert line_width(drawn, FOR, 140, 100) == decision.MOST_WIDTH
    assert line_width(drawn, FOR, 360, 300) == 1


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_boxes_stand_where_they_are_at_any_scale(scale):
    drawn = draw_decision(np.full((128, 96), 90, np.uint8), np.array([[40, 60, 80, 100]]), np.array([1.0]), scale=scale)
    assert drawn.shape == (128 * scale, 96 * scale, 3)
    line = is_colour(drawn, FOR)
    assert line[60 * scale : 100 * scale, 40 * scale].all() and line[100 * scale - 1, 40 * scale : 80 * scale].all()


@pytest.mark.parametrize(
    "box", [[0, 0, 30, 20], [480, 490, 512, 512], [-20, -20, 540, 530], [0, 500, 4, 512], [508, 0, 512, 3]]
)
def test_labels_lie_on_the_canvas(monkeypatch, box):
    seen = []
    original = decision.draw_labels

    def spy(canvas, spans, texts, colours, order, size):
        drawn = original(canvas, spans, texts, colours, order, size)
        # A label darkens what it covers; what a box line covers, has its colour.
        seen.append((drawn != canvas).any(axis=2))
        return drawn

    monkeypatch.setattr(decision, "draw_labels", spy)
    draw_decision(IMAGE, np.array([box], float), np.array([-1.0]))
    (changed,) = seen
    rows, columns = np.nonzero(changed)
    # Whole: as high and wide as the label of a box in the middle.
    draw_decision(IMAGE, np.array([[200.0, 200, 300, 300]]), np.array([-1.0]))
    middle_rows, middle_columns = np.nonzero(seen[1])
    assert np.ptp(rows) == np.ptp(middle_rows) and np.ptp(columns) == np.ptp(middle_columns)


@pytest.mark.parametrize(
    "shares", [np.zeros(0), np.zeros(2), np.array([0.004, -0.009])], ids=["no detection", "all zero", "all tiny"]
)
def test_nothing_telling_leaves_the_slice_as_it_is(shares):
    drawn = draw_decision(IMAGE, BOXES[: len(shares)], shares)
    assert (drawn == IMAGE[:, :, None]).all()


def test_a_box_smaller_than_its_line_is_drawn():
    drawn = draw_decision(IMAGE, np.array([[100.2, 100.2, 101.1, 101.1]]), np.array([1.0]))
    assert is_colour(drawn, FOR)[100:102, 100:102].all()


@pytest.mark.parametrize(
    "shares, limit, expected",
    [
        ([0.1, -0.5, 0.4], 8, [1, 2, 0]),
        ([0.1, -0.5, 0.4], 2, [1, 2]),
        ([0.25, -0.25, 0.25, 0.25], 3, [0, 1, 2]),  # ties stand in their order
        ([0.995, 0.005], 8, [0]),
        ([], 8, []),
    ],
)
def test_regions_by_the_size_of_their_share(shares, limit, expected):
    assert telling_regions(np.array(shares), limit).tolist() == expected


@pytest.mark.parametrize(
    "shares, limit, said",
    [
        ([], 8, "no detection: the class is the classifier's bias"),
        ([0.0, 0.0], 8, "2 detections, none of which moves the class"),
        ([0.6, -0.4], 8, "all detections"),
        ([0.6, -0.3, 0.06, -0.04], 2, "+ 2 more, together 10 % of all that counts"),
        ([0.995, 0.005], 8, "+ 1 more, together less than 1 % of all that counts"),
        ([1.0, 0.0], 8, "+ 1 more, together less than 1 % of all that counts"),
    ],
)
def test_what_is_left_out_is_said(shares, limit, said):
    assert left_out(np.array(shares), limit) == said


@pytest.mark.parametrize("share, text", [(0.344, "+34 %"), (-0.12, "\u221212 %"), (1, "+100 %"), (-0.01, "\u22121 %")])
def test_percent_with_its_sign(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    "item",
    [
        a_decision(20),
        a_decision(0),
        a_decision(1),
        a_decision(3, contributions=np.zeros(3), shares=np.zeros(3), removal=np.zeros(3), agreement=float("nan")),
        a_decision(5, true_class=None),
    ],
    ids=["many", "none", "one", "all zero", "class unknown"],
)
def test_the_figure_of_any_slice(item):
    png = figure_why([item], NAMES)
    # Matplotlib's releases round half a pixel differently.
    assert Image.open(BytesIO(png)).size == pytest.approx((1872, 637), abs=1)


def test_the_figure_repeats_and_shows_what_it_is_asked_to():
    item = a_decision(20)
    few, more, again = (figure_why([item], NAMES, limit=limit) for limit in (1, 6, 6))
    assert few != more == again
    assert figure_why([replace(item, removal=-item.removal)], NAMES, limit=6) != more
    assert figure_why([replace(item, agreement=-0.5)], NAMES, limit=6) != more
    assert Image.open(BytesIO(figure_why([item, item], NAMES))).size == pytest.approx((1872, 1235), abs=1)
