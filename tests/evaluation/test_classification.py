"""Results, intervals, the evaluator and its files."""

import csv
import json
import math
from dataclasses import replace

from d2_covid.config import get_config
from d2_covid.errors import UserError
from d2_covid.evaluation.bootstrap import bootstrap_interval
from d2_covid.evaluation.calibration import brier_score, expected_calibration_error, image_scores, reliability_bins
from d2_covid.evaluation.classification import ImageClassEvaluator, read_predictions, write_predictions
from d2_covid.evaluation.classification_metrics import measure_function, wilson_interval
from d2_covid.evaluation.classification_results import (
    NO_WIDTH,
    IntervalOptions,
    SlicePredictions,
    classification_results,
    flat_values,
)

import numpy as np
import pytest
import torch
from sklearn import metrics

NAMES = ("control", "common pneumonia", "COVID-19")
FEW = IntervalOptions(resamples=50)


def predictions(size=60, patients=12, classes=3, seed=0, skill=1.5):
    rng = np.random.default_rng(seed)
    truth = np.arange(size) * patients // max(size, 1) % classes
    logits = rng.normal(size=(size, classes))
    logits[np.arange(size), truth] += skill
    ids = [f"p{index * patients // size}" if patients else "" for index in range(size)]
    files = [f"slice, {index}.png" for index in range(size)]
    return SlicePredictions(files, ids, [""] * size, truth, logits, image_scores(logits), NAMES[:classes])


@pytest.mark.parametrize("classes", [2, 3])
def test_results_are_whole_and_valid_json(classes):
    given = predictions(classes=classes)
    results = classification_results(given, FEW)
    json.dumps(results, allow_nan=False)
    assert results["slices"] == 60 and results["patients"] == 12 and sum(results["slices_by_class"]) == 60
    assert np.trace(results["confusion"]["counts"]) == results["measures"]["accuracy"]["numerator"]
    assert set(results["by_patient"]) == {"any_k", "top_k_mean", "mean"}
    assert results["by_patient"]["mean"]["patients"] == 12
    interval = results["measures"]["auc"]["interval"]
    assert interval["method"] == "bootstrap over patients" and interval["low"] < interval["high"]
    by_patient = results["by_patient"]["mean"]["measures"]
    assert by_patient["accuracy"]["interval"]["method"] == "Wilson"  # one case a patient
    assert by_patient["auc"]["interval"]["method"] == "bootstrap over patients"
    flat = flat_values(results)
    assert set(flat) == {"image", "patient"}
    kinds = ("sensitivity", "specificity", "ppv", "npv", "f1", "auc", "average_precision")
    names = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "auc", "average_precision", "ece", "brier")
    assert set(flat["image"]) == {*names, *(f"{k}-{n.replace(' ', '_')}" for k in kinds for n in NAMES[:classes])}
    assert all(isinstance(value, float) for value in flat["image"].values())


def test_the_same_predictions_give_the_same_results():
    assert classification_results(predictions(), FEW) == classification_results(predictions(), FEW)


def test_without_patients_wilson_and_slices_and_it_says_so():
    results = classification_results(predictions(patients=0), FEW)
    assert results["patients"] is None and results["by_patient"] == {}
    assert "no patients" in results["intervals"]["note"] and results["intervals"]["unit"] == "slice"
    methods = {name: entry["interval"]["method"] for name, entry in results["measures"].items()}
    assert methods["accuracy"] == methods["ppv-control"] == "Wilson"
    assert methods["auc"] == methods["f1-control"] == methods["mcc"] == "bootstrap over slices"
    assert set(flat_values(results)) == {"image"}


def test_one_slice_without_a_patient_makes_patients_unknown():
    given = predictions()
    given.patient_ids[3] = ""
    results = classification_results(given, FEW)
    assert results["patients"] is None and results["by_patient"] == {}
    assert results["intervals"]["note"].startswith("1 of 60 slices name no patient, so")


def test_no_intervals_when_none_are_asked_for():
    results = classification_results(predictions(), IntervalOptions(resamples=0))
    assert all(entry["interval"] is None for entry in results["measures"].values())


