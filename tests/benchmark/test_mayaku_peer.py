"""mayaku's nearest model; without mayaku, that its absence is said."""

import importlib.util

from d2_covid.benchmark import mayaku_peer
from d2_covid.benchmark.context import records
from d2_covid.errors import UserError

import pytest
import torch


def test_without_mayaku_there_is_no_version(monkeypatch):
    monkeypatch.setattr(mayaku_peer.importlib.util, "find_spec", lambda name: None)
    assert mayaku_peer.mayaku_version() is None
    assert "pip install mayaku" in mayaku_peer.NOT_INSTALLED


def test_training_without_mayaku_is_one_line(repository, monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("train_mayaku", repository / "tools" / "train_mayaku.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
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
