"""Reads a COCO json of lesions, the project's own or a user's, and refuses what training would trip over."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from ..errors import UserError
from .annotations import check_box, crowd_message, read_crowd, to_rle
from .lesion_masks import MASK_TYPES, box_fits, require_mask_type
from .limits import one_line
from .pairing import natural_key
from .patient_ids import stated_id

logger = logging.getLogger(__name__)

FROM_FOLDER = "(from the folder in file_name; give images a patient_id if that is no patient)"
"""What is said behind a patient that no image tells."""


@dataclass(frozen=True)
class LesionSet:
    """A loaded json: lesion dataset dicts and what is true of all of them."""

    json_file: Path
    image_root: Path
    mask_type: str | None  # None: neither given, nor told by the json or by the number of its classes
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # what the json numbers each of the classes
    dicts: list[dict[str, Any]]
    folder_patients: frozenset[str]  # those that no image tells, only the name of its folder


def load_lesion_json(
    json_file: str | Path, image_root: str | Path | None = None, mask_type: str | None = None
) -> LesionSet:
    """Load a COCO json as Detectron2 dataset dicts with ``patient_id``, slices without lesions included.

    Category ids 1..K become 0..K-1, in the order that :data:`MASK_TYPES` has where it knows a name (in any case); the
    other names stay, and are warned of. Polygons and uncompressed run-length codes become compressed ones. A slice
    without a ``patient_id`` belongs to the patient that its folder is named after; one without a folder has none.

    Args:
        image_root: folder that ``file_name`` is relative to (default: ``info.image_root``, itself relative to the
            json's folder; without one, the json's folder).
        mask_type: key of :data:`MASK_TYPES` (default: ``info.mask_type``; without one, by the number of classes).

    Raises:
        UserError: unreadable json, missing image, one that is listed twice, box outside its image, category ids that
            are not 1..K, annotation without a mask, or another mask type than asked for. The message names the json and
            the entry. Boxes that do not fit their masks are warned of, and used; so are crowd regions.
    """
    json_file = Path(json_file)
    content = read_coco(json_file)
    info = info_of(content)
    if image_root is None:
        image_root = own_image_root(json_file, info)
    image_root = Path(image_root)
    classes = read_classes(json_file, content["categories"])
    mask_type = settle_mask_type(json_file, mask_type, info.get("mask_type"), classes)
    classes, category_ids = _in_house_order(json_file, mask_type, classes)
    dicts, folder_patients = _read_images(json_file, content["images"], image_root)
    _add_annotations(json_file, content["annotations"], dicts, category_ids)
    return LesionSet(json_file, image_root, mask_type, classes, category_ids, list(dicts.values()), folder_patients)


def own_image_root(json_file: Path, info: Mapping[str, Any]) -> Path:
    """The folder of a json's images by its own ``info.image_root``, relative to the json's folder.

    Where that folder was reached by a link, the path goes up from where the link is or, if nothing is there, from where
    it leads to: sets are prepared through links, and linked to when they are prepared.
    """
    relative = str(info.get("image_root", ""))
    folder = json_file.absolute().parent
    by_name = Path(os.path.normpath(folder / relative)).resolve()
    return by_name if by_name.is_dir() else (folder / relative).resolve()


def read_coco(json_file: Path) -> dict[str, Any]:
    """The content of a COCO json: an object with the lists of objects images, annotations and categories.

    Raises:
        UserError: unreadable file, a list is missing, or it has no image.
    """
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{json_file}: no such file.") from error
    except OSError as error:
        raise UserError(f"Cannot read {json_file}: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{json_file} is not a json file ({error}).") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{json_file} has no list {key!r}; a COCO json has images, annotations and categories.")
        if not all(isinstance(entry, dict) for entry in content[key]):
            raise UserError(f"{json_file}: every entry of {key!r} is to be an object with named fields.")
    if not content["images"]:
        raise UserError(f"{json_file} lists no image.")
    return content


def info_of(content: dict[str, Any]) -> dict[str, Any]:
    """``info`` of a json; empty where there is none, or one of another kind."""
    info = content.get("info")
    return info if isinstance(info, dict) else {}


def _field(json_file: Path, entry: dict[str, Any], key: str, what: str) -> Any:
    if key not in entry:
        raise UserError(f"{json_file}: {what} has no {key!r}.")
    return entry[key]


def check_id(json_file: Path, value: Any, what: str, key: str = "id") -> None:
    """Refuse an id that is a list or an object (:class:`UserError`)."""
    if isinstance(value, (list, dict)):
        raise UserError(f"{json_file}: {what} has the {key} {one_line(value, 80)}; an id is a number or a name.")


def _id_field(json_file: Path, entry: dict[str, Any], what: str, key: str = "id") -> Any:
    check_id(json_file, _field(json_file, entry, key, what), what, key)
    return entry[key]


def read_classes(json_file: Path, categories: list[dict]) -> tuple[str, ...]:
    """Names of the lesion classes, in the order of their ids.

    Raises:
        UserError: no category, one without id or name, or ids that are not 1 to K; tells the new numbering.
    """
    pairs = [(_id_field(json_file, c, "a category"), _field(json_file, c, "name", "a category")) for c in categories]
    pairs.sort(key=lambda pair: natural_key(str(pair[0])))
    ids = [category_id for category_id, _ in pairs]
    if not ids or ids != list(range(1, len(ids) + 1)):
        mapping = ", ".join(f"{category_id} ({name}) -> {new}" for new, (category_id, name) in enumerate(pairs, 1))
        message = f"{json_file}: category ids are {ids}; number the lesion classes from 1 without gaps"
        raise UserError(f"{message}: {mapping}." if mapping else f"{message}.")
    return tuple(str(name) for _, name in pairs)


def settle_mask_type(json_file: Path, asked: str | None, told: str | None, classes: tuple[str, ...]) -> str | None:
    """The mask type asked for, else the one that the json tells, else that of its classes; None: it can't be known.

    Raises:
        UserError: the json tells another type than asked for, or has another number of classes than the type.
    """
    if asked is not None:
        require_mask_type(asked)
        if told is not None and told != asked:
            raise UserError(f"{json_file} holds {told!r} masks, not {asked!r}; name the json of that type.")
    mask_type = asked or (told if told in list(MASK_TYPES) else None)
    if mask_type is None:
        by_name = {_folded(names): mask_type for mask_type, names in MASK_TYPES.items()}
        return by_name.get(_folded(classes)) or {1: "merge", 2: "both"}.get(len(classes))
    if len(MASK_TYPES[mask_type]) != len(classes):
        raise UserError(
            f"{json_file} has {len(classes)} lesion class(es) ({', '.join(classes)}), but mask type {mask_type!r} has "
            f"{len(MASK_TYPES[mask_type])} ({', '.join(MASK_TYPES[mask_type])})."
        )
    return mask_type


def _in_house_order(
    json_file: Path, mask_type: str | None, classes: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids in the order of the mask type, whose own names predictions will have."""
    if mask_type is None:
        return classes, tuple(range(1, len(classes) + 1))
    house, folded = MASK_TYPES[mask_type], _folded(classes)
    known = [folded.index(name) if name in folded else None for name in _folded(house)]
    others = iter(index for index in range(len(classes)) if index not in known)
    order = [next(others) if index is None else index for index in known]
    names = [classes[own] if index is None else name for name, index, own in zip(house, known, order, strict=True)]
    renamed = [f"{own} as {name}" for own, name in zip(names, house, strict=True) if own != name]
    if renamed:
        message = "%s: a model trained on it reports %s, by the names of mask type %r."
        logger.warning(message, json_file, ", ".join(renamed), mask_type)
    return tuple(names), tuple(own + 1 for own in order)


