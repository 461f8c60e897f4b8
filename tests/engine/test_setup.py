"""The device of a run."""

import re

from d2_covid import get_config
from d2_covid.engine import setup
from d2_covid.engine.setup import build_for_device, choose_device
from d2_covid.errors import UserError

import pytest
import torch
from torch import nn


def test_the_default_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_config()
    assert cfg.MODEL.DEVICE == "cuda"
    choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named_in_a_line(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opts = ["MODEL.DEVICE", device]
    with pytest.raises(UserError) as error:
        choose_device(get_config(None, opts), opts)
    message = rf"PyTorch can't compute on device {device!r} here \(.+\); use MODEL.DEVICE cuda or cpu\."
    assert re.fullmatch(message, str(error.value)) and len(str(error.value)) < 250


@pytest.mark.parametrize(("device", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_gpu_that_is_named_by_its_number_becomes_the_current_one(device, current, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(setup, "build_model", lambda cfg: nn.Identity())
    build_for_device(get_config(None, ["MODEL.DEVICE", device]))
    assert chosen == current
