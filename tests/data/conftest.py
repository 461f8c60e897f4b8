"""Small CT sets in the CNCB layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_cncb(tmp_path) -> Callable[..., Path]:
    """``make_cncb({"patient/slice": mask, ...})`` writes slices and masks under ``tmp_path/source``, and returns it."""

    def make(masks: dict[str, np.ndarray], folder: str = "source") -> Path:
        source = tmp_path / folder
        for name, mask in masks.items():
            image = np.random.default_rng(len(name)).integers(0, 256, mask.shape, dtype=np.uint8)
            for part, array, suffix in (("image", image, ".jpg"), ("mask", mask.astype(np.uint8), ".png")):
                path = source / part / f"{name}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
        return source

    return make


@pytest.fixture
def slice_mask() -> Callable[..., np.ndarray]:
    """``slice_mask((value, top, left, height, width), ...)``: a 48x64 mask of rectangles on lung."""

    def make(*patches: tuple[int, int, int, int, int]) -> np.ndarray:
        mask = np.ones((48, 64), dtype=np.uint8)
        for value, top, left, height, width in patches:
            mask[top : top + height, left : left + width] = value
        return mask

    return make


@pytest.fixture
def small_cncb(make_cncb, slice_mask) -> Path:
    """Three patients with 2, 1 and 2 slices: GGO, consolidation only, both, none, and a lesion too small to keep."""
    ggo, consolidation = (2, 4, 4, 12, 12), (3, 20, 30, 15, 10)
    return make_cncb(
        {
            "1/2": slice_mask(ggo),
            "1/10": slice_mask(consolidation),
            "2/1": slice_mask(ggo, consolidation),
            "10/1": slice_mask(),
            "10/2": slice_mask((2, 0, 0, 10, 10)),
        }
    )
