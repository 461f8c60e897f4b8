"""The two operations that PyTorch and ONNX write differently: the largest values, and non-maximum suppression.

:data:`PLAIN` is made of PyTorch's own operators, and is what ``torch.export`` writes. :data:`ONNX` stands for one ONNX
operator each: what it computes in PyTorch is the same. Both break ties alike: of equal scores the earlier one first.

Shape shorthand: G groups that do not touch each other (an image, or one of its classes or levels), P boxes of each.
"""

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
from torchvision.ops import nms

# Groups are told apart by an offset beyond any coordinate; in double precision it rounds no box.
_APART = 65536.0


def largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` largest of each row of (G, P), or all of fewer, in descending order: values and indices."""
    values, index = values.sort(dim=1, descending=True, stable=True)
    return values[:, :count], index[:, :count]


def suppress(boxes: torch.Tensor, scores: torch.Tensor, wanted: torch.Tensor, threshold: float) -> torch.Tensor:
    """Non-maximum suppression in each group.

    Args:
        boxes: (G, P, 4) XYXY.
        scores: (G, P).
        wanted: (G, P) bool: boxes that take part.
        threshold: a box whose IoU with a better one is above it goes.

    Returns:
        (G, P) bool: the boxes that stay.
    """
    group, index = wanted.nonzero(as_tuple=True)
    apart = boxes[group, index].double() + _APART * group[:, None]
    # torch.export takes it that two boxes or more stay: here are two that always do.
    far = torch.tensor([[1.0, 0.0, 2.0, 1.0], [3.0, 0.0, 4.0, 1.0]], dtype=apart.dtype) - _APART
    apart = torch.cat((apart, far))
    scores = torch.cat((scores[group, index].double(), torch.zeros(2, dtype=apart.dtype)))
    kept = nms(apart, scores, _double_precision_threshold(threshold))
    stays = torch.zeros(apart.shape[0], dtype=torch.bool).index_put((kept,), torch.ones_like(kept, dtype=torch.bool))
    return torch.zeros_like(wanted).index_put((group, index), stays[: group.shape[0]])


@torch.library.custom_op("d2_covid::largest", mutates_args=())
def _largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    found, index = largest(values, count)
    return found.clone(), index.clone()


@_largest.register_fake
def _(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (values.shape[0], torch.sym_min(values.shape[1], count))
    return values.new_empty(shape), values.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("d2_covid::suppress", mutates_args=())
def _suppress(boxes: torch.Tensor, scores: torch.Tensor, wanted: torch.Tensor, threshold: float) -> torch.Tensor:
    return suppress(boxes, scores, wanted, threshold)


@_suppress.register_fake
def _(boxes: torch.Tensor, scores: torch.Tensor, wanted: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.empty_like(wanted)


@dataclass(frozen=True)
class Operators:
    """:func:`largest` and :func:`suppress`, one way or the other."""

    largest: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    suppress: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


PLAIN = Operators(largest, suppress)
ONNX = Operators(_largest, _suppress)


def suppress_classes(operators: Operators, table: torch.Tensor, wanted: torch.Tensor, threshold: float) -> torch.Tensor:
    """Non-maximum suppression in each class of each image.

    Args:
        table: (N, P, K, 5 or more): score, 4 box numbers.
        wanted: (N, P, K) bool: what takes part.

    Returns:
        (N, P, K) bool.
    """
    by_class = table.transpose(1, 2).flatten(0, 1)  # (N * K, P, ...)
    kept = operators.suppress(by_class[..., 1:5], by_class[..., 0], wanted.transpose(1, 2).flatten(0, 1), threshold)
    return kept.unflatten(0, (table.shape[0], table.shape[2])).transpose(1, 2)


def single_precision_threshold(threshold: float) -> float:
    """The float32 above which lie the same float32 numbers as above ``threshold``, as PyTorch compares them."""
    value = np.float32(threshold)
    return float(value if float(value) <= threshold else np.nextafter(value, np.float32(-np.inf)))


def _double_precision_threshold(threshold: float) -> float:
    """What parts overlaps in double precision as ``threshold`` parts them once rounded to single precision."""
    below = np.float32(single_precision_threshold(threshold))
    return (float(below) + float(np.nextafter(below, np.float32(np.inf)))) / 2


def onnx_translations() -> dict[Callable, Callable]:
    """How :data:`ONNX` is written in ONNX: the exporter's ``custom_translation_table``."""
    from onnxscript import opset18 as op

    lowest = float(np.finfo(np.float32).min)

    def translate_largest(values, count):
        length = op.Slice(op.Shape(values), op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
        count = op.Min(length, op.Constant(value_ints=[count]))
        return op.TopK(values, count, axis=1, largest=1, sorted=1)

    def translate_suppress(boxes, scores, wanted, threshold):
        # ONNX leaves out what scores no more than a threshold of its own.
        scores = op.Where(wanted, scores, op.Constant(value_float=float("-inf")))
        most = op.Constant(value_int=np.iinfo(np.int64).max)
        threshold = op.Constant(value_float=single_precision_threshold(threshold))
        kept = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), most, threshold, op.Constant(value_float=lowest)
        )  # (S, 3): group, class (there is one), box
        place = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        stays = op.Expand(op.Constant(value=_true()), op.Slice(op.Shape(kept), [0], [1]))
        nothing = op.And(wanted, op.Constant(value=_false()))
        return op.ScatterND(nothing, place, stays)

    return {
        torch.ops.d2_covid.largest.default: translate_largest,
        torch.ops.d2_covid.suppress.default: translate_suppress,
    }


def _true():
    import onnx

    return onnx.numpy_helper.from_array(np.array([True]))


def _false():
    import onnx

    return onnx.numpy_helper.from_array(np.array([False]))
