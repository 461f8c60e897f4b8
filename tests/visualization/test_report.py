"""The report of a series: what it says, and how it behaves in a browser."""

import importlib.util
import json
import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

from d2_covid import get_config
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.data.volumes import series_from_array
from d2_covid.errors import UserError
from d2_covid.inference.series_result import ClassByRule, FailedSlice, SeriesSummary
from d2_covid.inference.slice_result import Contributions, LesionInstance, SliceResult, decode_mask
from d2_covid.visualization import report
from d2_covid.visualization.report import MAX_SIDE, outline_path, picture, picture_side, write_report
from d2_covid.visualization.report_tables import measure_rows
from d2_covid.visualization.step_charts import load_chart, nice_top, score_chart

import cv2
import numpy as np
import pytest

SLICES = 6
LESIONS = ("GGO", "consolidation")
IMAGES = ("control", "common pneumonia", "COVID-19")
EVIL = "</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"

_spec = importlib.util.spec_from_file_location("d2_covid_test_browser", Path(__file__).with_name("browser.py"))
browser_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser_module)


def predictor(masks=True, classifier=True):
    """What the report asks of a predictor."""
    source = SimpleNamespace(
        name="tiny <model>", weights_sha256="0123456789abcdef" * 4, weights=Path("best.pth"), card=None
    )
    return SimpleNamespace(
        cfg=get_config("segmentation/mask_rcnn_R_18_T1_FPN.yaml", ["MODEL.DEVICE", "cpu"]),
        source=source,
        lesion_classes=LESIONS,
        image_classes=IMAGES if classifier else (),
        score_threshold=0.5,
        window=(-600.0, 1500.0),
        with_masks=masks,
    )


def contributions(seed: int) -> Contributions:
    shares = np.array([0.5, -0.3, 0.2, 0.001], np.float32)
    boxes = np.array([[5, 5, 15, 20], [20, 8, 30, 22], [2, 25, 40, 36], [1, 1, 3, 3]], np.float32) + seed % 3
    return Contributions(
        boxes=boxes,
        scores=np.array([0.9, 0.4, 0.2, 0.1], np.float32),
        classes=np.array([0, 1, 0, 0], np.int16),
        rows=np.ones(4, np.int16),
        contributions=shares * 3,
        shares=shares,
        removal=shares * 2,
    )


def predicted(series, given, empty=False):
    """A result in which slice k has one lesion of 10 x (k + 1) pixels, but none on slice 0, and two on slice 3."""
    summary = SeriesSummary(series, LESIONS, given.image_classes, with_masks=given.with_masks, k=2)
    for index in range(series.num_slices):
        height, width = series.slice(index).shape
        masks = np.zeros((0 if empty or index == 0 else 2 if index == 3 else 1, height, width), bool)
        for number, mask in enumerate(masks):
            mask[20 * number + 4 : 20 * number + 14, 6 : 7 + index] = True
        labels = sum(((number + 1) * mask for number, mask in enumerate(masks)), np.zeros((height, width), np.uint8))
        instances = tuple(
            LesionInstance(
                box=(6.0, 20.0 * number + 4, 7.0 + index, 20.0 * number + 14),
                score=0.9 - 0.1 * number,
                class_name=LESIONS[number],
                mask=encode_mask(mask) if given.with_masks else None,
                area_px=int(mask.sum()) if given.with_masks else None,
                area_mm2=float(mask.sum()) * 0.8 if given.with_masks and series.geometry else None,
            )
            for number, mask in enumerate(masks)
        )
        areas = {name: int((labels == number + 1).sum()) for number, name in enumerate(LESIONS)}
        lung = np.zeros((height, width), bool)
        lung[3:30, 4:40] = True
        high = 0.2 + 0.1 * index
        result = SliceResult(
            index, series.slice_names[index], height, width, instances, areas if given.with_masks else None,
            series.pixel_area_mm2, encode_mask(lung), int(lung.sum()), int((lung | (labels > 0)).sum()),
        )  # fmt: skip
        if given.image_classes:
            scores = dict(zip(IMAGES, (0.5 * (1 - high), 0.5 * (1 - high), high), strict=True))
            named = max(scores, key=scores.get)
            result = replace(result, image_class=named, image_scores=scores, contributions=contributions(index))
        summary.add(result, labels if given.with_masks else None, masks if given.with_masks else None)
    return summary.finish({"read": 0.1, "model": 1.25})


def make(
    scans,
    path,
    masks=True,
    classifier=True,
    loose=False,
    tags=None,
    name="a series",
    slices=SLICES,
    empty=False,
    oriented=True,
):
    series = replace(series_from_array(scans.body(slices), (2.0, 1.0, 0.8), identifier=name), oriented=oriented)
    if loose:
        series = replace(series, geometry=None, kind="images", slice_names=tuple(f"im{k}.png" for k in range(slices)))
    given = predictor(masks, classifier)
    result = predicted(series, given, empty)
    write_report(path, result, series, given, tags or {})
    return series, result


