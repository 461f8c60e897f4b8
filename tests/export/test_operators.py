"""Suppression and the largest values: the two ways of writing them give the same."""

import io

from d2_covid.export.operators import ONNX, PLAIN, Operators, single_precision_threshold
from d2_covid.export.outputs import Output
from d2_covid.export.write import to_bytes

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.ops import nms

THRESHOLD = 0.3
COUNT = 12


class Both(nn.Module):
    """Boxes, scores and wants out of the bytes of an image; then both operators on them."""

    def __init__(self, operators: Operators):
        super().__init__()
        self.operators = operators

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        numbers = image.float()  # (N, P, 6)
        corners, sides = numbers[..., :2], numbers[..., 2:4]
        boxes = torch.cat((corners, corners + sides), dim=-1) / 2
        scores = numbers[..., 4] / 8
        kept = self.operators.suppress(boxes, scores, numbers[..., 5] > 0, THRESHOLD)
        values, index = self.operators.largest(scores, COUNT)
        return kept, values, index


OUTPUTS = (
    Output("kept", "bool", ("batch", "height"), ""),
    Output("values", "float32", ("batch", COUNT), ""),
    Output("index", "int64", ("batch", COUNT), ""),
)


def _images(groups: int, boxes: int) -> np.ndarray:
    # Small whole numbers: many boxes of equal scores, and overlaps of exactly 0.3.
    rng = np.random.default_rng(boxes)
    image = np.stack([rng.integers(0, high, (groups, boxes)) for high in (14, 14, 15, 15, 9, 5)], axis=-1)
    image[0, :2] = [[0, 0, 13, 2, 8, 1], [7, 0, 13, 2, 7, 1]]
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def written() -> dict[str, object]:
    """What runs the module as ONNX and as an exported program."""
    content = to_bytes(Both(ONNX), "onnx", outputs=OUTPUTS, batch=3, size=(40, 6))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    content = to_bytes(Both(PLAIN), "pt2", outputs=OUTPUTS, batch=3, size=(40, 6))
    program = torch.export.load(io.BytesIO(content)).module()
    return {
        "onnx": lambda image: session.run(None, {"image": image}),
        "pt2": lambda image: [x.numpy() for x in program(torch.from_numpy(image))],
        "eager": lambda image: [x.numpy() for x in Both(ONNX)(torch.from_numpy(image))],
    }


@pytest.mark.parametrize("kind", ["onnx", "pt2", "eager"])
def test_each_group_is_suppressed_by_itself(written, kind):
    image = _images(3, 40)
    image[2, :, 5] = 0  # nothing is wanted
    kept, values, index = written[kind](image)
    for group in range(3):
        numbers = torch.from_numpy(image[group].astype(np.float32))
        boxes = torch.cat((numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]), dim=1) / 2
        wanted = numbers[:, 5] > 0
        expected = np.zeros(40, bool)
        expected[np.flatnonzero(wanted)[nms(boxes[wanted], numbers[wanted, 4], THRESHOLD)]] = True
        np.testing.assert_array_equal(kept[group], expected)
        order = np.argsort(-image[group, :, 4].astype(int), kind="stable")[:COUNT]
        np.testing.assert_array_equal(index[group], order)
        np.testing.assert_array_equal(values[group], image[group, order, 4] / np.float32(8))
    assert kept[0, 0] and not kept[0, 1]  # an overlap of 0.3 in float32 is above 0.3
    assert 0 < kept[1].sum() < (image[1, :, 5] > 0).sum() and not kept[2].any()


@pytest.mark.parametrize("threshold", [0.3, 0.75, 0.9, 0.7, 0.0, 1.0])
def test_threshold_parts_the_numbers_alike(threshold):
    single = np.float32(single_precision_threshold(threshold))
    assert float(single) == single_precision_threshold(threshold)
    for value in (np.float32(threshold), *(np.nextafter(np.float32(threshold), np.float32(end)) for end in (-9, 9))):
        assert (value > single) == (float(value) > threshold)
