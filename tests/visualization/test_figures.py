"""The paper's Figures 2 and 3, from arrays and from the command line."""

import importlib.util
import json
from io import BytesIO

from d2_covid import get_config
from d2_covid.data import datasets
from d2_covid.data.figure_slices import dataset_slices, file_slices, partner_mask
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, read_checkpoint, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.visualization.figures import FigureSlice, combined_score_map, figure_2, figure_3, shown_detections
from d2_covid.visualization.instances import InstanceArrays

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

NAMES = ("control", "common pneumonia", "COVID-19")
TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.PRE_NMS_TOPK_TEST 60 MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.CLASSIFIER.NUM_ROIS 12
MODEL.CLASSIFIER.HIDDEN_DIM 12 INPUT.MIN_SIZE_TEST 64""".split()
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
SEGMENTATION = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"


def size_of(png):
    return Image.open(BytesIO(png)).size


def a_slice(detections=20, masks=True, seed=0, **values):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (detections, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 20, (detections, 2))], axis=1)
    instances = InstanceArrays(
        boxes,
        np.zeros(detections, int),
        rng.random((detections, 64, 64)) > 0.5 if masks else None,
        np.sort(rng.random(detections))[::-1],
    )
    logits = rng.normal(size=(detections, 28, 28)) if masks else None
    return FigureSlice("p/1.png", rng.integers(0, 255, (64, 64), dtype=np.uint8), instances, logits, **values)


def test_each_roi_is_resized_to_its_box_and_the_higher_score_stays():
    logits = np.stack([np.full((4, 4), -2.0), np.full((4, 4), 3.0), np.full((4, 4), 1.0)])
    boxes = np.array([[2, 2, 10, 10], [6, 6, 14, 12], [7, 7, 9, 9]], float)
    found = combined_score_map(logits, boxes, 20, 16)
    assert found.shape == (20, 16)
    assert np.isnan(found[0, 0]) and np.isnan(found[15, 8])
    assert found[3, 3] == -2 and found[8, 8] == 3 and found[11, 13] == 3
    assert np.isfinite(found).sum() == 8 * 8 + 8 * 6 - 4 * 4


def test_a_roi_keeps_its_shape_inside_its_box():
    logits = np.zeros((1, 28, 28))
    logits[0, :, 14:] = 5  # its right half
    found = combined_score_map(logits, np.array([[0, 0, 20, 10]]), 10, 20)
    assert (found[:, :8] < 0.1).all() and (found[:, 12:] > 4.9).all()


@pytest.mark.parametrize(
    "box, finite",
    [
        ([-5, -5, 3, 3], 9),  # reaches over the edge
        ([30, 30, 40, 40], 0),  # lies outside
        ([4.2, 4.2, 4.3, 4.3], 1),  # less than a pixel
        ([4.0, 4.0, 4.0, 4.0], 1),  # no area
    ],
)
def test_boxes_at_and_over_the_edge(box, finite):
    found = combined_score_map(np.ones((1, 28, 28)), np.array([box], float), 16, 16)
    assert np.isfinite(found).sum() == finite


def test_no_roi_gives_an_empty_map():
    assert np.isnan(combined_score_map(np.zeros((0, 28, 28)), np.zeros((0, 4)), 4, 5)).all()


@pytest.mark.parametrize(
    "scores, top, threshold, expected",
    [([0.9, 0.8, 0.2], 8, 0.5, 2), ([0.9, 0.8, 0.2], 1, 0.5, 1), ([0.01, 0.0], 8, 0.5, 1), ([], 8, 0.5, 0)],
)
def test_figure_2_always_shows_the_best_detection(scores, top, threshold, expected):
    assert shown_detections(np.array(scores), top, threshold) == expected


@pytest.mark.parametrize("detections", [0, 20])
def test_figure_2_with_and_without_everything(detections):
    truth = np.zeros((64, 64), np.uint8)
    truth[10:50], truth[20:30, 20:30], truth[40:45, 5:9] = 1, 2, 3
    full = a_slice(detections, truth=truth, true_class=2, image_logits=np.array([-1.0, 0.5, 3.0]))
    assert size_of(figure_2([full, a_slice(detections, masks=False)], ("lesion",), NAMES)) == (1872, 975)


@pytest.mark.parametrize("detections", [0, 1, 128])
def test_figure_3(detections):
    assert size_of(figure_3([a_slice(detections, true_class=1)], NAMES)) == (1872, 403)


def test_figures_repeat_and_show_what_they_are_asked_to():
    item = a_slice(20)
    assert figure_3([item], NAMES) == figure_3([item], NAMES)
    few, more, again = (figure_2([item], ("lesion",), NAMES, top=top, threshold=0) for top in (1, 9, 9))
    assert few != more == again


def test_masks_beside_images(tmp_path):
    image = tmp_path / "image" / "3" / "7.jpg"
    mask = tmp_path / "mask" / "3" / "7.png"
    mask.parent.mkdir(parents=True)
    assert partner_mask(image) is None
    Image.fromarray(np.full((4, 4), 2, np.uint8)).save(mask)
    assert partner_mask(image) == mask and partner_mask(tmp_path / "7.jpg") is None
    (found,) = file_slices([image], ["NCP"], NAMES)
    assert found.true_class == 2 and found.name == "3/7.jpg" and found.has_lungs
    assert (found.truth((4, 4)) == 2).all()
    with pytest.raises(UserError, match="7.png is"):
        found.truth((5, 4))


@pytest.mark.parametrize("labels, said", [(["0", "1"], "2 true classes for 3"), (["flu"], "Unknown class 'flu'")])
def test_classes_of_files(tmp_path, labels, said):
    files = [tmp_path / f"{name}.png" for name in "abc"]
    assert [s.true_class for s in file_slices(files, [], NAMES)] == [None] * 3
    assert [s.true_class for s in file_slices(files, ["1"], NAMES)] == [1] * 3
    assert [s.true_class for s in file_slices(files, ["2", "control", "1"], NAMES)] == [2, 0, 1]
    with pytest.raises(UserError, match=said):
        file_slices(files, labels, NAMES)


@pytest.fixture
def dataset(tmp_path):
    """A slice dataset of 5, 2 and 1 slices a class, without a mask beside them."""
    name = "tiny_for_figures"
    records = [
        {"file_name": str(tmp_path / f"{i}.png"), "image_id": i, "image_class": c}
        for i, c in enumerate([0] * 5 + [1] * 2 + [2])
    ]
    rng = np.random.default_rng(0)
    for record in records:
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(record["file_name"])
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(evaluator_type="image_class", image_classes=list(NAMES))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("number, expected", [(None, [2, 1, 0]), (4, [2, 1, 1, 0]), (5, [2, 1, 1, 0, 0]), (99, None)])
def test_slices_of_every_class(dataset, number, expected):
    picked, classes = dataset_slices(dataset, number, seed=0)
    assert list(classes) == list(NAMES)
    found = [item.true_class for item in picked]
    assert sorted(found) == sorted(expected or [0] * 5 + [1] * 2 + [2]) and found == sorted(found, reverse=True)
    assert [p.file for p in picked] == [p.file for p in dataset_slices(dataset, number, seed=0)[0]]


@pytest.mark.parametrize("names", [("GGO", "consolidation"), ("ground glass", "dense"), ("consolidation", "GGO")])
def test_lesions_of_a_dataset_are_its_ground_truth(names):
    name = "tiny_lesions_for_figures"
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :2], masks[1, 6:] = True, True
    annotations = [{"category_id": k, "segmentation": encode_mask(mask)} for k, mask in enumerate(masks)]
    crowd = np.ones((8, 8), bool)
    annotations.append({"category_id": 1, "segmentation": encode_mask(crowd), "iscrowd": 1})  # no lesion
    DatasetCatalog.register(name, lambda: [{"file_name": "a/1.png", "image_id": 1, "annotations": annotations}])
    MetadataCatalog.get(name).set(evaluator_type="lesion", thing_classes=list(names))
    try:
        (found,), classes = dataset_slices(name, 1, seed=0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert not found.has_lungs and found.true_class is None and classes == ()
    assert found.truth((8, 8))[:, 0].tolist() == [2, 2, 0, 0, 0, 0, 3, 3]
    with pytest.raises(UserError, match="a/1.png is 9x8, but its dataset says 8x8"):
        found.truth((8, 9))


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("make_figures_under_test", repository / "tools" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of a tiny classifier (without masks) and a tiny segmentation model."""
    folder = tmp_path_factory.mktemp("weights")
    for name, file in (("classifier", CLASSIFIER), ("segmentation", SEGMENTATION)):
        cfg = get_config(file, TINY)
        torch.manual_seed(0)
        model = build_model(cfg)
        model.roi_heads.box_predictor.cls_score.weight.data.normal_(0, 0.5)
        facts = model_facts(cfg, classifier=name == "classifier")
        write_checkpoint(folder / f"{name}.pth", {"model": model.state_dict(), "d2_covid": facts})
    return folder


