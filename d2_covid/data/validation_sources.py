"""From what a user names - dataset, json, list, folder - to splits of slices; what is wrong with entries is noted."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pycocotools.mask as mask_util

from ..errors import UserError
from .annotations import check_box, crowd_message, read_crowd, to_rle
from .coco_json import (
    check_id,
    info_of,
    own_image_root,
    patient_of,
    read_classes,
    read_coco,
    settle_mask_type,
    unnamed_patients,
)
from .datasets import check_class_count, ensure_registered, lesion_source
from .lesion_masks import box_fits
from .limits import one_line
from .pairing import OUT_OF_PLACE, natural_key, pair_set
from .slice_datasets import slice_source
from .slice_lists import IMAGE_CLASSES, cncb_file, read_list
from .validation_findings import Findings

TINY_AREA = 100
"""Lesions of this many pixels or fewer are warned of (paper, section 3: they become background)."""

_LIST_SUFFIXES = (".csv", ".txt")


class CheckedSlice(NamedTuple):
    """A slice to look at. ``size`` is (height, width) as its json says; ``mask`` a file of CNCB's values."""

    image: str
    patient_id: str
    mask: str | None = None
    size: tuple[int, int] | None = None


@dataclass
class Split:
    """Slices that were named together.

    Attributes:
        folders: patients of two splits are compared by their ids if these share a folder; the first patients of two
            unrelated sets may both be called "1".
        class_counts: lesions, slices with the class, or slices of the class, by its name; 0 where there is none.
        without_lesion: slices without a lesion; None where slices have no lesions marked.
        folder_patients: patients that no image tells, only the name of its folder.
    """

    name: str
    kind: Literal["lesion json", "slice list", "folder"]
    source: str
    folders: frozenset[str]
    slices: list[CheckedSlice] = field(default_factory=list)
    class_counts: Counter[str] = field(default_factory=Counter)
    without_lesion: int | None = None
    folder_patients: frozenset[str] = frozenset()

    @property
    def one_folder(self) -> str:
        """Name of the folder that all of its images lie in, where none tells its patient; else empty."""
        patients = {entry.patient_id for entry in self.slices}
        folders = {os.path.dirname(entry.image) for entry in self.slices}
        return next(iter(patients)) if len(folders) == len(patients) == 1 and patients <= self.folder_patients else ""


def read_source(
    item: str | Path,
    findings: Findings,
    image_root: str | Path | None = None,
    image_classes: Sequence[str] | None = None,
) -> list[Split]:
    """Read what one argument names.

    Args:
        item: a registered dataset, a COCO json, a list of slices (csv, or txt as COVIDx-CT has it), or a folder in the
            CNCB layout, or a flat one.
        image_root: where the images of a json or list lie; None: as the json says, or beside the file.
        image_classes: names of the classes of a list; None: the paper's three.

    Returns:
        One split, or one for each that a list's column ``split`` names.

    Raises:
        UserError: there is no such thing, or it is none of these; nothing of it can be checked.
    """
    path = Path(item)
    classes = tuple(image_classes or IMAGE_CLASSES)
    if path.is_dir():
        return [_read_folder(path, findings)]
    if path.suffix.lower() == ".json":
        return [_read_json(path.name, path, image_root, None, findings)]
    if path.suffix.lower() in _LIST_SUFFIXES:
        return _read_list(path.name, path, image_root or path.parent, classes, None, findings)
    if path.exists() or os.sep in str(item):
        raise UserError(f"{item} is no dataset name, json, csv or folder that can be checked.")
    name = str(item)
    listed = slice_source(name)
    if listed is not None:
        return _read_list(
            name, listed.list_file, image_root or listed.image_root, listed.image_classes, listed.split, findings
        )
    ensure_registered([name])
    source = lesion_source(name)
    if source is None:
        raise UserError(f"Dataset {name} was registered by other code; name the json or list behind it.")
    return [_read_json(name, source.resolve(), image_root or source.image_root, source.mask_type, findings)]


def _folders(*folders: str | Path) -> frozenset[str]:
    return frozenset(os.path.realpath(folder) for folder in folders)


# ---- folder ----


