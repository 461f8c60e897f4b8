"""The dense part of a model as CUDA graphs: one launch instead of some fifty."""

from typing import Callable

import torch
from torch import nn

from .fast_convs import ConstantInput

KEPT_SHAPES = 4
WARM_UP = 3

Outputs = tuple[dict[str, torch.Tensor], list[torch.Tensor]]


class GraphedDense:
    """A function of one tensor, captured for each shape that it sees on a CUDA device; anywhere else called as it is.

    What it returns is overwritten by the next call with an input of that shape. Beyond :data:`KEPT_SHAPES` shapes, or
    for an input of another type, it is called as it is too: each capture holds memory of its own.
    """

    def __init__(self, dense: Callable[[torch.Tensor], Outputs], module: nn.Module):
        """
        Args:
            dense: from images to features and the RPN head's predictions, without waiting for the device.
            module: holds all that ``dense`` reads.
        """
        self.dense, self.module = dense, module
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, torch.Tensor, Outputs, list]] = {}

    def __call__(self, images: torch.Tensor) -> Outputs:
        if images.device.type != "cuda":
            return self.dense(images)
        key = (tuple(images.shape), images.dtype, images.device)
        if key not in self._graphs:
            if len(self._graphs) >= KEPT_SHAPES:
                return self.dense(images)
            self._graphs[key] = self._capture(images)
        graph, images_in, outputs, _ = self._graphs[key]
        images_in.copy_(images)
        graph.replay()
        return outputs

    # Under inference_mode, what a capture holds could not be written to by a later call under no_grad.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _capture(self, images: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, Outputs, list]:
        images_in = images.clone()
        # What is prepared once for each shape must be there before the capture.
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.dense(images_in)
        torch.cuda.current_stream(images.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # On the images' device, whichever is the current one; and what other threads do meanwhile, such as pinning a
        # batch, does not spoil it.
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(images.device), capture:
            outputs = self.dense(images_in)
        # The graph reads these at their addresses, also when their owner has dropped them.
        borders = [m.kept() for m in self.module.modules() if isinstance(m, ConstantInput)]
        return graph, images_in, outputs, borders
