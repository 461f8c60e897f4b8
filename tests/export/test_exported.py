"""Exported files beside the model that they come from, in the libraries that run them."""

import json
import re
import subprocess
import sys

from d2_covid import get_config
from d2_covid.data.preprocessing import read_slice
from d2_covid.errors import UserError
from d2_covid.export import session
from d2_covid.export.check import Difference, compare, reference, result_difference
from d2_covid.export.model import check_export, plain_model

import numpy as np
import onnx
import pytest
from PIL import Image

from .conftest import CLASSIFIER

WHOLE = ("lesion_onnx", "classifier_onnx", "lesion_pt2")


def test_a_model_that_can_not_be_built_is_refused_in_a_line():
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ["MODEL.RPN.IN_FEATURES", "['p4']"])
    with pytest.raises(UserError, match="no model that can be built .KeyError: p4"):
        plain_model(cfg)


@pytest.mark.parametrize("name", WHOLE)
def test_says_what_the_model_says(request, phantom, name):
    one = request.getfixturevalue(name)
    flipped = np.ascontiguousarray(phantom[:, ::-1])
    for image in (phantom, flipped):
        difference = compare(one.model, one.cfg, one.session, image, "")
        assert difference.within_tolerance and difference.detections > 0, difference
    assert not np.array_equal(one.session(phantom).boxes, one.session(flipped).boxes)


@pytest.mark.parametrize("name", WHOLE)
def test_holds_for_a_slice_without_detections(request, phantom, name):
    one = request.getfixturevalue(name)
    image = np.zeros_like(phantom)
    difference = compare(one.model, one.cfg, one.session, image, "")
    assert difference.within_tolerance and difference.detections == 0
    result = one.session(image)
    assert result.boxes.shape == (0, 4) and result.masks.shape == (0, *image.shape)
    if one.source.image_classes:
        assert (result.raw["ranked_detections"] == -1).all()
        assert result.image_scores.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["classifier_onnx", "lesion_pt2"])
def test_real_slices(real_data, request, name):
    one, detections = request.getfixturevalue(name), 0
    for path in sorted((real_data / "covid_ct" / "CT_COVID").iterdir())[:12]:
        difference = compare(one.model, one.cfg, one.session, read_slice(path), path.name)
        assert difference.within_tolerance, difference
        detections += difference.detections
    assert detections > 0


@pytest.mark.parametrize("name", ["classifier_onnx", "lesion_pt2"])
def test_any_batch_of_any_size(request, phantom, name):
    one = request.getfixturevalue(name)
    images = np.stack([phantom[:101, 20:97], np.zeros((101, 77), np.uint8), phantom[40:141, 20:97]])
    together = one.session.compute(images)
    assert set(together["image_index"]) >= {0, 2} and 1 not in together["image_index"]
    for index, image in enumerate(images):
        alone = one.session.finish(one.session.compute(image[None]), image.shape, image.shape)
        shared = one.session.finish(together, image.shape, image.shape, index)
        difference = result_difference(alone, shared, score_threshold=0, most_detections=-1)
        assert difference.within_tolerance and difference.detections == (alone.raw["image_index"] == 0).sum()


def test_padding_that_is_drawn_becomes_part_of_a_graph(make_weights, export, phantom):
    one = export(make_weights(CLASSIFIER, "MODEL.CLASSIFIER.PADDING", "sampled"), batch=1, slice_size=phantom.shape)
    difference = compare(one.model, one.cfg, one.session, phantom, "")
    assert difference.within_tolerance and 0 < len(np.unique(one.session(phantom).raw["ranked_detections"])) < 16


def test_dense_part(dense_onnx, phantom):
    for image in (phantom, np.zeros_like(phantom)):
        difference = compare(dense_onnx.model, dense_onnx.cfg, dense_onnx.session, image, "")
        assert difference.within_tolerance
    raw = dense_onnx.session(phantom).raw
    assert {name: value.shape[1] for name, value in raw.items()} == {
        "features_p4": 8, "rpn_logits_p4": 12, "rpn_deltas_p4": 48
    }  # fmt: skip


def test_one_size_is_kept_to(lesion_onnx, phantom):
    assert lesion_onnx.session.info["input"]["shape"] == [1, 108, 96]
    with pytest.raises(ValueError, match="input"):
        lesion_onnx.session(phantom.T.copy())
    with pytest.raises(UserError, match=r"slanted\.png comes to 96 x 108 pixels"):
        lesion_onnx.exported.check_slice("slanted.png", phantom.T)