def _read_folder(folder: Path, findings: Findings) -> Split:
    pairing = pair_set(folder)
    for path in pairing.images_without_mask:
        findings.add("image_without_mask", path, f"{path} has no mask of the same name.", (str(path),))
    for path in pairing.masks_without_image:
        findings.add("mask_without_image", path, f"{path} has no image of the same name.")
    for path in pairing.out_of_place:
        findings.add("file_out_of_place", path, f"{path} {OUT_OF_PLACE}.")
    slices = [CheckedSlice(str(pair.image), pair.patient_id, str(pair.mask)) for pair in pairing.pairs]
    counts = Counter({"GGO": 0, "consolidation": 0})
    return Split(str(folder), "folder", str(folder), _folders(pairing.image_root), slices, counts, 0)


# ---- list ----


def _read_list(
    name: str, path: Path, root: str | Path, classes: Sequence[str], split: str | None, findings: Findings
) -> list[Split]:
    def on_error(error: UserError) -> None:
        findings.add("label_out_of_range" if "unknown class" in str(error) else "bad_entry", path, error)

    listed = read_list(path, classes, on_error)
    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; it should hold the images of {path}; give it with --images.")
    splits: dict[str, Split] = {}
    unknown = 0
    for entry in listed:
        if split is not None and entry.split != split:
            continue
        if entry.split not in splits:
            full_name = f"{name}:{entry.split}" if entry.split and split is None else name
            counts = Counter(dict.fromkeys(classes, 0))
            splits[entry.split] = Split(full_name, "slice list", str(path), _folders(root, path.parent), [], counts)
        found = splits[entry.split]
        found.class_counts[classes[entry.image_class]] += 1
        unknown += not entry.patient_id
        candidates = [os.path.join(root, file) for file in (entry.file, cncb_file(entry.file))]
        image = next((file for file in candidates if os.path.isfile(file)), None)
        if image is None:
            where = f"{path}, line {entry.line}"
            findings.add("missing_file", candidates[0], f"{where}: {candidates[0]} is not there.")
        else:
            found.slices.append(CheckedSlice(image, entry.patient_id))
    if unknown:
        message = f"{unknown} slices of {path} have no patient; splits can't be told apart by patient."
        findings.add("no_patient", path, message)
    if not splits:
        raise UserError(f"{path} lists no slice that can be checked.")
    return list(splits.values())


# ---- json ----


def _read_json(
    name: str, path: Path, image_root: str | Path | None, mask_type: str | None, findings: Findings
) -> Split:
    content = read_coco(path)
    info = info_of(content)
    if image_root is None:
        image_root = own_image_root(path, info)
    root = Path(os.path.normpath(image_root))
    _check_categories(path, content["categories"], mask_type, info.get("mask_type"), findings)
    named = {_key(entry.get("id")): str(entry.get("name", "without a name")) for entry in content["categories"]}
    categories = dict(sorted(named.items(), key=lambda pair: natural_key(pair[0])))
    images, folder_patients = _read_images(path, content["images"], root, findings)
    found = Split(name, "lesion json", str(path), _folders(root, path.parent), folder_patients=folder_patients)
    found.class_counts = Counter(dict.fromkeys(categories.values(), 0))
    with_lesion, tiny = set(), defaultdict(list)
    seen: set[Any] = set()
    crowd = 0
    for number, annotation in enumerate(content["annotations"]):
        what = f"annotation {annotation.get('id', f'at position {number}')}"
        with findings.collecting("bad_entry", path):
            check_id(path, annotation.get("id"), f"annotation at position {number}")
        if "id" in annotation:
            if str(annotation["id"]) in seen:
                findings.add("bad_entry", path, f"{path}: {what}: its id is given twice.")
            seen.add(str(annotation["id"]))
        image = images.get(_key(annotation.get("image_id")))
        if image is None:
            message = f"{path}: {what} belongs to image id {annotation.get('image_id')}, which is not in 'images'."
            findings.add("bad_entry", path, message)
            continue
        what = f"{what} of {image.image}"
        if _check_annotation(path, annotation, what, image, categories, found, tiny, findings):
            with_lesion.add(image.image)
        else:
            crowd += 1
    if crowd:
        total = len(content["annotations"])
        findings.add("all_crowd" if crowd == total else "crowd", path, crowd_message(path, crowd, total))
    for file, lesions in tiny.items():
        areas = ", ".join(str(area) for area, _ in lesions)
        message = f"{file}: {len(lesions)} of its lesions of {TINY_AREA} pixels or fewer ({areas})."
        findings.add("tiny_lesion", file, message, (file,), tuple(box for _, box in lesions))
    found.without_lesion = sum(image.image not in with_lesion for image in images.values())
    for image in images.values():
        if os.path.isfile(image.image):
            found.slices.append(image)
        else:
            findings.add("missing_file", image.image, f"{path}: {one_line(image.image)} is not there.")
    return found


