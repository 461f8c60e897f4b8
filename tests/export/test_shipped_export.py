"""The models that ship, exported, on real CT; skipped where either is absent."""

import json

from d2_covid import cli
from d2_covid.inference.shipped import shipped_names

import pytest

# Exported in half the time that a graph for any size takes.
ONE_SIZE = ("--batch", "1", "--height", "512", "--width", "512")


@pytest.fixture(scope="module")
def slices(real_data) -> list[str]:
    """A slice of 512 x 512 with lesions, and one of 256 x 256."""
    folders = [real_data / name / "ct_lesion_seg" / "image" / "1" for name in ("radiopaedia", "coronacases")]
    return [str(sorted(folder.iterdir())[20]) for folder in folders]


@pytest.mark.parametrize(
    "name, arguments, count",
    [
        ("lesion_r18_t1", (), 2),
        ("lesion_r18_t1", ("--part", "dense", *ONE_SIZE), 2),
        ("classifier_r18_t1", ONE_SIZE, 1),
    ],
    ids=["lesions", "dense", "classifier"],
)
def test_the_exported_model_says_what_the_model_says(slices, tmp_path, capsys, name, arguments, count):
    if name not in shipped_names():
        pytest.skip(f"this copy of d2_covid ships no {name}")
    status = cli.main(["export", "--weights", name, "-o", str(tmp_path), *arguments, "--check", *slices[:count]])
    assert status == 0, capsys.readouterr()
    assert (tmp_path / "model.onnx").is_file()
    check = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["check"]
    assert check["passed"]
    *real, _, black = check["slices"]
    assert len(real) == count and black["name"] == "black" and black["detections"] == 0
    if "dense" not in arguments:
        assert all(one["detections"] > 0 for one in real)
