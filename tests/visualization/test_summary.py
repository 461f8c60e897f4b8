"""The summary page: every figure is on it, and it needs nothing but itself."""

import base64
import json
import re
from io import BytesIO

from d2_covid.errors import UserError
from d2_covid.visualization.curves import read_metrics, series, training_curve
from d2_covid.visualization.summary import Picture, ResultRow, Stage, summary_html, write_summary

import numpy as np
import pytest
from PIL import Image

RECORDS = [
    {"iteration": 0, "total_loss": 2.5},
    {"iteration": 10, "total_loss": 1.5, "val/total_loss": 1.75},
    {"iteration": 20, "total_loss": 0.5, "segm/AP50": 61.0, "segm/AP": float("nan")},
]


@pytest.fixture()
def stage() -> Stage:
    return Stage(
        title="Segmentation",
        lead="A sentence <with> & signs.",
        facts={"configuration": "quick.yaml", "seed": 17, "seconds": 211},
        results=[ResultRow("Mask AP50", "71.3 %", "64.0 to 77.9 %", "96 slices of 8 patients", "COCO's")],
        results_notes=["Unseen patients."],
        curve=training_curve(RECORDS),
        pictures=[Picture(np.full((40, 120, 3), 128, np.uint8), "patient 3, slice 9")],
        pictures_note="Dashed means unmatched.",
    )


def test_every_figure_is_on_the_page(stage):
    html = summary_html("Demo", "What this is.", [stage])
    for text in ("Demo", "What this is.", "Segmentation", "quick.yaml", "17", "211", "Mask AP50", "71.3 %"):
        assert text in html
    for text in (
        "64.0 to 77.9 %",
        "96 slices of 8 patients",
        "Unseen patients.",
        "Dashed means unmatched.",
        "COCO&#39;s",
    ):
        assert text in html
    assert "Research software. Not a medical device." in html
    assert "&lt;with&gt; &amp; signs" in html and "<with>" not in html


def test_the_page_needs_no_other_file_and_no_network(stage):
    html = summary_html("Demo", "", [stage])
    assert "http:" not in html and "https:" not in html and "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == 2 and all(source.startswith("data:image/") for source in sources)
    sizes = [Image.open(BytesIO(base64.b64decode(source.split(",", 1)[1]))).size for source in sources]
    assert (120, 40) in sizes
    assert "<script" not in html


def test_pictures_have_a_text(stage):
    html = summary_html("Demo", "", [stage])
    assert all('alt="' in tag and 'alt=""' not in tag for tag in re.findall(r"<img[^>]*>", html))


def test_a_stage_with_nothing_but_a_title_has_no_empty_sections():
    html = summary_html("Demo", "", [Stage("Only a title")])
    body = html[html.index("<main>") :]
    assert "Only a title" in body
    assert "<h3>" not in body and "<table>" not in body and "<img" not in body


def test_the_page_is_written_whole(tmp_path, stage):
    write_summary(tmp_path / "demo" / "summary.html", "Demo", "", [stage, stage])
    written = (tmp_path / "demo" / "summary.html").read_text(encoding="utf-8")
    assert written.rstrip().endswith("</html>")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["summary.html"]


def test_metrics_of_a_killed_and_resumed_training(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [{"iteration": 0, "total_loss": 3}, {"iteration": 20, "total_loss": 2}, {"iteration": 20, "total_loss": 1}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 30, "tot')
    assert read_metrics(path) == [lines[0], lines[2]]


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="metrics.json: no such file"):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("not json\n{}")
    with pytest.raises(UserError, match="metrics.json, line 1"):
        read_metrics(tmp_path / "metrics.json")


def test_series_leave_out_what_was_not_measured():
    iterations, values = series(RECORDS, "total_loss")
    assert iterations.tolist() == [0, 10, 20] and values.tolist() == [2.5, 1.5, 0.5]
    assert [len(part) for part in series(RECORDS, "segm/AP")] == [0, 0]  # nan
    assert [len(part) for part in series([], "total_loss")] == [0, 0]


@pytest.mark.parametrize("records", [[], RECORDS[:1], RECORDS])
def test_curves_are_pictures_and_repeat(records):
    first = training_curve(records)
    assert Image.open(BytesIO(first)).format == "PNG"
    assert first == training_curve(records)
