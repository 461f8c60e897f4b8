"""LesionEvaluator and evaluate_predictions: what goes in, what comes out, what is said and what is refused."""

import json
import logging
import math

from d2_covid import get_config
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.errors import UserError
from d2_covid.evaluation import LesionEvaluator, evaluate_predictions

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances

BOX = (0, 10, 10, 30, 30)
NAMES = ("AP", "AP50", "AP75")


@pytest.fixture
def register():
    """Registers a dataset under a name that the test's end frees again."""
    names = []

    def add(dicts, classes=("lesion",), **metadata):
        name = f"lesion_test_{len(names)}"
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(thing_classes=list(classes), **metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances(detections, size=160, masks=True):
    """Instances as Detectron2 gives them; ``detections``: (class, score, x, y, width, height)."""
    result = Instances((size, size))
    rows = torch.tensor(detections, dtype=torch.float32).reshape(-1, 6)
    result.pred_boxes = Boxes(torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], dim=1))
    result.scores, result.pred_classes = rows[:, 1], rows[:, 0].long()
    if masks:
        result.pred_masks = torch.zeros(len(rows), size, size, dtype=torch.bool)
        for mask, (_, _, x, y, w, h) in zip(result.pred_masks, rows.int().tolist(), strict=True):
            mask[y : y + h, x : x + w] = True
    return result


def run(evaluator, outputs):
    """Feed {image id: Instances} in batches of one and evaluate."""
    evaluator.reset()
    for image_id, result in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": result}])
    return evaluator.evaluate()


@pytest.fixture
def two_patients(lesions):
    return [lesions.truth(1, [BOX], "a"), lesions.truth(2, [], "a"), lesions.truth(3, [BOX, (0, 60, 60, 50, 50)], "b")]


PERFECT = {
    1: instances([(0, 0.9, *BOX[1:])]),
    2: instances([]),
    3: instances([(0, 0.9, *BOX[1:]), (0, 0.8, 60, 60, 50, 50)]),
}


def test_perfect_instances_score_full_in_every_metric(register, two_patients, tmp_path):
    results = run(LesionEvaluator(register(two_patients), output_dir=tmp_path, bootstrap=50), PERFECT)
    assert list(results) == ["bbox", "segm", "paper_ap", "union"]
    for task in ("bbox", "segm", "paper_ap"):
        assert [results[task][name] for name in NAMES] == pytest.approx([100] * 3)
    assert results["union"] == dict.fromkeys(results["union"], 1.0)
    assert list(results["union"])[:4] == ["dice", "sensitivity", "specificity", "pooled_dice"]


def test_results_file_says_what_each_figure_rests_on(register, two_patients, tmp_path):
    name = register(two_patients)
    outputs = PERFECT | {3: instances([(0, 0.9, *BOX[1:])])}
    returned = run(LesionEvaluator(name, output_dir=tmp_path, bootstrap=100), outputs)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dataset"] == name
    assert (results["slices"], results["patients"], results["instances"]) == (3, 2, {"lesion": 3})
    assert (results["slices_without_ground_truth"], results["slices_not_processed"]) == (1, 0)
    assert results["settings"]["seed"] == 0 and results["settings"]["max_detections"] == 128
    for task, metrics in returned.items():
        for metric, value in metrics.items():
            entry = results["metrics"][f"{task}/{metric}"]
            assert entry["value"] == (None if math.isnan(value) else value)
    dice, paper = results["metrics"]["union/dice"], results["metrics"]["paper_ap/AP"]
    assert dice["slices"] == 2 and "1 with no prediction either are left out" in dice["note"]
    assert dice["interval"]["low"] < dice["value"] < dice["interval"]["high"]
    assert dice["interval"]["resamples"] == 100 and dice["patients"] == 2
    assert dice["interval"]["patients"] == dice["interval"]["resampled_units"] == 2
    # Slices at 1, 1 and 1/2 of two patients.
    assert paper["value"] == pytest.approx(250 / 3) and paper["slices"] == 3
    assert "1 without a detection above 0.75 count as 1, 0 as 0" in paper["note"]
    small = results["metrics"]["segm/APs"]
    assert small["value"] == 100 and small["instances"] == 2
    large = results["metrics"]["segm/APl"]
    assert large["value"] is None and "no ground truth of large size" in large["note"]
    assert large["interval"]["undefined_resamples"] == 100


