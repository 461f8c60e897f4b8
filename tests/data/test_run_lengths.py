"""Run-length codes against pycocotools, and codes that are none."""

from d2_covid.data.lesion_masks import encode_mask
from d2_covid.data.run_lengths import check_covers, run_lengths

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 2**20))
def test_lengths_are_those_that_were_compressed(runs, long_run):
    runs = [*runs, long_run, *runs]
    counts = mask_util.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)["counts"]
    assert run_lengths(counts).tolist() == run_lengths(counts.decode()).tolist() == runs


def test_lengths_of_a_mask_go_down_its_columns():
    mask = np.zeros((10, 20), bool)
    mask[3:8, 2], mask[9, 19] = True, True
    assert run_lengths(encode_mask(mask)["counts"]).tolist() == [23, 5, 171, 1]
    assert run_lengths([23, 5.0, 171, 1]).tolist() == [23, 5, 171, 1]
    assert run_lengths("").tolist() == run_lengths([]).tolist() == []


@pytest.mark.parametrize(
    "counts",
    ["abc", "o", "0 0", "\u00e9", "oooooooo0", "N", [-1, 5], [1.5], ["5"], [float("nan")], [[1]], 3],
)
def test_what_is_no_code_is_an_error(counts):
    with pytest.raises((ValueError, TypeError)):
        run_lengths(counts)


@pytest.mark.parametrize("counts, pixels", [([100, 20], 120), ([25600, 100], 25700)])
def test_a_code_that_is_too_short_or_too_long_covers_no_image(counts, pixels):
    with pytest.raises(ValueError, match=f"add up to {pixels} pixels, not 25600"):
        check_covers(counts, 160, 160)
    check_covers([25500, 100], 160, 160)
