"""Divides slices into splits, a patient's slices never over two of them."""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .pairing import SlicePair, natural_key

Splits = dict[str, list[SlicePair]]
"""Pairs of each split by its name, in the order given."""


def split_by_patients(pairs: Sequence[SlicePair], val_patients: Iterable[str]) -> Splits:
    """``val``: the named patients; ``train``: all others.

    Raises:
        UserError: a named patient is not there, or a split is left without patients.
    """
    val_patients = {str(p) for p in val_patients}
    unknown = val_patients - {pair.patient_id for pair in pairs}
    if unknown:
        known = _listed({pair.patient_id for pair in pairs})
        raise UserError(f"No slices of patient {_listed(unknown)} for validation; the patients are {known}.")
    splits = _by_assignment(pairs, {p.patient_id: "val" if p.patient_id in val_patients else "train" for p in pairs})
    if len(splits) < 2:
        raise UserError(f"Every patient is in the split {next(iter(splits))}; leave some for the other one.")
    return splits


def split_by_fraction(pairs: Sequence[SlicePair], fraction: float, seed: int) -> Splits:
    """``val``: this share of the patients, drawn with ``seed``, at least one; ``train``: all others.

    Raises:
        UserError: the fraction is not between 0 and 1, or there are fewer than two patients.
    """
    patients = sorted({pair.patient_id for pair in pairs}, key=natural_key)
    if not 0 < fraction < 1:
        raise UserError(f"--val-fraction is {fraction}; it takes a number between 0 and 1.")
    if len(patients) < 2:
        raise UserError(f"Only patient {patients[0]} is there; a split by patient needs two or more.")
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    drawn = np.random.default_rng(seed).permutation(len(patients))[:count]
    return split_by_patients(pairs, [patients[i] for i in drawn])


def split_by_csv(pairs: Sequence[SlicePair], path: str | Path) -> Splits:
    """Splits of a csv file with the columns ``patient_id`` and ``split``; patients not in it are left out.

    Raises:
        UserError: unreadable file, missing column, no patient, one in two splits, or one without slices.
    """
    assignment: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"patient_id", "split"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: the first line is to name the columns patient_id and split.")
            for row in reader:
                patient, split = (row["patient_id"] or "").strip(), (row["split"] or "").strip()
                if not patient or not split:
                    raise UserError(f"{path}, line {reader.line_num}: give a patient and its split.")
                if not re.fullmatch(r"[A-Za-z0-9-]+", split):
                    raise UserError(f"{path}, line {reader.line_num}: name splits by letters, digits and hyphens only.")
                if assignment.setdefault(patient, split) != split:
                    raise UserError(f"{path}: patient {patient} is in two splits, {assignment[patient]} and {split}.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not assignment:
        raise UserError(f"{path} names no patient; give a line to each, with its split.")
    unknown = set(assignment) - {pair.patient_id for pair in pairs}
    if unknown:
        raise UserError(f"{path} names patient {_listed(unknown)}, who has no slices.")
    return _by_assignment(pairs, assignment)


def split_by_lists(pairs: Sequence[SlicePair], lists: Mapping[str, str | Path]) -> Splits:
    """Splits of lists of files, one name a line as in the paper's own lists; slices in no list are left out.

    Folders and suffixes in a list don't matter for the flat layout; for CNCB's, a line is ``<patient>/<slice>``.

    Args:
        lists: list file of each split.

    Raises:
        UserError: unreadable list, a name without slice and mask, a slice or a patient in two lists.
    """
    by_name = {pair.name: pair for pair in pairs}
    splits: Splits = {}
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        chosen: dict[str, SlicePair] = {}
        for line, name in _read_list(path):
            tails = ("/".join(name.split("/")[-depth:]) for depth in (2, 1))
            pair = next((by_name[tail] for tail in tails if tail in by_name), None)
            if pair is None:
                raise UserError(f"{path}, line {line}: {name} has no image and mask of that name.")
            if split_of.setdefault(pair.patient_id, split) != split:
                raise UserError(
                    f"{path}, line {line}: patient {pair.patient_id} is in two splits, "
                    f"{split_of[pair.patient_id]} and {split} (slice {name})."
                )
            chosen[pair.name] = pair
        splits[split] = sorted(chosen.values(), key=lambda pair: natural_key(pair.name))
        if not chosen:
            raise UserError(f"{path} lists no slice.")
    return splits


def _read_list(path: str | Path) -> list[tuple[int, str]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    names = ((number, line.strip().replace("\\", "/")) for number, line in enumerate(lines, start=1))
    return [(number, os.path.splitext(name)[0]) for number, name in names if name]


def _by_assignment(pairs: Sequence[SlicePair], split_of: Mapping[str, str]) -> Splits:
    splits: Splits = {}
    for split in dict.fromkeys([*(s for s in ("train", "val", "test") if s in split_of.values()), *split_of.values()]):
        splits[split] = [pair for pair in pairs if split_of.get(pair.patient_id) == split]
    return splits


def _listed(patients: Iterable[str], limit: int = 12) -> str:
    patients = sorted(patients, key=natural_key)
    return ", ".join(patients[:limit]) + (", ..." if len(patients) > limit else "")
