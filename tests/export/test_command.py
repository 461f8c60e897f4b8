"""``d2-covid export`` from the command line's side."""

import importlib.metadata
import json
from dataclasses import replace

from d2_covid import cli
from d2_covid.errors import UserError
from d2_covid.export import check, command, model
from d2_covid.export.manifest import describe
from d2_covid.inference.model_source import resolve_model
from d2_covid.inference.predictor import Predictor
from d2_covid.inference.shipped import shipped_models

import numpy as np
import pytest
import torch
from PIL import Image

FACTS = {"part": "dense", "kind": "pt2", "file": "", "sha256": "", "outputs": (), "batch": None, "size": None}


@pytest.fixture
def run(lesion_weights, tmp_path, capsys):
    """``run(*arguments)`` gives exit status, stdout and stderr; the files go to ``tmp_path / "out"``."""

    def call(*arguments) -> tuple[int, str, str]:
        weights = () if "--weights" in arguments else ("--weights", str(lesion_weights))
        status = cli.main(["export", *weights, "-o", str(tmp_path / "out"), *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def test_writes_checks_and_says_so(run, phantom, tmp_path):
    Image.fromarray(phantom).save(tmp_path / "one.png")
    status, out, err = run("--format", "pt2", "--part", "dense", "--check", tmp_path / "one.png")
    assert status == 0 and not err, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt2", "model.json", "run.py"}
    info = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert info["check"]["passed"] and [s["name"] for s in info["check"]["slices"]] == ["one.png", "phantom", "black"]
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'out' / 'model.pt2'}: mask_rcnn_R_18_T1_merge, dense")


def test_a_difference_is_exit_status_1(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SCORE_TOLERANCE", -1.0)
    status, out, err = run("--format", "pt2", "--part", "dense", "--batch", "1", "--height", "64", "--width", "64")
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    info = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert not info["check"]["passed"] and info["input"]["shape"] == [1, 96, 96]


@pytest.mark.parametrize("part", ["whole", "dense"])
def test_a_fixed_number_of_images_takes_slices_one_by_one_too(run, phantom, tmp_path, part):
    Image.fromarray(phantom).save(tmp_path / "one.png")
    status, _, err = run("--format", "pt2", "--part", part, "--batch", "3", "--check", tmp_path / "one.png")
    assert status == 0 and not err, err
    info = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert info["input"]["shape"][0] == 3 and info["check"]["passed"]
    assert part == "dense" or info["check"]["slices"][0]["detections"] > 0


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_pytorch_that_is_too_old_is_named(kind, run, monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.8.1+cpu")
    status, _, err = run("--format", kind)
    assert status == 2 and "needs PyTorch 2.9" in err and "this is 2.8.1+cpu" in err and err.count("\n") == 1


def test_threshold_is_part_of_the_graph(run, monkeypatch, tmp_path):
    seen = {}

    def stop(built, source, options):
        seen["threshold"] = built.roi_heads.box_predictor.test_score_thresh
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "export_model", stop)
    assert run("--score-threshold", "0.5")[0] == 130
    assert np.float32(seen["threshold"]) < 0.5 and seen["threshold"] == pytest.approx(0.5, abs=1e-6)


def test_threshold_is_that_of_lesions_too_as_predict_has_it(run, lesion_weights, monkeypatch):
    seen = {}

    def stop(built, source, options):
        seen.update(describe(source, **FACTS)["thresholds"])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "export_model", stop)
    assert run("--score-threshold", "0.3")[0] == 130
    predictor = Predictor(weights=lesion_weights, device="cpu", score_threshold=0.3)
    assert seen["lesion_score"] == predictor.score_threshold
    assert seen["score"] == predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST


def test_the_terms_of_weights_that_ship_go_with_them(lesion_weights):
    source = resolve_model(None, lesion_weights, "cpu")
    assert not {"licence", "not_intended_use", "training_data", "base"} & describe(source, **FACTS).keys()
    models = shipped_models()
    if not models:
        pytest.skip("this copy of d2_covid ships no model")
    for card in (each.card for each in models):
        info = json.loads(json.dumps(describe(replace(source, card=card), **FACTS)))
        assert info["licence"] == {"weights": card.licence.weights, "reason": card.licence.reason}
        assert info["not_intended_use"] == card.not_intended_use
        said = [(one["name"], one["terms"], one["citation"]) for one in info["training_data"]]
        assert said == [(one.name, one.terms, one.citation) for one in card.training.data] and said
        assert info.get("base") == (card.base and {"name": card.base.name, "sha256": card.base.sha256})


def test_limits_without_a_card_claim_nothing_of_the_training(lesion_weights):
    info = describe(resolve_model(None, lesion_weights, "cpu"), **FACTS)
    (limits,) = info["limits"]
    assert "What it was trained on is not recorded" in limits and "adults" not in limits
    assert "they mean nothing" in limits and "not probabilities of disease" in limits
    assert info["intended_use"].startswith("Research") and "not for diagnosis" in info["notice"]


def test_an_onnx_runtime_of_another_package_serves(lesion_weights, monkeypatch):
    modules = {name: pytest.importorskip(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    source = resolve_model(None, lesion_weights, "cpu")

    def distribution(name):  # as where onnxruntime-gpu brings onnxruntime
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    versions = describe(source, **FACTS | {"kind": "onnx"})["versions"]
    assert {name: versions[name] for name in modules} == {name: one.__version__ for name, one in modules.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run, lesion_weights, tmp_path, value):
    checkpoint = torch.load(lesion_weights, weights_only=True)
    checkpoint["model"]["backbone.fpn_output4.bias"][1] = value
    torch.save(checkpoint, tmp_path / "astray.pth")
    status, _, err = run("--format", "pt2", "--part", "dense", "--weights", tmp_path / "astray.pth")
    assert status == 2 and err.startswith(f"error: {tmp_path / 'astray.pth'}: backbone.fpn_output4.bias has values")
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_weights_that_predict_with_each_slices_own_statistics_are_refused(run, lesion_weights, tmp_path):
    checkpoint = torch.load(lesion_weights, weights_only=True)
    checkpoint["d2_covid"]["config"]["TEST"]["NORM_STATISTICS"] = "slice"
    torch.save(checkpoint, tmp_path / "own.pth")
    status, _, err = run("--format", "pt2", "--weights", tmp_path / "own.pth")
    assert status == 2 and err.startswith(f"error: {tmp_path / 'own.pth'} predicts with each slice's own statistics")
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--weights", "nothing.pth"), "nothing.pth"),
        (("--check", "nothing.png"), "nothing.png: no such file"),
        (("--batch", "0"), "--batch must be dynamic"),
        (("--batch", "all"), "--batch must be dynamic"),
        (("--batch", "1025"), "a number from 1 to 1024"),
        (("--height", "0", "--width", "0"), "--height and --width must be 1 or more"),
        (("--height", "50", "--width", "5000"), "edges can be from 65 to 4096"),
        (("--score-threshold", "2"), "--score-threshold must be from 0 to 1"),
    ],
)
def test_bad_arguments_are_one_line(run, tmp_path, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("--height", "512"), ("--format", "tflite"), ("--part", "half")])
def test_bad_usage(run, arguments):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_said_with_the_command(run, without, tmp_path, package):
    with without(package):
        status, _, err = run()
    assert status == 2 and err.count("\n") == 1
    assert package in err and "pip install 'd2_covid[export]'" in err and not (tmp_path / "out").exists()


def test_several_levels_ask_for_a_size(run, make_weights):
    status, _, err = run("--weights", str(make_weights("segmentation/mask_rcnn_R_50_FPN.yaml")))
    assert status == 2 and "give --height and --width" in err and err.count("\n") == 1


def test_what_lies_there_stays_if_writing_fails(tmp_path, monkeypatch):
    model.ExportedModel(b"earlier", {"file": "model.onnx"}).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"model.onnx", "model.json", "run.py"}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)  # as good a place as any: the two other files have their content
    with pytest.raises(UserError, match="No space left"):
        model.ExportedModel(b"later", {"file": "model.onnx"}).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
