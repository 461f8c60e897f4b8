"""Dataset names: which json and images stand behind ``<set>_<mask type>_<split>``, and checks across datasets.

Importing this module registers the names of :data:`BUILTIN_SETS` with Detectron2. Nothing is read until a name is
asked for; ``$DETECTRON2_DATASETS`` (default: the folder ``datasets``) is looked up then.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .coco_json import FROM_FOLDER, load_lesion_json
from .lesion_masks import MASK_TYPES, lesion_class_names, require_mask_type
from .pairing import natural_key
from .patient_ids import stated_id
from .slices import check_files_apart
from .stored_range import warn_of_misread_images

logger = logging.getLogger(__name__)

BUILTIN_SETS = ("cncb", "phantom", "radiopaedia", "coronacases")
SPLITS = ("train", "val")

_NAME = re.compile(rf"(?P<set>.+)_(?P<mask_type>{'|'.join(MASK_TYPES)})_(?P<split>[^_]+)")


@dataclass(frozen=True)
class LesionSource:
    """Where a registered name finds its data. A prepared set: no ``json_file``, which follows from the name."""

    name: str
    json_file: Path | None = None
    image_root: Path | None = None
    mask_type: str | None = None

    def resolve(self) -> Path:
        """The json file, found now; :class:`UserError` names it and the command that makes it when it is not there."""
        if self.json_file is not None:
            path = self.json_file
            hint = "Give --register-lesions the json you mean."
        else:
            parts = _NAME.fullmatch(self.name)
            path = prepared_json(parts["set"], parts["mask_type"], parts["split"])
            if parts["set"] == "phantom":
                command = "python datasets/prepare_phantoms.py"
            else:
                command = f"python datasets/prepare_cncb.py --source FOLDER --name {parts['set']}"
                command += f" --mask-types {parts['mask_type']}"
            hint = f"Make it with `{command}`, or set DETECTRON2_DATASETS to the folder that holds {parts['set']}/."
        if not path.is_file():
            raise UserError(f"Dataset {self.name} needs {path}, which is not there. {hint}")
        return path


_sources: dict[str, LesionSource] = {}


def datasets_root() -> Path:
    """Folder of the prepared sets: ``$DETECTRON2_DATASETS``, by default ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def prepared_json(set_name: str, mask_type: str, split: str, root: Path | None = None) -> Path:
    """Where a prepared set keeps the json of a mask type and split."""
    return (datasets_root() if root is None else root) / set_name / "annotations" / f"{mask_type}_{split}.json"


def register_lesions(
    name: str, json_file: str | Path, image_root: str | Path | None = None, mask_type: str | None = None
) -> None:
    """Give a COCO json of lesions a dataset name, for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Nothing is read until the name is used. Registering the same data under the same name again does nothing.

    Args:
        name: any name not in use.
        json_file, image_root, mask_type: as in :func:`.coco_json.load_lesion_json`.

    Raises:
        UserError: the name stands for other data.
    """
    image_root = None if image_root is None else Path(image_root)
    _register(LesionSource(name, Path(json_file), image_root, mask_type))