def test_saved_predictions_score_the_same(register, two_patients, tmp_path):
    outputs = PERFECT | {3: instances([(0, 0.9, 12, 10, 30, 30), (0, 0.8, 1, 1, 5, 5)])}
    returned = run(LesionEvaluator(register(two_patients), output_dir=tmp_path, bootstrap=20), outputs)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in saved} == {1} and len(saved) == 3
    again = evaluate_predictions(two_patients, saved, ["lesion"], bootstrap=20)
    # As text, since nan is not equal to itself.
    assert str(again.nested()) == str(returned)
    first = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert again.as_dict()["metrics"] == first


def test_the_same_twice_writes_the_same_bytes(register, two_patients, tmp_path):
    name = register(two_patients)
    for folder in ("one", "two"):
        run(LesionEvaluator(name, output_dir=tmp_path / folder, bootstrap=50, seed=4), PERFECT)
    for file in ("results.json", "coco_instances_results.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert not list((tmp_path / "one").glob("*.part"))


def test_table_is_logged_with_intervals_and_notes(register, two_patients, caplog):
    with caplog.at_level(logging.INFO, logger="d2_covid"):
        run(LesionEvaluator(register(two_patients), bootstrap=20), PERFECT)
    assert "3 slices of 2 patients, 1 without ground truth" in caplog.text
    assert "95 % interval" in caplog.text and "segm/AP50" in caplog.text and "[100.00, 100.00]" in caplog.text
    # A note stands once, after the metrics it belongs to, or after the task if to all of its metrics.
    assert "\npaper_ap: Slices without ground truth: 1; 1 without a detection" in caplog.text
    assert "\nbbox/APl, segm/APl: Undefined: no ground truth of large size." in caplog.text


@pytest.mark.parametrize("masks", [True, False])
def test_no_detection_anywhere(register, two_patients, masks):
    outputs = {image_id: instances([], masks=masks) for image_id in (1, 2, 3)}
    results = run(LesionEvaluator(register(two_patients), bootstrap=10), outputs)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0
    # The slice without ground truth is right in the paper's measure.
    assert results["paper_ap"]["AP"] == pytest.approx(100 / 3)
    assert results["union"]["dice"] == results["union"]["sensitivity"] == 0
    assert results["union"]["specificity"] == 1


def test_no_ground_truth_anywhere_is_nan_and_said(register, lesions, caplog, tmp_path):
    name = register([lesions.truth(1, [], "a"), lesions.truth(2, [], "b")])
    with caplog.at_level(logging.INFO, logger="d2_covid"):
        results = run(LesionEvaluator(name, bootstrap=10, output_dir=tmp_path), {1: instances([(0, 0.9, *BOX[1:])])})
    assert math.isnan(results["segm"]["AP"]) and math.isnan(results["union"]["sensitivity"])
    assert results["union"]["dice"] == 0 and results["paper_ap"]["AP"] == 50
    assert "Undefined: no ground truth" in caplog.text
    assert json.loads((tmp_path / "results.json").read_text())["metrics"]["segm/AP"]["value"] is None


def test_slices_that_never_came_count_as_without_detections(register, two_patients, caplog, tmp_path):
    name = register(two_patients)
    partial = run(LesionEvaluator(name, bootstrap=0, output_dir=tmp_path), {1: PERFECT[1]})
    empty = run(LesionEvaluator(name, bootstrap=0), {1: PERFECT[1], 2: instances([]), 3: instances([])})
    assert str(partial) == str(empty)
    assert "2 of 3 slices never reached the model" in caplog.text
    assert json.loads((tmp_path / "results.json").read_text())["slices_not_processed"] == 2


def test_reset_forgets(register, two_patients):
    evaluator = LesionEvaluator(register(two_patients), bootstrap=0)
    run(evaluator, PERFECT)
    assert run(evaluator, {1: instances([])})["segm"]["AP"] == 0


def test_boxes_without_masks(register, two_patients, caplog):
    outputs = {image_id: instances([(0, 0.9, *BOX[1:])], masks=False) for image_id in (1, 3)}
    results = run(LesionEvaluator(register(two_patients), bootstrap=0), outputs)
    assert list(results) == ["bbox"] and results["bbox"]["AP"] > 50
    assert "no masks in the predictions" in caplog.text


def test_ground_truth_without_masks(register, lesions, caplog):
    name = register([lesions.truth(1, [BOX], masks=False)])
    assert list(run(LesionEvaluator(name, bootstrap=0), {1: PERFECT[1]})) == ["bbox"]
    assert "no masks in the ground truth" in caplog.text


def test_box_task_keeps_no_masks(register, two_patients, tmp_path):
    results = run(LesionEvaluator(register(two_patients), tasks=("bbox",), bootstrap=0, output_dir=tmp_path), PERFECT)
    assert list(results) == ["bbox"] and results["bbox"]["AP"] == pytest.approx(100)
    assert "segmentation" not in (tmp_path / "coco_instances_results.json").read_text()


def test_two_classes_have_figures_by_class(register, lesions, tmp_path):
    dicts = [lesions.truth(1, [BOX, (1, 60, 60, 50, 50)], "a"), lesions.truth(2, [BOX], "b")]
    outputs = {1: instances([(0, 0.9, *BOX[1:])]), 2: instances([(0, 0.9, *BOX[1:])])}
    name = register(dicts, ("GGO", "consolidation"))
    results = run(LesionEvaluator(name, bootstrap=10, output_dir=tmp_path), outputs)
    for task in ("bbox", "segm"):
        assert results[task]["AP-GGO"] == pytest.approx(100) and results[task]["AP-consolidation"] == 0
        assert results[task]["AP"] == pytest.approx(50)
    # Of consolidation: slice 1 missed it, slice 2 rightly has none.
    assert results["paper_ap"]["AP-consolidation"] == 50 and results["paper_ap"]["AP50-GGO"] == 100
    assert results["union"]["dice-GGO"] == 1 and results["union"]["dice-consolidation"] == 0
    notes = {name: one["note"] for name, one in json.loads((tmp_path / "results.json").read_text())["metrics"].items()}
    for task in ("bbox", "segm"):
        assert notes[f"{task}/AP"].endswith("without ground truth: 0; each of their detections is a false positive.")
        assert "without ground truth of GGO: 0; each of their detections of that class" in notes[f"{task}/AP-GGO"]
        assert "without ground truth of consolidation: 1; " in notes[f"{task}/AP-consolidation"]


def test_category_ids_of_the_json_are_written_and_understood(register, two_patients, tmp_path):
    name = register(two_patients, thing_dataset_id_to_contiguous_id={7: 0})
    assert run(LesionEvaluator(name, bootstrap=0, output_dir=tmp_path), PERFECT)["segm"]["AP"] == pytest.approx(100)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in saved} == {7}
    assert evaluate_predictions(two_patients, saved, ["lesion"], category_ids=[7], bootstrap=0).facts["detections"] == 3


