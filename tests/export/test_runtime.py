"""The NumPy that runs an exported model, beside the libraries that the model itself uses."""

import ast
import hashlib
import json
import sys

from d2_covid.data.intensity import LEAST_AIR, Unit
from d2_covid.data.preprocessing import window_to_uint8
from d2_covid.export import runtime

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers.mask_ops import paste_masks_in_image
from PIL import Image


@pytest.mark.parametrize("edge", [64, 150, 384])
def test_resize_is_pillows_to_the_byte(edge):
    rng = np.random.default_rng(edge)
    for _ in range(12):
        height, width = rng.integers(40, 400, 2)
        # Pillow 13 begins with the columns of images that are more than twice as high as wide; no slice is.
        height = min(height, 2 * width - 40)
        image = rng.integers(0, 256, (height, width), dtype=np.uint8)
        size = runtime.network_size(height, width, edge, 2 * edge)
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
        np.testing.assert_array_equal(runtime.resize(image, *size), expected)


def test_network_size_is_detectron2s():
    for height, width in np.random.default_rng(0).integers(10, 3000, (500, 2)).tolist():
        expected = ResizeShortestEdge.get_output_shape(height, width, 512, 1024)
        assert runtime.network_size(height, width, 512, 1024) == tuple(expected)
    assert runtime.network_size(300, 200, 0, 1024) == (300, 200)


def test_window_is_the_packages():
    hounsfield = np.append(np.random.default_rng(0).uniform(-2000, 2000, 1000), [np.nan, np.inf, -np.inf, -1350, 150])
    np.testing.assert_array_equal(
        runtime.window_to_gray(hounsfield, -600, 1500), window_to_uint8(hounsfield, -600, 1500)
    )


@pytest.mark.parametrize("soft", [True, False])
def test_masks_are_pasted_as_detectron2_does(soft):
    rng = np.random.default_rng(4)
    corners = rng.uniform(-5, 110, (60, 2))
    boxes = np.clip(np.concatenate((corners, corners + rng.uniform(0.2, 70, (60, 2))), 1), 0, [130, 100] * 2)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float32)
    masks = rng.uniform(0, 1, (len(boxes), 28, 28)).astype(np.float32)
    masks = masks if soft else (masks > 0.4).astype(np.float32)
    expected = paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), (100, 130)).numpy()
    found = runtime.paste_masks(masks, boxes, 100, 130)
    assert expected.sum() > 10_000
    assert (found != expected).sum() <= expected.sum() / 10_000
    assert runtime.paste_masks(masks[:0], boxes[:0], 100, 130).shape == (0, 100, 130)


def test_results_are_named_by_what_was_named_and_stay_in_their_folder(tmp_path, monkeypatch):
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "MD5.png").touch()
    (tmp_path / "case.png").symlink_to("objects/MD5.png")
    monkeypatch.chdir(tmp_path)
    assert runtime._result_files(["case.png"]) == ["case.npz"]
    assert runtime._result_files(["/data/0.png", "/mnt/data/0.png"]) == ["data/0.npz", "mnt/data/0.npz"]
    assert runtime._result_files(["/0.png", "/a/0.png", "/a/0.npy"]) == ["0.npz", "a/0.1.npz", "a/0.2.npz"]


NOTHING = np.zeros((0, 4), np.float32)
RESULT = runtime.Result(NOTHING, NOTHING[:, 0], np.zeros(0, np.int64), None, None, None, {})


class FindsNothing:
    info = {"thresholds": {"lesion_score": 0.5}, "lesion_classes": ["lesion"], "image_classes": []}

    def __init__(self, path):
        pass

    def __call__(self, slice_u8):
        return RESULT


def test_a_slice_that_can_not_be_used_costs_no_other_its_result(tmp_path, monkeypatch, capsys):
    for name in ("first", "last"):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 8), np.uint8))
    (tmp_path / "bad.npy").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "Session", FindsNothing)
    monkeypatch.setattr(sys, "argv", ["run.py", "first.npy", "bad.npy", "last.npy", "-o", "found"])
    assert runtime.main() == 2
    out, err = capsys.readouterr()
    assert out.split() == ["first.npy", "last.npy"]
    assert err.startswith("error: bad.npy: ") and err.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["first.npz", "last.npz"]


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.npz").write_bytes(b"earlier")
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        runtime._save(RESULT, tmp_path / "a.npz")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.npz": b"earlier"}