def test_a_slice_beyond_the_bounds_is_told_them(lesion_pt2):
    with pytest.raises(UserError, match=r"^flat\.png comes to 10 x 192 pixels; .* takes edges from 65 to 4096\.$"):
        lesion_pt2.exported.check_slice("flat.png", np.zeros((60, 1100), np.uint8))


# ---- the files ----


@pytest.mark.parametrize("name", [*WHOLE, "dense_onnx"])
def test_manifest_describes_the_file(request, phantom, name):
    one = request.getfixturevalue(name)
    info = json.loads((one.folder / "model.json").read_text(encoding="utf-8"))
    assert info == one.session.info
    assert info["weights"] == {"file": "model_best.pth", "sha256": one.source.weights_sha256}
    assert info["lesion_classes"] == list(one.source.lesion_classes)
    assert info["image_classes"] == list(one.source.image_classes)
    assert info["preprocessing"]["window"]["level"] == -600 and "not a medical device" in info["notice"]
    raw = one.session(phantom).raw
    assert list(raw) == [output["name"] for output in info["outputs"]]
    lengths = {}
    for output in info["outputs"]:
        value = raw[output["name"]]
        assert str(value.dtype) == output["dtype"] and value.ndim == len(output["shape"])
        for want, got in zip(output["shape"], value.shape):
            assert want == got if isinstance(want, int) else lengths.setdefault(want, got) == got
    if info["format"] == "onnx":
        written = onnx.load(one.folder / info["file"])
        graph = written.graph
        assert info["versions"]["ir_version"] == written.ir_version
        for value, described in zip((*graph.input, *graph.output), (info["input"], *info["outputs"]), strict=True):
            shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert value.name == described["name"] and shape == described["shape"]


@pytest.mark.parametrize("name", [*WHOLE, "dense_onnx"])
def test_nothing_of_this_machine_is_in_the_files(request, repository, name):
    folder = request.getfixturevalue(name).folder
    for path in folder.iterdir():
        content = path.read_bytes()
        for word in (str(repository), sys.prefix, str(folder.parent), "site-packages"):
            assert word.encode() not in content, (path.name, word)


def test_another_file_is_refused(lesion_pt2, tmp_path):
    for path in lesion_pt2.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "model.pt2", "ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match="not the file that"):
        session(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "nothing"))):
        session(tmp_path / "nothing")


def test_runs_without_this_package(lesion_onnx, phantom, tmp_path):
    Image.fromarray(phantom).save(tmp_path / "slice.png")
    code = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print(sorted({'torch', 'torchvision', 'detectron2', 'd2_covid'} & set(sys.modules)))\n"
    ).replace("runpy.run_path", "import contextlib\nwith contextlib.suppress(SystemExit): runpy.run_path")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, lesion_onnx.folder / "run.py", tmp_path / "slice.png", "--score", "0",
         "-o", tmp_path / "found"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    expected = reference(lesion_onnx.model, lesion_onnx.cfg, phantom)
    assert lines[-1] == "[]" and len(lines) == 2 + len(expected.scores)
    assert all(line.startswith("  lesion 0.") for line in lines[1:-1])
    with np.load(tmp_path / "found" / "slice.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["boxes"], expected.boxes, atol=2e-3)
        assert found["masks"].shape == expected.masks.shape


def run_example(*arguments, folder):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=folder)


def test_results_of_slices_with_one_name_stand_beside_each_other(lesion_onnx, phantom, tmp_path):
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        Image.fromarray(phantom).save(tmp_path / folder / "0.png")
    np.save(tmp_path / "2" / "0.npy", phantom)
    done = run_example(lesion_onnx.folder / "run.py", "1/0.png", "2/0.png", "2/0.npy", "-o", "found", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("*.npz"))
    assert found == ["1/0.npz", "2/0.1.npz", "2/0.2.npz"]