def _key(image_id: Any) -> str:
    """An id as a key, whatever it is: 1 and "1" are two."""
    return json.dumps(image_id, sort_keys=True)


def _check_categories(path: Path, entries: list[dict], asked: str | None, told: Any, findings: Findings) -> None:
    classes = None
    with findings.collecting("category_ids", path):
        classes = read_classes(path, entries)
    if classes is not None:
        with findings.collecting("mask_type", path):
            settle_mask_type(path, asked, told, classes)
            check_class_count(path, classes)


def _read_images(
    path: Path, entries: list[dict], root: Path, findings: Findings
) -> tuple[dict[str, CheckedSlice], frozenset[str]]:
    """Slices by the key of their image id, and the patients that no image tells."""
    images: dict[str, CheckedSlice] = {}
    files: set[str] = set()
    told: list[str] = []
    unnamed: list[str] = []
    for number, entry in enumerate(entries):
        missing = [key for key in ("file_name", "id", "height", "width") if key not in entry]
        if missing:
            findings.add("bad_entry", path, f"{path}: images[{number}] has no {missing[0]!r}.")
            continue
        file, size = os.path.join(root, str(entry["file_name"])), (entry["height"], entry["width"])
        if not all(isinstance(n, int) and n > 0 for n in size):
            findings.add("bad_entry", file, f"{path}: {file} has height {size[0]} and width {size[1]}.")
            continue
        if _key(entry["id"]) in images or file in files:
            what = "the file" if file in files else f"the id {entry['id']}"
            findings.add("bad_entry", file, f"{path}: {what} of {file} is given twice in 'images'.")
            continue
        patient, is_told = patient_of(entry)
        (told if is_told else unnamed).append(patient)
        with findings.collecting("bad_entry", file):
            check_id(path, entry["id"], f"image {file}")
        images[_key(entry["id"])] = CheckedSlice(file, patient, None, size)
        files.add(file)
    for message in unnamed_patients(path, unnamed):
        findings.add("no_patient", path, message)
    return images, frozenset(unnamed) - {*told, ""}


def _check_annotation(
    path: Path,
    annotation: dict,
    what: str,
    image: CheckedSlice,
    categories: dict[str, str],
    split: Split,
    tiny: dict[str, list],
    findings: Findings,
) -> bool:
    """Note what is wrong with it; tells whether it is a lesion, no crowd region."""
    shown = (image.image,)
    lesion = True
    with findings.collecting("bad_entry", image.image, shown):
        lesion = not read_crowd(path, annotation, what)
    category = categories.get(_key(annotation.get("category_id")))
    if category is None:
        message = f"{path}: {what} has category id {annotation.get('category_id')}, which is none of its categories."
        findings.add("label_out_of_range", image.image, message, shown)
    elif lesion:
        split.class_counts[category] += 1
    box = None
    with findings.collecting("box_outside", image.image, shown):
        check_box(path, annotation.get("bbox"), *image.size, what)
        box = annotation["bbox"]
    if not annotation.get("segmentation"):
        message = f"{path}: {what} has no segmentation; Mask R-CNN needs a mask for every lesion."
        findings.add("no_segmentation", image.image, message, shown)
        return lesion
    with findings.collecting("bad_segmentation", image.image, shown):
        rle = to_rle(path, annotation["segmentation"], *image.size, what)
        area, around = int(mask_util.area(rle)), tuple(mask_util.toBbox(rle).tolist())
        if lesion and area <= TINY_AREA:
            tiny[image.image].append((area, around))
        if box is not None and not box_fits(box, rle):
            message = f"{path}: {what} has the box {box} (x, y, width, height), and its mask has {list(around)}."
            findings.add("box_differs", image.image, message, shown, (tuple(box), around))
    return lesion
