"""Small CT sets in the CNCB layout, and what tests of DICOM read and expect."""

from collections.abc import Callable
from pathlib import Path

from d2_covid.data.discovery import discover
from d2_covid.data.volumes import Series

import numpy as np
import pytest
from PIL import Image

ROUNDED = [float(round(0.7 * k)) for k in range(20)]
"""Slice locations as some scanners round them: some repeat."""


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


def read_all(folder, **options) -> list:
    return list(discover([folder], **options))


def one_series(folder, **options) -> Series:
    results = read_all(folder, **options)
    assert len(results) == 1 and isinstance(results[0], Series), results
    return results[0]


def voxels(series: Series) -> np.ndarray:
    return np.stack([series.slice(i) for i in range(series.num_slices)])


def warned(series: Series, *words: str) -> None:
    assert any(all(word in warning for word in words) for warning in series.warnings), series.warnings
    assert not any("\n" in warning for warning in series.warnings)


def unplaced_series(scans, folder, locations, **tags) -> Series:
    """Slices without a position, numbered from head to feet, each with its location."""
    volume = scans.body(len(locations))
    for k, location in enumerate(locations):
        own = {"SliceLocation": location, "ImagePositionPatient": None, "number": len(locations) - k, **tags}
        scans.save(folder / f"{k}.dcm", scans.dicom(volume[k], **own))
    return one_series(folder)
