"""What is measured on: real CT where it is at hand, phantoms elsewhere."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from ..data.cncb import prepare_lesions
from ..data.datasets import register_lesions
from ..data.pairing import Pairing, SlicePair, pair_cncb
from ..data.phantom.folder import write_phantoms
from ..data.preprocessing import network_input, read_slice
from ..errors import UserError

REAL_DATA = "D2_COVID_REAL_DATA"
"""Environment variable that names the folder of the real CT."""
_SETS = ("radiopaedia", "ct_md/normal001")
_numbers = itertools.count()  # a name for each registered set


@dataclass(frozen=True)
class Inputs:
    """Slices, their lesions, and a series.

    Attributes:
        origin: in words.
        dataset: name of a registered lesion dataset, for training.
        dicts: its dataset dicts, those with most lesions first.
        series: a folder that holds one series: DICOM files, or images.
        pairs: all slices with a mask.
    """

    origin: str
    dataset: str
    dicts: list[dict]
    series: Path
    pairs: tuple[SlicePair, ...]

    def network_inputs(self, count: int, size: int, max_size: int) -> list[torch.Tensor]:
        """``count`` slices (3, h, w) uint8 from all over the set, repeated where it has fewer."""
        files = [d["file_name"] for d in self.dicts]
        files = files[:: max(1, len(files) // count)][:count]
        images = [network_input(read_slice(file), size, max_size) for file in files]
        return [images[i % len(images)] for i in range(count)]


def real_data_folder() -> Path | None:
    """The folder that :data:`REAL_DATA` names; None where it names none.

    Raises:
        UserError: the folder lacks one of the sets that are measured on.
    """
    named = os.environ.get(REAL_DATA)
    if not named:
        return None
    for folder in (Path(named) / part for part in _SETS):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; ${REAL_DATA} needs {' and '.join(_SETS)}; or give --phantoms.")
    return Path(named).resolve()


def load_inputs(work: Path, *, real: Path | None, slices: int = 64, phantom_size: int = 512) -> Inputs:
    """Prepare the inputs below ``work``.

    Args:
        work: an empty folder.
        real: from :func:`real_data_folder`; None makes phantoms.
        slices: how many to prepare for training, at most.
        phantom_size: side of phantom slices, pixels.

    Raises:
        UserError: ``real`` lacks a part, or ``work`` can't be written to.
    """
    if real is None:
        patients = max(1, min(slices, 24) // 12)
        made = write_phantoms(
            work / "phantom",
            patients_per_class=patients,
            slices_per_patient=4,
            seed=1,
            size=phantom_size,
            val_fraction=0,
            progress=False,
        )
        pairing, origin = pair_cncb(made.root), "phantoms (no scan of a person)"
        series = made.root / "image" / "covid-001"
        series_name = f"{series.name}, {len(list(series.iterdir()))} images"
    else:
        pairing, series = pair_cncb(real / "radiopaedia"), real / "ct_md" / "normal001"
        if not series.is_dir():
            raise UserError(f"{series}: no such folder; real CT for the benchmark needs its ct_md set.")
        origin = "real CT (radiopaedia set)"
        series_name = f"ct_md/{series.name}, {len(list(series.glob('*.dcm')))} DICOM files"
    step = max(1, len(pairing.pairs) // slices)
    chosen = list(pairing.pairs[::step][:slices])
    subset = Pairing(pairing.image_root, tuple(chosen), (), ())
    done = prepare_lesions(
        subset, {"train": chosen}, work / "lesions", mask_types=["merge"], source="benchmark", progress=False
    )
    name = f"benchmark{next(_numbers)}_merge_train"
    register_lesions(name, done.splits[0].json_file, mask_type="merge")
    dicts = sorted(DatasetCatalog.get(name), key=lambda d: -len(d["annotations"]))
    origin = f"{origin}: {len(chosen)} of {len(pairing.pairs)} slices; series {series_name}"
    return Inputs(origin, name, dicts, series, pairing.pairs)


def many_lesions(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic slice with ``count`` round lesions on a grid, and its mask of CNCB values.

    The grid is that of the largest count, 512, so that lesions are alike at any count: those of smaller counts are
    spread over the same grid.

    Args:
        count: 1 to 512.
        size: side of the slice in pixels, 128 or more.

    Returns:
        (size, size) ``uint8`` gray, and mask with 1 lung and 2 lesion.

    Raises:
        ValueError: a count or size out of range.
    """
    side = 23  # 529 places
    pitch = size / side
    if not 1 <= count <= 512 or size < 128:
        raise ValueError(f"1 to 512 lesions on 128 pixels or more, not {count} on {size}")
    places = np.linspace(0, side * side - 1, count).round().astype(int)
    rows, columns = np.mgrid[:size, :size] + 0.5
    present = np.zeros(side * side, dtype=bool)
    present[places] = True
    present = present.reshape(side, side)
    cell_row, cell_column = (rows // pitch).astype(int), (columns // pitch).astype(int)
    radius = 0.38 * pitch
    distance = np.hypot(rows - (cell_row + 0.5) * pitch, columns - (cell_column + 0.5) * pitch)
    lesion = (distance <= radius) & present[np.minimum(cell_row, side - 1), np.minimum(cell_column, side - 1)]
    gray = np.random.default_rng(seed).normal(50, 10, (size, size)) + 110 * lesion
    return np.clip(gray, 0, 255).astype(np.uint8), np.where(lesion, 2, 1).astype(np.uint8)
