"""The model that ships, on real CT; skipped where either is absent."""

from d2_covid.data.preprocessing import read_slice
from d2_covid.inference.predictor import Predictor
from d2_covid.inference.shipped import shipped_models
from d2_covid.inference.slice_result import decode_mask

import numpy as np
import pytest
from PIL import Image

PATIENTS, EVERY = ("1", "4"), 9


@pytest.fixture(scope="module")
def card():
    """The card of the default model."""
    models = shipped_models()
    if not models:
        pytest.skip("this copy of d2_covid ships no models")
    return models[0].card


def test_it_outlines_lesions_about_as_well_as_its_card_says(card, real_data):
    claimed = [one.metrics["union/pooled_dice"].value for one in card.evaluation if "union/pooled_dice" in one.metrics]
    assert claimed, f"the card of {card.name} names no union/pooled_dice"
    predictor = Predictor(device="cpu")
    assert predictor.source.name == card.name
    folder = real_data / "radiopaedia" / "ct_lesion_seg"
    files = [path for patient in PATIENTS for path in sorted((folder / "image" / patient).iterdir())[::EVERY]]
    common = total = 0
    for path in files:
        result = predictor.slice(read_slice(path))
        found = np.zeros((result.height, result.width), bool)
        for one in result.instances:
            found |= decode_mask(one.mask)
        true = np.asarray(Image.open(folder / "mask" / path.parent.name / f"{path.stem}.png")) >= 2
        common += int((found & true).sum())
        total += int(found.sum()) + int(true.sum())
    assert len(files) > 5 and total > 0
    # A sample of the slices that it was measured on, with wide margins: what this finds is a model that is broken.
    assert 2 * common / total > 0.6 * min(claimed), f"Dice {2 * common / total:.2f}, the card says {claimed}"