def test_category_ids_may_run_against_the_classes(register, lesions, tmp_path):
    dicts = [lesions.truth(1, [BOX, (1, 60, 60, 50, 50)])]
    name = register(dicts, ("GGO", "consolidation"), thing_dataset_id_to_contiguous_id={1: 1, 2: 0})
    outputs = {1: instances([(0, 0.9, *BOX[1:]), (1, 0.8, 60, 60, 50, 50)])}
    results = run(LesionEvaluator(name, bootstrap=0, output_dir=tmp_path), outputs)
    assert [results["segm"][f"AP-{k}"] for k in ("GGO", "consolidation")] == pytest.approx([100] * 2)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [row["category_id"] for row in saved] == [2, 1]


def test_masks_are_kept_as_rle_not_as_pixels(register, two_patients):
    evaluator = LesionEvaluator(register(two_patients))
    evaluator.process([{"image_id": 1}], [{"instances": PERFECT[1]}])
    (row,) = evaluator._predictions[1]
    assert np.array_equal(mask_util.decode(row["segmentation"]), PERFECT[1].pred_masks[0].numpy())
    assert len(json.dumps(row)) < 300


def test_processes_are_gathered_and_only_the_first_answers(register, two_patients, monkeypatch):
    evaluator = LesionEvaluator(register(two_patients), bootstrap=0)
    evaluator.process([{"image_id": 1}], [{"instances": PERFECT[1]}])
    mine = dict(evaluator._predictions)
    evaluator.reset()
    for image_id in (1, 2, 3):
        evaluator.process([{"image_id": image_id}], [{"instances": PERFECT[image_id]}])
    # Slice 1 went to both, as a sampler that pads does; it counts once.
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst: [mine, data])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_from_config_takes_the_config(register, two_patients):
    opts = "TEST.DETECTIONS_PER_IMAGE 256 TEST.PAPER_AP_SCORE_THRESH 0.5 TEST.UNION_SCORE_THRESH 0.4 TEST.BOOTSTRAP 7"
    cfg = get_config(opts=[*opts.split(), "SEED", "3", "MODEL.MASK_ON", "True"])
    name = register(two_patients)
    assert LesionEvaluator.from_config(cfg, name)._settings == {
        "max_detections": 256,
        "paper_score_threshold": 0.5,
        "union_score_threshold": 0.4,
        "bootstrap": 7,
        "seed": 3,
        "tasks": ("bbox", "segm"),
    }
    cfg.merge_from_list(["MODEL.MASK_ON", "False", "SEED", "-1"])
    settings = LesionEvaluator.from_config(cfg, name, bootstrap=0)._settings
    assert (settings["tasks"], settings["seed"], settings["bootstrap"]) == (("bbox",), 0, 0)