def _folded(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.casefold() for name in names)


def patient_of(image: dict[str, Any]) -> tuple[str, bool]:
    """Patient of an entry of ``images``, and whether the entry tells it (:func:`.patient_ids.stated_id`).

    Else it is the name of the file's folder, "" where there is none.
    """
    if told := stated_id(image.get("patient_id")):
        return told, True
    return Path(str(image["file_name"])).parent.name, False


def unnamed_patients(json_file: Path, unnamed: list[str]) -> list[str]:
    """What is to be said of images without ``patient_id``.

    Args:
        unnamed: patient of each, from :func:`patient_of`.
    """
    unknown = unnamed.count("")
    said = []
    if unknown < len(unnamed):
        count = len(unnamed) - unknown
        said.append(f"{json_file}: {count} images without 'patient_id'; the name of their folder is taken for it.")
    if unknown:
        message = f"{json_file}: {unknown} images with neither 'patient_id' nor a folder: their patients are unknown; "
        said.append(message + "splits can't be told apart by patient, and intervals resample slices.")
    return said


def _read_images(
    json_file: Path, images: list[dict], image_root: Path
) -> tuple[dict[Any, dict[str, Any]], frozenset[str]]:
    """Dataset dicts by image id, without annotations, and the patients that no image tells."""
    dicts: dict[Any, dict[str, Any]] = {}
    ids: dict[Path, Any] = {}
    missing, told, unnamed = [], [], []
    for number, image in enumerate(images):
        name = str(_field(json_file, image, "file_name", f"images[{number}]"))
        image_id = _id_field(json_file, image, f"image {name}")
        size = [_field(json_file, image, key, f"image {name}") for key in ("height", "width")]
        if not all(isinstance(n, int) and n > 0 for n in size):
            raise UserError(f"{json_file}: image {name} has height {size[0]} and width {size[1]}; give whole pixels.")
        if image_id in dicts:
            raise UserError(f"{json_file}: image id {image_id} is given twice, the second time to {name}.")
        path = image_root / name
        if path in ids:
            raise UserError(f"{json_file}: image {name} is given twice, with the ids {ids[path]} and {image_id}.")
        ids[path] = image_id
        if not os.path.isfile(path):
            missing.append(path)
        patient, is_told = patient_of(image)
        (told if is_told else unnamed).append(patient)
        dicts[image_id] = {
            "file_name": str(path),
            "height": size[0],
            "width": size[1],
            "image_id": image_id,
            **({"patient_id": patient} if patient else {}),
            "annotations": [],
        }
    if missing:
        raise UserError(
            f"{json_file} names {len(missing)} missing image{'s' * (len(missing) > 1)}, the first is "
            f"{one_line(missing[0])}; prepare the dataset again, or give the folder that holds its images."
        )
    for message in unnamed_patients(json_file, unnamed):
        logger.warning("%s", message)
    if all(isinstance(i, int) for i in dicts):
        dicts = dict(sorted(dicts.items()))
    return dicts, frozenset(unnamed) - {*told, ""}


