"""The schedule of a run: from passes over the data to iterations."""

import math

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ..errors import UserError


def scale_to_processes(cfg: CfgNode, count: int) -> CfgNode:
    """The config for so many processes (one a GPU): itself, but where ``SOLVER.REFERENCE_WORLD_SIZE`` is set a copy
    whose batch, learning rate and schedule Detectron2 has scaled from that number of processes to ``count``.

    Raises:
        UserError: they can't share a batch evenly.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference > 0 and cfg.SOLVER.IMS_PER_BATCH % reference):
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} must be 0, or processes that share SOLVER.IMS_PER_BATCH "
            f"{cfg.SOLVER.IMS_PER_BATCH} evenly."
        )
    cfg = DefaultTrainer.auto_scale_workers(cfg, count)
    if cfg.SOLVER.IMS_PER_BATCH % count:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} can't be shared evenly by {count} processes; use a "
            f"multiple of {count}, and a SOLVER.BASE_LR to go with it."
        )
    return cfg


def resolve_schedule(cfg: CfgNode, num_samples: int) -> CfgNode:
    """A frozen copy of ``cfg`` whose schedule counts iterations, for any batch size.

    With ``SOLVER.EPOCHS`` above 0, one pass is ``num_samples / IMS_PER_BATCH`` iterations, not rounded (batches run on
    over the end of a pass), and

    - ``SOLVER.MAX_ITER`` is the number of iterations that see every sample ``EPOCHS`` times, rounded up;
    - ``SOLVER.STEPS`` are ``STEP_FRACTIONS`` of it, rounded to the nearest iteration (halves to even);
    - ``SOLVER.CHECKPOINT_PERIOD`` is ``CHECKPOINT_EPOCHS`` passes and ``TEST.EVAL_PERIOD`` ``EVAL_EPOCHS`` passes,
      rounded likewise, at least 1; ``EVAL_EPOCHS 0`` leaves evaluation to the end of the run, and so does
      ``CHECKPOINT_EPOCHS 0`` for checkpoints.

    Otherwise the numbers of the config hold. Resolving twice changes nothing.

    Raises:
        UserError: a setting that makes no schedule; the message names it.
    """
    if num_samples < 1:
        raise UserError("The training set is empty; look at DATASETS.TRAIN and DATALOADER.FILTER_EMPTY_ANNOTATIONS.")
    if cfg.SOLVER.IMS_PER_BATCH < 1:
        raise UserError(f"SOLVER.IMS_PER_BATCH must be 1 or more, not {cfg.SOLVER.IMS_PER_BATCH}.")
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    if solver.EPOCHS < 0:
        raise UserError(f"SOLVER.EPOCHS must be 0 (use SOLVER.MAX_ITER) or more, not {solver.EPOCHS}.")
    if solver.EPOCHS > 0:
        solver.MAX_ITER = math.ceil(solver.EPOCHS * num_samples / solver.IMS_PER_BATCH)
        wrong = [fraction for fraction in solver.STEP_FRACTIONS if not 0 < fraction < 1]
        if wrong:
            raise UserError(f"SOLVER.STEP_FRACTIONS must lie between 0 and 1, not {wrong[0]}.")
        solver.STEPS = tuple(sorted({round(fraction * solver.MAX_ITER) for fraction in solver.STEP_FRACTIONS} - {0}))
        solver.CHECKPOINT_PERIOD = _period(solver.CHECKPOINT_EPOCHS, num_samples, cfg) or solver.MAX_ITER
        cfg.TEST.EVAL_PERIOD = _period(cfg.TEST.EVAL_EPOCHS, num_samples, cfg)
    if solver.MAX_ITER < 1:
        raise UserError(f"SOLVER.MAX_ITER must be 1 or more, not {solver.MAX_ITER}; or set SOLVER.EPOCHS.")
    if solver.CHECKPOINT_PERIOD < 1:
        raise UserError(f"SOLVER.CHECKPOINT_PERIOD must be 1 or more, not {solver.CHECKPOINT_PERIOD}.")
    # Steps after the end are no steps; Detectron2 would warn about them at every start.
    solver.STEPS = tuple(step for step in solver.STEPS if step < solver.MAX_ITER)
    cfg.freeze()
    return cfg


def _period(epochs: float, num_samples: int, cfg: CfgNode) -> int:
    return max(1, round(epochs * num_samples / cfg.SOLVER.IMS_PER_BATCH)) if epochs > 0 else 0