@pytest.mark.parametrize("size", [0, 1])
def test_hardly_any_slices(size):
    given = predictions(size=size, patients=size)
    results = classification_results(given, FEW)
    json.dumps(results, allow_nan=False)
    flat = flat_values(results)["image"]
    assert math.isnan(flat["mcc"]) and math.isnan(flat["balanced_accuracy"])
    assert results["measures"]["mcc"]["reason"]


def test_a_perfect_score_is_not_certainty():
    results = classification_results(predictions(skill=50), FEW)
    accuracy = results["measures"]["accuracy"]
    assert accuracy["value"] == 1 and accuracy["interval"]["note"] == NO_WIDTH


def test_without_width_other_notes_are_kept():
    """Each of three patients is of a class of its own, and absent from many resamples."""
    results = classification_results(predictions(size=6, patients=3, skill=50), FEW)
    entry = results["measures"]["sensitivity-control"]
    undefined, note = entry["interval"]["undefined_resamples"], entry["interval"]["note"]
    assert entry["value"] == entry["interval"]["low"] == entry["interval"]["high"] == 1 and 0 < undefined < 50
    others = f"Undefined in {undefined} of 50 resamples, which are left out. Resampled from only 3 patients: "
    assert note.startswith(others)
    assert note.endswith(f". {NO_WIDTH}")


def test_few_patients_are_remarked():
    assert "3 patients" in classification_results(predictions(patients=3), FEW)["intervals"]["note"]
    assert classification_results(predictions(size=200, patients=40), FEW)["intervals"]["note"] == ""


def test_patient_intervals_cover_where_slice_intervals_do_not():
    """Slices of a patient are alike: 30 patients of 8 slices, each right or wrong together, chance 0.8."""
    rng = np.random.default_rng(0)
    covered = {"patient": 0, "slice": 0}
    rounds = 120
    for _ in range(rounds):
        right = np.repeat(rng.random(30) < 0.8, 8)
        for unit, groups in (("patient", np.repeat(np.arange(30), 8).tolist()), ("slice", list(range(240)))):
            interval = bootstrap_interval(
                lambda weights, right=right: float(weights @ right / weights.sum()), groups, resamples=200
            )
            covered[unit] += interval.low <= 0.8 <= interval.high
    assert covered["patient"] / rounds > 0.88
    assert covered["slice"] / rounds < 0.7


def config(**test):
    opts = [item for name, value in test.items() for item in (f"TEST.{name}", value)]
    return get_config(opts=opts)


def batch(given):
    inputs = [
        {"image_id": i, "file_name": f, "patient_id": p, "scan_id": s, "image_class": int(c)}
        for i, (f, p, s, c) in enumerate(zip(given.files, given.patient_ids, given.scan_ids, given.truth))
    ]
    return inputs, [{"image_logits": torch.from_numpy(logit)} for logit in given.logits]