def _add_annotations(
    json_file: Path, annotations: list[dict], dicts: dict[Any, dict], category_ids: tuple[int, ...]
) -> None:
    seen, unfit = set(), []
    for number, annotation in enumerate(annotations):
        check_id(json_file, annotation.get("id"), f"annotation at position {number}")
        what = f"annotation {annotation.get('id', f'at position {number}')}"
        if annotation.get("id") in seen:
            raise UserError(f"{json_file}: annotation id {annotation['id']} is given twice.")
        if "id" in annotation:
            seen.add(annotation["id"])
        image_id = _id_field(json_file, annotation, what, "image_id")
        if image_id not in dicts:
            raise UserError(f"{json_file}: {what} belongs to image id {image_id}, which is not in 'images'.")
        image = dicts[image_id]
        what = f"{what} of {image['file_name']}"
        category = _field(json_file, annotation, "category_id", what)
        if category not in category_ids:
            known = f"its categories are 1 to {len(category_ids)}"
            raise UserError(f"{json_file}: {what} has category id {category}; {known}.")
        box = _field(json_file, annotation, "bbox", what)
        rle = to_rle(json_file, annotation.get("segmentation"), image["height"], image["width"], what)
        check_box(json_file, box, image["height"], image["width"], what)
        if not box_fits(box, rle):
            unfit.append(what)
        image["annotations"].append(
            {
                "bbox": [float(n) for n in box],
                "bbox_mode": BoxMode.XYWH_ABS,
                "segmentation": rle,
                "area": float(mask_util.area(rle)),
                "category_id": category_ids.index(category),
                "iscrowd": read_crowd(json_file, annotation, what),
            }
        )
    if unfit:
        message = "%s: %d of %d boxes, [x, y, width, height], are not those of their masks, the first that of %s; box"
        message += " AP counts by these boxes."
        logger.warning(message, json_file, len(unfit), len(annotations), unfit[0])
    crowd = sum(annotation["iscrowd"] for image in dicts.values() for annotation in image["annotations"])
    if crowd:
        logger.warning("%s", crowd_message(json_file, crowd, len(annotations)))
