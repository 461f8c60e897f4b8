"""Models that ship: found by name, refused when damaged, and what `predict` and `models` make of them."""

import json
import socket

from d2_covid.cli import main
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.inference import shipped
from d2_covid.inference.batch import load_model
from d2_covid.inference.model_source import find_config, resolve_model
from d2_covid.inference.predictor import Predictor
from d2_covid.inference.shipped import default_model, find_shipped, shipped_models, verified

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def ships_none(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "store_dir", lambda: tmp_path / "nothing")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "slice.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 56), np.uint8)).save(path)
    return path


# ---- which model ----


def test_the_default_comes_first_and_is_the_lesion_model(ships):
    assert [model.name for model in shipped_models()] == ["tiny_lesion", "tiny_classifier"]
    assert default_model().name == "tiny_lesion" and verified(default_model()).path == ships / "tiny_lesion.pth"


def test_no_arguments_are_the_default_model(ships):
    predictor = Predictor(device="cpu")
    source = predictor.source
    assert source.name == "tiny_lesion" and source.weights == ships / "tiny_lesion.pth" and not source.image_classes
    assert source.card.sha256 == source.weights_sha256 and source.warnings == ()
    assert predictor.cfg.INPUT.MIN_SIZE_TEST == 64


@pytest.mark.parametrize("arguments", [{"weights": "tiny_classifier"}, {"config": "tiny_classifier"}])
def test_a_model_by_name(arguments, ships):
    source = resolve_model(**arguments, device="cpu")
    assert source.name == source.card.name == "tiny_classifier" and len(source.image_classes) == 3
    assert source.cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet"


def test_a_shipped_file_by_its_path_keeps_its_card(ships, tmp_path):
    assert resolve_model(weights=ships / "tiny_lesion.pth", device="cpu").card.name == "tiny_lesion"
    (tmp_path / "copy.pth").write_bytes((ships / "tiny_lesion.pth").read_bytes())
    copied = resolve_model(weights=tmp_path / "copy.pth", device="cpu")
    assert copied.card is None and copied.name == "mask_rcnn_R_18_T2_merge"


def test_a_config_beside_shipped_weights_keeps_its_meaning(ships):
    cfg = resolve_model(weights="tiny_lesion", device="cpu").cfg
    cfg.INPUT.MIN_SIZE_TEST = 96
    source = resolve_model(cfg, "tiny_lesion", "cpu")
    assert source.card.name == "tiny_lesion" and "INPUT.MIN_SIZE_TEST 96, theirs is 64" in source.warnings[0]


def test_a_file_goes_before_a_name(ships, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_classifier").write_bytes((ships / "tiny_lesion.pth").read_bytes())
    assert resolve_model(weights="tiny_classifier", device="cpu").image_classes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "tiny"}, "no shipped model of that name; there are tiny_classifier, tiny_lesion"),
        ({"weights": "tiny.pth"}, "There is no checkpoint tiny.pth"),
        ({"weights": ""}, "give --weights"),
        ({"config": "mask_rcnn_R_18_T1_FPN"}, "give --weights"),
        ({"config": "tiny_lesion", "weights": "x.pth"}, "tiny_lesion is a shipped model, which brings its weights"),
        ({"config": "tiny_lesio"}, "There is no model or config tiny_lesio; .* tiny_lesion"),
    ],
)
def test_choices_that_can_not_be(arguments, message, ships):
    with pytest.raises(UserError, match=message):
        resolve_model(**arguments, device="cpu")


def test_names_that_there_are_not(ships):
    with pytest.raises(UserError, match="There is no shipped model tiny_leson; there are tiny_lesion"):
        find_shipped("tiny_leson")
    with pytest.raises(UserError, match="no model or config tiny"):
        find_config("tiny")


def test_a_copy_that_ships_none(ships_none, image, tmp_path, capsys):
    assert main(["predict", str(image), "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: This copy of d2_covid ships no weights: give --weights") and err.count("\n") == 1
    assert main(["models"]) == 0 and "ships no models" in capsys.readouterr().out
    assert main(["models", "x"]) == 2 and "ships none" in capsys.readouterr().err


# ---- damage ----


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])
    return "of [0-9,]+ bytes: it is damaged"


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "is damaged: its SHA-256 begins"


def _pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    return "is a git-lfs pointer, not the weights: run git lfs pull"


def _remove(path):
    path.unlink()
    return "is missing; install d2_covid again"


