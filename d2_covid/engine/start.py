"""Where a run starts: afresh, or from its last checkpoint."""

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import UserError
from ..modeling.slice_norm import trains_batch_norm
from .carried_config import check_carried_classes
from .checkpoint import CheckpointFolder, check_facts
from .seeding import draw_seed
from .weights import load_state

logger = logging.getLogger(__name__)


def refuse_other_run(folder: CheckpointFolder) -> None:
    """Refuse to start a run where another has left checkpoints (:class:`UserError`)."""
    existing = folder.all()
    if existing:
        raise UserError(
            f"{folder.folder} holds the checkpoints of a run ({existing[-1].name}): add --resume to go on with it, or "
            "give another OUTPUT_DIR to start a new one."
        )


def load_run(model: torch.nn.Module, checkpoint: dict[str, Any], cfg: CfgNode, source: Path) -> None:
    """Load the weights of a run that is to be resumed: all of them.

    Raises:
        UserError: the checkpoint is of another model or of other image classes, or holds weights alone.
    """
    facts = checkpoint.get("d2_covid", {})
    check_facts(facts, cfg, source)
    check_carried_classes(facts, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), source)
    if "optimizer" not in checkpoint:
        raise UserError(f"{source} holds weights alone, and can't be resumed; give it as MODEL.WEIGHTS instead.")
    report = load_state(model, checkpoint["model"], str(source))
    if report.new:
        raise UserError(f"{source} lacks {len(report.new)} tensors of the model, such as {report.new[0]}.")


def start_of_run(cfg: CfgNode, checkpoint: dict[str, Any] | None) -> int:
    """The iteration to start at, the same for every process.

    Raises:
        UserError: the processes found different checkpoints, or the run has gone further than the config asks for.
    """
    start = 0 if checkpoint is None else checkpoint.get("iteration", -1) + 1
    starts = sorted(set(comm.all_gather(start)))
    if len(starts) > 1:
        raise UserError(
            f"The processes would resume at different iterations ({', '.join(map(str, starts))}): OUTPUT_DIR "
            f"{cfg.OUTPUT_DIR} must be one folder that all machines share."
        )
    if start > cfg.SOLVER.MAX_ITER:
        asked = f"SOLVER.EPOCHS {cfg.SOLVER.EPOCHS} makes" if cfg.SOLVER.EPOCHS > 0 else "SOLVER.MAX_ITER is"
        raise UserError(
            f"The run in {cfg.OUTPUT_DIR} has done {start} iterations, and {asked} {cfg.SOLVER.MAX_ITER}: give more to "
            "go on, or another OUTPUT_DIR to start a shorter run."
        )
    return start


def seed_of_run(cfg: CfgNode, checkpoint: dict[str, Any] | None, record: dict[str, Any] | None) -> int:
    """The checkpoint's seed, else the config's, else the one on record; else one is drawn."""
    if checkpoint is not None and "seed" in checkpoint.get("d2_covid", {}):
        return checkpoint["d2_covid"]["seed"]
    if cfg.SEED >= 0:
        return cfg.SEED
    return record["seed"] if record else draw_seed()


def warn_of_batches_of_one(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Warn where BatchNorm trains on one slice at a time, but will predict with running statistics.

    Args:
        model: a detector in training mode.
    """
    alone = cfg.SOLVER.IMS_PER_BATCH == comm.get_world_size()
    if alone and cfg.TEST.NORM_STATISTICS == "running" and trains_batch_norm(model):
        logger.warning(
            "SOLVER.IMS_PER_BATCH leaves each process one slice at a time: BatchNorm trains with each slice's own "
            "statistics, predicts with running ones, and may predict far worse for it. Batches of 4 avoid that; "
            "TEST.NORM_STATISTICS slice evaluates and predicts as it trained."
        )
