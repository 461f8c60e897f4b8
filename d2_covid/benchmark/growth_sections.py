"""How time and memory grow: with the slices of a series, and with the lesions of a slice."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from ..data.cncb import prepare_lesions
from ..data.datasets import register_lesions
from ..data.intensity import Unit
from ..data.mappers import LesionDatasetMapper
from ..data.pairing import pair_cncb
from ..data.volumes import Series
from ..engine.tasks import task_of
from ..inference.predictor import Predictor
from .child import current_bytes, peak_bytes, peak_of, run_job
from .context import Bench
from .growth import growth
from .inputs import many_lesions
from .memory import MB
from .results import Section
from .series_sections import write_weights
from .training_sections import TRAINING, training_steps


def slices(bench: Bench) -> Section:
    """A series of 1, 10, 100 and 1,000 slices through the predictor: seconds and memory."""
    counts = [1, 10, 100] if bench.settings.quick else [1, 10, 100, 1000]
    # A quarter of the usual pixels, so that a thousand slices take seconds.
    images = torch.stack([image[0, ::2, ::2] for image in bench.images]).contiguous()
    height, width = images.shape[-2:]
    cfg = bench.cfg.clone()
    cfg.INPUT.MIN_SIZE_TEST = min(height, width)  # the model gets them as they are
    weights = write_weights(cfg, bench.state, bench.settings.work / "series.pth")
    found = run_job("slices", cfg, images=images, counts=counts, weights=str(weights))
    seconds, peaks = found["seconds"], found["peak"]
    section = Section("growth-slices", f"cost of a series as it grows ({width}x{height}, d2-covid's Predictor)")
    section.headers = ("slices", "seconds", "ms a slice", "MB at most", "MB for results")
    for count, second, peak in zip(counts, seconds, peaks, strict=True):
        on_top = (peak - peaks[0]) / MB
        section.rows.append(
            [str(count), f"{second:.2f}", f"{second / count * 1e3:.1f}", f"{peak / MB:.0f}", f"{on_top:.1f}"]
        )
    time_growth, memory_growth = growth(counts, seconds), growth(counts, peaks)
    section.data = found | {"counts": counts, "time": asdict(time_growth), "memory": asdict(memory_growth)}
    section.notes = [
        f"Time: {time_growth.verdict}, {time_growth.per_item * 1e3:.1f} ms a slice more {_between(counts)}.",
        f"Memory: {memory_growth.verdict} ({memory_growth.factor:.2f}x), "
        f"{memory_growth.per_item / 1024:.1f} kB a slice more {_between(counts)}, which are its results.",
    ]
    if cfg.MODEL.DEVICE != "cpu":
        section.notes.append("Memory is the process's own, not the GPU's.")
    return section


def lesions(bench: Bench) -> Section:
    """1 to 512 ground-truth lesions a slice: reading, a training step, an evaluation."""
    counts = [1, 64] if bench.settings.quick else [1, 8, 64, 256, 512]
    found = run_job(
        "lesions",
        bench.cfg,
        counts=counts,
        state=dict(bench.state),
        work=str(bench.settings.work / "lesions"),
        repeats=2 if bench.settings.quick else 5,
        side=bench.images[0].shape[-1],
    )
    section = Section("growth-lesions", "cost of a slice as its ground truth grows (synthetic slices)")
    section.headers = ("lesions", *(f"{what}, ms" for what in found["seconds"]), "MB at most, training step")
    for i, count in enumerate(counts):
        times = (f"{values[i] * 1e3:.1f}" for values in found["seconds"].values())
        section.rows.append([str(count), *times, f"{found['memory'][i] / MB:.0f}"])
    section.data = found | {"counts": counts, "growth": {}}
    costs = found["seconds"] | {"memory of a training step": found["memory"]}
    for what, values in costs.items():
        grown = growth(counts, values)
        section.data["growth"][what] = asdict(grown)
        more = f"{grown.per_item / 1024:.0f} kB" if what.startswith("memory") else f"{grown.per_item * 1e3:.2f} ms"
        factor = f"{grown.factor:.2f}x from {counts[0]} to {counts[-1]}"
        section.notes.append(f"{what}: {grown.verdict} ({factor}), {more} a lesion more {_between(counts)}.")
    most = bench.cfg.TEST.DETECTIONS_PER_IMAGE
    section.notes.append("The fastest of several times.")
    section.notes.append(f"evaluation: pycocotools compares each of {most} detections with each lesion, in Python.")
    return section


def _between(counts: Sequence[int]) -> str:
    """The two sizes that :attr:`.growth.Growth.per_item` is of."""
    return f"from {counts[-2]} to {counts[-1]}"


def job_slices(cfg: CfgNode, job: dict[str, Any]) -> dict[str, Any]:
    """Predict on a series of ``images`` (M, h, w), repeated; seconds and peak memory when ``counts`` are reached."""
    images = job["images"].numpy()
    predictor = Predictor(cfg, job["weights"], cfg.MODEL.DEVICE, batch_size=1)

    def series(count: int) -> Series:
        names = tuple(f"{i}" for i in range(count))
        return Series(
            "growing", "images", (), names, None, Unit("byte"), lambda axis, index: images[index % len(images)]
        )

    predictor.series(series(4))  # warm-up
    seconds, peaks, done, started = [], [], 0, time.perf_counter()

    def reached(result: object, gray: np.ndarray) -> None:
        nonlocal done
        done += 1
        if done in job["counts"]:
            seconds.append(time.perf_counter() - started)
            peaks.append(max(current_bytes(), peak_bytes()))

    measured = peak_of(lambda: predictor.series(series(max(job["counts"])), on_slice=reached), cfg.MODEL.DEVICE)
    return {"seconds": seconds, "peak": peaks, "before": measured.get("before"), "end": measured["process"]}


def job_lesions(cfg: CfgNode, job: dict[str, Any]) -> dict[str, Any]:
    """Read, train on and evaluate a slice with each of ``counts`` lesions: the fastest of ``repeats`` times."""
    seconds: dict[str, list[float]] = {"reading": [], "training step": [], "evaluation": []}
    memory = []
    mapper = LesionDatasetMapper(cfg, is_train=True)
    for count in job["counts"]:
        name, dicts = _dataset_of(Path(job["work"]) / str(count), count, job["side"])
        own = cfg.clone()
        own.DATASETS.TRAIN, own.DATASETS.TEST = (), (name,)
        sample = mapper(dict(dicts[0], sample_seed=0))
        step = training_steps(own, job["state"], [sample])[TRAINING]()
        step(0)
        found = peak_of(lambda step=step: step(1), cfg.MODEL.DEVICE)
        memory.append(found.get("gpu", found["process"]))
        evaluation = _evaluation(own, name, dicts[0], sample)
        work = {"reading": lambda i, d=dicts[0]: mapper(dict(d, sample_seed=0)), "training step": step}
        work["evaluation"] = lambda i, evaluation=evaluation: evaluation()
        for what, function in work.items():
            times = []
            for number in range(job["repeats"]):
                before = time.perf_counter()
                function(number)
                times.append(time.perf_counter() - before)
            seconds[what].append(min(times))  # the work is the same each time: what is longer was disturbed
    return {"seconds": seconds, "memory": memory}


def _dataset_of(folder: Path, count: int, side: int) -> tuple[str, list[dict]]:
    """A registered dataset of one slice with so many lesions, and its dataset dicts."""
    gray, mask = many_lesions(count, side)
    for kind, values in (("image", gray), ("mask", mask)):
        path = folder / kind / "synthetic" / "0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    pairing = pair_cncb(folder)
    done = prepare_lesions(
        pairing, {"val": list(pairing.pairs)}, folder / "set", mask_types=["merge"], min_area=0, progress=False
    )
    name = f"crowded{count}_merge_val"
    register_lesions(name, done.splits[0].json_file, mask_type="merge")
    return name, DatasetCatalog.get(name)


def _evaluation(cfg: CfgNode, name: str, record: dict, sample: dict):
    """Evaluate as many detections as the config allows, each of them a true lesion, over again where those are fewer:
    COCO's matching compares each with each, so its cost is linear in the lesions for a number of detections."""
    lesions = sample["instances"]
    truth = lesions[torch.arange(cfg.TEST.DETECTIONS_PER_IMAGE) % len(lesions)]
    found = Instances((record["height"], record["width"]))
    found.pred_boxes, found.pred_classes = Boxes(truth.gt_boxes.tensor), truth.gt_classes
    found.scores = torch.linspace(0.9, 0.5, len(truth))
    found.pred_masks = truth.gt_masks.tensor
    task = task_of(cfg)

    def evaluate() -> object:
        evaluator = task.evaluator(cfg, name, Path(cfg.OUTPUT_DIR) / "benchmark", False)
        evaluator.reset()
        evaluator.process([record], [{"instances": found}])
        return evaluator.evaluate()

    return evaluate
