"""Where a CUDA graph is captured, by PyTorch's functions in their own signatures; what it gives: test_fast_cuda.py."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import create_autospec

from d2_covid.modeling import fast_graph
from d2_covid.modeling.fast_graph import GraphedDense

import torch
from torch import nn


def test_a_capture_is_on_the_device_and_a_stream_of_its_images(monkeypatch):
    entered = []

    @contextmanager
    def noted(what):
        entered.append(what)
        yield

    second, stream = torch.device("cuda:1"), SimpleNamespace(wait_stream=lambda other: None)
    graph = create_autospec(torch.cuda.graph, side_effect=lambda *_, **__: noted("capture"))
    replaced = {
        "Stream": lambda device: stream if device == second else None,
        "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda given: noted("warm-up"),
        "device": lambda device: noted(device),
        "CUDAGraph": lambda: "graph",
        "graph": graph,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(fast_graph.torch.cuda, name, function)
    images = SimpleNamespace(device=second, clone=lambda: "images")
    captured, images_in, outputs, _ = GraphedDense(lambda given: f"dense {given}", nn.Identity())._capture(images)
    assert (captured, images_in, outputs) == ("graph", "images", "dense images")
    assert entered == ["warm-up", second, "capture"]
    graph.assert_called_once_with("graph", stream=stream, capture_error_mode="thread_local")


def test_on_a_cpu_there_is_no_graph():
    graphed = GraphedDense(lambda images: images + 1, nn.Identity())
    assert graphed(torch.zeros(2)).tolist() == [1, 1] and not graphed._graphs
