"""The fast schedule of the classifier: with BatchNorm frozen, ranked batches never change, so the detector runs once.

``MODEL.CLASSIFIER.TRAIN_NORM False`` leaves module S alone to train. Then each slice's ranked batch is a constant: it
is computed once, kept on disk, and S trains and is evaluated on what is kept. Checkpoints still hold the whole model.

Shape shorthand: D ranked detections an image, M slices.
"""

import hashlib
import json
import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tqdm import tqdm

from ..errors import UserError
from .checkpoint import read_checkpoint, write_checkpoint
from .folder_lock import held_in_turn
from .inference_model import inference_model
from .loader import Mapper, eval_batches
from .run_record import plain_config

if TYPE_CHECKING:  # tasks.py imports this module
    from .tasks import Task

logger = logging.getLogger(__name__)

VERSION = 2
"""Raised when ranked batches of the same weights and config would come out different."""

SHARD = 128
"""Slices in one file: what an interrupted run loses at most."""

# Neither module S nor the mask head has a part in a ranked batch.
_OTHER_PARTS = ("roi_heads.image_classifier.", "roi_heads.mask_head.")
_OTHER_KEYS = {"WEIGHTS", "DEVICE", "MASK_ON", "ROI_MASK_HEAD"}
_RANKING_KEYS = {"NUM_ROIS", "FEATURES", "SCORE_THRESH", "NMS_THRESH", "DROP_EMPTY", "PADDING", "PADDING_SEED"}


def can_cache(cfg: CfgNode, task: "Task") -> bool:
    """Whether every pass over the training set would give the same ranked batches: a classifier whose detector is
    frozen, BatchNorm included, on slices that training neither augments nor resizes in another way than evaluation."""
    if cfg.MODEL.META_ARCHITECTURE != "CovidCTMaskNet" or cfg.MODEL.CLASSIFIER.TRAIN_NORM:
        return False
    training, evaluation = task.mapper(cfg, True), task.mapper(cfg, False)
    constant = not training.draws and (training.min_sizes, training.max_size) == (
        evaluation.min_sizes,
        evaluation.max_size,
    )
    if not constant:
        logger.info("ranked detections are computed anew for every pass: the INPUT keys let slices vary in training")
    return constant


def cached_task(cfg: CfgNode, task: "Task", model: torch.nn.Module, *, progress: bool = False) -> "Task":
    """``task`` with a mapper that takes ranked batches from the cache, for training and test sets alike.

    Where they are not constant (:func:`can_cache`), ``task`` as it is.

    Computes what the cache lacks with ``model``, one slice at a time as evaluation does, so that the numbers are those
    of the uncached model. Several processes share the work.

    Args:
        model: a :class:`~d2_covid.modeling.CovidCTMaskNet` with its weights loaded.
        progress: show a progress bar.
    """
    if not can_cache(cfg, task):
        return task
    dicts = [*task.train_dicts(cfg), *(d for name in cfg.DATASETS.TEST for d in DatasetCatalog.get(name))]
    unique = list({d["file_name"]: d for d in dicts}.values())
    rows = ranked_rows(cfg, model, unique, task.mapper(cfg, False), progress=progress)
    mapper = CachedRows({d["file_name"]: i for i, d in enumerate(unique)}, rows)
    # What is in memory needs no worker processes to read it.
    return replace(task, mapper=lambda cfg, is_train: mapper, in_memory=True)


class CachedRows:
    """From a slice dataset dict to a copy of it with ``ranked_rows`` (D, 5), which stands in for ``image``."""

    draws = False

    def __init__(self, index: dict[str, int], rows: torch.Tensor) -> None:
        """
        Args:
            index: from file name to position in ``rows``.
            rows: (M, D, 5).
        """
        self._index, self._rows = index, rows

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        return dict(dataset_dict, ranked_rows=self._rows[self._index[dataset_dict["file_name"]]])


