"""The paper's AP: each of its rules, by hand."""

from d2_covid.evaluation.paper_ap import IOU_THRESHOLDS, paper_ap_table, paper_ap_values, paper_average_precision
from d2_covid.evaluation.slice_instances import collect_slices

import numpy as np
import pytest


def ap50(iou, scores, threshold=0.75):
    return paper_average_precision(np.array(iou, dtype=float), np.array(scores, dtype=float), threshold)[0]


def table(dicts, predictions, classes=("lesion",), **options):
    return paper_ap_table(collect_slices(dicts, predictions, classes), **options)


@pytest.mark.parametrize(
    ("detections", "truths", "expected"),
    [(0, 0, 1), (0, 2, 0), (3, 0, 0)],
    ids=["neither ground truth nor detections", "no detections", "no ground truth"],
)
def test_empty_sides(detections, truths, expected):
    assert (paper_average_precision(np.ones((detections, truths)), np.full(detections, 0.9)) == expected).all()


def test_only_detections_above_the_threshold_enter():
    # At the threshold is not above it; with nothing entering, an empty slice scores 1.
    assert ap50([[1.0]], [0.75]) == 0
    assert ap50([[1.0]], [0.7500001]) == 1
    assert ap50(np.zeros((1, 0)), [0.75]) == 1
    assert ap50(np.zeros((1, 0)), [0.76]) == 0
    assert ap50([[1.0]], [0.4], threshold=0.3) == 1


@pytest.mark.parametrize(
    ("iou", "scores", "expected"),
    [
        # One hit, then a false positive after it: recall is full before the false positive.
        ([[0.9], [0.0]], [0.99, 0.9], 1.0),
        # The false positive scores higher: precision 1/2 all along.
        ([[0.9], [0.0]], [0.9, 0.99], 0.5),
        # Hit, miss, hit of two lesions: 1/2 x 1 + 1/2 x 2/3.
        ([[0.9, 0], [0, 0], [0, 0.9]], [0.97, 0.96, 0.95], 5 / 6),
        # One of two lesions found.
        ([[0.9, 0.0]], [0.9], 0.5),
        # Two detections of one lesion: the better overlap gets it though it scores lower; the other is false.
        ([[0.6], [0.9]], [0.99, 0.9], 0.5),
        # Overlap too small.
        ([[0.4999]], [0.99], 0.0),
        # Overlap at the threshold.
        ([[0.5]], [0.99], 1.0),
        # One detection matches two lesions: both are found.
        ([[0.5, 0.5]], [0.99], 1.0),
        # The same, the second detection finds a third: 2/3 x 1 + 1/3 x 1.
        ([[0.5, 0.5, 0.0], [0.0, 0.0, 0.8]], [0.99, 0.98], 1.0),
        # One detection is best for two lesions, the other then matches none though it overlaps one enough.
        ([[0.6, 0.6], [0.55, 0.0]], [0.9, 0.99], 0.5),
        # A low-scoring hit raises no earlier precision: 1/3 x 1/2 (rank 2), nothing more.
        ([[0, 0, 0], [0.9, 0, 0]], [0.99, 0.98], 1 / 6),
    ],
)
def test_by_hand(iou, scores, expected):
    assert ap50(iou, scores) == pytest.approx(expected)


def test_equal_overlap_goes_to_the_higher_score():
    assert ap50([[0.8], [0.8]], [0.8, 0.9]) == 1.0


def test_each_iou_threshold_is_its_own(lesions):
    """IoU 0.8: found at the seven thresholds up to it."""
    rows = table([lesions.truth(1, [(0, 10, 10, 10, 10)])], lesions.found(1, [(0, 0.9, 10, 10, 10, 8)]))
    assert rows.tolist() == [[1.0] * 7 + [0.0] * 3]
    assert IOU_THRESHOLDS[6] == pytest.approx(0.8)
    assert paper_ap_values(rows) == pytest.approx({"AP": 70.0, "AP50": 100.0, "AP75": 100.0})


