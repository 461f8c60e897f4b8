"""tools/visualize_data.py from the command line's side, on a tiny dataset."""

import importlib.util
import json

from d2_covid import get_config
from d2_covid.data import datasets
from d2_covid.data.files import write_json
from d2_covid.data.lesion_masks import coco_annotation, lesion_components
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

CONFIG = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
SMALL = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
SMALL += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "tools" / "visualize_data.py"
    spec = importlib.util.spec_from_file_location("visualize_data_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def dataset(tmp_path):
    """Three slices of two patients, one of them without a lesion: (name, json, images)."""
    name, images, annotations = "tiny_for_visualization", [], []
    for image_id, (patient, lesion) in enumerate([("a", True), ("a", False), ("b", True)], start=1):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:30, 10 * image_id : 10 * image_id + 20] = 2 * lesion
        file = tmp_path / "images" / patient / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((60 + 60 * (mask > 0)).astype(np.uint8)).save(file)
        images.append(
            {"id": image_id, "file_name": f"{patient}/{image_id}.png", "height": 64, "width": 64, "patient_id": patient}
        )
        for found in lesion_components(mask, "merge")[0]:
            annotations.append(coco_annotation(found, len(annotations) + 1, image_id))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lesion"}]}
    write_json(tmp_path / "tiny.json", content)
    yield name, str(tmp_path / "tiny.json"), str(tmp_path / "images")
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        datasets._sources.pop(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    cfg = get_config(CONFIG, SMALL)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.manual_seed(0)
    write_checkpoint(path, {"model": build_model(cfg).state_dict(), "d2_covid": model_facts(cfg)})
    return str(path)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_ground_truth_of_a_json(tool, dataset, tmp_path, capsys):
    status = tool.main(
        ["--source", "annotation", "--register-lesions", *dataset, "--output", str(tmp_path / "o"), "--contact-sheet"]
    )
    assert status == 0
    assert names(tmp_path / "o") == ["a_1.png", "a_2.png", "b_3.png", "contact_sheet.png"]
    assert str(tmp_path / "o") in capsys.readouterr().out
    with_lesion, without = (np.asarray(Image.open(tmp_path / "o" / f"{n}.png")) for n in ("a_1", "a_2"))
    truth = np.s_[40:-40, -500:]  # well inside the second picture of the panel
    assert np.ptp(with_lesion[truth], axis=2).any()
    assert not np.ptp(without[truth], axis=2).any()


def test_predictions_of_a_file_with_a_limit(tool, dataset, tmp_path):
    annotations = json.loads((tmp_path / "tiny.json").read_text())["annotations"]
    (tmp_path / "p.json").write_text(json.dumps([{**annotation, "score": 0.9} for annotation in annotations]))
    arguments = ["--source", "predictions", "--register-lesions", *dataset, "--predictions", str(tmp_path / "p.json")]
    for output in ("first", "second"):
        assert tool.main([*arguments, "--limit", "2", "--seed", "4", "--output", str(tmp_path / output)]) == 0
    assert len(names(tmp_path / "first")) == 2
    assert names(tmp_path / "first") == names(tmp_path / "second")


def test_predictions_of_a_model_on_a_dataset_and_on_a_folder(tool, dataset, weights, tmp_path):
    model = ["--config-file", CONFIG, "--weights", weights, "--score-threshold", "0.5"]
    arguments = ["--register-lesions", *dataset, *model, "--output", str(tmp_path / "beside"), *SMALL]
    assert tool.main(["--source", "predictions", *arguments]) == 0
    assert names(tmp_path / "beside") == ["a_1.png", "a_2.png", "b_3.png"]
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"not an image")
    arguments = ["--input", str(tmp_path / "images"), *model, "--output", str(tmp_path / "folder"), *SMALL]
    assert tool.main(["--source", "images", *arguments]) == 1  # the others are drawn all the same
    assert names(tmp_path / "folder") == ["a_2.png", "b_3.png"]


@pytest.mark.parametrize("source", ["predictions", "images"])
def test_the_score_threshold_goes_below_the_models_own(tool, dataset, weights, tmp_path, monkeypatch, source):
    drawn, convert = [], tool.from_instances
    monkeypatch.setattr(tool, "from_instances", lambda found: drawn.append(convert(found)) or drawn[-1])
    slices = ["--register-lesions", *dataset] if source == "predictions" else ["--input", str(tmp_path / "images")]
    strict = [*SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999"]
    arguments = ["--source", source, *slices, "--config-file", CONFIG, "--weights", weights, "--limit", "1"]
    assert tool.main([*arguments, "--score-threshold", "0", "--output", str(tmp_path / "o"), *strict]) == 0
    assert [len(found.above(0)) for found in drawn] == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "annotation"], "--dataset NAME or --register-lesions"),
        (["--source", "predictions", "--dataset", "x"], "--predictions JSON, or a model"),
        (["--source", "predictions", "--dataset", "x", "--config-file", "c"], "--config-file goes with --weights"),
        (["--source", "images"], "--input DIR and a model"),
        (["--source", "annotation", "--dataset", "x", "--input", "d"], "--input is for --source images"),
        (["--source", "annotation", "--dataset", "x", "--predictions", "p"], "use --source predictions"),
        (["--source", "annotation", "--dataset", "no such set"], "Unknown dataset 'no such set'"),
        (
            ["--source", "images", "--input", ".", "--config-file", "c", "--weights", "w", "--dataset", "x"],
            "use --source predictions",
        ),
        (["--source", "images", "--input", ".", "--config-file", "c", "--weights", "w"], "inside --input"),
        (
            ["--source", "images", "--input", "/", "--config-file", "none.yaml", "--weights", "w", "--output", "/o"],
            "inside --input",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_a_sentence(tool, arguments, message):
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "overlays"]
    with pytest.raises(UserError, match=message):
        tool.main(arguments)


@pytest.mark.parametrize("mask_type, classes", [("both", "GGO, consolidation"), ("ggo", "GGO")])
def test_a_model_of_other_classes_is_refused(tool, dataset, tmp_path, weights, mask_type, classes):
    other = ["DATASETS.MASK_TYPE", mask_type, "MODEL.ROI_HEADS.NUM_CLASSES", str(1 + classes.count(","))]
    with pytest.raises(UserError, match=f"predicts {classes}, the dataset has lesion; "):
        tool.main(
            ["--source", "predictions", "--register-lesions", *dataset, "--config-file", CONFIG]
            + ["--weights", weights, "--output", str(tmp_path / "o"), *SMALL, *other]
        )


def test_a_dataset_of_classes_is_refused(tool, tmp_path):
    with pytest.raises(UserError, match="covid_ct_val holds classes of slices, and this draws lesions"):
        tool.main(["--source", "annotation", "--dataset", "covid_ct_val", "--output", str(tmp_path / "o")])