def ranked_rows(
    cfg: CfgNode, model: torch.nn.Module, dicts: Sequence[dict], mapper: Mapper, *, progress: bool = False
) -> torch.Tensor:
    """Ranked batches (M, D, 5) of the slices ``dicts``, on the CPU; those that the cache lacks are computed and kept.

    Raises:
        UserError: a slice can't be read, or the cache not written.
    """
    folder = Path(cfg.MODEL.CLASSIFIER.CACHE_DIR or Path(cfg.OUTPUT_DIR) / "ranked_cache")
    detector = detector_fingerprint(cfg, model)
    shards = [dicts[i : i + SHARD] for i in range(0, len(dicts), SHARD)]
    paths = [folder / f"{_fingerprint([detector, _stamps(shard)])[:32]}.pth" for shard in shards]
    shape = (cfg.MODEL.CLASSIFIER.NUM_ROIS, 5)

    mine = range(comm.get_rank(), len(shards), comm.get_world_size())

    def lacks(i: int) -> bool:
        return _read(paths[i], (len(shards[i]), *shape)) is None

    if missing := [i for i in mine if lacks(i)]:
        count = sum(len(shards[i]) for i in missing)
        logger.info("computing the ranked detections of %d of %d slices, once, into %s", count, len(dicts), folder)
        bar = tqdm(total=count, unit="slice", desc="ranked detections", disable=not progress)
        fast = inference_model(cfg, model)
        with bar, _in_turn(folder, detector):
            for i in missing:
                if lacks(i):
                    _compute(fast, shards[i], mapper, cfg.DATALOADER.NUM_WORKERS, paths[i])
                bar.update(len(shards[i]))
    comm.synchronize()
    parts = [_read(path, (len(shard), *shape)) for path, shard in zip(paths, shards)]
    if any(part is None for part in parts):
        raise UserError(f"The cache {folder} changed while it was read; start again.")
    return torch.cat(parts) if parts else torch.zeros(0, *shape)


def detector_fingerprint(cfg: CfgNode, model: torch.nn.Module) -> str:
    """SHA-256 of all that ranked batches depend on besides the slices: the detector's weights and the config's keys."""
    settings = plain_config(cfg.MODEL)
    ranking = {key: value for key, value in settings.pop("CLASSIFIER").items() if key in _RANKING_KEYS}
    settings = {key: value for key, value in settings.items() if key not in _OTHER_KEYS}
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(_OTHER_PARTS):
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    model_of_test = [cfg.TEST.FAST, cfg.TEST.DTYPE]
    return _fingerprint([VERSION, settings, ranking, plain_config(cfg.INPUT), *model_of_test, weights.hexdigest()])


@contextmanager
def _in_turn(folder: Path, detector: str) -> Iterator[None]:
    """One run at a time computes what a shared folder lacks of a detector; the next finds it there. The processes of a
    run share the work instead."""
    if comm.get_world_size() > 1:
        yield
        return
    lock = folder / f".computing-{detector[:16]}"  # not the folder: a training may hold that
    try:
        lock.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write the cache {folder}: {error.strerror}.") from error
    with held_in_turn(lock, lambda: logger.info("another run computes ranked detections in %s; waiting", folder)):
        yield


def _compute(model: torch.nn.Module, dicts: Sequence[dict], mapper: Mapper, num_workers: int, path: Path) -> None:
    batches = eval_batches(dicts, mapper, seed=0, num_workers=num_workers, share=range(len(dicts)))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        rows = [model.ranked_rows(batch)[0].cpu() for batch in batches]
    model.train(was_training)
    write_checkpoint(path, {"rows": torch.stack(rows)})


def _read(path: Path, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The rows in a file of the cache; None where it is not there, or damaged."""
    if not path.is_file():
        return None
    try:
        rows = read_checkpoint(path)["model"].get("rows", torch.empty(0))
    except UserError as error:
        logger.warning("%s; computing it again", error)
        return None
    return rows if rows.shape == shape else None


def _stamps(dicts: Sequence[dict]) -> list:
    """What tells a slice file from another, or from its earlier self: name, size and time of the last change."""
    stats = []
    for d in dicts:
        try:
            stat = os.stat(d["file_name"])
        except OSError as error:
            raise UserError(f"Cannot read {d['file_name']}: {error.strerror}.") from error
        stats.append([os.path.abspath(d["file_name"]), stat.st_size, stat.st_mtime_ns])
    return stats


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
