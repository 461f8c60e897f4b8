"""What depends on the kind of data a model trains on: its checks, mapper, evaluator and order of samples.

The kind is the ``evaluator_type`` in a dataset's metadata. The trainer, the evaluation and the tools know nothing of
it: a new kind is an entry of :data:`TASKS`.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import DatasetEvaluator

from ..data.annotations import crowd_message
from ..data.datasets import check_datasets, ensure_registered
from ..data.mappers import LesionDatasetMapper
from ..data.slice_datasets import EVALUATOR_TYPE, SAMPLINGS, check_slice_datasets, train_slices
from ..data.slice_mapper import SliceMapper
from ..data.slices import balanced_indices
from ..errors import UserError, check_choice
from ..evaluation.classification import ImageClassEvaluator
from ..evaluation.lesion import LesionEvaluator
from ..visualization.classification_page import write_classification_page
from .loader import EpochOrder, Mapper, shuffled_order
from .ranked_cache import cached_task
from .seeding import derive_seed
from .weights import SCHEME

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """How models learn from datasets of one kind, and how they are judged.

    Args:
        check_datasets: refuses datasets that would spoil a run.
        train_dicts: dataset dicts of the training set.
        mapper: from config and ``is_train`` to the mapper of samples; with ``is_train`` False, samples still carry
            their ground truth, for the validation loss.
        evaluator: from config, dataset name, output folder, and whether the figures are to be reported; those on the
            way have neither intervals nor a page, which take their time.
        epoch_order: from config, dataset dicts and seed to the order of samples.
        classifies_images: whether checkpoints carry the facts of the image classifier.
        may_be_new: prefixes of tensors that starting weights of a whole model may lack.
        check_start: refuses starting weights (``MODEL.WEIGHTS``) that a training run can't begin with.
        whole_start: starting weights must hold all of the model but ``may_be_new``.
        prepared: from config, the task itself, the model with its weights, and whether to show a progress bar, to the
            task that training and evaluation go on with.
        in_memory: the mapper reads no files, so that worker processes would only cost time.
    """

    check_datasets: Callable[[CfgNode], None]
    train_dicts: Callable[[CfgNode], list[dict]]
    mapper: Callable[[CfgNode, bool], Mapper]
    evaluator: Callable[[CfgNode, str, Path, bool], DatasetEvaluator]
    epoch_order: Callable[[CfgNode, Sequence[dict], int], EpochOrder]
    classifies_images: bool = False
    may_be_new: tuple[str, ...] = ()
    check_start: Callable[[CfgNode], None] = lambda cfg: None
    whole_start: Callable[[CfgNode], bool] = lambda cfg: False
    prepared: Callable[[CfgNode, "Task", torch.nn.Module, bool], "Task"] = lambda cfg, task, model, progress: task
    in_memory: bool = False


def lesion_train_dicts(cfg: CfgNode) -> list[dict]:
    """Slices of ``DATASETS.TRAIN``; those without a lesion stay unless ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

    Raises:
        UserError: there are none, none has a lesion, or all annotations of a dataset are crowd regions.
    """
    names = list(cfg.DATASETS.TRAIN)
    loaded = [DatasetCatalog.get(name) for name in names]
    for name, found in zip(names, loaded, strict=True):
        if not found:
            raise UserError(f"Dataset {name} of DATASETS.TRAIN is empty.")
        crowd = [annotation.get("iscrowd", 0) for d in found for annotation in d["annotations"]]
        if crowd and all(crowd):
            raise UserError(crowd_message(f"Dataset {name} of DATASETS.TRAIN", len(crowd), len(crowd)))
    dicts = [d for found in loaded for d in found]
    count_lesions(names, dicts)
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return dicts
    # Names of classes may differ: check_datasets has seen to their number and order.
    return get_detection_dataset_dicts(names, filter_empty=True, check_consistency=False)


def count_lesions(names: Sequence[str], dicts: Sequence[dict]) -> None:
    """Log how many lesions of each class the slices of a training set have; crowd regions are none. A class that never
    occurs is warned of.

    Args:
        names: its datasets; classes are called as in the first.
        dicts: dataset dicts of all of them.

    Raises:
        UserError: there is no lesion.
    """
    listed = ", ".join(names)
    lesions = [[a["category_id"] for a in d["annotations"] if not a.get("iscrowd", 0)] for d in dicts]
    counts = Counter(category for of_slice in lesions for category in of_slice)
    if not counts:
        raise UserError(
            f"No slice of DATASETS.TRAIN ({listed}) has a lesion, and a model learns nothing without; give annotations "
            "with iscrowd 0, or another dataset."
        )
    classes = MetadataCatalog.get(names[0]).get("thing_classes", [])
    by_class = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(classes))
    with_lesion = sum(map(bool, lesions))
    message = "DATASETS.TRAIN (%s): %d lesions (%s), on %d of %d slices"
    logger.info(message, listed, counts.total(), by_class, with_lesion, len(dicts))
    if absent := [name for number, name in enumerate(classes) if not counts[number]]:
        message = "No lesion of DATASETS.TRAIN (%s) is of class %s: it can't be learned."
        logger.warning(message, listed, ", ".join(absent))


def check_lesions(cfg: CfgNode) -> None:
    """Refuse to train a classifier on lesions, and datasets that would spoil a run."""
    if cfg.DATASETS.TRAIN and cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet":
        raise UserError(
            f"{', '.join(cfg.DATASETS.TRAIN)} holds lesions, and a CovidCTMaskNet learns classes of slices: use a "
            "config of configs/segmentation, or a dataset of slices."
        )
    check_datasets(cfg)


def check_classifier(cfg: CfgNode) -> None:
    """Refuse a config for slice classes whose model does not classify, or whose datasets or the way to judge on them
    would spoil a run."""
    if cfg.MODEL.META_ARCHITECTURE != "CovidCTMaskNet":
        names = ", ".join([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        raise UserError(
            f"{names} holds classes of slices, and the model, a {cfg.MODEL.META_ARCHITECTURE}, finds lesions: use a "
            "config of configs/classification, or a dataset of lesions."
        )
    check_choice("DATALOADER.SLICE_SAMPLING", cfg.DATALOADER.SLICE_SAMPLING, SAMPLINGS)
    if cfg.DATASETS.TEST and cfg.TEST.PATIENT_K < 1:
        raise UserError(f"TEST.PATIENT_K must be 1 or more slices, not {cfg.TEST.PATIENT_K}.")
    check_slice_datasets(cfg)


def check_detector(cfg: CfgNode) -> None:
    """Refuse to train a classifier before there is a detector to build on, unless the config asks for it."""
    weights = cfg.MODEL.WEIGHTS
    if (not weights or weights.startswith(SCHEME)) and not cfg.MODEL.CLASSIFIER.ALLOW_SCRATCH:
        raise UserError(
            f"The classifier reads a trained segmentation model, and MODEL.WEIGHTS is {weights!r}: give it a "
            "checkpoint of one (or set MODEL.CLASSIFIER.ALLOW_SCRATCH True to train on an untrained detector)."
        )


def slice_order(cfg: CfgNode, dicts: Sequence[dict], seed: int) -> EpochOrder:
    """Order of slices by ``DATALOADER.SLICE_SAMPLING``: a permutation, or a class-balanced draw for each epoch."""
    if cfg.DATALOADER.SLICE_SAMPLING == "as_is":
        return shuffled_order(len(dicts), seed)
    classes = [d["image_class"] for d in dicts]
    return lambda epoch: balanced_indices(classes, np.random.default_rng(derive_seed(seed, "epoch", epoch)))


TASKS: dict[str, Task] = {
    EVALUATOR_TYPE: Task(
        check_datasets=check_classifier,
        train_dicts=train_slices,
        mapper=lambda cfg, is_train: SliceMapper(cfg, is_train=is_train),
        evaluator=lambda cfg, name, folder, final: ImageClassEvaluator.from_config(
            cfg, name, folder, None if final else 0, write_classification_page if final else None
        ),
        epoch_order=slice_order,
        classifies_images=True,
        may_be_new=("roi_heads.image_classifier.",),
        check_start=check_detector,
        whole_start=lambda cfg: not cfg.MODEL.CLASSIFIER.ALLOW_SCRATCH,
        prepared=lambda cfg, task, model, progress: cached_task(cfg, task, model, progress=progress),
    ),
    "lesion": Task(
        check_datasets=check_lesions,
        train_dicts=lesion_train_dicts,
        mapper=lambda cfg, is_train: LesionDatasetMapper(cfg, is_train=is_train),
        evaluator=lambda cfg, name, folder, final: LesionEvaluator.from_config(cfg, name, folder, None if final else 0),
        epoch_order=lambda cfg, dicts, seed: shuffled_order(len(dicts), seed),
    ),
}


def task_of(cfg: CfgNode) -> Task:
    """The task of the datasets of ``cfg``; registers those that are named after a prepared set.

    Raises:
        UserError: no dataset, one that nobody knows, or two of different kinds.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise UserError("The config names no dataset; set DATASETS.TRAIN and DATASETS.TEST.")
    ensure_registered(names)
    kinds = {name: MetadataCatalog.get(name).get("evaluator_type", "none") for name in names}
    for name, kind in kinds.items():
        if kind not in TASKS:
            raise UserError(f"Dataset {name} is of kind {kind!r}; d2_covid trains on {', '.join(TASKS)}.")
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserError(f"DATASETS.TRAIN and DATASETS.TEST must be of one kind: {listed}.")
    return TASKS[kinds[names[0]]]
