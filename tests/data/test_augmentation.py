"""What an augmentation draws: within its limits, and as often as asked."""

from d2_covid.data.augmentation import Augmentation

import numpy as np
import pytest
from fvcore.transforms.transform import HFlipTransform, VFlipTransform

SLICE = np.random.default_rng(0).integers(0, 200, (60, 80), dtype=np.uint8)


def _draws(count=400, **limits):
    augmentation = Augmentation(**limits)
    return [augmentation.draw(np.random.default_rng(seed), SLICE).transforms for seed in range(count)]


@pytest.mark.parametrize(
    "limits, number",
    [
        ({"rotation": 20.0}, lambda one: np.degrees(np.arctan2(one.of_pixels[0, 1], one.of_pixels[0, 0])) / 20),
        ({"scale": 0.3}, lambda one: (np.hypot(*one.of_pixels[0, :2]) - 1) / 0.3),
        ({"intensity": 0.2}, lambda brightness, _: (brightness.apply_image(np.full(1, 100.0))[0] - 100) / 20),
        ({"intensity": 0.2}, lambda _, contrast: (contrast.apply_image(np.full(1, 0.0))[0] - 0) / -0.2 / SLICE.mean()),
    ],
    ids=["rotation", "scale", "brightness", "contrast"],
)
def test_an_augmentation_reaches_its_limits_and_no_further(limits, number):
    shares = [number(*transforms) for transforms in _draws(**limits)]
    assert -1 <= min(shares) < -0.95 and 0.95 < max(shares) <= 1
    assert abs(np.mean(shares)) < 0.1


def test_contrast_is_about_the_mean_of_the_slice():
    for _, contrast in _draws(8, intensity=0.2):
        assert contrast.apply_image(np.full(1, SLICE.mean())) == pytest.approx(SLICE.mean())


def test_flips_come_as_often_as_asked_and_each_by_itself():
    kinds = [{type(one) for one in transforms} for transforms in _draws(horizontal_flip=0.3, vertical_flip=0.6)]
    share = lambda *flips: np.mean([set(flips) <= found for found in kinds])  # noqa: E731
    assert share(HFlipTransform) == pytest.approx(0.3, abs=0.07)
    assert share(VFlipTransform) == pytest.approx(0.6, abs=0.07)
    assert share(HFlipTransform, VFlipTransform) == pytest.approx(0.18, abs=0.06)