@pytest.mark.parametrize("harm", [_cut, _flip, _pointer, _remove])
@pytest.mark.parametrize("harmed", ["tiny_lesion", "tiny_classifier"])
def test_damaged_weights_are_refused_in_a_line(harm, harmed, ships, capsys, image, tmp_path):
    message = harm(ships / f"{harmed}.pth")
    # The classifier has its detector from the lesion model.
    with pytest.raises(UserError, match=f"{harmed}.pth .*{message}|{harmed}.pth {message}"):
        resolve_model(weights="tiny_classifier", device="cpu")
    assert main(["predict", str(image), "-o", str(tmp_path / "out"), "--weights", "tiny_classifier"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert main(["models"]) == 2
    shown = capsys.readouterr()
    assert "tiny_lesion" in shown.out and "tiny_classifier" in shown.out and f"{harmed}.pth" in shown.err


def test_a_classifier_and_another_build_of_its_detector(ships):
    card = json.loads((ships / "tiny_lesion.json").read_text())
    checkpoint = read_checkpoint(ships / "tiny_lesion.pth")
    checkpoint["model"]["roi_heads.box_head.fc1.bias"] += 1
    write_checkpoint(ships / "tiny_lesion.pth", checkpoint)
    data = (ships / "tiny_lesion.pth").read_bytes()
    card |= {"sha256": shipped.sha256_of(ships / "tiny_lesion.pth"), "size_bytes": len(data)}
    (ships / "tiny_lesion.json").write_text(json.dumps(card))
    assert resolve_model(weights="tiny_lesion", device="cpu").name == "tiny_lesion"
    with pytest.raises(UserError, match="tiny_classifier.pth belongs to another tiny_lesion.pth"):
        resolve_model(weights="tiny_classifier", device="cpu")


def test_a_damaged_card_costs_no_weights_of_ones_own(ships, lesion_weights):
    (ships / "tiny_classifier.json").write_text("{}")
    assert Predictor(weights=lesion_weights, device="cpu").source.card is None
    assert resolve_model(weights="tiny_lesion", device="cpu").name == "tiny_lesion"
    with pytest.raises(UserError, match="tiny_classifier.json: schema_version is None"):
        resolve_model(weights="tiny_classifier", device="cpu")


# ---- results ----


def test_stored_weights_predict_as_trained_ones(ships, tiny_store, few_slices):
    for name in ("lesion", "classifier"):
        trained = Predictor(weights=tiny_store.parent / f"{name}.pth", device="cpu", score_threshold=0.0)
        stored = Predictor(weights=f"tiny_{name}", device="cpu", score_threshold=0.0)
        assert all(tensor.dtype != torch.float16 for tensor in stored.model.state_dict().values())
        for gray in few_slices.slices:
            before, after = trained.slice(gray), stored.slice(gray)
            assert len(before.instances) == len(after.instances) > 0
            for one, other in zip(before.instances, after.instances):
                assert other.score == pytest.approx(one.score, abs=5e-3)
                assert np.allclose(other.box, one.box, atol=0.5)
            if before.image_scores:
                assert after.image_scores == pytest.approx(before.image_scores, abs=5e-3)


def test_a_classifier_has_its_detector_from_the_base(ships, tiny_store):
    lesion, classifier = (ships / f"tiny_{name}.pth" for name in ("lesion", "classifier"))
    layers = [f"roi_heads.image_classifier.{layer}" for layer in ("fc1", "fc2", "logits")]
    assert set(torch.load(classifier)["model"]) == {f"{x}.{leaf}" for x in layers for leaf in ("weight", "bias")}
    cfg = resolve_model(weights=classifier, device="cpu").cfg
    cfg.TEST.FAST = False  # the fast copy has its weights in another form
    model = load_model(cfg)
    trained = read_checkpoint(tiny_store.parent / "classifier.pth")["model"]
    for name, tensor in model.state_dict().items():
        if name in trained:
            assert torch.allclose(tensor.float(), trained[name].float(), rtol=1e-3, atol=1e-6), name
    # One pass gives class and masks: the mask head is the base's.
    mask_head = read_checkpoint(lesion)["model"]["roi_heads.mask_head.deconv.weight"]
    assert torch.equal(model.roi_heads.mask_head.deconv.weight, mask_head.float())


def test_predict_works_right_after_the_install(ships, image, tmp_path, capsys, monkeypatch):
    def no_network(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", no_network)
    output = tmp_path / "out"
    assert main(["predict", str(image), "-o", str(output), "--save", "json,report", "--device", "cpu"]) == 0
    line = "model: tiny_lesion, which ships with d2_covid. Random weights: it knows nothing."
    assert line in capsys.readouterr().err
    expected = {"name": "tiny_lesion", "limits": "Random weights: it knows nothing.", "licence": "Any use."}
    sha256 = find_shipped("tiny_lesion").card.sha256
    for file in (output / "slice" / "predictions.json", output / "run.json"):
        model = json.loads(file.read_text())["model"]
        assert model["name"] == "tiny_lesion" and model["weights_sha256"] == sha256 and model["shipped"] == expected
    page = (output / "slice" / "report.html").read_text()
    assert "Limits of this model: Random weights: it knows nothing." in page and "Any use." in page


def test_other_weights_are_said_to_be_no_shipped_ones(ships, lesion_weights, image, tmp_path, capsys):
    output, save = tmp_path / "out", ["--save", "json,report"]
    assert main(["predict", str(image), "-o", str(output), *save, "--weights", str(lesion_weights)]) == 0
    assert "ships with d2_covid" not in capsys.readouterr().err
    assert json.loads((output / "run.json").read_text())["model"]["shipped"] is None
    assert "Limits of this model" not in (output / "slice" / "report.html").read_text()


# ---- d2-covid models ----


def test_the_list_of_models(ships, capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "tiny_lesion: lesion model, the default; " in out and "not measured" in out
    assert "tiny_classifier: classifier model; " in out and "with the tensors of tiny_lesion" in out
    assert out.count("limits: Random weights: it knows nothing.") == 2


def test_a_card_as_text_json_and_path(ships, capsys):
    assert main(["models", "tiny_classifier"]) == 0
    text = capsys.readouterr().out
    card = find_shipped("tiny_classifier").card
    for fact in (card.sha256, "Finds discs.", "Random weights", "Any use.", "https://example.org", "Research use only"):
        assert fact in text
    assert all(len(line) < 200 for line in text.splitlines())
    assert main(["models", "tiny_classifier", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == card.as_dict()
    assert main(["models", "tiny_lesion", "--path"]) == 0
    assert capsys.readouterr().out == f"{ships / 'tiny_lesion.pth'}\n"
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    assert "tools/train_net.py" in capsys.readouterr().out  # no other checkpointer has a classifier's shared tensors
    with pytest.raises(SystemExit):
        main(["models", "--json"])
