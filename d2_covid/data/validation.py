"""Checks a data set before it is trained on: all that is wrong with it, at once, errors apart from warnings.

The loaders refuse a set at its first error; this looks at all of it, pixels too, and never stops before the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from .coco_json import FROM_FOLDER
from .files import write_json
from .near_duplicates import BITS, MAX_DISTANCE, near_duplicates, perceptual_hash
from .pairing import natural_key
from .slices import patient_overlap
from .validation_checks import MaskChecks, check_slice
from .validation_findings import KINDS, Findings
from .validation_sources import Split, read_source

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Validation:
    """What a check found, and in what."""

    splits: list[Split]
    findings: Findings
    compared: str | None  # "splits" or "patients": between which near duplicates were looked for

    @property
    def errors(self) -> int:
        """How many errors were found."""
        return self.findings.total("error")

    @property
    def warnings(self) -> int:
        """How many warnings were found."""
        return self.findings.total("warning")


def validate(
    items: Sequence[str | Path],
    image_root: str | Path | None = None,
    image_classes: Sequence[str] | None = None,
    max_shown: int = 10,
    progress: bool = False,
) -> Validation:
    """Check data sets, by themselves and, where several are named, against each other.

    Args:
        items, image_root, image_classes: see :func:`.validation_sources.read_source`; each item is a split.
        max_shown: how many findings of each kind are kept; all are counted.
        progress: whether to show a bar on stderr.

    Near duplicates are looked for between splits; where there is one split, between its patients.

    Raises:
        UserError: an item is none that can be checked.
    """
    findings = Findings(max_shown)
    splits = [split for item in items for split in read_source(item, findings, image_root, image_classes)]
    hashes = _check_files(splits, findings, progress)
    _check_whole(splits, findings)
    _check_splits(splits, findings)
    _forget_common_folders(splits, findings)
    patients = _patient_numbers(splits)
    compared = None
    if len(splits) > 1:
        compared = "splits"
    elif len(set(patients)) > 1:
        compared = "patients"
    if compared:
        _check_duplicates(splits, hashes, patients, findings)
    return Validation(splits, findings, compared)


def write_validation(path: str | Path, validation: Validation) -> None:
    """Write what was found as json, whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    write_json(path, validation_facts(validation))


def validation_facts(validation: Validation) -> dict[str, Any]:
    """What was found, as plain values."""
    findings = validation.findings
    return {
        "schema_version": SCHEMA_VERSION,
        "d2_covid": __version__,
        "errors": validation.errors,
        "warnings": validation.warnings,
        "splits": [
            {
                "name": split.name,
                "kind": split.kind,
                "source": split.source,
                "slices": len(split.slices),
                "patients": len({entry.patient_id for entry in split.slices} - {""}),
                "slices_without_lesion": split.without_lesion,
                "classes": dict(split.class_counts),
            }
            for split in validation.splits
        ],
        "near_duplicates": {"between": validation.compared, "bits": BITS, "max_distance": MAX_DISTANCE},
        "findings": [
            {
                "severity": KINDS[kind].severity,
                "kind": kind,
                "text": KINDS[kind].text,
                "count": findings.counts[kind],
                "shown": [
                    {"file": one.file, "message": one.message, "pictures": list(one.pictures)}
                    for one in findings.kept(kind)
                ],
            }
            for kind in findings.found()
        ],
    }


def _check_files(splits: Sequence[Split], findings: Findings, progress: bool) -> list[np.ndarray | None]:
    """Look at every file; returns the hash of each slice of all splits, None where there is none."""
    hashes: list[np.ndarray | None] = []
    with tqdm(total=sum(len(split.slices) for split in splits), unit="slice", disable=not progress) as bar:
        for split in splits:
            masks = MaskChecks(split, findings)
            for entry in split.slices:
                image = check_slice(entry, findings)
                hashes.append(None if image is None else perceptual_hash(image))
                if entry.mask is not None:
                    masks.check(entry, None if image is None else image.shape)
                bar.update()
    return hashes