def test_evaluator_scores_each_slice_once_and_in_order(tmp_path):
    given = predictions()
    inputs, outputs = batch(given)
    evaluator = ImageClassEvaluator("set", NAMES, output_dir=tmp_path, intervals=FEW)
    order = np.random.default_rng(0).permutation(60).tolist()
    for index in [*order, 5, 6]:  # an even share of slices among processes repeats some
        evaluator.process([inputs[index]], [outputs[index]])
    found = evaluator.evaluate()
    assert found == flat_values(classification_results(given, FEW))
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["schema_version"] == 1 and saved["dataset"] == "set" and saved["slices"] == 60
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["image"]["accuracy"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sure_scores_are_ranked_apart(temperature):
    """Margins of 18 and 20: in single precision both scores are 1."""
    evaluator = ImageClassEvaluator("set", NAMES[:2], temperature=temperature, intervals=FEW)
    for number, margin in enumerate((18.0, 20.0)):
        sample = {"image_id": number, "file_name": str(number), "image_class": number}
        evaluator.process([sample], [{"image_logits": torch.tensor([0.0, margin])}])
    found = evaluator.evaluate()["image"]
    assert found["auc"] == found["auc-control"] == found["auc-common_pneumonia"] == 1.0


def test_scores_have_the_temperature_of_the_model(tmp_path):
    cfg = config()
    cfg.MODEL.CLASSIFIER.TEMPERATURE = 2.5
    assert ImageClassEvaluator.from_config(cfg, "covidx_ct_test")._temperature == 2.5
    given = predictions()
    evaluator = ImageClassEvaluator("set", NAMES, temperature=2.5, output_dir=tmp_path, intervals=FEW)
    evaluator.process(*batch(given))
    evaluator.evaluate()
    scores = torch.softmax(torch.from_numpy(given.logits) / 2.5, 1)
    np.testing.assert_allclose(read_predictions(tmp_path / "predictions.csv").scores, scores, rtol=1e-12)


@pytest.mark.parametrize("missing", [[None] * 60, [float("nan") for _ in range(60)], [None, *["p"] * 59]])
def test_patients_that_nobody_named_are_unknown(missing, tmp_path):
    inputs, outputs = batch(predictions())
    evaluator = ImageClassEvaluator("set", NAMES, output_dir=tmp_path, intervals=FEW)
    evaluator.process([dict(sample, patient_id=id) for sample, id in zip(inputs, missing)], outputs)
    assert set(evaluator.evaluate()) == {"image"}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["patients"] is None and saved["intervals"]["unit"] == "slice"
    assert "nan" not in (ids := read_predictions(tmp_path / "predictions.csv").patient_ids) and "None" not in ids


def test_processes_are_gathered_and_only_the_first_answers(monkeypatch):
    inputs, outputs = batch(predictions())

    def evaluator_of(part: slice) -> ImageClassEvaluator:
        evaluator = ImageClassEvaluator("set", NAMES, intervals=FEW)
        evaluator.process(inputs[part], outputs[part])
        return evaluator

    # Slice 30 went to both, as an even split that rounds up has it.
    whole, first, second = (evaluator_of(part) for part in (slice(60), slice(31), slice(30, 60)))
    expected = whole.evaluate()
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst=0: [data, second._rows])
    assert first.evaluate() == expected != {}
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert first.evaluate() == {}


def test_predictions_can_be_scored_again(tmp_path):
    given = predictions()
    write_predictions(tmp_path / "predictions.csv", given)
    read = read_predictions(tmp_path / "predictions.csv")
    assert list(read.files) == list(given.files) and list(read.class_names) == list(given.class_names)
    assert classification_results(read, FEW) == classification_results(given, FEW)
    np.testing.assert_array_equal(read.logits, given.logits)


@pytest.mark.parametrize(
    "text, said",
    [("", "first line"), ("a,b\n1,2\n", "first line"), (None, "Cannot read"), ('"' + 200_000 * "a", "Cannot read")],
)
def test_other_files_are_no_predictions(tmp_path, text, said):
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_predictions(path)


@pytest.mark.parametrize("field", ["scores", "logits"])
def test_scores_that_are_no_numbers_name_their_slice(field):
    given = predictions()
    getattr(given, field)[7, 1] = np.nan
    with pytest.raises(UserError, match=r"slice, 7\.png has scores that are no numbers, as 1 slices do"):
        classification_results(given, FEW)


def test_damaged_predictions(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, predictions())
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match="damaged"):
        read_predictions(path)


def test_evaluator_from_config(tmp_path):
    evaluator = ImageClassEvaluator.from_config(config(BOOTSTRAP=7), "covidx_ct_test", tmp_path)
    assert evaluator._intervals == IntervalOptions(resamples=7, seed=0)
    evaluator = ImageClassEvaluator.from_config(config(), "covidx_ct_test", tmp_path, bootstrap=0)
    assert evaluator._intervals.resamples == 0
    with pytest.raises(UserError, match="covid_ct_val has 2 image classes .* and the model has 3"):
        ImageClassEvaluator.from_config(config(), "covid_ct_val", tmp_path)


def test_the_report_gets_results_predictions_and_path(tmp_path):
    calls = []
    evaluator = ImageClassEvaluator(
        "set", NAMES, output_dir=tmp_path, intervals=FEW, report=lambda *arguments: calls.append(arguments)
    )
    evaluator.process(*batch(predictions()))
    evaluator.evaluate()
    ((results, given, path),) = calls
    assert results["dataset"] == "set" and len(given.truth) == 60 and path == tmp_path / "classification.html"


