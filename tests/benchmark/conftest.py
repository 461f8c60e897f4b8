"""Small models of the benchmark and their peers, on synthetic slices."""

from d2_covid import get_config
from d2_covid.benchmark.context import plain_parts
from d2_covid.benchmark.weights import spread_weights

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

SMALL = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.PRE_NMS_TOPK_TEST 120 MODEL.RPN.POST_NMS_TOPK_TEST 80 TEST.DETECTIONS_PER_IMAGE 20
MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.CLASSIFIER.NUM_ROIS 24 MODEL.CLASSIFIER.HIDDEN_DIM 12""".split()


def slice_of(seed: int, size: int = 128) -> torch.Tensor:
    """(3, size, size) uint8: bright blobs on a noisy ground, no two pixels' surroundings alike."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    image = generator.normal(60, 12, (size, size))
    for _ in range(6):
        row, column, radius = generator.uniform(0.1, 0.9, 3) * (size, size, 20) + (0, 0, 4)
        image += 120 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
    return torch.from_numpy(np.repeat(np.clip(image, 0, 255).astype(np.uint8)[None], 3, axis=0))


def truth_of(image: torch.Tensor, boxes=((10, 12, 40, 50), (60, 66, 90, 84), (70, 10, 120, 40))) -> Instances:
    """Ground truth with a filled ellipse in each box."""
    height, width = image.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    masks = []
    for x0, y0, x1, y1 in boxes:
        inside = ((columns + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2
        masks.append(inside + ((rows + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(np.stack(masks)))
    return instances


@pytest.fixture
def slices():
    return [slice_of(seed) for seed in range(3)]


@pytest.fixture
def truth():
    return truth_of


@pytest.fixture
def small_cfg():
    def make(config: str, *opts):
        return get_config(f"{config}.yaml", [*SMALL, *opts])

    return make


@pytest.fixture
def spread_model(slices):
    """``spread_model(cfg)``: the plain model with weights under which it finds many different boxes in ``slices``."""

    def build(cfg, seed: int = 0):
        model = build_model(plain_parts(cfg))
        return spread_weights(model, slices, seed)

    return build
