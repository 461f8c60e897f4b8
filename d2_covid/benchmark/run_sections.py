"""Whole runs through the engine, as users start them: evaluation and training, in slices a second. Mostly for GPUs."""

import csv
import itertools
import shutil
import time
from pathlib import Path
from typing import Sequence

import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..data.slice_datasets import register_slices
from ..data.slice_lists import IMAGE_CLASSES
from ..data.slice_mapper import SliceMapper
from ..engine.cores import usable_cores
from ..engine.evaluation import evaluate
from ..engine.loader import SeededSamples
from ..engine.tasks import task_of
from ..engine.trainer import Trainer
from ..paper_tables import ClassificationRow, SegmentationRow, classification_row, segmentation_row
from .aims import RATE, SCHEDULE, SECONDS, aimed, gpu_aims
from .context import PLAIN, Bench, build_candidate, fast_name, without_draws
from .results import Section
from .series_sections import write_weights
from .timing import synchronize

PAPER_SEGMENTATION, PAPER_CLASSIFIER = 100 * 650, 50 * 3000
"""Slices that the paper's two trainings take: epochs times slices."""

_numbers = itertools.count()  # a name for each registered list


def evaluation(bench: Bench) -> Section:
    """Classification of slices in files, to metrics: decoding in worker processes, the detector, module S."""
    count = _scale(bench, 16, 64, 2000)
    cfg = bench.classifier_cfg
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (_slice_dataset(bench, count),)
    cfg.DATALOADER.NUM_WORKERS = _workers()
    cfg.OUTPUT_DIR = str(bench.settings.work / "evaluation")
    task = task_of(cfg)
    dicts = task.train_dicts(_with_train(cfg))
    section = _rate_section("evaluation", f"classification of {count} slices, files to logits", bench, schedule=False)
    cpu = bench.device == "cpu"
    plain = build_candidate(PLAIN, cfg, bench.state, bench.images)
    for dtype in bench.settings.dtypes[:1] if cpu else bench.settings.dtypes:
        model = build_candidate(fast_name(dtype), cfg, bench.state, bench.images)
        for size in (4,) if cpu else (8, 32, 128):
            seconds = _timed(bench, lambda model=model, size=size: _classify(cfg, model, dicts, size))
            _add_rate(section, f"{dtype}, batches of {size}", count, seconds)
        cfg.TEST.DTYPE = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        seconds = _timed(bench, lambda: evaluate(cfg, task, plain, final=False))
        _add_rate(section, f"{dtype}, evaluate() with its metrics", count, seconds)
    section.notes.append("evaluate() is what --eval-only and training run; the batches are a loop of their own.")
    return section


def training_run(bench: Bench) -> list[Section]:
    """Slices a second of both trainings, through the trainer and its loader."""
    cpu = bench.device == "cpu"
    sections = []
    cfg = bench.cfg.clone()
    cfg.DATASETS.TRAIN = (bench.inputs.dataset,)
    section = _rate_section("training-run", "training of segmentation through Trainer", bench, schedule=True)
    for batch in (2,) if cpu else (8, 16, 32):
        for amp in (False,) if cpu else (False, True):
            rate = _trainer_rate(bench, cfg, f"segmentation-{batch}-{amp}", batch, amp, _scale(bench, 3, 6, 40))
            _add_rate(section, f"batch {batch}{', bf16' if amp else ''}", 1, 1 / rate, schedule=PAPER_SEGMENTATION)
    paper = segmentation_row(f"mask_rcnn_{bench.model}_FPN")
    section.notes.append(_schedule_note("100 epochs of 650 slices", paper))
    sections.append(section)

    cfg = bench.classifier_cfg
    cfg.MODEL.WEIGHTS = str(write_weights(bench.cfg, bench.state, bench.settings.work / "detector.pth"))
    cfg.DATASETS.TRAIN = (_slice_dataset(bench, _scale(bench, 8, 32, 512)),)
    section = _rate_section(
        "classifier-training-run",
        "training of the classifier (module S and BatchNorm) through Trainer",
        bench,
        schedule=True,
    )
    for batch in (2,) if cpu else (8, 32, 64):
        for amp in (False,) if cpu else (False, True):
            rate = _trainer_rate(bench, cfg, f"classifier-{batch}-{amp}", batch, amp, _scale(bench, 3, 6, 40))
            _add_rate(section, f"batch {batch}{', bf16' if amp else ''}", 1, 1 / rate, schedule=PAPER_CLASSIFIER)
    paper = classification_row(f"covid_ct_mask_net_{bench.model}_FPN")
    section.notes.append(_schedule_note("50 epochs of 3,000 slices", paper))
    sections.append(section)
    return sections