def options(weights, *names):
    configs = {"classifier": CLASSIFIER, "segmentation": SEGMENTATION}
    given = [("--config-file", "--weights"), ("--segmentation-config", "--segmentation-weights")]
    return [
        item
        for name, (config, weight) in zip(names, given)
        for item in (config, configs[name], weight, str(weights / f"{name}.pth"))
    ]


@pytest.mark.parametrize(
    "figure, models",
    [
        ("2", ("classifier", "segmentation")),
        ("3", ("segmentation",)),
        ("2", ("classifier",)),
        ("why", ("classifier",)),
    ],
)
def test_the_tool_draws_with_any_models(tool, weights, dataset, tmp_path, capsys, figure, models):
    output = tmp_path / "figure.png"
    arguments = ["--figure", figure, "--dataset", dataset, "--output", str(output), *options(weights, *models), *TINY]
    assert tool.main(arguments) == 0
    assert size_of(output.read_bytes())[0] == 1872
    assert f"Figure {figure} of {3 if figure == '3' else 4} slices" in capsys.readouterr().out


def test_the_tool_draws_a_json_of_ones_own(tool, weights, tmp_path, monkeypatch):
    lesion = np.zeros((64, 64), bool)
    lesion[8:24, 8:24] = True
    Image.fromarray(np.where(lesion, 200, 60).astype(np.uint8)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 16, 16], "segmentation": encode_mask(lesion)}
        ],
        "categories": [{"id": 1, "name": "lesion"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    drawn, own = [], ("own_json_for_figures", str(tmp_path / "own.json"), str(tmp_path))
    monkeypatch.setattr(tool, "figure_2", lambda slices, *_, **__: drawn.extend(slices) or b"")
    arguments = ["--figure", "2", "--register-lesions", *own, "--output", str(tmp_path / "f.png")]
    try:
        assert tool.main([*arguments, *options(weights, "segmentation"), *TINY]) == 0
    finally:
        DatasetCatalog.remove(own[0])
        MetadataCatalog.remove(own[0])
        datasets._sources.pop(own[0])
    (shown,) = drawn
    np.testing.assert_array_equal(shown.truth, np.where(lesion, 2, 0))


@pytest.fixture(scope="module")
def own_classes(weights, tmp_path_factory):
    """The tiny classifier as one trained on three classes of another order than the paper's."""
    folder, checkpoint = tmp_path_factory.mktemp("own"), read_checkpoint(weights / "classifier.pth")
    checkpoint["d2_covid"]["image_classes"] = ["COVID-19", "common pneumonia", "control"]
    write_checkpoint(folder / "classifier.pth", checkpoint)
    return folder


def test_classes_of_image_files_are_those_of_the_classifier(tool, weights, own_classes, tmp_path, monkeypatch):
    file, drawn = tmp_path / "a.png", []
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(file)
    monkeypatch.setattr(tool, "figure_2", lambda slices, names, classes, **_: drawn.append((slices, classes)) or b"")
    arguments = ["--figure", "2", "--input", str(file), "--true-class", "COVID-19", "--output", str(tmp_path / "f.png")]
    for folder in (own_classes, weights):
        assert tool.main([*arguments, *options(folder, "classifier"), *TINY]) == 0
    assert [(slices[0].true_class, *classes) for slices, classes in drawn] == [
        (0, "COVID-19", "common pneumonia", "control"),
        (2, *NAMES),  # a checkpoint without names: the paper's
    ]
    two = ["MODEL.CLASSIFIER.NUM_CLASSES", "2"]
    with pytest.raises(UserError, match="with MODEL.CLASSIFIER.NUM_CLASSES 3, the config says 2"):
        tool.main([*arguments, *options(own_classes, "classifier"), *TINY, *two])


def test_a_dataset_of_other_class_names_is_refused(tool, own_classes, dataset, tmp_path):
    arguments = ["--figure", "2", "--dataset", dataset, "--output", str(tmp_path / "f.png")]
    with pytest.raises(UserError, match="classes control, .* was trained on COVID-19, common pneumonia, control"):
        tool.main([*arguments, *options(own_classes, "classifier"), *TINY])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--input", "a.png", "--dataset", "x"], "Give slices"),
        ([], "Give slices"),
        (["--input", "a.png", "--register-lesions", "x", "x.json", "."], "Give slices"),
        (["--dataset", "x", "--true-class", "0"], "--true-class goes with --input"),
        (["--dataset", "x", "--segmentation-config", "y"], "goes with --segmentation-weights"),
        (["--dataset", "x", "--number", "0"], "--number 0"),
        (["--dataset", "x", "--output", "f.pdf"], "written as .png"),
        (
            ["--figure", "why", "--dataset", "x", "--segmentation-weights", "z"],
            "leave out --segmentation-weights",
        ),
    ],
)
def test_what_does_not_go_together(tool, weights, arguments, said):
    with pytest.raises(UserError, match=said):
        tool.main(["--figure", "2", "--output", "f.png", *options(weights, "classifier"), *arguments])


