"""Slice dataset dicts from a list and its images, and the checks between them.

A slice dataset dict has ``file_name``, ``image_id``, ``image_class`` (int), ``patient_id`` and ``scan_id`` ("" where
unknown); :class:`.slice_mapper.SliceMapper` adds ``height`` and ``width`` when it reads the file.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .slice_lists import IMAGE_CLASSES, ListedSlice, cncb_file, read_list

logger = logging.getLogger(__name__)


def load_slices(
    list_file: str | Path,
    image_root: str | Path,
    image_classes: Sequence[str] = IMAGE_CLASSES,
    split: str | None = None,
) -> list[dict[str, Any]]:
    """Read a list and find its images.

    Args:
        list_file: in any format of :func:`.slice_lists.read_list`.
        image_root: folder that the listed files are relative to.
        image_classes: names of the C classes, in the order of their numbers.
        split: rows of the list's ``split`` column to take; None takes all of a list without that column.

    Raises:
        UserError: an image is missing, the list has splits and none is named, no row is in the split, or a patient is
            in two splits.
    """
    listed = read_list(list_file, image_classes)
    splits = {entry.split for entry in listed} - {""}
    if splits:
        check_patients_apart({name: [e.patient_id for e in listed if e.split == name] for name in sorted(splits)})
    if split is None and splits:
        raise UserError(f"{list_file} has the splits {', '.join(sorted(splits))}: say which, {list_file}:SPLIT.")
    if split is not None:
        if splits and (unnamed := sum(not entry.split for entry in listed)):
            logger.warning("%s: %d of %d slices are in no split; left out.", list_file, unnamed, len(listed))
        listed = [entry for entry in listed if entry.split == split]
        if not listed:
            known = f"it has {', '.join(sorted(splits))}" if splits else "its column 'split' is missing or empty"
            raise UserError(f"{list_file} has no slice of split {split!r}; {known}.")
    files = find_images(listed, image_root, list_file)
    return [
        {
            "file_name": str(file),
            "image_id": index,
            "image_class": entry.image_class,
            "patient_id": entry.patient_id,
            "scan_id": entry.scan_id,
        }
        for index, (entry, file) in enumerate(zip(listed, files))
    ]


def find_images(listed: Sequence[ListedSlice], image_root: str | Path, list_file: str | Path) -> list[Path]:
    """Path of every listed image; one listing a folder, so that it is quick for a hundred thousand.

    A name of the paper's list is looked for under its own name, then under COVIDx-CT's.

    Raises:
        UserError: images are missing; the message counts them and names the first few.
    """
    root = Path(image_root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; it should hold the images of {list_file}.")
    folders: dict[Path, frozenset[str]] = {}
    files, missing = [], []
    for entry in listed:
        for name in (entry.file, cncb_file(entry.file)):
            path = root / name
            if path.parent not in folders:
                folders[path.parent] = frozenset(os.listdir(path.parent)) if path.parent.is_dir() else frozenset()
            if path.name in folders[path.parent]:
                files.append(path)
                break
        else:
            missing.append(entry)
    if missing:
        first = ", ".join(f"{entry.file} (line {entry.line})" for entry in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{len(missing)} of {len(listed)} images of {list_file} are not in {root}: {first}{more}.")
    return files


def patient_overlap(patients: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Patients that are in two splits or more.

    Args:
        patients: split -> patient id of each slice; "" (unknown) is passed over.

    Returns:
        patient -> the splits that it is in, sorted by patient; empty if the splits are apart.
    """
    splits: dict[str, list[str]] = {}
    for split, ids in patients.items():
        for patient in set(ids) - {""}:
            splits.setdefault(patient, []).append(split)
    return {patient: tuple(found) for patient, found in sorted(splits.items()) if len(found) > 1}


def check_patients_apart(patients: Mapping[str, Iterable[str]]) -> None:
    """Refuse splits that share a patient (:func:`patient_overlap`): a :class:`UserError` that names the first few."""
    if shared := patient_overlap(patients):
        first = "; ".join(f"{patient} in {' and '.join(splits)}" for patient, splits in list(shared.items())[:3])
        more = f"; and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise UserError(f"{len(shared)} patients are in two splits: {first}{more}. Give each patient to one split.")


def check_files_apart(files: Mapping[str, Iterable[str | Path]]) -> None:
    """Refuse splits that share an image, by whatever path to its folder: a :class:`UserError` that names the first.

    Args:
        files: split -> path of each slice.
    """
    folder = cache(os.path.realpath)
    places = {
        split: {os.path.join(folder(os.path.dirname(path)), os.path.basename(path)) for path in paths}
        for split, paths in files.items()
    }
    if shared := patient_overlap(places):
        (first, splits), *others = shared.items()
        more = f" (and {len(others)} more like it)" if others else ""
        raise UserError(f"{first} is in {' and '.join(splits)}{more}; give each slice to one of them.")


def balanced_indices(classes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The order of one class-balanced epoch: as many samples as there are, each class that occurs equally often.

    A class larger than its share gives a random part of it; a smaller one repeats, each of its slices equally often
    before any comes once more. Over the epochs every slice gets its turn.

    Args:
        classes: class of each of S slices.
        rng: the only source of chance, so that an epoch follows from its seed.

    Returns:
        (S,) indices.
    """
    classes = np.asarray(classes)
    present = rng.permutation(np.unique(classes))
    chosen = []
    for position, image_class in enumerate(present):
        members = np.flatnonzero(classes == image_class)
        share = len(classes) // len(present) + (position < len(classes) % len(present))
        rounds = -(-share // len(members))
        chosen.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:share])
    return rng.permutation(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def balanced_subset(listed: Sequence[ListedSlice], total: int, num_classes: int, seed: int) -> list[ListedSlice]:
    """As many slices of each class, drawn without replacement from ``seed``; the list's order stays.

    The paper trains on 3,000 of COVIDx-CT: 1,000 of each of its three classes.

    Raises:
        UserError: the total can't be shared evenly, or a class has too few slices.
    """
    share, rest = divmod(total, num_classes)
    if rest or share < 1:
        raise UserError(f"A subset of {total} slices can't be shared evenly by {num_classes} classes.")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for image_class in range(num_classes):
        members = [index for index, entry in enumerate(listed) if entry.image_class == image_class]
        if len(members) < share:
            raise UserError(f"A subset of {total} takes {share} slices of class {image_class}, not {len(members)}.")
        chosen += rng.choice(members, share, replace=False).tolist()
    return [listed[index] for index in sorted(chosen)]
