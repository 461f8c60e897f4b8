"""What is called flat, linear and worse."""

from d2_covid.benchmark.growth import growth

import pytest

SIZES = [1, 8, 64, 512]


@pytest.mark.parametrize(
    "costs, verdict",
    [
        ([5.0, 5.1, 5.3, 6.0], "flat"),
        ([0.2 * n for n in SIZES], "linear"),
        ([100 + 3 * n for n in SIZES], "linear"),
        ([n**0.5 for n in SIZES], "linear"),  # less than linear is no worse
        ([n**1.5 for n in SIZES], "more than linear"),
        ([50 + n * n for n in SIZES], "more than linear"),
        ([4.0, 3.9, 4.1, 9.0], "more than linear"),
    ],
)
def test_verdicts(costs, verdict):
    assert growth(SIZES, costs).verdict == verdict


def test_noise_on_a_linear_cost_stays_linear():
    assert growth(SIZES, [105, 120, 300, 1700]).verdict == "linear"


def test_what_one_item_more_costs():
    found = growth(SIZES, [100 + 3 * n for n in SIZES])
    assert found.per_item == pytest.approx(3) and found.factor == pytest.approx(1636 / 103)


def test_factor_is_of_the_largest_size_over_the_smallest():
    found = growth([1, 8, 64, 256, 512], [338.7, 329.0, 421.0, 725.8, 825.1])
    assert found.factor == pytest.approx(825.1 / 338.7) and found.verdict == "linear"
    assert growth([1, 2, 3], [5.0, 9.0, 5.0]).verdict != "flat"


@pytest.mark.parametrize("sizes, costs", [([1], [1.0]), ([2, 1], [1.0, 2.0]), ([1, 2], [1.0])])
def test_needs_ascending_sizes_with_costs(sizes, costs):
    with pytest.raises(ValueError):
        growth(sizes, costs)
