"""The page about a classifier, and the command that scores predictions again."""

import importlib.util
import json
import re
from functools import lru_cache
from html.parser import HTMLParser

from d2_covid.errors import UserError
from d2_covid.evaluation.calibration import image_scores
from d2_covid.evaluation.classification import write_predictions
from d2_covid.evaluation.classification_results import IntervalOptions, SlicePredictions, classification_results
from d2_covid.visualization.classification_page import cell, classification_html, write_classification_page

import numpy as np
import pytest

NAMES = ("control", "common pneumonia", "COVID-19")


def predictions(size=60, classes=3, patients=True, prefix="p", seed=0):
    rng = np.random.default_rng(seed)
    truth = np.arange(size) // 5 % classes
    logits = rng.normal(size=(size, classes)) + 1.5 * np.eye(classes)[truth]
    ids = [f"{prefix}{index // 5}" if patients else "" for index in range(size)]
    files = [f"{prefix}<{index}>.png" for index in range(size)]
    return SlicePredictions(files, ids, [""] * size, truth, logits, image_scores(logits), NAMES[:classes])


@lru_cache
def page(**options):
    given = predictions(**options)
    results = {"dataset": "a <set>", **classification_results(given, IntervalOptions(20))}
    return results, classification_html(results, given)


def text_of(html):
    class Text(HTMLParser):
        words = ""

        def handle_data(self, data):
            self.words += f" {data}"

    parser = Text()
    parser.feed(html)
    return " ".join(parser.words.split())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_page_says_what_was_measured_and_on_what(classes):
    results, html = page(classes=classes)
    text = text_of(html)
    assert "Image classes: a <set>" in text and "60 slices of 12 patients" in text
    assert "Not a medical device" in text and "20 resamples of patients, seed 0" in text
    for name, measure in results["measures"].items():
        if not name.startswith("mcc"):
            assert f"{measure['value']:.3f}" in text, name
    low, high = (results["measures"]["accuracy"]["interval"][end] for end in ("low", "high"))
    assert f"{low:.3f} to {high:.3f}" in text
    assert html.count("data:image/png;base64,") == 3
    assert "By patient" in text and "a disease that at least 3 slices show" in text


def test_the_page_needs_no_other_file():
    _, html = page(classes=3)
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<set>" not in html


def test_without_patients_it_says_so():
    _, html = page(patients=False)
    assert "The data name no patients" in html and "By patient" not in html


@pytest.mark.parametrize("size", [0, 1])
def test_hardly_any_slices(size):
    assert "undefined" in page(size=size)[1]


def test_cells():
    assert cell({"value": None, "reason": "no COVID-19 in the data"}).value == "undefined"
    entry = {"value": 0.5, "numerator": 1000, "denominator": 2000, "interval": {"low": 0.4, "high": 0.6, "note": "n"}}
    found = cell(entry)
    assert (found.value, found.counts, found.interval, found.note) == ("0.500", "1,000 / 2,000", "0.400 to 0.600", "n")
    assert cell({"value": 1.0, "interval": None}).interval == ""


def test_the_page_is_the_same_every_time(tmp_path):
    results, html = page(classes=3)
    write_classification_page(results, predictions(), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == html


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("score_classes_under_test", repository / "tools" / "score_classes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def saved(tmp_path):
    write_predictions(tmp_path / "test" / "predictions.csv", predictions(seed=1))
    write_predictions(tmp_path / "val" / "predictions.csv", predictions(prefix="v", seed=2))
    return tmp_path


def run(tool, saved, *options):
    arguments = [str(saved / "test" / "predictions.csv"), "--output", str(saved / "out"), "--bootstrap", "20", *options]
    assert tool.main(arguments) == 0
    return json.loads((saved / "out" / "results.json").read_text())


def test_scoring_again_gives_the_same_measures(tool, saved, capsys):
    results = run(tool, saved)
    expected = classification_results(predictions(seed=1), IntervalOptions(20))
    assert results["measures"] == expected["measures"] and results["temperature"] is None
    assert results["dataset"] == "test"
    assert {p.name for p in (saved / "out").iterdir()} == {"results.json", "predictions.csv", "classification.html"}
    assert "accuracy: " in capsys.readouterr().out


def test_a_temperature_from_validation_data(tool, saved, capsys):
    plain = classification_results(predictions(seed=1), IntervalOptions(20))
    results = run(tool, saved, "--fit-temperature-on", str(saved / "val" / "predictions.csv"))
    assert f"MODEL.CLASSIFIER.TEMPERATURE {results['temperature']:.4f}" in capsys.readouterr().out
    assert results["measures"]["accuracy"] == plain["measures"]["accuracy"]
    assert results["calibration"]["brier"]["value"] != plain["calibration"]["brier"]["value"]
    fixed = run(tool, saved, "--temperature", str(results["temperature"]))
    assert fixed["calibration"] == results["calibration"]


def test_a_temperature_is_not_fitted_on_what_it_is_judged_on(tool, saved):
    test_file = str(saved / "test" / "predictions.csv")
    with pytest.raises(UserError, match="shares 60 slices"):
        run(tool, saved, "--fit-temperature-on", test_file)
    other = predictions(seed=3)
    write_predictions(saved / "val" / "predictions.csv", SlicePredictions(
        [f"v{name}" for name in other.files], *[getattr(other, n) for n in list(vars(other))[1:]]
    ))  # fmt: skip
    with pytest.raises(UserError, match="shares 12 patients"):
        run(tool, saved, "--fit-temperature-on", str(saved / "val" / "predictions.csv"))
    write_predictions(saved / "val" / "predictions.csv", predictions(classes=2, prefix="v"))
    with pytest.raises(UserError, match="has the classes"):
        run(tool, saved, "--fit-temperature-on", str(saved / "val" / "predictions.csv"))
    write_predictions(saved / "val" / "predictions.csv", predictions(size=0))
    with pytest.raises(UserError, match="one slice"):
        run(tool, saved, "--fit-temperature-on", str(saved / "val" / "predictions.csv"))
    with pytest.raises(UserError, match="above 0"):
        run(tool, saved, "--temperature", "0")
