"""The two sets that the tables need, as their owners keep them: found, checked, and described before anything runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.pairing import Pairing, pair_set
from ..data.slice_lists import IMAGE_CLASSES, ListedSlice, count_by_class, read_one_split
from ..data.slices import find_images
from ..data.splits import Splits, split_by_fraction, split_by_lists, split_by_patients
from ..errors import UserError
from ..paper_tables import TEST_SLICES, TRAINING_SLICES, VALIDATION_PATIENTS

PAPER_SPLIT = ("--val-patients", *map(str, VALIDATION_PATIENTS))
"""Arguments of ``prepare_cncb.py`` for the split of the lists that are published with the paper's program."""


@dataclass(frozen=True)
class LesionSet:
    """CNCB's lesion masks, or a set of the same layout.

    Args:
        folder: as given.
        split: arguments of ``prepare_cncb.py`` that say how it is split.
        slices, patients: numbers of each split, by its name.
        fingerprint: of names and sizes of the files and of their split.
    """

    folder: Path
    split: tuple[str, ...]
    slices: dict[str, int]
    patients: dict[str, int]
    fingerprint: str

    @property
    def departures(self) -> list[str]:
        """In what it is not the paper's, as sentences."""
        found = []
        if set(self.split) != set(PAPER_SPLIT):
            found.append("the split of the lesion set is not that of the paper's published lists")
        if (self.slices["train"], self.slices["val"]) != (650, 100):
            found.append(
                f"{self.slices['train']} training and {self.slices['val']} validation slices with masks, not 650 and "
                "100 as in the paper's published lists"
            )
        return found


@dataclass(frozen=True)
class ClassSet:
    """COVIDx-CT, or a set of the same layout.

    Args:
        images: folder that the lists' files lie in.
        train, test: the lists.
        subset: training slices to draw, 0 for all.
        slices: numbers of each split by class, before the draw.
        fingerprint: of the lists.
    """

    images: Path
    train: Path
    test: Path
    subset: int
    slices: dict[str, list[int]]
    fingerprint: str

    @property
    def training_slices(self) -> int:
        """Slices that a classifier learns from."""
        return self.subset or sum(self.slices["train"])

    @property
    def test_slices(self) -> int:
        """Slices that it is tested on."""
        return sum(self.slices["test"])

    @property
    def departures(self) -> list[str]:
        """In what it is not the paper's, as sentences."""
        found = []
        if self.training_slices != TRAINING_SLICES:
            found.append(f"{self.training_slices} training slices with a class, not {TRAINING_SLICES}")
        elif self.subset:
            found.append("the training slices are a draw of this program, not the paper's list")
        if tuple(self.slices["test"]) != TEST_SLICES:
            counts = ", ".join(f"{n} {name}" for n, name in zip(self.slices["test"], IMAGE_CLASSES, strict=True))
            paper = ", ".join(f"{n} {name}" for n, name in zip(TEST_SLICES, IMAGE_CLASSES, strict=True))
            found.append(f"{counts} test slices, not {paper} as in COVIDx-CT's first release")
        return found


def find_lesion_set(
    folder: Path,
    *,
    val_patients: Sequence[str] = (),
    val_fraction: float | None = None,
    seed: int = 0,
    train_list: Path | None = None,
    val_list: Path | None = None,
) -> LesionSet:
    """Look at a folder of slices and masks, in CNCB's layout or flat (``image/``, ``mask/``), and split its patients.

    Without any choice of split it is that of the paper's published lists.

    Raises:
        UserError: the folder or its patients are not there, or two ways to split are given.
    """
    lists = {name: path for name, path in (("train", train_list), ("val", val_list)) if path is not None}
    given = [bool(val_patients), val_fraction is not None, bool(lists)]
    if sum(given) > 1:
        raise UserError("--val-patients, --val-fraction and --train-list/--val-list are ways to split; give one.")
    if len(lists) == 1:
        raise UserError("Give both --train-list and --val-list.")
    pairing = _pair(folder)
    if val_patients:
        split, splits = ("--val-patients", *val_patients), split_by_patients(pairing.pairs, val_patients)
    elif val_fraction is not None:
        split = ("--val-fraction", str(val_fraction), "--seed", str(seed))
        splits = split_by_fraction(pairing.pairs, val_fraction, seed)
    elif lists:
        split = ("--train-list", str(train_list), "--val-list", str(val_list))
        splits = split_by_lists(pairing.pairs, lists)
    else:
        split, splits = PAPER_SPLIT, _papers_split(pairing, folder)
    return LesionSet(
        folder,
        split,
        {name: len(pairs) for name, pairs in splits.items()},
        {name: len({pair.patient_id for pair in pairs}) for name, pairs in splits.items()},
        _fingerprint_of_pairs(splits),
    )


