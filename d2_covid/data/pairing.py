"""Finds slices and their masks in folders, and pairs them by name."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
OUT_OF_PLACE = "lies in another folder than this layout's slices and masks"

# Levels below the layout's own where images are still looked for, so that they can be named.
_DEEPER = 3

# Where CNCB's download keeps its slices and masks.
_CNCB_FOLDER = "ct_lesion_seg"


@dataclass(frozen=True)
class SlicePair:
    """A slice and its mask. ``name`` is the path below the image root, in posix form and without suffix."""

    patient_id: str
    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairing:
    """All pairs of a source in natural order, the files that have no partner, and images and masks that lie in other
    folders than the layout's."""

    image_root: Path
    pairs: tuple[SlicePair, ...]
    images_without_mask: tuple[Path, ...]
    masks_without_image: tuple[Path, ...]
    out_of_place: tuple[Path, ...] = ()


def natural_key(text: str) -> tuple:
    """Sort key under which ``slice2`` comes before ``slice10``."""
    return tuple((0, int(part), part) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part)


def find_cncb_folder(source: Path) -> Path:
    """The folder of ``source`` that has ``image/`` and ``mask/``: itself, or CNCB's ``ct_lesion_seg`` inside it.

    Raises:
        UserError: neither has them.
    """
    for folder in (source, source / _CNCB_FOLDER):
        if (folder / "image").is_dir() and (folder / "mask").is_dir():
            return folder
    if not source.is_dir():
        raise UserError(f"{source}: no such folder.")
    raise UserError(
        f"{source} has no folders image/ and mask/, as the CNCB layout has them (image/<patient>/<slice>.jpg, "
        "mask/<patient>/<slice>.png)."
    )


def pair_set(source: str | Path) -> Pairing:
    """Pairs of a folder with ``image/`` and ``mask/``: of the CNCB layout, or flat where ``image/`` has no folders."""
    folder = find_cncb_folder(Path(source))
    if looks_flat(folder / "image"):
        return pair_flat(folder / "image", folder / "mask")
    return pair_cncb(folder)


def looks_flat(images: Path) -> bool:
    """Whether slices lie in the folder itself, and in no folder below it as patients have."""
    levels = {level for _, level in _image_files(images, 1 + _DEEPER)}
    return levels == {1} or not levels and not any(entry.is_dir() for entry in images.iterdir())


def pair_cncb(source: str | Path) -> Pairing:
    """Pairs of the CNCB layout: ``image/<patient>/<slice>.jpg`` with ``mask/<patient>/<slice>.png``."""
    folder = find_cncb_folder(Path(source))
    return _pair(folder / "image", folder / "mask", depth=2, patient_of=lambda name: name.split("/")[0])


def pair_flat(images: str | Path, masks: str | Path, patient_pattern: str | None = None) -> Pairing:
    """Pairs of one folder of images and one of masks, as the paper's own program reads them.

    Args:
        patient_pattern: regular expression whose first group is the patient in a file name (default:
            :func:`patient_of_flat_name`).

    Raises:
        UserError: a folder is missing, or a name tells no patient.
    """
    patient_of = patient_of_flat_name
    if patient_pattern is not None:
        try:
            pattern = re.compile(patient_pattern)
        except re.error as error:
            raise UserError(f"--patient-pattern {patient_pattern!r} is not a regular expression ({error}).") from error
        if not pattern.groups:
            raise UserError(f"--patient-pattern {patient_pattern!r} needs a group (...) around the patient's part.")

        def patient_of(name: str) -> str:
            match = pattern.search(name)
            if match is None or match[1] is None:
                raise UserError(f"{name}: --patient-pattern {patient_pattern!r} finds no patient in this file name.")
            return match[1]

    return _pair(Path(images), Path(masks), depth=1, patient_of=patient_of)


def patient_of_flat_name(name: str) -> str:
    """The patient in ``<patient>_<slice>``, ``<patient>_<scan>_<slice>`` or ``<class>_<patient>_<scan>_<slice>``.

    Raises:
        UserError: the name has another number of parts.
    """
    parts = name.split("_")
    if len(parts) in (2, 3) and parts[0]:
        return parts[0]
    if len(parts) == 4 and parts[1]:
        return parts[1]
    raise UserError(
        f"{name}: this file name tells no patient; name slices <patient>_<slice> or <patient>_<scan>_<slice>, "
        "or say where the patient stands with --patient-pattern, for example '^([^-]+)-'."
    )


def _pair(image_root: Path, mask_root: Path, depth: int, patient_of: Callable[[str], str]) -> Pairing:
    images, elsewhere = _files_by_name(image_root, depth)
    masks, masks_elsewhere = _files_by_name(mask_root, depth)
    if not images:
        where = "in its folders, one for each patient, " if depth == 2 else ""
        but = f" There are some elsewhere, such as {elsewhere[0]}." if elsewhere else ""
        raise UserError(f"{image_root} holds no images {where}({', '.join(IMAGE_SUFFIXES)}).{but}")
    common = sorted(images.keys() & masks.keys(), key=natural_key)
    if not common:
        raise UserError(
            f"No image in {image_root} has a mask of the same name in {mask_root}; "
            f"the first image is {min(images, key=natural_key)}."
        )
    return Pairing(
        image_root,
        tuple(SlicePair(patient_of(name), name, images[name], masks[name]) for name in common),
        tuple(images[name] for name in sorted(images.keys() - masks.keys(), key=natural_key)),
        tuple(masks[name] for name in sorted(masks.keys() - images.keys(), key=natural_key)),
        tuple(elsewhere + masks_elsewhere),
    )


def _files_by_name(root: Path, depth: int) -> tuple[dict[str, Path], list[Path]]:
    """Image files exactly ``depth`` levels below ``root``, by their path below it without suffix, and those at other
    levels."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder.")
    files: dict[str, Path] = {}
    elsewhere = []
    for path, level in _image_files(root, depth + _DEEPER):
        if level != depth:
            elsewhere.append(path)
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in files:
            raise UserError(f"{path} and {files[name]} are one slice by name; remove one of them.")
        files[name] = path
    return files, elsewhere


def _image_files(folder: Path, deepest: int, level: int = 1) -> Iterator[tuple[Path, int]]:
    """Image files below a folder, and how many levels; not what is hidden, or what storage devices add (``@eaDir``)."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror or error}.") from error
    for entry in entries:
        if entry.name.startswith((".", "@")):
            continue
        if entry.is_dir():
            if level < deepest:
                yield from _image_files(Path(entry.path), deepest, level + 1)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Path(entry.path), level