@pytest.mark.parametrize("kind", ["missing", "no image", "no slice", "range", "size", "float", "frames"])
def test_a_slice_that_can_not_be_used_is_one_line(lesion_onnx, tmp_path, kind):
    path = tmp_path / ("slice.npy" if kind in ("no slice", "size") else "slice.png")
    if kind == "no image":
        path.write_text("text")
    elif kind == "range":
        path = path.with_suffix(".tif")
        Image.fromarray(np.full((160, 142), 70_000, np.int32)).save(path)
    elif kind == "float":
        path = path.with_suffix(".tif")
        Image.fromarray(np.full((160, 142), -600, np.float32)).save(path)
    elif kind == "frames":
        path = path.with_suffix(".tif")
        frames = [Image.fromarray(np.full((160, 142), gray, np.uint8)) for gray in (0, 9)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif kind != "missing":
        np.save(path, np.zeros((3, 160, 142) if kind == "no slice" else (142, 160), np.uint8))
    done = run_example(lesion_onnx.folder / "run.py", path, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


# ---- the comparison itself ----


def test_a_difference_is_seen(lesion_onnx, lesion_pt2, phantom):
    expected = reference(lesion_onnx.model, lesion_onnx.cfg, phantom)
    options = {"score_threshold": 0.0, "most_detections": -1}
    assert result_difference(expected, expected, **options) == Difference("", len(expected.scores))
    boxes = expected.boxes.copy()
    boxes[0] += 0.004 * (boxes[0, 2:] - boxes[0, :2]).max()
    changes = {
        "box": {"boxes": boxes},
        "score": {"scores": expected.scores + np.float32(2e-4)},
        "mask": {"soft_masks": expected.soft_masks + np.float32(2e-3)},
        "pixels": {"masks": ~expected.masks},
        "unmatched": {"classes": expected.classes + 1},
    }
    for field, change in changes.items():
        found = result_difference(expected, type(expected)(**(vars(expected) | change)), **options)
        assert not found.within_tolerance and getattr(found, field) > 0, field
    # One detection less: it counts, unless rounding may have taken it.
    fewer = type(expected)(
        **(vars(expected) | {k: v[:-1] for k, v in vars(expected).items() if isinstance(v, np.ndarray)})
    )
    assert result_difference(expected, fewer, **options).unmatched == 1
    options["score_threshold"] = float(expected.scores[-1]) - 1e-6
    assert result_difference(expected, fewer, **options).unmatched == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["box", "score", "mask", "pixels", "image_score", "dense"])
def test_what_is_not_finite_is_within_no_tolerance(field, value):
    assert not Difference("", **{field: value}).within_tolerance


def test_a_detection_without_a_score_counts(lesion_onnx, phantom):
    expected = reference(lesion_onnx.model, lesion_onnx.cfg, phantom)
    more = {key: value[[*range(len(value)), 0]] for key, value in vars(expected).items() if hasattr(value, "shape")}
    more["scores"][-1] = np.nan
    found = type(expected)(**(vars(expected) | more))
    assert result_difference(expected, found, score_threshold=0.0, most_detections=-1).unmatched == 1


@pytest.mark.parametrize("part", ["proposal_generator.rpn_head.anchor_deltas", "backbone.fpn_output4"])
def test_a_difference_that_is_no_number_fails_and_is_null(dense_onnx, phantom, part):
    bias = dense_onnx.model.get_submodule(part).bias
    before = bias.data.clone()
    try:
        bias.data[0] = np.nan
        checked, _ = check_export(dense_onnx.exported, dense_onnx.model, dense_onnx.cfg, [("slice", phantom)])
    finally:
        bias.data = before
    check = json.loads(json.dumps(checked.manifest["check"], allow_nan=False))
    assert not check["passed"] and check["slices"][0]["dense"] is None and check["slices"][0]["box"] == 0


def test_check_is_recorded(lesion_pt2, phantom):
    model = lesion_pt2.model
    checked, differences = check_export(lesion_pt2.exported, model, lesion_pt2.cfg, [("slice", phantom)])
    assert checked.manifest["check"]["passed"] and checked.manifest["check"]["slices"][0]["name"] == "slice"
    weight = model.roi_heads.box_predictor.cls_score.weight
    before = weight.data.clone()
    try:
        weight.data[0] += 0.1  # of all classes alike it would change no score
        checked, differences = check_export(lesion_pt2.exported, model, lesion_pt2.cfg, [("slice", phantom)])
    finally:
        weight.data = before
    assert not checked.manifest["check"]["passed"] and not differences[0].within_tolerance
