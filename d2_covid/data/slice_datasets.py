"""Names of slice data sets for the image classifier, and what a config asks of them.

Importing this module registers ``covidx_ct_{train,val,test}``, ``phantom_classes_{train,val}`` and
``covid_ct_{train,val}`` with Detectron2. Nothing is read until a name is asked for; ``$DETECTRON2_DATASETS`` is looked
up then.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .datasets import check_patient_splits, datasets_root, set_metadata
from .patient_ids import stated_id
from .slice_lists import IMAGE_CLASSES, remark_on_first
from .slices import load_slices
from .stored_range import warn_of_misread_images

logger = logging.getLogger(__name__)

EVALUATOR_TYPE = "image_class"
COVID_CT_CLASSES = ("not COVID-19", "COVID-19")
SAMPLINGS = ("as_is", "balanced")


@dataclass(frozen=True)
class SliceSource:
    """Where a registered name finds its list and images. Paths of a ``prepared`` set, which has a ``hint`` how to make
    it, are relative to ``$DETECTRON2_DATASETS``."""

    list_file: Path
    image_root: Path
    image_classes: tuple[str, ...]
    split: str | None = None
    prepared: bool = False
    hint: str = "Give --register-slices the list you mean."


_PREPARE_COVIDX = "Make it with `python datasets/prepare_covidx_ct.py`"
_PREPARE_PHANTOM = "Make it with `python datasets/prepare_phantoms.py`"
_PREPARE_COVID_CT = "datasets/README.md says how it is laid out"

_BUILTIN = {
    **{
        f"covidx_ct_{split}": SliceSource(
            Path("covidx_ct", f"{split}.csv"), Path("covidx_ct/image"), IMAGE_CLASSES, None, True, _PREPARE_COVIDX
        )
        for split in ("train", "val", "test")
    },
    **{
        f"phantom_classes_{split}": SliceSource(
            Path("phantom/classes.csv"), Path("phantom/image"), IMAGE_CLASSES, split, True, _PREPARE_PHANTOM
        )
        for split in ("train", "val")
    },
    **{
        f"covid_ct_{split}": SliceSource(
            Path("covid_ct/split.csv"), Path("covid_ct"), COVID_CT_CLASSES, split, True, _PREPARE_COVID_CT
        )
        for split in ("train", "val")
    },
}

_sources: dict[str, SliceSource] = {}


def register_slices(
    name: str,
    list_file: str | Path,
    image_root: str | Path,
    image_classes: Sequence[str] | None = None,
    split: str | None = None,
) -> None:
    """Give a list of slices a dataset name, for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Nothing is read until the name is used. Registering the same data under the same name again does nothing.

    Args:
        name: any name not in use.
        list_file, image_root, split: see :func:`.slices.load_slices`; a ``list_file`` "PATH:SPLIT" names the split too.
        image_classes: names in the order of their numbers, the first that without disease; None for the paper's three.

    Raises:
        UserError: the name stands for other data.
    """
    if split is None and not Path(list_file).exists() and ":" in Path(list_file).name:
        list_file, _, split = str(list_file).rpartition(":")
    classes = IMAGE_CLASSES if image_classes is None else tuple(image_classes)
    _register(name, SliceSource(Path(list_file), Path(image_root), classes, split))


def register_slices_option(values: Sequence[str]) -> None:
    """Register what ``--register-slices NAME LIST[:SPLIT] IMAGES [CLASS ...]`` was given.

    Raises:
        UserError: fewer than three values, one class, or a name that stands for other data.
    """
    if len(values) < 3 or len(values) == 4:
        raise UserError(
            f"--register-slices {' '.join(values)}: it takes NAME LIST[:SPLIT] IMAGES, and, unless the classes are "
            f"{', '.join(IMAGE_CLASSES)}, the names of two classes or more."
        )
    register_slices(values[0], values[1], values[2], values[3:] or None)


def check_slice_datasets(cfg: CfgNode) -> None:
    """Load every dataset of a classification config, and refuse what would spoil a run after hours.

    Patients and files of training and test are compared by :func:`.datasets.check_patient_splits`. Slices that name no
    patient, images that are read as nearly one gray, and a first class that is a disease by its name, are warned of.

    Raises:
        UserError: an image or a list is missing, the classes differ between the sets or in number from the model's, a
            training set lacks a class, or a patient or an image is in training and test.
    """
    loaded = {name: DatasetCatalog.get(name) for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])}
    check_image_classes(cfg, list(loaded))
    for name, dicts in loaded.items():
        counts = Counter(d["image_class"] for d in dicts)
        listed = ", ".join(f"{c} {counts[number]}" for number, c in enumerate(MetadataCatalog.get(name).image_classes))
        logger.info("%s: %d slices (%s)", name, len(dicts), listed)
        if unnamed := sum(not stated_id(d.get("patient_id")) for d in dicts):
            message = "%s: %d of %d slices name no patient; sets can't be told apart by patient, nor scored by patient."
            logger.warning(message, name, unnamed, len(dicts))
    check_patient_splits(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, loaded)
    warn_of_misread_images(loaded)
    classes = MetadataCatalog.get(next(iter(loaded))).image_classes
    if remark := remark_on_first(classes):
        logger.warning("%s; register the classes with that one first, and number the labels so.", remark)
    present = {d["image_class"] for name in cfg.DATASETS.TRAIN for d in loaded[name]}
    if cfg.DATASETS.TRAIN and len(present) < len(classes):
        absent = ", ".join(name for number, name in enumerate(classes) if number not in present)
        raise UserError(f"No slice of DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN)}) is of class {absent}.")


def check_image_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Refuse datasets whose classes differ, or are another number than the model's (:class:`UserError`)."""
    for name in names:
        classes = MetadataCatalog.get(name).get("image_classes")
        if not classes:
            raise UserError(f"Dataset {name} has no image classes; register it with --register-slices.")
        if len(classes) != cfg.MODEL.CLASSIFIER.NUM_CLASSES:
            raise UserError(
                f"Dataset {name} has {len(classes)} image classes ({', '.join(classes)}), and the model has "
                f"{cfg.MODEL.CLASSIFIER.NUM_CLASSES}; set MODEL.CLASSIFIER.NUM_CLASSES {len(classes)}, or name the "
                "classes when you register it."
            )
        first = MetadataCatalog.get(names[0]).image_classes
        if list(classes) != list(first):
            raise UserError(
                f"Dataset {name} has the image classes {', '.join(classes)}, and {names[0]} has {', '.join(first)}."
            )