def test_works_among_other_evaluators(register, two_patients):
    evaluators = DatasetEvaluators([LesionEvaluator(register(two_patients), bootstrap=0)])
    assert run(evaluators, PERFECT)["segm"]["AP50"] == pytest.approx(100)


def test_class_that_the_dataset_lacks_is_refused_at_once(register, two_patients):
    evaluator = LesionEvaluator(register(two_patients))
    with pytest.raises(UserError, match=r"class 1, and lesion_test_0 has only 1 \(lesion\).*NUM_CLASSES"):
        evaluator.process([{"image_id": 1}], [{"instances": instances([(1, 0.9, *BOX[1:])])}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 2}, "category 2 for slice 1, and the dataset has 1 class .*categories 1.*MASK_TYPE"),
        ({"image_id": 99}, "prediction for slice 99, which the dataset does not have"),
        ({"score": math.nan}, "score nan"),
        ({"segmentation": {"size": [80, 80], "counts": "P8"}}, "mask for slice 1 is 80x80, and the slice 160x160"),
        (
            {"segmentation": {"size": [160, 160], "counts": [100, 20]}},
            "mask for slice 1 has a run-length code that .*: its runs add up to 120 pixels, not 25600",
        ),
        ({"segmentation": {"size": [160, 160], "counts": "~"}}, "mask for slice 1 .* no compressed run-length code"),
        ({"segmentation": {"size": [160, 160], "counts": [25605, -5]}}, "mask for slice 1 .* a run of -5 pixels"),
        ({"segmentation": {"size": [160, 160], "counts": None}}, "mask for slice 1 has a run-length code that"),
        ({"segmentation": [[math.nan] * 6]}, "mask for slice 1 is no mask .* no finite number"),
        ({"segmentation": [[1, 1, 321, 1, 9, 9]]}, "mask for slice 1 is no mask .* 321, far outside of its 160x160"),
        ({"segmentation": {"counts": [25600]}}, "mask for slice 1 is of no size, and the slice 160x160"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(lesions, change, message):
    row = lesions.found(1, [(0, 0.9, *BOX[1:])])[0] | change
    with pytest.raises(UserError, match=message):
        evaluate_predictions([lesions.truth(1, [BOX])], [row], ["lesion"])


def test_datasets_that_do_not_fit_are_refused(lesions):
    with pytest.raises(UserError, match="no slices"):
        evaluate_predictions([], [], ["lesion"])
    with pytest.raises(UserError, match="lesion of class 1, and the dataset has 1 class"):
        evaluate_predictions([lesions.truth(1, [(1, *BOX[1:])])], [], ["lesion"])
    with pytest.raises(UserError, match="same image_id"):
        evaluate_predictions([lesions.truth(1, [BOX])] * 2, [], ["lesion"])
    with pytest.raises(UserError, match="lesion without a mask"):
        evaluate_predictions([lesions.truth(1, [BOX]), lesions.truth(2, [BOX], masks=False)], [], ["lesion"])
    rows = lesions.found(1, [(0, 0.9, *BOX[1:])]) + lesions.found(1, [(0, 0.8, *BOX[1:])], masks=False)
    with pytest.raises(UserError, match="Only 1 of the 2 predictions for slice 1 have a mask"):
        evaluate_predictions([lesions.truth(1, [BOX])], rows, ["lesion"])
    with pytest.raises(ValueError, match="tasks"):
        evaluate_predictions([lesions.truth(1, [BOX])], [], ["lesion"], tasks=("keypoints",))


def test_one_patient_gives_figures_without_interval(lesions):
    dicts = [lesions.truth(1, [BOX], "a"), lesions.truth(2, [BOX], "a")]
    scores = evaluate_predictions(dicts, lesions.found(1, [(0, 0.9, *BOX[1:])]), ["lesion"])
    assert not scores.figures["segm/AP"].interval.exists
    assert "two patients" in scores.figures["segm/AP"].interval.note and "two patients" in scores.table()


@pytest.mark.parametrize("unknown", [{}, {"patient_id": None}, {"patient_id": float("nan")}])
def test_dataset_without_patients_resamples_slices_and_says_so(unknown, lesions, caplog):
    dicts = [lesions.truth(1, [BOX], "a"), lesions.truth(2, [BOX], "a")]
    del dicts[0]["patient_id"]
    dicts[0] |= unknown
    scores = evaluate_predictions(dicts, [], ["lesion"], bootstrap=10)
    assert scores.facts["resampled"] == "slices" and scores.figures["segm/AP"].interval.exists
    assert "1 of 2 slices name no patient" in caplog.text
    assert scores.as_dict()["patients"] is scores.as_dict()["metrics"]["segm/AP"]["patients"] is None
    interval = scores.as_dict()["metrics"]["segm/AP"]["interval"]
    assert (interval["patients"], interval["resampled_units"]) == (None, 2)
    assert "Resampled from only 2 slices:" in interval["note"]
    one = evaluate_predictions(dicts[:1], [], ["lesion"], bootstrap=10).figures["segm/AP"].interval
    assert one.note == "No interval: it takes two slices, and there is 1."


def test_the_log_names_no_patients_where_there_are_none(register, lesions, caplog):
    dicts = [lesions.truth(number, [BOX]) | {"patient_id": ""} for number in (1, 2)]
    with caplog.at_level(logging.INFO, logger="d2_covid"):
        run(LesionEvaluator(register(dicts), bootstrap=10), {1: PERFECT[1]})
    assert "2 slices, 0 without ground truth" in caplog.text and "2 of 2 slices name no patient" in caplog.text


@pytest.mark.parametrize(
    "names, patients", [(["images/1.png", "images/2.png"], None), (["images/1.png", "b/images/2.png"], 1)]
)
def test_the_one_folder_of_all_images_is_no_patient(register, lesions, tmp_path, names, patients):
    dicts = [lesions.truth(n, [BOX], "images") | {"file_name": name} for n, name in enumerate(names, 1)]
    name = register(dicts, folder_patients=["images"])
    run(LesionEvaluator(name, output_dir=tmp_path, bootstrap=10), {1: PERFECT[1]})
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["patients"], found["resampled"]) == (patients, "patients" if patients else "slices")


