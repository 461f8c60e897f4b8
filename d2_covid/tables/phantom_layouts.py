"""Phantoms in the layouts of CNCB and COVIDx-CT, to see the tables made without either."""

import csv
import os
from pathlib import Path

from ..data.files import atomic_write

# COVIDx-CT's names of the three classes, by their number.
_PREFIXES = ("Normal", "CP", "NCP")


def write_covidx_layout(phantoms: Path, output: Path) -> None:
    """Lay the listed slices of a phantom set out as COVIDx-CT's first release is: one folder of images named
    ``<class>_<patient>_<scan>_<slice>``, and ``train_COVIDx-CT.txt`` and ``test_COVIDx-CT.txt``, a line a slice with
    file, class and body box. The set's validation patients are the test split; images are links.

    Args:
        phantoms: of :func:`d2_covid.data.phantom.write_phantoms`, which is in the layout of CNCB itself.
        output: folder to write.
    """
    with open(phantoms / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = output / "COVIDx-CT"
    images.mkdir(parents=True, exist_ok=True)
    patients = {patient: number for number, patient in enumerate(dict.fromkeys(row["patient_id"] for row in rows))}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row in rows:
        source = phantoms / "image" / row["file"]
        number = patients[row["patient_id"]]
        name = f"{_PREFIXES[int(row['label'])]}_{number}_{number + 1000}_{int(source.stem):04d}{source.suffix}"
        if not (images / name).is_symlink():
            os.symlink(source.resolve(), images / name)
        lines["train" if row["split"] == "train" else "test"].append(f"{name} {row['label']} 0 0 512 512\n")
    for split, listed in lines.items():
        with atomic_write(output / f"{split}_COVIDx-CT.txt") as file:
            file.writelines(listed)
