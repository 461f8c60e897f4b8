"""A whole training run or evaluation, from a config to its numbers."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data.files import sha256_of, write_json
from ..errors import UserError
from .carried_config import check_carried_classes, warn_of_silent_differences
from .checkpoint import CheckpointFolder
from .cores import limit_threads
from .evaluation import evaluate, flat_numbers
from .folder_lock import held
from .inference_model import check_inference
from .run_record import describe_data, device_name, finite, now, versions
from .setup import build_for_device, log_device, start_log
from .tasks import task_of
from .trainer import Trainer
from .weights import load_weights

logger = logging.getLogger(__name__)


def run_training(
    cfg: CfgNode, *, resume: bool = False, progress: bool | None = None, command: Sequence[str] = ()
) -> dict[str, float]:
    """Train the model of ``cfg``; see :class:`.trainer.Trainer`.

    Returns:
        The numbers of the last evaluation, by names such as ``segm/AP50``.

    Raises:
        UserError: as the trainer's, or another training runs in ``OUTPUT_DIR``.
    """
    start_log(cfg.OUTPUT_DIR)
    limit_threads()
    with held(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
        log_device(cfg)
        return Trainer(cfg, resume=resume, progress=progress, command=command).train()


def run_evaluation(cfg: CfgNode, *, resume: bool = False, command: Sequence[str] = ()) -> dict[str, float]:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``; ``OUTPUT_DIR/evaluation.json`` keeps the record.

    Args:
        resume: evaluate the last checkpoint in ``OUTPUT_DIR`` instead.

    Returns:
        The numbers, by names such as ``segm/AP50``; empty on all but the main process.

    Raises:
        UserError: no weights, weights of another model or of other image classes, or nothing to evaluate on.
    """
    if resume:
        last = CheckpointFolder(cfg.OUTPUT_DIR).last()
        if last is None:
            raise UserError(f"{cfg.OUTPUT_DIR} has no checkpoint to evaluate; give MODEL.WEIGHTS, without --resume.")
        cfg.MODEL.WEIGHTS = str(last)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs the model to evaluate: give MODEL.WEIGHTS the path of a checkpoint.")
    if not cfg.DATASETS.TEST:
        raise UserError("The config names no dataset to evaluate on; set DATASETS.TEST.")
    cfg.DATASETS.TRAIN = ()
    task = task_of(cfg)
    task.check_datasets(cfg)
    check_inference(cfg)  # what is wrong with it is said before the weights are read
    start_log(cfg.OUTPUT_DIR)
    limit_threads()
    log_device(cfg)
    started = now()
    model = build_for_device(cfg)
    facts = load_weights(model, cfg, complete=True).facts
    check_carried_classes(facts, cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS)
    warn_of_silent_differences(cfg, facts)
    numbers = flat_numbers(evaluate(cfg, task, model.eval(), final=True))
    if comm.is_main_process():
        record = {
            "weights": cfg.MODEL.WEIGHTS,
            "weights_sha256": sha256_of(cfg.MODEL.WEIGHTS) if Path(cfg.MODEL.WEIGHTS).is_file() else None,
            "command": list(command),
            "started": started,
            "ended": now(),
            "versions": versions(),
            "device": device_name(cfg.MODEL.DEVICE),
            "data": describe_data(cfg)["test"],
            "result": finite(numbers),
        }
        write_json(Path(cfg.OUTPUT_DIR) / "evaluation.json", record)
    return numbers