def test_perfect_predictions_score_100(lesions):
    boxes = [(0, 5, 5, 20, 20), (0, 40, 40, 50, 50)]
    dicts = [lesions.truth(1, boxes), lesions.truth(2, [])]
    rows = table(dicts, lesions.found(1, [(label, 0.9, *box) for label, *box in boxes]))
    assert paper_ap_values(rows) == {"AP": 100.0, "AP50": 100.0, "AP75": 100.0}


def test_mean_is_over_slices_not_lesions(lesions):
    """One lesion found, three missed, one slice rightly empty, one falsely not: 1, 0, 1, 0."""
    dicts = [
        lesions.truth(1, [(0, 10, 10, 20, 20)]),
        lesions.truth(2, [(0, 10, 10, 20, 20), (0, 40, 40, 20, 20), (0, 80, 80, 20, 20)]),
        lesions.truth(3, []),
        lesions.truth(4, []),
    ]
    predictions = lesions.found(1, [(0, 0.9, 10, 10, 20, 20)]) + lesions.found(4, [(0, 0.9, 10, 10, 20, 20)])
    rows = table(dicts, predictions)
    assert rows[:, 0].tolist() == [1, 0, 1, 0]
    assert paper_ap_values(rows)["AP"] == 50
    assert paper_ap_values(rows, np.array([3, 1, 0, 0]))["AP"] == 75
    # All detections above a threshold of 0.95 are gone: the last slice is right, the first is not.
    assert table(dicts, predictions, score_threshold=0.95)[:, 0].tolist() == [0, 0, 1, 1]


def test_masks_are_compared_not_boxes(lesions):
    """An L and a full square share a box; the masks' IoU is 19 of 100."""
    item = lesions.truth(1, [(0, 10, 10, 10, 10)])
    row = lesions.found(1, [(0, 0.9, 10, 10, 10, 10)])[0]
    item["annotations"][0]["segmentation"] = [[10, 10, 20, 10, 20, 11, 11, 11, 11, 20, 10, 20]]
    assert table([item], [row]).sum() == 0


def test_crowd_regions_are_neither_found_nor_missed(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 20, 20), (0, 60, 60, 40, 40)]), lesions.truth(2, [(0, 60, 60, 40, 40)])]
    for item in dicts:
        item["annotations"][-1]["iscrowd"] = 1
    inside, across, beside = (0, 0.99, 60, 60, 10, 10), (0, 0.98, 50, 60, 20, 10), (0, 0.97, 49, 60, 20, 10)
    right = (0, 0.9, 10, 10, 20, 20)
    assert table(dicts, [])[:, 0].tolist() == [0, 1]
    rows = lesions.found(1, [inside, across, right]) + lesions.found(2, [inside, across])
    assert table(dicts, rows)[:, 0].tolist() == [1, 1]
    # Less than half of it lies in the region.
    rows = lesions.found(1, [beside, right]) + lesions.found(2, [beside])
    assert table(dicts, rows)[:, 0].tolist() == [0.5, 0]
    # A region of another class leaves nothing out.
    rows = lesions.found(2, [(1, *inside[1:])])
    assert table(dicts, rows, ("GGO", "consolidation"))[1, 0] == 0


def test_a_lesion_found_in_a_crowd_region_counts(lesions):
    item = lesions.truth(1, [(0, 10, 10, 20, 20), (0, 5, 5, 40, 40)])
    item["annotations"][1]["iscrowd"] = 1
    assert table([item], lesions.found(1, [(0, 0.9, 10, 10, 20, 20)]))[0, 0] == 1


def test_detection_of_another_class_does_not_match(lesions):
    dicts = [lesions.truth(1, [(0, 10, 10, 20, 20), (1, 60, 60, 20, 20)])]
    predictions = lesions.found(1, [(1, 0.95, 10, 10, 20, 20), (1, 0.9, 60, 60, 20, 20)])
    classes = ("GGO", "consolidation")
    # One curve over both classes: a false positive, then one of two lesions.
    assert table(dicts, predictions, classes)[0, 0] == pytest.approx(1 / 2 * 1 / 2)
    assert table(dicts, predictions, classes, of_class=0)[0, 0] == 0
    assert table(dicts, predictions, classes, of_class=1)[0, 0] == pytest.approx(1 / 2)
