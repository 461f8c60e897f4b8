"""Where a CUDA graph is captured, by PyTorch's functions in their own signatures; what it gives: test_fast_cuda.py."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import create_autospec

from d2_covid.modeling import fast_graph
from d2_covid.modeling.fast_graph import GraphedDense

import pytest
import torch
from torch import nn

SECOND, STREAM = torch.device("cuda:1"), SimpleNamespace(wait_stream=lambda other: None)


@pytest.fixture
def entered(monkeypatch):
    """What a capture on the second device enters, in order, without such a device; :data:`STREAM` is its stream."""
    entered = []

    @contextmanager
    def noted(what):
        entered.append(what)
        yield

    graph = create_autospec(torch.cuda.graph, side_effect=lambda *_, **__: noted("capture"))
    replaced = {
        "Stream": lambda device: STREAM if device == SECOND else None,
        "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda given: noted("warm-up"),
        "device": lambda device: noted(device),
        "CUDAGraph": lambda: "graph",
        "graph": graph,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(fast_graph.torch.cuda, name, function)
    return entered


def test_a_capture_is_on_the_device_and_a_stream_of_its_images(entered):
    images = SimpleNamespace(device=SECOND, clone=lambda: "images")
    captured, images_in, outputs, _ = GraphedDense(lambda given: f"dense {given}", nn.Identity())._capture(images)
    assert (captured, images_in, outputs) == ("graph", "images", "dense images")
    assert entered == ["warm-up", SECOND, "capture"]
    torch.cuda.graph.assert_called_once_with("graph", stream=STREAM, capture_error_mode="thread_local")


def test_what_a_capture_holds_can_be_written_to_outside_inference_mode(entered):
    with torch.inference_mode():
        images = SimpleNamespace(device=SECOND, clone=lambda: torch.zeros(2))
        weight = torch.ones(2, requires_grad=True)
        _, images_in, outputs, _ = GraphedDense(lambda given: given * weight, nn.Identity())._capture(images)
    assert not images_in.is_inference() and not outputs.is_inference() and not outputs.requires_grad
    with torch.no_grad():
        images_in.copy_(torch.ones(2))


def test_on_a_cpu_there_is_no_graph():
    graphed = GraphedDense(lambda images: images + 1, nn.Identity())
    assert graphed(torch.zeros(2)).tolist() == [1, 1] and not graphed._graphs