class Page(HTMLParser):
    """Text, tags with their attributes, and the JSON blocks of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.blocks, self._script = "", [], [], None
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("type", "") if tag == "script" else "style" if tag == "style" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += f" {data}"
        elif self._script == "application/json":
            self.blocks.append(json.loads(data))


@pytest.fixture(scope="module")
def full(scans, tmp_path_factory):
    """The page of a classifier with masks, its path and its result."""
    path = tmp_path_factory.mktemp("report") / "rep ört" / "report.html"
    _, result = make(scans, path)
    return path, result, Page(path.read_text(encoding="utf-8"))


def test_the_page_says_what_ran_on_what_and_what_was_found(full):
    _, result, page = full
    for words in (
        "CT report: a series", "tiny <model>", "0123456789ab", "Research use only. Not a medical device.",
        "Lesion volume", "Share of the lung", "Lesion count", "6 × 40 × 48; 2 × 1 × 0.8 mm", "level -600, width 1500",
        "Hounsfield units", "torch", "a disease that at least 2 slices show", "5 of 6", "model 1.2",
    ):  # fmt: skip
        assert words in page.text, words
    assert f"{result.lesion_volume_ml:.2f} ml" in page.text
    assert f"{100 * result.lesion_share_of_lung:.1f} %" in page.text
    assert "0123456789abcdef0" not in page.text  # the hash is short


def test_every_slice_is_there_with_its_picture_and_outlines(full):
    _, result, page = full
    settings, *slices = page.blocks
    assert len(slices) == SLICES and settings["start"] == 3  # two lesions there
    assert [len(one["instances"]) for one in slices] == [0, 1, 1, 2, 1, 1]
    assert all(one["image"].startswith("data:image/jpeg;base64,") and one["lung"] for one in slices)
    assert settings["colours"].keys() == set(LESIONS) and settings["aspect"] == pytest.approx(1.25)
    assert slices[2]["scores"]["COVID-19"] == pytest.approx(0.4)
    # The smallest region rounds to 0 % and is left out; the others stand by size.
    assert [region["share"] for region in slices[0]["regions"]] == pytest.approx([0.5, -0.3, 0.2])


def test_nothing_in_the_page_points_outside(full):
    path, _, page = full
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    addresses = set(re.findall(r"https?://[^\"'\s]+", path.read_text(encoding="utf-8")))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address that is asked
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "@import" not in path.read_text(encoding="utf-8")


def test_controls_have_names(full):
    _, _, page = full
    ids = {a.get("id") for _, a in page.tags}
    assert {"slider", "lesions", "lung", "regions"} <= ids
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true", attributes
        if tag == "input" and attributes["type"] == "range":
            assert attributes["aria-label"]


@pytest.mark.parametrize(
    ("masks", "classifier", "loose"),
    [(True, False, False), (True, True, True), (False, True, False), (False, False, True)],
)
def test_models_and_inputs_of_every_kind(masks, classifier, loose, scans, tmp_path):
    make(scans, tmp_path / "report.html", masks, classifier, loose)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("What carries the class" in page.text) == classifier == ("Image scores by slice" in page.text)
    assert ("regions" in {a.get("id") for _, a in page.tags}) == classifier
    assert ("Lesions, the largest first" in page.text) == (masks and not loose)
    if not masks:
        assert "The model has no masks." in page.text and "lesions found" in page.text
        assert all(found["path"] is None for one in page.blocks[1:] for found in one["instances"])
    if loose:
        assert "Loose images have no place and no size in the patient." in page.text
        assert not masks or "pixels" in page.text


@pytest.mark.parametrize("options, known", [({}, True), ({"loose": True}, False), ({"oriented": False}, False)])
def test_left_and_right_are_marked_where_they_are_known(options, known, scans, tmp_path):
    make(scans, tmp_path / "report.html", **options)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    marks = {attributes.get("title") for tag, attributes in page.tags if tag == "span"} - {None}
    assert marks == ({"the patient's right", "the patient's left"} if known else set())


def test_a_series_without_lesions(scans, tmp_path):
    make(scans, tmp_path / "report.html", slices=1, empty=True)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "0 of 1" in page.text and page.blocks[0]["start"] == 0
    assert any(a.get("aria-label", "").endswith("No lesions on any slice.") for _, a in page.tags)


def test_text_from_outside_stays_text(scans, tmp_path):
    make(scans, tmp_path / "report.html", name=EVIL, tags={"PatientID": EVIL})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert EVIL not in html and "<img" not in html
    page = Page(html)
    assert page.text.count(EVIL) >= 2 and page.blocks[1]["name"].startswith(EVIL)


def test_a_failed_slice_is_named(scans, tmp_path):
    series = series_from_array(scans.body(3), identifier="images")
    series = replace(series, geometry=None, kind="images", slice_names=("a.png", "b.png", "c.png"))
    given = predictor(classifier=True)
    whole = predicted(series, given)
    result = replace(whole, slices=whole.slices[1:], failed_slices=(FailedSlice(0, "a.png", "a.png is <torn>."),))
    result = replace(result, classes=tuple(replace(rule, deciding_slices=(2, 1)) for rule in result.classes))
    write_report(tmp_path / "report.html", result, series, given, {})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "1 more could not be read" in page.text and "a.png is <torn>." in page.text
    # Slices go by their place in the page where a script asks, by their number where a person reads.
    jumps = [(a["data-jump"], a["aria-label"]) for _, a in page.tags if "data-jump" in a]
    assert ("1", "Show slice 2") in jumps and ("0", "Show slice 1") in jumps


def test_a_page_is_whole_or_not_there(scans, tmp_path, monkeypatch):
    def broken(gray, side):
        raise UserError("slice 0 is gone.")

    monkeypatch.setattr(report, "picture", broken)
    with pytest.raises(UserError, match="is gone"):
        make(scans, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_flat(scans, tmp_path, monkeypatch):
    """The pictures together are 40 MB; the page never holds more than a few."""
    monkeypatch.setattr(report, "picture", lambda gray, side: "data:," + "x" * 1_000_000)
    series = series_from_array(scans.body(40), (2.0, 1.0, 0.8), identifier="long")
    given = predictor()
    result = predicted(series, given)
    write_report(tmp_path / "warm.html", result, series, given, {})
    tracemalloc.start()
    write_report(tmp_path / "report.html", result, series, given, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "report.html").stat().st_size > 40_000_000
    assert peak < 15_000_000


@pytest.mark.parametrize("kind", ["blob", "hole", "pixel", "line", "two", "nothing", "all"])
def test_an_outline_covers_its_mask(kind):
    mask = np.zeros((40, 50), bool)
    if kind in ("blob", "hole"):
        mask = cv2.ellipse(np.zeros((40, 50), np.uint8), (22, 18), (15, 9), 20, 0, 360, 1, -1).astype(bool)
        mask[15:20, 18:25] = kind == "blob"
    mask[3, 3] |= kind in ("pixel", "two")
    mask[30, 8:20] |= kind in ("line", "two")
    mask |= kind == "all"
    path = outline_path(mask)
    rings = []
    for ring in path.split("z")[:-1]:
        start, *steps = ring[1:].split("l")
        points = [[float(edge) - 0.5 for edge in start.split()]]
        for step in steps:
            points.append([a + int(b) for a, b in zip(points[-1], step.split(), strict=True)])
        rings.append(np.array(points, np.int32))
    # Fill by "evenodd", then the line of one pixel on the border.
    drawn = np.zeros(mask.shape, np.uint8)
    for ring in rings:
        layer = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [ring], 1)
        drawn ^= layer
    for ring in rings:
        cv2.polylines(drawn, [ring], True, 1)
    assert (drawn.astype(bool) == mask).all()
    assert bool(path) == mask.any()


def test_pictures_are_light():
    rng = np.random.default_rng(0)
    gray = cv2.GaussianBlur(rng.integers(0, 256, (512, 512)).astype(np.uint8), (0, 0), 2)
    assert len(picture(gray)) < 65_000  # 150 of them stay below 10 MB
    assert len(picture(np.zeros((3000, 9), np.uint8))) < 2_000
    assert [picture_side(n) for n in (1, 200, 800, 100_000)] == [MAX_SIDE, MAX_SIDE, MAX_SIDE // 2, 160]


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.2, 2), (3, 4), (2283, 2500), (41, 50), (100, 100), (101, 200)]
)
def test_the_top_of_a_chart(value, top):
    assert nice_top(value) == top


def test_charts_show_what_was_measured(full):
    _, result, _ = full
    load = load_chart(result.slices, LESIONS)
    areas = [sum(one.lesion_area_px.values()) * 0.8 for one in result.slices]
    assert load.count == SLICES and load.unit == "mm²" and load.top == nice_top(max(areas))
    assert f"{max(areas):.0f} mm²" in load.summary and "5 of 6 slices" in load.summary
    heights = [float(h) for h in re.findall(r"M\d+ [\d.]+v-([\d.]+)", load.curves[0].path)]
    ggo = [one.lesion_area_px["GGO"] * 0.8 / load.top * 100 for one in result.slices]
    assert heights == pytest.approx(ggo[1:], abs=0.01)
    scores = score_chart(result.slices, IMAGES)
    assert [curve.name for curve in scores.curves] == list(IMAGES)
    assert scores.curves[2].path.startswith("M0 80.0h1L1 70.0h1")
    assert score_chart(result.slices, ()) is None


def test_masks_survive(full):
    """The fixture's own ground: what the outlines were drawn from."""
    _, result, _ = full
    assert decode_mask(result.slices[5].instances[0].mask).sum() == 60


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    reason = browser_module.missing()
    if reason:
        pytest.skip(reason)
    with browser_module.Browser() as found:
        yield found


