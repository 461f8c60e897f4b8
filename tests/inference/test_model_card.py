"""The card of a shipped model: what is a whole one, and what is said of one that isn't."""

import copy
import json

from d2_covid.errors import UserError
from d2_covid.inference.card_reading import card_from_dict, read_card
from d2_covid.inference.model_card import ModelCard

import pytest


@pytest.fixture(scope="module")
def values(tiny_store):
    """Plain values of a whole card with a measurement."""
    card = json.loads((tiny_store / "tiny_lesion.json").read_text())
    card["evaluation"] = [
        {
            "data": "discs",
            "weights": "stored",
            "slices": 3,
            "patients": None,
            "lesions": 2,
            "interval": "none",
            "notes": [],
            "metrics": {"segm/AP50": {"value": 12.5, "low": None, "high": None}, "segm/APl": {"value": None}},
        }
    ]
    return card


def test_a_card_goes_through_json_unchanged(values, tmp_path):
    card = card_from_dict(values, "x")
    assert isinstance(card, ModelCard) and card.evaluation[0].metrics["segm/AP50"].value == 12.5
    (tmp_path / "card.json").write_text(json.dumps(card.as_dict()))
    assert read_card(tmp_path / "card.json") == card
    assert card.limits_line == values["limits"][0]


def _set(values, field, value):
    *path, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    for part in path:
        values = values[part]
    if value is KeyError:
        del values[last]
    else:
        values[last] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "schema_version is 2; this d2_covid reads 1"),
        ("summary", KeyError, "summary is missing"),
        ("training.data.0.terms", KeyError, "training.data[0].terms is missing"),
        ("training.dataset", "x", "training.dataset is no field of a card"),
        ("name", "Tiny-1", "name 'Tiny-1' must be of a to z"),
        ("name", "other", "file must be other.pth, not 'tiny_lesion.pth'"),
        ("kind", "mask", "kind must be one of lesion, classifier"),
        ("kind", "classifier", "default: only a lesion model can be the default"),
        ("default", 1, "default must be true or false, not 1"),
        ("size_bytes", 1.5, "size_bytes must be a whole number, not 1.5"),
        ("size_bytes", True, "size_bytes must be a whole number, not True"),
        ("size_bytes", 0, "size_bytes must be above 0"),
        ("sha256", "ABC", "sha256 must be 64 hexadecimal digits"),
        ("storage.trained_sha256", "0", "storage.trained_sha256 must be 64"),
        ("base", {"name": "x", "sha256": "0" * 64}, "base: a lesion model has none"),
        ("date", "24.11.2026", "date must be as 2020-12-31"),
        ("date", "20261124", "date must be as 2020-12-31"),
        ("summary", "", "summary must be text"),
        ("summary", "two\nlines", "summary must be a single line"),
        ("limits", [], "limits is empty"),
        ("limits", "few", "limits must be a list, not 'few'"),
        ("limits", ["x" * 201], "limits[0] is over 200 characters"),
        ("architecture.image_classes", ["a"], "architecture.image_classes do not fit kind lesion"),
        ("training.data", [], "training.data is empty"),
        ("training.command", "train D /home/me/run", "training.command names a path of one machine, /home/me/run"),
        ("training.seconds", "long", "training.seconds must be a number, not 'long'"),
        ("evaluation.0.weights", "best", "evaluation[0].weights must be one of stored, trained"),
        ("evaluation.0.metrics", {}, "evaluation[0].metrics is empty"),
        ("evaluation.0.metrics.segm/AP50.value", float("nan"), "metrics.segm/AP50.value must be a number, not nan"),
        ("licence", "free", "licence must be an object, not 'free'"),
    ],
)
def test_what_is_wrong_is_named(field, value, message, values):
    changed = copy.deepcopy(values)
    _set(changed, field, value)
    with pytest.raises(UserError) as caught:
        card_from_dict(changed, "models/x.json")
    assert str(caught.value).startswith("models/x.json: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["https://zenodo.org/home/record", "output/tmp/run", "$HOME/x", "25/75 of all"])
def test_what_is_no_path_of_a_machine(text, values):
    changed = copy.deepcopy(values)
    changed["training"]["command"] = text
    assert card_from_dict(changed, "x").training.command == text


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not json"), ("[]", "the card must be an object"), (None, "No such file")]
)
def test_files_that_are_no_card(content, message, tmp_path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_card(path)
