"""mayaku's nearest model; without mayaku, that its absence is said."""

import importlib.util
import json
import sys

from d2_covid.benchmark import mayaku_peer
from d2_covid.benchmark.context import records
from d2_covid.errors import UserError

import pytest
import torch


def test_without_mayaku_there_is_no_version(monkeypatch):
    monkeypatch.setattr(mayaku_peer.importlib.util, "find_spec", lambda name: None)
    assert mayaku_peer.mayaku_version() is None
    assert "pip install mayaku" in mayaku_peer.NOT_INSTALLED


@pytest.fixture
def tool(repository, monkeypatch):
    """tools/train_mayaku.py."""
    spec = importlib.util.spec_from_file_location("train_mayaku", repository / "tools" / "train_mayaku.py")
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, tool)  # its dataclass asks for its module
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize(
    "minutes, seconds, slices, planned",
    [(10, 1, 100, (6, 100)), (10, 1, 400, (2, 400)), (10, 2, 500, (1, 300)), (0.01, 5, 500, (1, 1))],
)
def test_as_much_is_trained_as_fits(tool, minutes, seconds, slices, planned):
    assert tool.plan_length(minutes, seconds, slices) == planned


def test_start_up_is_told_from_what_a_slice_takes(tool):
    assert tool.slice_and_start((8, 10 + 8 * 2.0), (32, 10 + 32 * 2.0)) == (2.0, 10.0)
    assert tool.slice_and_start((8, 9.0), (8, 8.0)) == (1.0, 1.0)  # the set has no more slices
    assert tool.slice_and_start((8, 40.0), (32, 32.0)) == (1.0, 32.0)  # the first was slowed down


def test_a_part_of_a_set_is_the_same_for_a_seed_and_whole_slices(tool, tmp_path):
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(1, 10)]
    annotations = [{"id": i, "image_id": 1 + i % 9} for i in range(40)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": [7]}))
    data = tool.LesionSet(tmp_path / "all.json", tmp_path, 9)
    assert tool._part(data, 9, 1, tmp_path / "part.json") is data and not (tmp_path / "part.json").exists()
    first, again, other = (tool._part(data, 4, seed, tmp_path / f"{n}.json") for n, seed in enumerate((1, 1, 2)))
    content, same, differs = (json.loads(part.annotations.read_text()) for part in (first, again, other))
    assert content == same != differs and content["categories"] == [7]
    kept = {image["id"] for image in content["images"]}
    assert len(kept) == first.slices == 4
    assert content["annotations"] == [one for one in annotations if one["image_id"] in kept]


def test_training_without_mayaku_is_one_line(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "mayaku_version", lambda: None)
    with pytest.raises(UserError, match="pip install mayaku"):
        tool.main(["--name", "none", "--epochs", "1", "--output", str(tmp_path)])


def test_nearest_model_has_our_shape(small_cfg, slices):
    pytest.importorskip("mayaku", reason="mayaku, an optional peer of the benchmark, is not installed")
    cfg = small_cfg("segmentation/mask_rcnn_R_18_T1_FPN")
    model = mayaku_peer.MayakuDetector(cfg, slices[:1]).eval()
    with torch.inference_mode():
        (output,) = model(records(slices[:1]))
    assert 0 < len(output["instances"]) <= 20 and output["instances"].pred_masks.shape[1:] == (128, 128)
    assert model.model.rpn.head.objectness_logits.out_channels == 30
