"""Builders of tiny slices with lesions, shared by the tests of lesion metrics."""

from types import SimpleNamespace

import d2_covid  # noqa: F401  (lets Detectron2 import)

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

SIZE = 160


def rectangle(x, y, width, height, size=SIZE):
    """RLE of a rectangle's mask."""
    mask = np.zeros((size, size), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = mask_util.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def truth(image_id, lesions, patient=None, size=SIZE, masks=True):
    """Dataset dict of one slice; ``lesions``: (class, x, y, width, height)."""
    annotations = [
        {"category_id": label, "bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0}
        | ({"segmentation": rectangle(x, y, w, h, size)} if masks else {})
        for label, x, y, w, h in lesions
    ]
    item = {"image_id": image_id, "patient_id": patient or f"patient-{image_id}", "height": size, "width": size}
    return item | {"annotations": annotations}


def found(image_id, detections, size=SIZE, masks=True):
    """COCO results of one slice; ``detections``: (class, score, x, y, width, height)."""
    return [
        {"image_id": image_id, "category_id": label + 1, "score": score, "bbox": [x, y, w, h]}
        | ({"segmentation": rectangle(x, y, w, h, size)} if masks else {})
        for label, score, x, y, w, h in detections
    ]


def random_case(seed, count=12, classes=2, detections=25, size=SIZE):
    """Slices and predictions that agree in part: small to large lesions, empty sides, scores distinct in a slice."""
    rng = np.random.default_rng(seed)
    dicts, predictions = [], []
    for image_id in range(count):
        lesions = []
        for _ in range(rng.integers(0, 5) if image_id % 4 else 0):
            w, h = rng.integers(8, 120, 2)
            x, y = rng.integers(0, [size - w, size - h])
            lesions.append((int(rng.integers(classes)), int(x), int(y), int(w), int(h)))
        dicts.append(truth(image_id, lesions, patient=f"p{image_id % 5}", size=size))
        scores = rng.permutation(100)[: rng.integers(0, detections) if image_id % 5 else 0] / 100
        rows = []
        for score in scores:
            if lesions and rng.random() < 0.6:
                label, x, y, w, h = lesions[rng.integers(len(lesions))]
                x, y = np.clip([x, y] + rng.integers(-6, 7, 2), 0, size - 10)
                w, h = np.clip([w, h] + rng.integers(-4, 5, 2), 4, size - np.array([x, y]))
            else:
                label, x, y, w, h = int(rng.integers(classes)), *rng.integers(0, size // 2, 2), *rng.integers(5, 70, 2)
            rows.append((label, float(score), int(x), int(y), int(w), int(h)))
        predictions += found(image_id, rows, size)
    return dicts, predictions


@pytest.fixture(scope="session")
def lesions():
    """The builders: ``lesions.truth``, ``lesions.found``, ``lesions.rectangle``, ``lesions.random_case``."""
    return SimpleNamespace(truth=truth, found=found, rectangle=rectangle, random_case=random_case)
