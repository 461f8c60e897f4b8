"""Phantom patients as a data set on disk: the CNCB layout, COCO jsons, splits and a class list."""

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ..cncb import SplitSummary, prepare_lesions
from ..coco_json import read_coco
from ..files import write_csv
from ..lesion_masks import lesion_components
from ..pairing import pair_cncb
from ..splits import split_by_csv
from .patient import phantom_patient

_NAMES = ("control", "pneumonia", "covid")  # by image class, in the names of patients
# Of a patient's largest lung, and lesion, area: what a slice of the class list shows of it at least.
_LEAST_SHARE = 0.3
_JPEG_QUALITY = 95
_ENTRIES = {"image", "mask", "annotations", "splits.csv", "classes.csv"}  # what a set has at its top, no more
_SOURCE = "phantoms of seed"  # in the jsons, by which a set is known again


@dataclass(frozen=True)
class PhantomSet:
    """What :func:`write_phantoms` made."""

    root: Path
    patients: dict[str, int]  # by split
    slices: int
    listed: dict[str, list[int]]  # split -> slices in classes.csv, by image class
    lesions: list[SplitSummary]  # what each COCO json holds


@dataclass(frozen=True)
class _Job:
    """One patient to write."""

    folder: Path
    patient_id: str
    image_class: int
    seed: int
    num_slices: int
    size: int


def write_phantoms(
    root: str | Path,
    *,
    patients_per_class: int,
    slices_per_patient: int,
    seed: int,
    size: int = 512,
    val_fraction: float = 0.25,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PhantomSet:
    """Write a set of phantom patients to ``root``, whole or not at all. The same arguments give the same files.

    Makes ``image/<patient>/<slice>.jpg`` and ``mask/<patient>/<slice>.png`` (CNCB's layout), ``splits.csv``
    (``patient_id,split``), ``annotations/<mask type>_<split>.json`` and ``classes.csv``
    (``file,label,patient_id,scan_id,split``; ``file`` relative to ``image/``).

    The class list is by slice: of an ill patient it has the slices that show the disease (COVIDx-CT, too, takes only
    those with findings): a lesion of more than 100 pixels, and 0.3 of the patient's largest lesion area or more. The
    lungs of every slice in it, a control's too, are at least 0.3 of the patient's largest.

    Args:
        val_fraction: share of each class's patients for validation; 0 makes no validation split.
        workers: processes that make patients beside each other; 0 makes them in this one.
        overwrite: replace the set that ``root`` holds, or what is left of it; a folder with anything else in it is left
            alone. Hidden files in ``root`` stay.

    Raises:
        UserError: an argument out of its range, a folder that isn't empty and not to be replaced, or one that can't be
            written.
    """
    root = Path(root)
    _check(patients_per_class, slices_per_patient, size, seed, val_fraction, workers)
    with _whole_folder(root, overwrite) as folder:
        splits: dict[str, str] = {}
        jobs = []
        for image_class, name in enumerate(_NAMES):
            drawn = _draw_val(patients_per_class, val_fraction, seed, image_class)
            for number in range(patients_per_class):
                patient_id = f"{name}-{number + 1:03d}"
                splits[patient_id] = "val" if number in drawn else "train"
                patient_seed = int(np.random.SeedSequence([seed, image_class, number]).generate_state(1)[0])
                jobs.append(_Job(folder, patient_id, image_class, patient_seed, slices_per_patient, size))
        listed = _write_patients(jobs, workers, progress)
        write_csv(folder / "splits.csv", [("patient_id", "split"), *sorted(splits.items())])
        rows = [(file, job.image_class, job.patient_id, job.patient_id, splits[job.patient_id])
                for job, files in zip(jobs, listed, strict=True) for file in files]  # fmt: skip
        write_csv(folder / "classes.csv", [("file", "label", "patient_id", "scan_id", "split"), *rows])
        pairing = pair_cncb(folder)
        prepared = prepare_lesions(
            pairing, split_by_csv(pairing.pairs, folder / "splits.csv"), folder,
            description="Lesions in procedural phantom CT, no scan of a person", source=f"{_SOURCE} {seed}",
            progress=progress,
        )  # fmt: skip
    names = sorted(set(splits.values()))
    return PhantomSet(
        root=root,
        patients={split: list(splits.values()).count(split) for split in names},
        slices=len(jobs) * slices_per_patient,
        listed={split: [sum(row[1] == c and row[4] == split for row in rows) for c in range(3)] for split in names},
        lesions=[replace(s, json_file=root / s.json_file.relative_to(folder)) for s in prepared.splits],
    )


def _check(patients: int, slices: int, size: int, seed: int, val_fraction: float, workers: int) -> None:
    if patients < 1 or slices < 1:
        raise UserError(f"Phantoms need a patient a class and a slice a patient at least, not {patients} and {slices}.")
    if size < 64:
        raise UserError(f"Phantom slices of {size} pixels are too small to show a lesion; take 64 or more.")
    if seed < 0 or workers < 0:
        raise UserError(f"Seed and number of workers are 0 or more, not {seed} and {workers}.")
    if not 0 <= val_fraction < 1:
        raise UserError(f"The share of patients for validation is from 0 to below 1, not {val_fraction}.")
    if val_fraction > 0 and patients < 2:
        raise UserError("One patient a class can't be split: make two or more, or take --val-fraction 0.")


def _draw_val(patients: int, val_fraction: float, seed: int, image_class: int) -> set[int]:
    """Numbers of a class's validation patients: at least one, and not all."""
    if val_fraction == 0:
        return set()
    count = min(max(1, round(val_fraction * patients)), patients - 1)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, image_class, 2**20])))
    return {int(i) for i in rng.permutation(patients)[:count]}