def cached_classifier(bench: Bench) -> Section:
    """The classifier's whole schedule with a frozen detector: ranked batches once into the cache, then module S."""
    count, epochs = _scale(bench, 8, 32, 3000), _scale(bench, 2, 5, 50)
    cfg = without_draws(bench.classifier_cfg)
    cfg.MODEL.CLASSIFIER.TRAIN_NORM = False
    cfg.MODEL.WEIGHTS = str(write_weights(bench.cfg, bench.state, bench.settings.work / "detector.pth"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_slice_dataset(bench, count),), ()
    cfg.DATALOADER.NUM_WORKERS, cfg.SEED = _workers(), 0
    cfg.SOLVER.EPOCHS, cfg.OUTPUT_DIR = epochs, _folder(bench, "cached")
    title = f"the classifier from a cache of ranked batches: {epochs} epochs of {count} slices, batch 8"
    aims = gpu_aims("cached-classifier", bench.device) if count * epochs == PAPER_CLASSIFIER else {}
    section = Section("cached-classifier", title, headers=("part", aimed(SECONDS, aims), RATE))
    section.data = {"aims": aims} if aims else {}
    started = time.perf_counter()
    trainer = Trainer(cfg, progress=False)
    built = time.perf_counter()
    trainer.train()
    done = time.perf_counter()
    for part, seconds, work in (("cache", built - started, count), ("training", done - built, count * epochs)):
        section.rows.append([part, f"{seconds:.1f}", f"{work / seconds:.0f}"])
        section.data[part] = {"seconds": seconds, "slices": work}
    section.rows.append(["together", f"{done - started:.1f}", ""])
    section.data["together"] = {"seconds": done - started}
    section.notes = ["Module S alone trains (MODEL.CLASSIFIER.TRAIN_NORM False); the model is built in the first part."]
    return section


def _classify(cfg: CfgNode, model: torch.nn.Module, dicts: Sequence[dict], batch: int) -> None:
    """Image logits of all slices, in batches; slices of one batch are of one size here."""
    loader = torchdata.DataLoader(
        SeededSamples(dicts, SliceMapper(cfg, is_train=False), seed=0),
        batch_sampler=[[(i, i) for i in range(at, min(at + batch, len(dicts)))] for at in range(0, len(dicts), batch)],
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )
    with torch.inference_mode():
        logits = [output["image_logits"] for samples in loader for output in model(samples)]
    torch.stack(logits).cpu()


def _trainer_rate(bench: Bench, cfg: CfgNode, name: str, batch: int, amp: bool, iterations: int) -> float:
    """Slices a second of a training run."""
    cfg = cfg.clone()
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (), _folder(bench, name)
    cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 0, iterations, batch
    cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = (), 10**9
    cfg.SOLVER.AMP.ENABLED, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = amp, _workers(), 0
    trainer = Trainer(cfg, progress=False)
    clock = _Clock(bench.device)
    trainer.register_hooks([clock])
    trainer.train()
    return batch * steps_a_second(clock.times)


def steps_a_second(ends: Sequence[float]) -> float:
    """Of a training whose N >= 3 steps ended then, in seconds: without the first third, which is no steady state, and
    the last, in which ``model_final.pth`` is written."""
    skipped = max(1, len(ends) // 3)
    return (len(ends) - 1 - skipped) / (ends[-2] - ends[skipped - 1])


class _Clock(HookBase):
    """When each iteration ended."""

    def __init__(self, device: str) -> None:
        self._device, self.times = device, []

    def after_step(self) -> None:
        synchronize(self._device)
        self.times.append(time.perf_counter())


def _slice_dataset(bench: Bench, count: int) -> str:
    """A registered list of ``count`` slices, links to those at hand under names of their own."""
    folder = bench.settings.work / f"slices{count}"
    name = f"benchmark_slices_{next(_numbers)}"
    rows = []
    (folder / "image").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        source = bench.inputs.pairs[number % len(bench.inputs.pairs)].image.resolve()
        link = folder / "image" / f"{number:05d}{source.suffix}"
        if not link.exists():
            _link(source, link)
        rows.append((link.name, number % len(IMAGE_CLASSES), f"p{number}", f"p{number}"))
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label", "patient_id", "scan_id"), *rows])
    register_slices(name, folder / "list.csv", folder / "image")
    return name


def _link(source: Path, link: Path) -> None:
    try:
        link.symlink_to(source)
    except OSError:  # a file system or a user without links
        shutil.copyfile(source, link)


def _with_train(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    return cfg


def _timed(bench: Bench, work) -> float:
    synchronize(bench.device)
    started = time.perf_counter()
    work()
    synchronize(bench.device)
    return time.perf_counter() - started


def _rate_section(key: str, title: str, bench: Bench, *, schedule: bool) -> Section:
    aims = gpu_aims(key, bench.device)
    section = Section(key, title, headers=[aimed(RATE, aims), "how", *([aimed(SCHEDULE, aims)] * schedule)])
    section.data = {"aims": aims} if aims else {}
    section.notes = [f"{_workers()} worker processes read; what each run starts with is not warmed up."]
    return section


def _schedule_note(schedule: str, paper: SegmentationRow | ClassificationRow | None) -> str:
    took = "" if paper is None else f"; its {paper.words} took {paper.minutes:g} minutes"
    return f"The paper's schedule: {schedule}{took}."


def _add_rate(section: Section, how: str, count: int, seconds: float, schedule: int = 0) -> None:
    rate = count / seconds
    section.rows.append([f"{rate:.3g}", how, *([f"{schedule / rate / 60:.1f}"] if schedule else [])])
    section.data[how] = {"slices_per_second": rate}


def _workers() -> int:
    return min(16, usable_cores())


def _scale(bench: Bench, quick: int, cpu: int, gpu: int) -> int:
    return quick if bench.settings.quick else cpu if bench.device == "cpu" else gpu


def _folder(bench: Bench, name: str) -> str:
    """A folder that no run has used."""
    number = 0
    while (bench.settings.work / f"{name}-{number}").exists():
        number += 1
    folder = bench.settings.work / f"{name}-{number}"
    folder.mkdir(parents=True)
    return str(folder)