def shown(browser) -> tuple[int, bool, bool]:
    """Number of the slice on the page, and whether lesions and lung are drawn."""
    return tuple(
        browser.run(
            "const p = document.getElementById('picture'); return [Number(document.getElementById('now').textContent"
            ".match(/^Slice (\\d+)/)[1]), !!p.querySelector('.lesions'), !!p.querySelector('.lung')];"
        )
    )


def quiet(browser) -> None:
    """Assert that the console is empty, and that only files of this disk were asked for."""
    assert browser.console() == []
    requests = browser.requests()
    assert requests and all(url.startswith("file://") for url in requests), requests


def test_the_checks_of_the_browser_see_faults(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>", encoding="utf-8")
    browser.open(page)
    assert any("oh" in line for line in browser.console())
    assert "http://127.0.0.1:9/x.png" in browser.requests()


def test_slider_keys_overlays_and_charts(browser, full):
    browser.open(full[0])
    assert shown(browser) == (3, True, False)
    browser.press("right")
    assert shown(browser)[0] == 4
    browser.press("left"), browser.press("left")
    assert shown(browser)[0] == 2
    browser.press("end", "#slider")
    assert shown(browser)[0] == 5
    browser.press("right", "#slider")
    assert shown(browser)[0] == 5
    browser.press("left", "#slider")
    assert shown(browser)[0] == 4
    assert browser.run("return document.getElementById('slider').getAttribute('aria-valuetext')").startswith("Slice 4")
    browser.press("space", "#slider")
    assert shown(browser) == (4, False, False)
    browser.press("space")
    browser.click("#lung")
    assert shown(browser) == (4, True, True)
    # On a checkbox the space bar is the checkbox's own.
    browser.press("space", "#lung")
    assert shown(browser) == (4, True, False)
    browser.click("#lesions")
    assert shown(browser)[1] is False
    browser.click("#back")
    assert shown(browser)[0] == 3
    browser.click("#regions")
    labels = browser.run("return [...document.querySelectorAll('#picture .regions text')].map((t) => t.textContent)")
    assert sorted(labels) == ["1: +50 %", "2: \u221230 %", "3: +20 %"]
    for position in (1, 4, 0):
        browser.click_at("[data-chart]", (position + 0.5) / SLICES)
        assert shown(browser)[0] == position
    browser.click("[data-jump='5']")
    assert shown(browser)[0] == 5
    # The pictures of the deciding slices were drawn, and decode.
    assert browser.run("return document.querySelectorAll('.deciding svg image').length") == len(
        full[1].classes[0].deciding_slices
    )
    size = browser.run(
        "const i = new Image(); i.src = document.querySelector('#picture image').getAttribute('href');"
        "return i.decode().then(() => [i.naturalWidth, i.naturalHeight]);"
    )
    assert size == [48, 40]
    quiet(browser)


@pytest.mark.parametrize(("masks", "classifier", "loose"), [(True, False, False), (False, True, True)])
def test_other_pages_run_too(masks, classifier, loose, browser, scans, tmp_path):
    make(scans, tmp_path / "report.html", masks, classifier, loose, name=EVIL)
    browser.open(tmp_path / "report.html", 390, 844)
    browser.press("home", "#slider"), browser.press("right")
    assert shown(browser)[:2] == (1, True)
    # A phone needs no sideways scrolling.
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    quiet(browser)


@pytest.mark.parametrize(
    "found, value", [(("control", "control"), "control"), (("COVID-19", "control"), "the rules disagree")]
)
def test_the_headline_says_when_the_rules_disagree(found, value):
    given = predictor()
    result = predicted(series_from_array(np.zeros((4, 48, 48), np.uint8), assume_window=True), given)
    rules = [
        ClassByRule(rule, k, image_class, {}, {}, ())
        for (rule, k), image_class in zip((("any_k", 3), ("mean", None)), found)
    ]
    measure = measure_rows(replace(result, classes=tuple(rules)))[0]
    assert (measure.name, measure.value) == ("Class of the series", value)
    if value == "the rules disagree":
        assert all(image_class in measure.limits for image_class in found)