def _check_whole(splits: Sequence[Split], findings: Findings) -> None:
    for split in splits:
        for name, count in split.class_counts.items():
            if not count:
                findings.add("class_missing", f"{split.name}: {name}", f"{split.name} has nothing of class {name}.")
        if split.without_lesion:
            message = f"{split.name}: {split.without_lesion} of {len(split.slices)} slices."
            findings.add("no_lesion", split.name, message, count=split.without_lesion)


def _check_splits(splits: Sequence[Split], findings: Findings) -> None:
    for first, second in combinations(splits, 2):
        shared_images = {entry.image for entry in first.slices} & {entry.image for entry in second.slices}
        for image in sorted(shared_images, key=natural_key):
            message = f"{image} is in {first.name} and {second.name}."
            findings.add("image_in_two_splits", image, message, (image,))
        if not first.folders & second.folders or _in_one_folder(first, second):
            continue
        ids = {side: [entry.patient_id for entry in split.slices] for side, split in (("a", first), ("b", second))}
        for patient in sorted(patient_overlap(ids), key=natural_key):
            shown = tuple(
                next(entry.image for entry in split.slices if entry.patient_id == patient) for split in (first, second)
            )
            by_folder = patient in first.folder_patients | second.folder_patients
            named = f"{patient} {FROM_FOLDER}" if by_folder else patient
            message = f"Patient {named} is in {first.name} and {second.name}; give each patient to one split."
            findings.add("patient_in_two_splits", patient, message, shown)


def _in_one_folder(first: Split, second: Split) -> bool:
    """Whether each has its images in a folder of one name, and none tells its patient: then the name is none."""
    return bool(first.folders & second.folders and first.one_folder) and first.one_folder == second.one_folder


def _forget_common_folders(splits: Sequence[Split], findings: Findings) -> None:
    """Leave the patients of splits that lie in one folder (:func:`_in_one_folder`) unknown."""
    alike = [split for split in splits if any(other is not split and _in_one_folder(split, other) for other in splits)]
    for split in alike:
        message = (
            f"{split.source}: all its images lie in a folder called {split.one_folder}, as those of another split do: "
            "their patients are unknown; splits can't be told apart by patient."
        )
        findings.add("no_patient", split.source, message)
    for split in alike:
        split.slices = [entry._replace(patient_id="") for entry in split.slices]


def _patient_numbers(splits: Sequence[Split]) -> list[int]:
    """A number for each slice's patient. Slices of unknown patient get one of their own, since they may be anyone's,
    unless there is but one split: there they would only find their neighbours."""
    numbers: dict[tuple, int] = {}
    found = []
    for index, split in enumerate(splits):
        # The first split that shares a folder stands for all: patients of these are the same if their ids are.
        home = next(number for number, other in enumerate(splits) if other.folders & split.folders)
        for number, entry in enumerate(split.slices):
            unknown = (index, number) if len(splits) > 1 else ()
            found.append(numbers.setdefault((home, entry.patient_id) if entry.patient_id else unknown, len(numbers)))
    return found


def _check_duplicates(
    splits: Sequence[Split],
    hashes: Sequence[np.ndarray | None],
    patients: Sequence[int],
    findings: Findings,
) -> None:
    entries = [(split.name, entry) for split in splits for entry in split.slices]
    # With one split, its patients stand for the groups that should have nothing in common.
    groups = patients if len(splits) == 1 else [i for i, split in enumerate(splits) for _ in split.slices]
    usable = [i for i, value in enumerate(hashes) if value is not None]
    if not usable:
        return
    packed = np.stack([hashes[i] for i in usable])
    found = near_duplicates(packed, [groups[i] for i in usable], [patients[i] for i in usable])
    for later, earlier, distance in found:
        name, entry = entries[usable[later]]
        other_name, other = entries[usable[earlier]]
        ours, theirs = (
            f"{file.image} (patient {file.patient_id or 'unknown'}, {of})"
            for file, of in ((entry, name), (other, other_name))
        )
        message = f"{ours} is nearly {theirs}: {distance} of {BITS} bits differ."
        findings.add("near_duplicate", entry.image, message, (entry.image, other.image))