def test_confusion_and_calibration_are_those_of_the_predictions():
    given = predictions()
    results = classification_results(given, FEW)
    assert results["confusion"]["counts"] == metrics.confusion_matrix(given.truth, given.logits.argmax(1)).tolist()
    assert results["slices_by_class"] == np.bincount(given.truth).tolist() != np.bincount(given.predicted).tolist()
    found, bins = results["calibration"], reliability_bins(given.scores, given.truth)
    assert found["ece"]["value"] == expected_calibration_error(bins)
    assert found["brier"]["value"] == brier_score(given.scores, given.truth)
    assert found["bins"]["slices"] == bins.count.tolist() and bins.count.max() > 0
    for name in ("confidence", "accuracy"):  # None where a bin is empty
        np.testing.assert_array_equal(np.array(found["bins"][name], float), getattr(bins, name))


def test_intervals_are_those_of_their_method_seed_and_level():
    given = predictions()
    results = classification_results(given, IntervalOptions(50, seed=3, level=0.8))
    measure = measure_function(given.truth, given.predicted, given.scores, NAMES)
    expected = bootstrap_interval(lambda w: measure(w)["auc"].value, given.patient_ids, 50, seed=3, level=0.8)
    found = results["measures"]["auc"]["interval"]
    assert (found["low"], found["high"]) == (expected.low, expected.high)
    accuracy = results["by_patient"]["any_k"]["measures"]["accuracy"]
    wilson = wilson_interval(accuracy["numerator"], accuracy["denominator"], 0.8)
    assert (accuracy["interval"]["low"], accuracy["interval"]["high"]) == wilson


def test_k_slices_make_a_patient_ill(tmp_path):
    """Two of a healthy patient's six slices look ill: enough for a k of 2, not for one of 3; their mean is healthy."""
    logits = np.array([[4.0, 0, 0]] * 4 + [[0, 1.0, 0]] * 2)
    given = SlicePredictions(list("abcdef"), ["p"] * 6, [""] * 6, np.zeros(6, int), logits, image_scores(logits), NAMES)
    for k, accuracy in ((2, 0.0), (3, 1.0)):
        evaluator = ImageClassEvaluator("set", NAMES, output_dir=tmp_path, intervals=FEW, patient_k=k)
        evaluator.process(*batch(given))
        assert evaluator.evaluate()["patient"]["accuracy"] == 1.0, "Detectron2's results have the mean's"
        found = json.loads((tmp_path / "results.json").read_text())["by_patient"]
        assert found["any_k"]["k"] == k and found["any_k"]["measures"]["accuracy"]["value"] == accuracy
        assert found["mean"]["k"] is None and found["mean"]["measures"]["accuracy"]["value"] == 1.0
    assert ImageClassEvaluator.from_config(config(PATIENT_K=7), "covidx_ct_test")._patient_k == 7


def test_predictions_csv_names_what_each_slice_is_and_was_taken_for(tmp_path):
    given = replace(predictions(), scan_ids=[f"s{index // 3}" for index in range(60)])
    evaluator = ImageClassEvaluator("set", NAMES, output_dir=tmp_path, intervals=FEW)
    evaluator.process(*batch(given))
    evaluator.evaluate()
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [NAMES[c] for c in given.logits.argmax(1)]
    assert [row["label"] for row in rows] == [NAMES[c] for c in given.truth]
    assert [(row["patient_id"], row["scan_id"]) for row in rows] == list(zip(given.patient_ids, given.scan_ids))


def test_a_patient_of_two_diseases_is_named_in_every_rule():
    given = replace(predictions(), patient_ids=["two" if i // 5 in (1, 2) else f"p{i // 5}" for i in range(60)])
    for found in classification_results(given, FEW)["by_patient"].values():
        assert found["left_out"] == ["two"] and found["patients"] == 10


@pytest.mark.parametrize("patients, said", [(19, True), (20, False)])
def test_intervals_of_fewer_than_20_patients_are_remarked_on(patients, said):
    note = classification_results(predictions(size=100, patients=patients), FEW)["intervals"]["note"]
    assert ("Only 19 patients" in note) == said == bool(note)