def test_why_shows_what_the_classifier_saw(tool, weights, dataset):
    (item,), _ = dataset_slices(dataset, 1, seed=0)
    cfg = tool.figure_config(CLASSIFIER, str(weights / "classifier.pth"), TINY)
    models = [(tool.load_model(cfg), cfg)]
    found, shown = tool.decision(item, models), tool.figure_slice(item, models)
    assert found.image_logits == pytest.approx(shown.image_logits, abs=1e-5)
    assert 1 <= len(found.boxes) == len(found.shares) == len(found.removal) <= 12
    assert np.abs(found.shares).sum() == pytest.approx(1, abs=1e-5)
    # In the slice's own pixels, like the detections of the same model.
    assert np.abs(found.boxes[0] - shown.instances.boxes).sum(axis=1).min() < 1e-2
    assert found.true_class == item.true_class == 2


def test_weights_that_carry_their_config_need_no_other(tool, weights, tmp_path):
    checkpoint, file = read_checkpoint(weights / "classifier.pth"), tmp_path / "a.png"
    checkpoint["d2_covid"] |= carried_facts(get_config(CLASSIFIER, TINY))
    write_checkpoint(tmp_path / "classifier.pth", checkpoint)
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(file)
    arguments = ["--figure", "why", "--input", str(file), "--output", str(tmp_path / "f.png")]
    assert tool.main([*arguments, "--weights", str(tmp_path / "classifier.pth")]) == 0
    assert size_of((tmp_path / "f.png").read_bytes())[0] == 1872
    with pytest.raises(UserError, match="does not say which model it holds"):
        tool.main([*arguments, "--weights", str(weights / "classifier.pth")])
    with pytest.raises(UserError, match="NO_SUCH"):
        tool.main([*arguments, "--weights", str(tmp_path / "classifier.pth"), "MODEL.NO_SUCH", "1"])


def test_why_needs_a_classifier(tool, weights, dataset, tmp_path):
    arguments = ["--figure", "why", "--dataset", dataset, "--output", str(tmp_path / "f.png")]
    with pytest.raises(UserError, match=r"segmentation\.pth is a segmentation model") as refused:
        tool.main([*arguments, *options(weights, "segmentation"), *TINY])
    assert "\n" not in str(refused.value)


def test_a_classifier_of_other_classes_is_refused(tool, weights, tmp_path, real_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    arguments = ["--figure", "3", "--dataset", "covid_ct_val", "--output", str(tmp_path / "f.png")]
    with pytest.raises(UserError, match="have 2 classes .* and the classifier has 3"):
        tool.main([*arguments, *options(weights, "classifier"), *TINY])