def test_crowd_regions_are_left_out_of_every_figure(lesions):
    dicts = [lesions.truth(1, [BOX], "a"), lesions.truth(2, [BOX], "b"), lesions.truth(3, [BOX], "c")]
    for item in dicts[:2]:
        item["annotations"][0]["iscrowd"] = 1
    rows = [row for number in (1, 2) for row in lesions.found(number, [(0, 0.9, *BOX[1:])])]
    scores = evaluate_predictions(dicts, rows, ["lesion"], bootstrap=0)
    assert scores.facts["instances"] == {"lesion": 1} and scores.facts["slices_without_ground_truth"] == 2
    assert {figure.instances for name, figure in scores.figures.items() if name.endswith("/AP")} == {1}
    assert scores.figures["segm/AP"].value == scores.figures["union/dice"].value == 0
    # The third is missed; in the other two nothing is wrong.
    assert scores.figures["paper_ap/AP"].value == pytest.approx(200 / 3)
    assert scores.figures["union/specificity"].value == scores.figures["union/pooled_specificity"].value == 1
    for figure in scores.figures.values():
        assert figure.note.endswith("Crowd regions: 2, left out with what is found in them.")


@pytest.mark.parametrize("annotations", [None, []])
def test_dataset_dict_without_annotations(lesions, annotations):
    empty = lesions.truth(2, []) | {"annotations": annotations}
    assert evaluate_predictions([lesions.truth(1, [BOX]), empty], [], ["lesion"], bootstrap=0).facts["slices"] == 2
    del empty["annotations"]
    assert evaluate_predictions([lesions.truth(1, [BOX]), empty], [], ["lesion"], bootstrap=0).facts["slices"] == 2


