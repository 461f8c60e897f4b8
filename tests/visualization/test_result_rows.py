"""Figures of an evaluation as a reader sees them."""

import copy

from d2_covid.visualization.result_rows import lesion_rows, results_notes


def figure(value, low, high, slices=96):
    interval = {"low": low, "high": high, "level": 0.95, "resamples": 1000, "patients": 8}
    return {"value": value, "interval": interval, "slices": slices, "patients": 8, "instances": 210, "note": "A rule."}


RESULTS = {
    "slices": 96,
    "patients": 8,
    "resampled": "patients",
    "instances": {"lesion": 210},
    "slices_without_ground_truth": 1,
    "settings": {"bootstrap": 1000},
    "metrics": {
        "union/dice": figure(0.8123, 0.77, 0.85, slices=90),
        "segm/AP50": figure(71.26, 64.04, 77.9),
        "segm/AP50-lesion": figure(1, 1, 1),
        "segm/AP75": figure(None, None, None),
    },
}


def test_rows_say_value_interval_and_n_in_the_units_of_the_metric():
    ap50, ap75, dice = lesion_rows(RESULTS)
    assert (ap50.name, ap50.value, ap50.interval) == ("Mask AP50", "71.3 %", "64.0 to 77.9 %")
    assert ap50.n == "96 slices of 8 patients"
    assert (ap75.value, ap75.interval) == ("undefined", "none")
    assert (dice.value, dice.interval, dice.n) == ("0.812", "0.770 to 0.850", "90 slices of 8 patients")


def test_the_notes_say_what_was_counted_and_give_each_rule_once():
    counted, intervals, rule = results_notes(RESULTS)
    assert (
        "96 slices of 8 patients" in counted
        and "true instances: lesion 210" in counted
        and "1 slice without a lesion" in counted
    )
    assert intervals == "Intervals: bootstrap over patients, 1000 resamples."
    assert rule == "Mask AP50, Mask AP75, Dice of the lesion area: A rule."


def test_without_a_bootstrap_the_notes_claim_none():
    results = copy.deepcopy(RESULTS)
    results["settings"]["bootstrap"] = 0
    assert "bootstrap" not in " ".join(results_notes(results))


def test_slices_of_unknown_patients_are_counted_alone():
    results = copy.deepcopy(RESULTS) | {"patients": None, "resampled": "slices"}
    results["metrics"]["segm/AP50"]["patients"] = None
    assert lesion_rows(results)[0].n == "96 slices"
    counted, intervals, _ = results_notes(results)
    assert counted.startswith("96 slices; true instances") and "bootstrap over slices" in intervals
