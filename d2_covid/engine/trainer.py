"""The training loop: one batch, one update, and the state that a resumed run needs."""

import errno
import logging
import sys
import time
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..data.files import atomic_write
from ..errors import UserError
from .carried_config import carried_facts, warn_of_silent_differences
from .checkpoint import FINAL, CheckpointFolder, model_facts, periodic_name, read_checkpoint
from .evaluation import evaluate, flat_numbers, share_statistics, unwrapped, validation_losses
from .hooks import Evaluate, ProgressBar, SaveCheckpoint, WriteMetrics, best_metric
from .inference_model import check_inference, has_bfloat16
from .loader import train_batches
from .optimizer import MixedPrecision, build_lr_scheduler, build_optimizer, check_same_optimizer, load_optimizer
from .run_record import RunRecord, check_same_run, read_record
from .schedule import resolve_schedule, scale_to_processes
from .seeding import derive_seed, seed_everything
from .setup import build_for_device
from .start import load_run, refuse_other_run, seed_of_run, start_of_run, warn_of_batches_of_one
from .stopping import StopOnSignal
from .tasks import task_of
from .training_step import training_step
from .unused_keys import check_training_keys
from .weights import load_weights

logger = logging.getLogger(__name__)

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class Trainer(TrainerBase):
    """Trains the model of a config on its datasets, evaluates it, and keeps its checkpoints and records in OUTPUT_DIR.

    Iteration i draws its random numbers from the seed, i and the rank alone, and takes the samples that a pure function
    of the seed assigns to it. So a run that was killed and resumed does the same as one that was not.

    Args:
        cfg: config; its schedule is resolved here (:func:`.schedule.resolve_schedule`).
        resume: go on from the last checkpoint in OUTPUT_DIR; without one, start.
        progress: show a progress bar; None: if stderr is a terminal.
        command: command line, for the record.

    Raises:
        UserError: anything that the user can mend: datasets, weights, an OUTPUT_DIR that holds another run.
    """

    def __init__(
        self, cfg: CfgNode, *, resume: bool = False, progress: bool | None = None, command: Sequence[str] = ()
    ) -> None:
        super().__init__()
        check_training_keys(cfg)
        cfg = scale_to_processes(cfg, comm.get_world_size())
        self.folder = CheckpointFolder(cfg.OUTPUT_DIR)
        last = self.folder.last() if resume else refuse_other_run(self.folder)
        self.task = task_of(cfg)
        if not cfg.DATASETS.TRAIN:
            raise UserError("The config names no dataset to train on; set DATASETS.TRAIN.")
        self.task.check_datasets(cfg)
        if cfg.DATASETS.TEST:
            check_inference(cfg)  # what is wrong with it is said before hours of training
        dicts = self.task.train_dicts(cfg)
        self.cfg = cfg = resolve_schedule(cfg, len(dicts))

        checkpoint = read_checkpoint(last) if last else None
        record = read_record(cfg.OUTPUT_DIR) if resume else None
        self.seed = comm.all_gather(seed_of_run(cfg, checkpoint, record))[0]
        self.start_iter, self.max_iter = start_of_run(cfg, checkpoint), cfg.SOLVER.MAX_ITER
        if record and last:
            for change in check_same_run(record, cfg):
                logger.warning("the run began with another setting: %s", change)
        logger.info("seed %d, %d training slices, %d iterations", self.seed, len(dicts), cfg.SOLVER.MAX_ITER)

        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        seed_everything(derive_seed(self.seed, "model"))
        model = build_for_device(cfg)
        if checkpoint is None:
            self.task.check_start(cfg)
            start = load_weights(model, cfg, whole=self.task.whole_start(cfg), may_be_new=self.task.may_be_new)
            if start and self.task.classifies_images:  # a detector stays as it is; a lesion model learns anew
                warn_of_silent_differences(cfg, start.facts)
        device = torch.device(cfg.MODEL.DEVICE)
        self.optimizer = build_optimizer(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        amp = cfg.SOLVER.AMP
        if amp.ENABLED and amp.DTYPE == "bfloat16" and not has_bfloat16(cfg.MODEL.DEVICE):
            faster = "SOLVER.AMP.ENABLED False" + (" or SOLVER.AMP.DTYPE float16" if device.type == "cuda" else "")
            logger.warning("this device is not known to have bfloat16 instructions; without them %s is faster", faster)
        self.precision = MixedPrecision(enabled=amp.ENABLED, dtype=amp.DTYPE, device=device.type)
        if checkpoint is not None:
            load_run(model, checkpoint, cfg, last)
            self.load_state_dict(checkpoint)
            logger.info("resuming from %s, at iteration %d of %d", last, self.start_iter, self.max_iter)
        self.done = self.start_iter  # iterations whose update, and that of the schedule, are whole
        progress = sys.stderr.isatty() if progress is None else progress
        self.task = self.task.prepared(cfg, self.task, model, progress and comm.is_main_process())
        model.train()
        warn_of_batches_of_one(cfg, model)
        devices = {} if device.type == "cuda" else {"device_ids": None}
        self.model = create_ddp_model(model, broadcast_buffers=False, **devices)

        self._batches = iter(
            train_batches(
                dicts,
                self.task.mapper(cfg, True),
                self.task.epoch_order(cfg, dicts, self.seed),
                batch_size=cfg.SOLVER.IMS_PER_BATCH,
                seed=self.seed,
                start_iter=self.start_iter,
                max_iter=self.max_iter,
                num_workers=0 if self.task.in_memory else cfg.DATALOADER.NUM_WORKERS,
                device=device,
            )
        )
        self.record = RunRecord(
            cfg,
            self.seed,
            command=command,
            first_iteration=self.start_iter,
            resumed_from=last.name if last else None,
        )
        self._register_hooks(progress)

    def _register_hooks(self, progress: bool) -> None:
        cfg, folder, period = self.cfg, Path(self.cfg.OUTPUT_DIR), self.cfg.TEST.EVAL_PERIOD
        functions = []
        if cfg.DATASETS.TEST and cfg.TEST.VALIDATION_LOSS:
            functions.append(lambda final: validation_losses(cfg, self.task, self.model, self.seed))
        if cfg.DATASETS.TEST:
            functions.append(self._evaluate)
        self.evaluation = Evaluate(folder, period, functions, best_metric(cfg)) if functions else None
        main = comm.is_main_process()
        self.stopping = StopOnSignal()
        self.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(),
                self.stopping,
                SaveCheckpoint(self.folder, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP),
                self.evaluation,
                WriteMetrics(folder, period if functions else 0) if main else None,
                ProgressBar() if main and progress else None,
            ]
        )

    def train(self) -> dict[str, float]:
        """Train to the end, or until a signal asks to stop (Ctrl-C, SIGTERM): then save where it stands, and end.

        Returns:
            The numbers of the last evaluation, such as ``{"segm/AP50": 61.0}``; empty where there was none, and on
            all but the main process.
        """
        main = comm.is_main_process()
        if main:
            self.folder.remove_leftovers()
            with atomic_write(Path(self.cfg.OUTPUT_DIR) / "config.yaml") as file:
                file.write(self.cfg.dump())
            self.record.write()
        status = "finished"
        try:
            self._loop()
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
            if isinstance(error, KeyboardInterrupt):
                self._save_where_it_stands()
            if isinstance(error, FloatingPointError):
                raise UserError(f"The model has diverged: {error} Lower SOLVER.BASE_LR, and start again.") from error
            if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
                message = f"Cannot write below {self.cfg.OUTPUT_DIR}: {error.strerror}; checkpoints so far are intact."
                raise UserError(message) from error
            raise
        finally:
            self._batches.close()  # ends the processes that read
            if main:
                self._close_record(status)
        return self.evaluation.latest if self.evaluation and main else {}

    def _loop(self) -> None:
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                self.after_train()

    def _save_where_it_stands(self) -> None:
        # Of several processes, each may have stopped within another update.
        if comm.get_world_size() > 1 or self.stopping.holding or self.done == self.start_iter:
            return
        name = FINAL if self.done == self.max_iter else periodic_name(self.done - 1)
        try:
            self.folder.save(name, self.state_dict(), keep=self.cfg.SOLVER.CHECKPOINT_KEEP)
        except UserError as error:
            logger.warning("%s", error)  # the run goes on from an earlier one

    def _evaluate(self, final: bool) -> dict[str, float]:
        return flat_numbers(evaluate(self.cfg, self.task, self.model, final=final))

    def _close_record(self, status: str) -> None:
        try:
            self.record.finish(status, self.done, self.evaluation.latest if self.evaluation else None)
        except UserError as error:
            if status == "finished":
                raise
            logger.warning("%s", error)  # what stopped the run is the news, and is on its way

    def run_step(self) -> None:
        """One batch and one update."""
        started = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - started
        self.stopping.hold()
        seed_everything(derive_seed(self.seed, "step", self.iter, comm.get_rank()))
        try:
            losses, others = training_step(self.model, batch, self.precision, self.optimizer)
        except FloatingPointError as error:  # Detectron2's RPN raises it for proposals
            files = ", ".join(str(sample.get("file_name", "?")) for sample in batch)
            raise UserError(
                f"The loss is no longer finite at iteration {self.iter}, with {files} ({error}). Lower SOLVER.BASE_LR, "
                "or set SOLVER.CLIP_GRADIENTS.ENABLED True, and start again."
            ) from error
        self.storage.put_scalars(**others)
        self._log(losses, data_time)

    def _log(self, losses: dict[str, float], data_time: float) -> None:
        gathered = comm.gather((losses, data_time))
        if comm.is_main_process():
            means = {name: float(np.mean([part[0][name] for part in gathered])) for name in losses}
            self.storage.put_scalars(
                total_loss=sum(means.values()), data_time=max(part[1] for part in gathered), **means
            )

    def synchronize_statistics(self) -> None:
        """Before an evaluation: every process evaluates the model that is saved."""
        share_statistics(self.model)

    def weights(self) -> dict[str, Any]:
        """The model's tensors and facts: what a checkpoint holds for others than the run itself."""
        facts = model_facts(self.cfg, classifier=self.task.classifies_images)
        facts |= carried_facts(self.cfg) | {"seed": self.seed}
        return {"model": unwrapped(self.model).state_dict(), "d2_covid": facts}

    def state_dict(self) -> dict[str, Any]:
        """A whole checkpoint: weights, optimiser, schedule, loss scaling, and the last iteration done."""
        return {
            **self.weights(),
            "iteration": self.done - 1,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "grad_scaler": self.precision.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over all of :meth:`state_dict` but the weights.

        Raises:
            UserError: another optimiser, or another set of parameters, than the checkpoint's.
        """
        saved = state_dict["optimizer"]
        check_same_optimizer(self.optimizer.state_dict()["param_groups"], saved["param_groups"])
        load_optimizer(self.optimizer, saved)
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self.precision.load_state_dict(state_dict["grad_scaler"])