def find_class_set(
    folder: Path,
    *,
    images: Path | None = None,
    train: Path | None = None,
    test: Path | None = None,
    subset: int | None = None,
) -> ClassSet:
    """Look at a folder of COVIDx-CT: its lists (``train_COVIDx-CT.txt``, ``test_COVIDx-CT.txt``, or of another
    release) and its images, in it or in a folder below.

    Args:
        images, train, test: where these are, if not there.
        subset: training slices to draw, equally many a class, 0 for all. None: the paper's 3,000 where the list has
            more, else all.

    Raises:
        UserError: a list or an image is not there, or more than one list might be meant.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --covidx takes that of COVIDx-CT's lists and images.")
    lists = {"train": train or _find_list(folder, "train"), "test": test or _find_list(folder, "test")}
    listed = {split: read_one_split(path) for split, path in lists.items()}
    images = images or _find_image_folder(folder, listed["test"])
    for split, entries in listed.items():
        find_images(entries, images, lists[split])
    if subset is None:
        subset = TRAINING_SLICES if len(listed["train"]) > TRAINING_SLICES else 0
    digest = hashlib.sha256()
    for path in lists.values():
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    slices = {split: count_by_class(entries, len(IMAGE_CLASSES)) for split, entries in listed.items()}
    return ClassSet(images, lists["train"], lists["test"], subset, slices, digest.hexdigest())


def _pair(folder: Path) -> Pairing:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --cncb takes that of CNCB's slices and lesion masks.")
    return pair_set(folder)


def _papers_split(pairing: Pairing, folder: Path) -> Splits:
    missing = {str(patient) for patient in VALIDATION_PATIENTS} - {pair.patient_id for pair in pairing.pairs}
    if missing:
        raise UserError(
            f"{folder} has {'none' if len(missing) == len(VALIDATION_PATIENTS) else 'not all'} of the paper's "
            f"{len(VALIDATION_PATIENTS)} validation patients; give --val-fraction 0.2, --val-patients, or lists."
        )
    return split_by_patients(pairing.pairs, map(str, VALIDATION_PATIENTS))


def _fingerprint_of_pairs(splits: Splits) -> str:
    digest = hashlib.sha256()
    for split, pairs in splits.items():
        for pair in pairs:
            sizes = pair.image.stat().st_size, pair.mask.stat().st_size
            digest.update(f"{split} {pair.patient_id} {pair.name} {sizes}\n".encode())
    return digest.hexdigest()


def _find_list(folder: Path, split: str) -> Path:
    names = (f"{split}_COVIDx*CT*.txt", f"{split}.txt", f"{split}.csv")
    found = sorted({path for pattern in names for path in folder.glob(pattern)})
    if len(found) == 1:
        return found[0]
    what = f"several lists ({', '.join(path.name for path in found)})" if found else f"no list {split}_COVIDx-CT.txt"
    raise UserError(f"{folder} has {what}; give the one you mean as --covidx-{split}.")


def _find_image_folder(folder: Path, listed: Sequence[ListedSlice]) -> Path:
    first = listed[:1]
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for candidate in candidates:
        try:
            find_images(first, candidate, "")
        except UserError:
            continue
        return candidate
    raise UserError(
        f"{folder} has no image {first[0].file}, in it or in a folder below; give the folder of the images as "
        "--covidx-images."
    )