def _write_patients(jobs: list[_Job], workers: int, progress: bool) -> list[list[str]]:
    """Write every job's slices; for each job the files that belong in the class list."""
    listed = []
    total = sum(job.num_slices for job in jobs)
    with tqdm(total=total, desc="Making phantoms", unit="slice", disable=not progress) as bar:
        if workers == 0:
            for job in jobs:
                listed.append(_write_patient(job))
                bar.update(job.num_slices)
            return listed
        # Fresh interpreters: a fork of a process with PyTorch's threads may hang.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(_write_patient, job) for job in jobs]
            try:
                for job, future in zip(jobs, futures, strict=True):
                    listed.append(future.result())
                    bar.update(job.num_slices)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return listed


def _write_patient(job: _Job) -> list[str]:
    """Make and write one patient; returns the files, relative to ``image/``, that belong in the class list."""
    slices = phantom_patient(job.seed, job.image_class, job.num_slices, job.size)
    lung_areas = [int((s.mask > 0).sum()) for s in slices]
    lesion_areas = [int((s.mask > 1).sum()) for s in slices]
    listed = []
    for number, ct in enumerate(slices):
        name = f"{job.patient_id}/{number:03d}"
        image, mask = job.folder / "image" / f"{name}.jpg", job.folder / "mask" / f"{name}.png"
        for path, values, options in ((image, ct.image, {"quality": _JPEG_QUALITY}), (mask, ct.mask, {})):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path, **options)
            except OSError as error:
                raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
        shows_disease = lesion_areas[number] >= _LEAST_SHARE * max(lesion_areas)
        shows_disease &= bool(lesion_components(ct.mask, "merge")[0])
        if lung_areas[number] >= _LEAST_SHARE * max(lung_areas) and (job.image_class == 0 or shows_disease):
            listed.append(f"{name}.jpg")
    return listed


def _check_replaceable(root: Path, overwrite: bool) -> None:
    """Refuse a folder that isn't empty, unless it holds a set of phantoms, or what is left of one, to be replaced."""
    found = {path.name for path in root.iterdir() if not _is_litter(path)} if root.is_dir() else set()
    foreign = sorted(found - _ENTRIES)
    if found and (foreign or not any(map(_tells_phantoms, root.glob("annotations/*.json")))):
        why = f"it holds {foreign[0]}" if foreign else "no json in its annotations/ says so"
        raise UserError(f"{root} is not empty, and no set of phantoms: {why}; take another folder.")
    if found and not overwrite:
        raise UserError(f"{root} holds a set of phantoms; take another folder, or --overwrite to replace it.")


def _is_litter(path: Path) -> bool:
    """Whether a file is one that file managers leave, or hidden."""
    return path.is_file() and (path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini"))


def _tells_phantoms(json_file: Path) -> bool:
    try:
        info = read_coco(json_file).get("info")
    except UserError:
        return False
    return isinstance(info, dict) and str(info.get("source")).startswith(_SOURCE)


@contextmanager
def _whole_folder(root: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``root`` that takes its name once the body is done; a body that raises leaves nothing."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; name a folder for the phantoms.")
    folder = None
    try:
        _check_replaceable(root, overwrite)
        root.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.", suffix=".part"))
        folder.chmod(0o755)
        yield folder
        if root.is_dir():
            for path in filter(_is_litter, root.iterdir()):
                shutil.copy2(path, folder)  # not ours to delete
            old = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.", suffix=".old"))
            root.rename(old / root.name)
            folder.rename(root)
            shutil.rmtree(old)
        else:
            folder.rename(root)
    except OSError as error:
        raise UserError(f"Cannot write {root}: {error.strerror or error}.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
