"""Evaluating a model on the test sets of a config, and its loss there."""

import logging
import math
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..modeling.slice_norm import with_slice_statistics
from .inference_model import by_slice_statistics, inference_model
from .loader import Batches, eval_batches, eval_share
from .seeding import derive_seed, seeded
from .tasks import Task

logger = logging.getLogger(__name__)

_BatchNorm = torch.nn.modules.batchnorm._BatchNorm


def evaluate(cfg: CfgNode, task: Task, model: torch.nn.Module, *, final: bool) -> OrderedDict[str, Any]:
    """Evaluate ``model`` on every dataset of ``DATASETS.TEST``, by the fast copy of it that ``TEST.FAST`` asks for.

    Each evaluator writes its files below ``OUTPUT_DIR/inference/<dataset>``.

    Args:
        final: the figures are to be reported: with intervals (``TEST.BOOTSTRAP``) and the evaluator's page.

    Returns:
        The evaluator's results; with several datasets, theirs by name. Empty on all but the main process.
    """
    model = unwrapped(model)
    if not task.in_memory:  # then module S alone runs
        model = inference_model(cfg, model)
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = Path(cfg.OUTPUT_DIR) / "inference" / name
        evaluator = task.evaluator(cfg, name, folder, final)
        results[name] = inference_on_dataset(model, _batches(cfg, task, name), evaluator)
    return next(iter(results.values())) if len(results) == 1 else results


def flat_numbers(results: dict[str, Any]) -> dict[str, float]:
    """The numbers of nested results, by names such as ``segm/AP50``."""
    flat = flatten_results_dict(results)
    return {name: float(value) for name, value in flat.items() if isinstance(value, (int, float))}


def validation_losses(cfg: CfgNode, task: Task, model: torch.nn.Module, seed: int) -> dict[str, float]:
    """The mean of each training loss over the samples of ``DATASETS.TEST``, as a learner would see it.

    Nothing of the model changes, BatchNorm normalises as ``TEST.NORM_STATISTICS`` says, and the RoIs that enter the
    loss are drawn from ``seed``: the number repeats. Training's own random numbers stay untouched.

    Returns:
        ``{"val/total_loss": ..., "val/loss_mask": ...}``; the same on every process.
    """
    model = unwrapped(model)
    if by_slice_statistics(cfg):
        model = with_slice_statistics(model)
    sums: dict[str, float] = {}
    count = 0
    # Heads log counts of their RoIs while they train; those of validation go into a storage of their own.
    with seeded(0), loss_mode(model), torch.no_grad(), EventStorage():
        for name in cfg.DATASETS.TEST:
            batches = _batches(cfg, task, name)
            for index, batch in zip(eval_share(len(DatasetCatalog.get(name))), batches, strict=True):
                torch.manual_seed(derive_seed(seed, "validation", index))
                for loss, value in model(batch).items():
                    sums[loss] = sums.get(loss, 0.0) + float(value)
                count += 1
    gathered = comm.all_gather((sums, count))
    total = sum(part[1] for part in gathered)
    names = dict.fromkeys(name for part in gathered for name in part[0])
    losses = {name: math.fsum(part[0].get(name, 0.0) for part in gathered) / total for name in names}
    return {"val/total_loss": math.fsum(losses.values())} | {f"val/{name}": value for name, value in losses.items()}


@contextmanager
def loss_mode(model: torch.nn.Module) -> Iterator[None]:
    """Let ``model`` compute losses with its BatchNorm statistics as they are; every module gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside ``DistributedDataParallel``, or itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_statistics(model: torch.nn.Module) -> None:
    """Give every process the buffers of the main one.

    Each sees batches of its own, so their BatchNorm statistics differ; those of the main process are saved.
    """
    if comm.get_world_size() > 1:
        for buffer in unwrapped(model).buffers():
            torch.distributed.broadcast(buffer, 0)


def _batches(cfg: CfgNode, task: Task, name: str) -> Batches:
    dicts = DatasetCatalog.get(name)
    if not dicts:
        raise UserError(f"Dataset {name} of DATASETS.TEST is empty.")
    num_workers = 0 if task.in_memory else cfg.DATALOADER.NUM_WORKERS
    return eval_batches(dicts, task.mapper(cfg, False), seed=0, num_workers=num_workers)
