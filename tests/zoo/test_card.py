"""MODEL_CARD.md says what the cards say."""

from d2_covid.inference.card_reading import card_from_dict
from d2_covid.zoo.card import card_page
from d2_covid.zoo.card_evaluations import _from_results

import pytest


@pytest.fixture
def card():
    source = {"name": "CT of mine", "url": "https://example.org", "used": "all", "terms": "ask me", "citation": "me"}
    metrics = {
        "segm/AP50": {"value": 28.25, "low": 15.0, "high": 69.0},
        "segm/AP75": {"value": None, "low": None, "high": None},
        "union/dice": {"value": 0.5412, "low": 0.4, "high": 0.7},
        "image/sensitivity-not_COVID-19": {"value": 0.5, "low": None, "high": None},
    }
    return {
        "schema_version": 1,
        "name": "lesions_r18_t1",
        "kind": "lesion",
        "default": True,
        "file": "lesions_r18_t1.pth",
        "size_bytes": 12_100_000,
        "sha256": "ab" * 32,
        "base": None,
        "date": "2026-01-02",
        "d2_covid": "0.1.0",
        "summary": "Outlines lesions.",
        "architecture": {
            "config": "mask_rcnn_R_18_T1_FPN",
            "parameters": 6050000,
            "lesion_classes": ["lesion"],
            "image_classes": [],
        },
        "storage": {
            "tensors": "float16",
            "trained_sha256": "cd" * 32,
            "comparison": {
                "on": "phantom CT",
                "slices": 4,
                "detections": 7,
                "unmatched": 0,
                "score_difference": 0.00123,
                "box_difference_px": 0.04,
                "mask_dice": 0.9987,
                "image_score_difference": None,
            },
        },
        "intended_use": "Research.",
        "not_intended_use": "Diagnosis.",
        "limits": ["Few patients.", "One class."],
        "training": {"recipe": "tuned", "command": "python tools/train_net.py X", "data": [source], "slices": 496},
        "evaluation": [
            {
                "data": "validation split",
                "weights": "stored",
                "slices": 125,
                "patients": 4,
                "lesions": 316,
                "interval": "95 %, bootstrap over 4 patients",
                "notes": ["Too narrow."],
                "metrics": metrics,
            }
        ],
        "licence": {"weights": "Non-commercial", "reason": "The data ask for it."},
    }


def test_a_card_stands_whole_on_the_page(card):
    page = card_page([card_from_dict(card, "test")])
    for words in (
        *("not a medical device", "**For:** Research.", "**Not for:** Diagnosis.", "- Few patients.", "- One class."),
        *("| mask AP50, % | 28.2 | 15.0 to 69.0 |", "| mask AP75, % | undefined | none |", "- Too narrow."),
        *("| Dice | 0.541 | 0.400 to 0.700 |", "| sensitivity to not COVID-19 | 0.500 | none |"),
        *("(125 slices, 4 patients, 316 lesions), of the weights that ship", "95 %, bootstrap over 4 patients."),
        *("[CT of mine](https://example.org): all. *Terms:* ask me. *Cite:* me", "Non-commercial. The data ask"),
        *("ab" * 32, "cd" * 32, "12,100,000 bytes", "python tools/train_net.py X", "| training | 496 slices |"),
        "on phantom CT, 4 slices: 7 detections, 0 unmatched; at most scores by 0.0012, boxes by 0.04 pixels; "
        "Dice of the united masks 0.9987",
    ):
        assert words in page, words
    assert "shares tensors" not in page and "| seed |" not in page


def test_what_is_not_known_is_left_out_or_said(card):
    card |= {"evaluation": [], "storage": {**card["storage"], "comparison": None}}
    card |= {"base": None, "training": {**card["training"], "seed": 3, "device": "NVIDIA X", "seconds": 99.6}}
    page = card_page([card_from_dict(card, "test")])
    assert "Nothing yet." in page and "changed by storing" not in page
    assert "| training | 496 slices, 100 s, NVIDIA X |" in page and "| seed | 3 |" in page


@pytest.mark.parametrize("patients, resampled, counted", [(4, "patients", "4 patients"), (None, "slices", "9 slices")])
def test_lesions_of_unknown_patients_are_resampled_by_slices(patients, resampled, counted):
    ap50 = {"value": 30.0, "interval": {"low": 20.0, "high": 40.0, "note": ""}, "note": ""}
    results = {"slices": 9, "patients": patients, "resampled": resampled, "instances": {"lesion": 3}}
    results |= {"settings": {"bootstrap": 50}, "metrics": {"segm/AP50": ap50}}
    found = _from_results("mine", results, several=False)
    assert (found.patients, found.interval) == (patients, f"95 %, bootstrap over {counted}, 50 resamples")


def test_no_model_no_card():
    assert "This copy ships none." in card_page([])


@pytest.mark.parametrize(
    "weights, said", [("stored", "of the weights that ship;"), ("trained", "of the weights before")]
)
def test_whose_figures_they_are_is_said(card, weights, said):
    card["evaluation"][0]["weights"] = weights
    card["evaluation"][0]["metrics"]["image/specificity-COVID-19"] = {"value": 0.25, "low": None, "high": None}
    page = card_page([card_from_dict(card, "test")])
    assert said in page and page.count("of the weights ") == 1
    assert "| specificity of COVID-19 | 0.250 | none |" in page