def ensure_registered(names: Iterable[str]) -> None:
    """Register every set that was prepared under a name of its own, ``<set>_<mask type>_<split>``.

    Raises:
        UserError: a name is neither registered nor of that form.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        if not _NAME.fullmatch(name):
            raise UserError(
                f"Unknown dataset {name!r}. A prepared set is called <set>_<mask type>_<split>, as cncb_merge_train; "
                "your own json gets a name by --register-lesions NAME JSON IMAGES, a list of slices by "
                "--register-slices NAME LIST IMAGES; to d2-covid validate, name the json or list itself."
            )
        _register(LesionSource(name, mask_type=_NAME.fullmatch(name)["mask_type"]))


def lesion_source(name: str) -> LesionSource | None:
    """Where a dataset name finds its lesions; None for a name that was not registered here."""
    return _sources.get(name)


def load_lesions(name: str) -> list[dict[str, Any]]:
    """Lesion dataset dicts of a name registered here; also fills in its metadata.

    Metadata: ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``json_file``, ``image_root``, ``prepared``,
    ``mask_type``, ``evaluator_type`` ("lesion") and ``folder_patients``, those that no image tells (a list).
    """
    source = _sources[name]
    loaded = load_lesion_json(source.resolve(), source.image_root, source.mask_type)
    set_metadata(
        name,
        thing_classes=list(loaded.classes),
        thing_dataset_id_to_contiguous_id={category: i for i, category in enumerate(loaded.category_ids)},
        json_file=str(loaded.json_file),
        image_root=str(loaded.image_root),
        prepared=source.json_file is None,
        mask_type=loaded.mask_type,
        evaluator_type="lesion",
        folder_patients=sorted(loaded.folder_patients),
    )
    return loaded.dicts


def check_datasets(cfg: CfgNode) -> None:
    """Load every dataset of a segmentation config, and refuse what would spoil a run after hours.

    Does :func:`ensure_registered`, :func:`check_mask_type`, :func:`check_class_order`, :func:`check_patient_splits`
    and :func:`.stored_range.warn_of_misread_images`.
    """
    ensure_registered([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    loaded = _load_all([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    check_mask_type(cfg, loaded)
    check_class_order(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    check_patient_splits(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, loaded)
    warn_of_misread_images(loaded)


def check_mask_type(cfg: CfgNode, loaded: dict[str, list[dict]] | None = None) -> None:
    """Refuse datasets of another mask type than ``DATASETS.MASK_TYPE``, or of another number of classes than the model,
    and a model of another number than its mask type.

    Raises:
        UserError: names the dataset and both values.
    """
    require_mask_type(cfg.DATASETS.MASK_TYPE)
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if loaded is None:
        _load_all(names)
    for name in names:
        metadata = MetadataCatalog.get(name)
        mask_type, classes = metadata.get("mask_type"), metadata.get("thing_classes", [])
        if mask_type is not None and mask_type != cfg.DATASETS.MASK_TYPE:
            raise UserError(
                f"Dataset {name} holds {mask_type!r} masks, but DATASETS.MASK_TYPE is {cfg.DATASETS.MASK_TYPE!r}; "
                'change one of them (a json says its own in "info": {"mask_type": ...}).'
            )
        check_class_count(f"Dataset {name}", classes)
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UserError(
                f"Dataset {name} has {len(classes)} lesion class(es) ({', '.join(classes)}), but "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set it to {len(classes)}."
            )
    # Data that other code registered may have no mask type; predictions have the names of the config's.
    lesion_class_names(cfg.DATASETS.MASK_TYPE, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def check_class_count(source: str | Path, classes: Sequence[str]) -> None:
    """Refuse more lesion classes than a mask type may have: predictions would have no names for them.

    Raises:
        UserError: names ``source`` and the classes.
    """
    if len(classes) > max(map(len, MASK_TYPES.values())):
        raise UserError(
            f"{source} has {len(classes)} lesion classes ({', '.join(classes)}), and d2_covid knows one or two; merge "
            "or drop categories of its json."
        )


def check_class_order(train_names: Iterable[str], test_names: Iterable[str]) -> None:
    """Refuse datasets, once loaded, with the lesion classes of a training set in another order: each would be taken for
    the other. Names of one's own stand in the order of their ids, the house's always in one.

    Raises:
        UserError: names both datasets and both orders.
    """
    train_names = list(train_names)
    for train in train_names:
        for name in (*train_names, *test_names):
            first, second = (MetadataCatalog.get(one).get("thing_classes", []) for one in (train, name))
            folded = [[label.casefold() for label in classes] for classes in (first, second)]
            if folded[0] != folded[1] and sorted(folded[0]) == sorted(folded[1]):
                raise UserError(
                    f"Dataset {train} of DATASETS.TRAIN has the lesion classes {', '.join(first)}, and {name} has "
                    f"{', '.join(second)}: by their order each would be taken for the other; number the categories "
                    "of both jsons alike."
                )


def check_patient_splits(
    train_names: Iterable[str], test_names: Iterable[str], loaded: dict[str, list[dict]] | None = None
) -> None:
    """Refuse a patient, or an image, that is both trained and tested on: neighbouring slices are near duplicates.

    Patients are the same where their ids are and their sets share the image folder or that of their json or list. With
    other folders that can't be told, since the first patients of two unrelated sets may both be called "1": a warning
    counts them, except between two prepared sets, each of which is a collection of its own.

    Where each of two sets has all its images in one folder, of one name, and none tells its patient, that name is no
    patient: it is warned of.

    Args:
        train_names, test_names: datasets of lesions or of slices.
        loaded: their dataset dicts, where they are at hand.

    Raises:
        UserError: names the patients, or the first image, and the datasets.
    """
    train_names, test_names = list(train_names), list(test_names)
    loaded = _load_all([*train_names, *test_names]) if loaded is None else loaded
    patients = {name: {stated_id(d.get("patient_id")) for d in dicts} - {""} for name, dicts in loaded.items()}
    alike, unknown = [], []
    for train in train_names:
        for test in test_names:
            shared = patients[train] & patients[test]
            if shared and in_one_folder(train, loaded[train]) and in_one_folder(test, loaded[test]):
                unknown.append(f"{train} and {test} ({shared.pop()})")
            elif shared and _folders(train) & _folders(test):
                listed = ", ".join(sorted(shared, key=natural_key)[:8]) + (", ..." if len(shared) > 8 else "")
                by_folder = shared & (_folder_patients(train) | _folder_patients(test))
                raise UserError(
                    f"Patient{'s' * (len(shared) > 1)} {listed}{f' {FROM_FOLDER}' if by_folder else ''} in both "
                    f"DATASETS.TRAIN ({train}) and DATASETS.TEST ({test}); split by patient, so that no test slice has "
                    "a neighbour in training."
                )
            elif shared and not (_is_prepared(train) and _is_prepared(test)):
                alike.append(f"{len(shared)} in {train} and {test}")
            sides = {f"DATASETS.TRAIN ({train})": train, f"DATASETS.TEST ({test})": test}
            files = {side: [d["file_name"] for d in loaded[name] if "file_name" in d] for side, name in sides.items()}
            check_files_apart(files)
    if unknown:
        logger.warning(
            "Sets of DATASETS.TRAIN and DATASETS.TEST have their images in a folder of one name, and none tells its "
            "patient_id: %s. Their patients are unknown: splits can't be told apart by patient, and intervals resample "
            "slices.",
            "; ".join(unknown),
        )
    if alike:
        logger.warning(
            "DATASETS.TRAIN and DATASETS.TEST have patient ids in common, though their files lie in different folders: "
            "%s. If these are the same patients, split by patient.",
            "; ".join(alike),
        )


def data_fingerprint(names: Iterable[str], *, by_path: bool = False) -> str:
    """SHA-256 over what the named datasets hold: their names and the bytes of their json files, in the order given.

    A dataset without a json counts by its dataset dicts, with files named from its ``image_root`` on, so that data may
    lie elsewhere the next time.

    Args:
        by_path: with files by their whole path, as in records of earlier versions.
    """
    total = hashlib.sha256()
    for name in names:
        if name in _sources:
            content = _sources[name].resolve().read_bytes()
        else:
            dicts = DatasetCatalog.get(name)
            root = None if by_path else MetadataCatalog.get(name).get("image_root")
            content = json.dumps([_named_from(root, d) for d in dicts], sort_keys=True, default=str).encode()
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _named_from(root: str | None, record: dict[str, Any]) -> dict[str, Any]:
    path = Path(record.get("file_name", ""))
    inside = root is not None and path.is_relative_to(root)
    return {**record, "file_name": path.relative_to(root).as_posix()} if inside else record


def _register(source: LesionSource) -> None:
    if _sources.get(source.name) == source:
        return
    if source.name in DatasetCatalog:
        raise UserError(f"The dataset name {source.name} is taken; choose another.")
    _sources[source.name] = source
    DatasetCatalog.register(source.name, lambda: load_lesions(source.name))
    metadata = {"evaluator_type": "lesion"}
    if source.mask_type is not None:
        metadata |= {"mask_type": source.mask_type, "thing_classes": list(MASK_TYPES[source.mask_type])}
    set_metadata(source.name, **metadata)


def set_metadata(name: str, **values: Any) -> None:
    """Give a dataset name its metadata, in place of all that it had where a value differs."""
    # Detectron2 refuses to change a value; a set may have been prepared anew, or lie elsewhere, since it was loaded.
    old = MetadataCatalog.get(name)
    if any(old.get(key, value) != value for key, value in values.items()):
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(**values)


def _load_all(names: Iterable[str]) -> dict[str, list[dict]]:
    return {name: DatasetCatalog.get(name) for name in dict.fromkeys(names)}


def _folders(name: str) -> set[str]:
    metadata = MetadataCatalog.get(name)
    files = [metadata.get("json_file"), metadata.get("list_file")]
    folders = [metadata.get("image_root"), *(os.path.dirname(file) or os.curdir for file in files if file)]
    return {os.path.realpath(folder) for folder in folders if folder}


def _folder_patients(name: str) -> set[str]:
    """Patients of a dataset that are known by the folder of their images alone."""
    return {stated_id(patient) for patient in MetadataCatalog.get(name).get("folder_patients", ())}


def in_one_folder(name: str, dicts: Sequence[dict]) -> bool:
    """Whether all images of a dataset lie in one folder, and none tells its patient: its name says nothing of them."""
    patients = {stated_id(d.get("patient_id")) for d in dicts}
    folders = {os.path.dirname(d.get("file_name", "")) for d in dicts}
    return len(folders) == len(patients) == 1 and patients <= _folder_patients(name)


def _is_prepared(name: str) -> bool:
    return MetadataCatalog.get(name).get("prepared", False)


for _set in BUILTIN_SETS:
    ensure_registered(f"{_set}_{_type}_{_split}" for _type in MASK_TYPES for _split in SPLITS)
