"""Dice, sensitivity, specificity: by hand, and every kind of empty reference."""

import math

from d2_covid.evaluation.overlap import confusion_pixels, empty_reference_counts, overlap_by_slice, overlap_values
from d2_covid.evaluation.slice_instances import collect_slices

import numpy as np
import pytest


def pixels(dicts, predictions, classes=("lesion",), **options):
    return confusion_pixels(collect_slices(dicts, predictions, classes), **options)


def test_pixels_of_the_union_by_hand(lesions):
    """Two overlapping detections, 10x10 and 10x10 shifted by 5: 150 pixels; 100 of them on the lesion of 10x20."""
    dicts = [lesions.truth(1, [(0, 10, 10, 10, 10), (0, 10, 20, 10, 10)])]
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 10, 10), (0, 0.8, 15, 10, 10, 10)])
    counts = pixels(dicts, predictions)
    assert counts.tolist() == [[100, 50, 100, 160 * 160 - 250]]
    assert overlap_values(counts) == pytest.approx(
        {
            "dice": 200 / 350,
            "sensitivity": 0.5,
            "specificity": 25350 / 25400,
            "pooled_dice": 200 / 350,
            "pooled_sensitivity": 0.5,
            "pooled_specificity": 25350 / 25400,
        }
    )


def test_detection_at_the_threshold_is_in_and_below_is_out(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 10, 10)])]
    predictions = lesions.found(1, [(0, 0.5, 10, 10, 10, 10), (0, 0.499, 60, 60, 10, 10)])
    assert pixels(dicts, predictions)[0, :3].tolist() == [100, 0, 0]
    assert pixels(dicts, predictions, score_threshold=0.4)[0, :3].tolist() == [100, 100, 0]
    assert pixels(dicts, predictions, score_threshold=0.6)[0, :3].tolist() == [0, 0, 100]


EMPTY = np.array(
    [
        [50, 50, 0, 900],  # lesion: Dice 2/3, sensitivity 1, specificity 18/19
        [0, 0, 0, 1000],  # both empty: Dice and sensitivity undefined
        [0, 10, 0, 990],  # reference empty, prediction not: Dice 0, sensitivity undefined
        [0, 0, 20, 980],  # prediction empty: Dice 0, sensitivity 0
        [500, 0, 500, 0],  # the reference fills the slice: specificity undefined
    ]
)


def test_each_kind_of_empty_reference():
    by_slice = overlap_by_slice(EMPTY)
    nan = math.nan
    assert by_slice["dice"].tolist() == pytest.approx([2 / 3, nan, 0, 0, 2 / 3], nan_ok=True)
    assert by_slice["sensitivity"].tolist() == pytest.approx([1, nan, nan, 0, 0.5], nan_ok=True)
    assert by_slice["specificity"].tolist() == pytest.approx([18 / 19, 1, 0.99, 1, nan], nan_ok=True)
    assert empty_reference_counts(EMPTY) == {
        "empty_reference": 2,
        "empty_reference_empty_prediction": 1,
        "empty_reference_with_prediction": 1,
    }


def test_means_leave_out_what_is_undefined_and_pooling_adds_all():
    values = overlap_values(EMPTY)
    assert values["dice"] == pytest.approx((2 / 3 + 0 + 0 + 2 / 3) / 4)
    assert values["sensitivity"] == pytest.approx(0.5)
    assert values["specificity"] == pytest.approx((18 / 19 + 1 + 0.99 + 1) / 4)
    assert values["pooled_dice"] == pytest.approx(1100 / (1100 + 60 + 520))
    assert values["pooled_sensitivity"] == pytest.approx(550 / 1070)
    assert values["pooled_specificity"] == pytest.approx(3870 / 3930)


def test_weights_equal_slices_that_occur_several_times():
    weights = np.array([2, 3, 0, 1, 1])
    assert overlap_values(EMPTY, weights) == pytest.approx(overlap_values(np.repeat(EMPTY, weights, axis=0)))


def test_nothing_but_empty_slices():
    values = overlap_values(EMPTY[[1, 1]])
    assert all(math.isnan(values[name]) for name in ("dice", "sensitivity", "pooled_dice", "pooled_sensitivity"))
    assert values["specificity"] == values["pooled_specificity"] == 1


def test_pixels_of_crowd_regions_that_no_lesion_has_are_left_out(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 10, 10), (0, 15, 10, 20, 10), (1, 60, 60, 10, 10)])]
    for annotation in dicts[0]["annotations"][1:]:
        annotation["iscrowd"] = 1
    # Over the lesion, the region beside it, and 5 columns beyond both.
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 30, 10), (0, 0.9, 60, 60, 10, 10)])
    classes = ("GGO", "consolidation")
    everywhere = 160 * 160
    assert pixels(dicts, predictions, classes).tolist() == [[100, 50, 0, everywhere - 300 - 100]]
    # A region of another class leaves nothing out.
    assert pixels(dicts, predictions, classes, of_class=0).tolist() == [[100, 150, 0, everywhere - 300 - 100]]
    assert pixels(dicts, predictions, classes, of_class=1).tolist() == [[0, 0, 0, everywhere - 100]]


def test_by_class_and_together(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 10, 10), (1, 60, 60, 10, 10)]), lesions.truth(2, [])]
    predictions = lesions.found(1, [(1, 0.9, 10, 10, 10, 10), (1, 0.9, 60, 60, 10, 10)])
    classes = ("GGO", "consolidation")
    # Together the class does not matter.
    assert pixels(dicts, predictions, classes)[:, :3].tolist() == [[200, 0, 0], [0, 0, 0]]
    assert pixels(dicts, predictions, classes, of_class=0)[0, :3].tolist() == [0, 0, 100]
    assert pixels(dicts, predictions, classes, of_class=1)[0, :3].tolist() == [100, 100, 0]