@pytest.mark.parametrize("file, library", [("model.onnx", "ONNX Runtime "), ("model.pt2", "PyTorch ")])
def test_a_model_that_the_library_can_not_load_is_one_line(tmp_path, monkeypatch, capsys, file, library):
    if file == "model.onnx":
        pytest.importorskip("onnxruntime")
    content = b"of a later version"
    info = {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "outputs": [], "input": {"shape": [1, 96, 96]}}
    (tmp_path / file).write_bytes(content)
    (tmp_path / "model.json").write_text(json.dumps(info))
    monkeypatch.setattr(sys, "argv", ["run.py", "slice.png", "--model", str(tmp_path)])
    assert runtime.main() == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{tmp_path / file} can't be loaded by {library}" in errors[0]


def test_needs_numpy_alone_to_be_imported():
    tree = ast.parse(open(runtime.__file__, encoding="utf-8").read())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy"}


class Windows:
    """Of a session, what reads Hounsfield units."""

    def gray(self, hounsfield):
        return runtime.window_to_gray(hounsfield, -600, 1500)


STORED = np.linspace(0, 4095, 10_000).reshape(100, 100)
TISSUE = np.full((100, 100), 40.0)
LEAST = round(LEAST_AIR * TISSUE.size)


@pytest.mark.parametrize(
    "values, said",
    [
        (STORED.astype(np.uint16), "values from 0 to 4095 can't be Hounsfield units"),
        ((STORED / 4095).astype(np.float32), "values from 0 to 1 can't be Hounsfield units"),
        (np.where(STORED < 1000, -3024, TISSUE), "values from -3024 to 40 can't be"),  # padding is no air
        (np.full((8, 8), np.nan), "no pixel with a finite value"),
        (np.full((8, 8), np.finfo(np.float32).max, np.float32), "no pixel with a finite value"),
    ],
)
def test_arrays_that_can_not_be_hounsfield_units_are_refused(tmp_path, values, said):
    path = tmp_path / "slice.npy"
    np.save(path, values)
    with pytest.raises(ValueError, match=said) as error:
        runtime.read_slice(path, Windows())
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_arrays_with_air_are_hounsfield_units(tmp_path, dtype):
    """From as little air on as predict asks for; values that are none count for nothing."""
    path, values = tmp_path / "slice.npy", TISSUE.astype(dtype)
    values.flat[:LEAST] = -900
    np.save(path, values)
    np.testing.assert_array_equal(runtime.read_slice(path, Windows()), window_to_uint8(values, -600, 1500))
    values.flat[0] = 40
    np.save(path, values)
    with pytest.raises(ValueError, match="a chest CT has air"):
        runtime.read_slice(path, Windows())
    if dtype != np.int16:
        values.flat[-100:] = np.nan
        np.save(path, values)
        assert runtime.read_slice(path, Windows()).shape == (100, 100)


def test_what_is_no_value_is_air(tmp_path):
    values = np.full((10, 10), 3000.0, np.float32)
    values[0] = -900
    values[1, :5] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 9.97e36
    np.save(tmp_path / "slice.npy", values)
    expected = window_to_uint8(Unit("hounsfield").convert(values), -600, 1500)
    np.testing.assert_array_equal(runtime.read_slice(tmp_path / "slice.npy", Windows()), expected)
    assert expected[1].tolist() == [55] * 5 + [255] * 5


@pytest.mark.parametrize("air, status", [(True, 0), (False, 2)])
def test_a_series_may_hold_slices_without_air(tmp_path, monkeypatch, air, status):
    """As ``d2-covid predict`` judges a series as a whole."""
    names = [str(tmp_path / f"{number}.npy") for number in range(3)]
    lung = np.full((100, 100), -850.0) if air else TISSUE
    fat = TISSUE.copy()
    fat[:50] = -100
    for name, values in zip(names, (fat, lung, np.full((4, 4), 7, np.uint8))):
        np.save(name, values)
    np.save(tmp_path / "stored.npy", STORED.astype(np.uint16))
    (tmp_path / "text.npy").write_bytes(b"no array")
    monkeypatch.setattr(runtime, "Session", FindsNothing)
    monkeypatch.setattr(FindsNothing, "gray", Windows.gray, raising=False)
    monkeypatch.setattr(sys, "argv", ["run.py", *names])
    assert runtime.main() == status
    for bad in ("text.npy", "stored.npy"):
        monkeypatch.setattr(sys, "argv", ["run.py", *names, str(tmp_path / bad)])
        assert runtime.main() == 2


def test_gray_of_an_array_is_taken_as_it_is(tmp_path):
    gray = np.full((8, 8), 255, np.uint8)
    np.save(tmp_path / "slice.npy", gray)
    np.testing.assert_array_equal(runtime.read_slice(tmp_path / "slice.npy", Windows()), gray)
