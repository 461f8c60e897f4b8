"""How long the runs will take and how much disk they will fill: measured on this machine, before they start.

A training step and an evaluated slice of each config are timed with an untrained model on a made-up slice; reading
files, writing checkpoints and drawing intervals are left out. So it is rough.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from ..engine.optimizer import MixedPrecision, build_optimizer
from ..engine.schedule import resolve_schedule
from ..engine.seeding import seeded
from ..engine.setup import build_for_device
from ..engine.steps import about
from .jobs import Run
from .models import SEGMENTATION

logger = logging.getLogger(__name__)

CLASSIFIER = "CovidCTMaskNet"
CALLS, ENOUGH = 4, 5.0
"""Of a step or a prediction, so many calls are timed, but none is begun after so many seconds."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step and of an evaluated slice; bytes of a model's weights and of a whole checkpoint."""

    step: float
    slice: float
    weights: int
    checkpoint: int


@dataclass(frozen=True)
class Cost:
    """What a run takes; ``seconds`` is None where it could not be measured."""

    seconds: float | None
    disk: int
    iterations: int


def measure_speed(cfg: CfgNode) -> Speed:
    """Time a training step and a prediction of the model of ``cfg``.

    A CPU takes as many times longer for a batch as there are slices in it, so there one slice is timed.
    """
    with seeded(0), EventStorage():
        model = build_for_device(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        optimizer = build_optimizer(cfg, model)
        amp = cfg.SOLVER.AMP
        precision = MixedPrecision(enabled=amp.ENABLED, dtype=amp.DTYPE, device=device.type)
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        batch_size = cfg.SOLVER.IMS_PER_BATCH
        timed = 1 if device.type == "cpu" else batch_size
        batch = [_sample(cfg, min((sizes,) if isinstance(sizes, int) else sizes))] * timed

        def step() -> None:
            with precision.autocast():
                total = sum(model(batch).values())
            precision.step(total, optimizer)

        model.train()
        step_seconds = _timed(step, device) * batch_size / timed
        model.eval()
        one = [_sample(cfg, cfg.INPUT.MIN_SIZE_TEST)]
        with torch.no_grad():
            slice_seconds = _timed(lambda: model(one), device)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        # Adam keeps two numbers beside each that trains.
        moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Speed(step_seconds, slice_seconds, weights, weights + moments)


def cost_of(run: Run, cfg: CfgNode, speed: Speed | None) -> Cost:
    """What a run of ``cfg`` takes at that speed; without one, its iterations alone are known."""
    cfg = resolve_schedule(cfg, run.training_slices)
    iterations, period = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    if speed is None:
        return Cost(None, 0, iterations)
    evaluations = math.ceil(iterations / period) if period else 1
    passes = evaluations * (1 + cfg.TEST.VALIDATION_LOSS)
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER and not cfg.MODEL.CLASSIFIER.TRAIN_NORM:
        # Detections are ranked once; what is learned from them then takes next to nothing.
        seconds = (run.training_slices + run.test_slices) * speed.slice
    else:
        seconds = iterations * speed.step + passes * run.test_slices * speed.slice
    kept = cfg.SOLVER.CHECKPOINT_KEEP or math.ceil(iterations / cfg.SOLVER.CHECKPOINT_PERIOD)
    kept = min(kept, iterations // cfg.SOLVER.CHECKPOINT_PERIOD) + 1
    return Cost(seconds, kept * speed.checkpoint + speed.weights, iterations)


def costs(runs: Sequence[Run], *, on_gpu: bool) -> dict[Run, Cost]:
    """What each run takes. Runs that differ in their seed alone are timed once; one that can't be timed costs no other
    its estimate.

    Args:
        on_gpu: time them in another process, so that this one takes no memory of the GPU from the trainings.

    Raises:
        UserError: the device of a run is not there.
    """
    if not runs:
        return {}
    speeds: dict[str, Speed | None] = {}
    found = {}
    with _calls(elsewhere=on_gpu) as call:
        configs = {run: call(Run.config, run) for run in runs}
        bar = {"unit": "run", "file": sys.stderr, "leave": False, "disable": None}
        for run in tqdm(runs, desc="timing a step of each model", **bar):
            key = f"{run.kind} {run.model.name.removesuffix('-separate')}"  # one class more changes nothing here
            if key not in speeds:
                speeds[key] = _try_to_measure(call, configs[run], run)
            found[run] = cost_of(run, configs[run], speeds[key])
    return found


@contextmanager
def _calls(*, elsewhere: bool) -> Iterator[Callable[..., Any]]:
    """Calls a function with its arguments, here or in a process that ends with the body. After one that fails, the next
    is a new process: a lack of memory may have ended the last, or an error of CUDA stay with it."""
    if not elsewhere:
        yield lambda function, *arguments: function(*arguments)
        return
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn"))]

    def call(*function_and_arguments: Any) -> Any:
        try:
            return pools[-1].submit(*function_and_arguments).result()
        except Exception:
            pools[-1].shutdown(wait=False)
            pools.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            raise

    try:
        yield call
    finally:
        pools[-1].shutdown()


def _try_to_measure(call: Callable[..., Any], cfg: CfgNode, run: Run) -> Speed | None:
    try:
        return call(measure_speed, cfg)
    except Exception as error:  # too little memory raises half a dozen kinds
        logger.warning("%s could not be timed: %s", run.name, str(error).splitlines()[0] if str(error) else error)
        return None


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few calls of ``work``: the first warms up, and others may share the machine."""
    seconds: list[float] = []
    while len(seconds) < CALLS and sum(seconds) < ENOUGH:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _sample(cfg: CfgNode, size: int) -> dict:
    """A made-up slice with three lesions and a class, as the mappers give them."""
    image = torch.randint(0, 256, (1, size, size), dtype=torch.uint8).expand(3, size, size).contiguous()
    masks = torch.zeros(3, size, size, dtype=torch.bool)
    for number, corner in enumerate((size // 8, size // 3, size // 2)):
        masks[number, corner : corner + size // 12 + 2, corner : corner + size // 8 + 2] = True
    instances = Instances((size, size))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.zeros(3, dtype=torch.int64)
    sample = {"image": image, "height": size, "width": size}
    return sample | ({"image_class": 0} if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER else {"instances": instances})


def total_words(found: dict[Run, Cost]) -> list[str]:
    """Lines of a table of the costs, for the user."""
    rows = []
    for run, cost in found.items():
        time_words = "unknown" if cost.seconds is None else about(cost.seconds)
        disk_words = "unknown" if cost.seconds is None else f"{cost.disk / 1e9:.2f} GB"
        rows.append((run.name, f"{cost.iterations} iterations", time_words, disk_words))
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def paper_minutes(runs: Iterable[Run]) -> float:
    """Minutes of training that the paper reports for the models of these runs."""
    return sum(
        (run.model.segmentation if run.kind == SEGMENTATION else run.model.classification).minutes for run in runs
    )