@pytest.mark.parametrize("kind", ["polygon", "uncompressed", "bytes"])
def test_every_form_of_segmentation_is_read(lesions, kind):
    item = lesions.truth(1, [BOX])
    _, x, y, w, h = BOX
    compressed = item["annotations"][0]["segmentation"]
    flat = mask_util.decode(compressed).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    item["annotations"][0]["segmentation"] = {
        "polygon": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        "uncompressed": {"size": [160, 160], "counts": np.diff([0, *edges, flat.size]).tolist()},
        "bytes": compressed | {"counts": compressed["counts"].encode()},
    }[kind]
    scores = evaluate_predictions([item], lesions.found(1, [(0, 0.9, *BOX[1:])]), ["lesion"], bootstrap=0)
    assert scores.figures["segm/AP"].value == pytest.approx(100)


def test_unwritable_output_is_a_users_error(register, two_patients, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        run(LesionEvaluator(register(two_patients), bootstrap=0, output_dir=tmp_path / "file"), PERFECT)


def test_every_setting_reaches_its_own_metrics(lesions):
    """100 wrong detections that score 0.8 and more, and the right one, which scores 0.6."""
    wrong = [(0, 0.9 - i / 1000, 60 + i % 40, 60 + i // 40, 3, 3) for i in range(100)]
    predictions = lesions.found(1, [*wrong, (0, 0.6, *BOX[1:])])

    def value(name, **settings):
        scores = evaluate_predictions([lesions.truth(1, [BOX])], predictions, ["lesion"], bootstrap=0, **settings)
        return scores.figures[name].value

    for name in ("bbox/AP", "segm/AP"):
        assert value(name, max_detections=100) == 0 < value(name, max_detections=101)
    low_for_paper = {"paper_score_threshold": 0.5, "union_score_threshold": 0.7}
    low_for_union = {"paper_score_threshold": 0.7, "union_score_threshold": 0.5}
    assert value("paper_ap/AP", **low_for_union) == 0 < value("paper_ap/AP", **low_for_paper)
    assert value("union/sensitivity", **low_for_paper) == 0 < value("union/sensitivity", **low_for_union)


@pytest.mark.parametrize("name", ["bbox/AP", "segm/AP", "paper_ap/AP", "union/dice", "union/pooled_dice"])
def test_every_metric_has_the_interval_of_its_resamples(lesions, name):
    """Of ten patients of one to four slices, every second one's lesions are found."""
    dicts = [lesions.truth(10 * p + s, [BOX], f"p{p}") for p in range(10) for s in range(1 + p % 4)]
    hits = [item["image_id"] for item in dicts if item["image_id"] // 10 % 2]
    predictions = [row for image_id in hits for row in lesions.found(image_id, [(0, 0.9, *BOX[1:])])]
    scores = [evaluate_predictions(dicts, predictions, ["lesion"], bootstrap=30, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (one.figures[name].interval for one in scores)
    assert first.low < scores[0].figures[name].value < first.high
    assert first == again != other, "the seed decides"


def test_slices_need_not_be_square(lesions):
    item = lesions.truth(1, [BOX]) | {"width": 120}
    item["annotations"][0]["segmentation"] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    mask = np.zeros((160, 120), bool)
    mask[10:40, 10:40] = True
    row = lesions.found(1, [(0, 0.9, *BOX[1:])])[0] | {"segmentation": encode_mask(mask)}
    figures = evaluate_predictions([item], [row], ["lesion"], bootstrap=0).figures
    assert [figures[f"{task}/AP"].value for task in ("bbox", "segm", "paper_ap")] == pytest.approx([100] * 3)
    assert figures["union/dice"].value == figures["union/specificity"].value == 1


def test_the_papers_notes_are_of_their_class(lesions):
    dicts = [lesions.truth(1, [BOX]), lesions.truth(2, [BOX])]
    rows = lesions.found(1, [(0, 0.9, *BOX[1:])]) + lesions.found(2, [(1, 0.9, *BOX[1:])])
    figures = evaluate_predictions(dicts, rows, ["GGO", "consolidation"], bootstrap=0).figures
    note = figures["paper_ap/AP-consolidation"].note
    assert note == "Slices without ground truth: 2; 1 without a detection above 0.75 count as 1, 1 as 0."


def test_what_was_counted_is_told(lesions):
    dicts = [lesions.truth(1, [BOX]), lesions.truth(2, []), lesions.truth(3, [BOX, BOX])]
    facts = evaluate_predictions(dicts, lesions.found(2, [(0, 0.9, *BOX[1:])] * 5), ["lesion"], bootstrap=0).facts
    assert (facts["slices"], facts["detections"], facts["instances"]) == (3, 5, {"lesion": 3})
    assert (facts["slices_without_ground_truth"], facts["slices_without_detections"]) == (1, 2)