def train_slices(cfg: CfgNode) -> list[dict[str, Any]]:
    """Dataset dicts of ``DATASETS.TRAIN``, in order, with an ``image_id`` that is unique among them."""
    dicts = [d for name in cfg.DATASETS.TRAIN for d in DatasetCatalog.get(name)]
    return [d | {"image_id": number} for number, d in enumerate(dicts)]


def _register(name: str, source: SliceSource) -> None:
    if _sources.get(name) == source:
        return
    if name in DatasetCatalog:
        raise UserError(f"The dataset name {name} is taken; choose another.")
    _sources[name] = source
    DatasetCatalog.register(name, lambda: _load(name))
    MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, image_classes=list(source.image_classes))


def slice_source(name: str) -> SliceSource | None:
    """List, images, classes and split behind a dataset name, with whole paths; None for one not registered here.

    Raises:
        UserError: the list is not there; the message says how to make it.
    """
    if name not in _sources:
        return None
    source = _sources[name]
    root = datasets_root() if source.prepared else Path()
    list_file = root / source.list_file
    if not list_file.is_file():
        hint = source.hint
        if source.prepared:
            hint += f", or set DETECTRON2_DATASETS to the folder that holds {source.list_file.parent}/."
        raise UserError(f"Dataset {name} needs {list_file}, which is not there. {hint}")
    return replace(source, list_file=list_file, image_root=root / source.image_root)


def _load(name: str) -> list[dict[str, Any]]:
    source = slice_source(name)
    dicts = load_slices(source.list_file, source.image_root, source.image_classes, source.split)
    set_metadata(
        name,
        evaluator_type=EVALUATOR_TYPE,
        image_classes=list(source.image_classes),
        list_file=str(source.list_file),
        image_root=str(source.image_root),
        prepared=source.prepared,
    )
    return dicts


for _name, _source in _BUILTIN.items():
    _register(_name, _source)
