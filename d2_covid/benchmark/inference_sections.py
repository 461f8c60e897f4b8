"""Segmentation and classification of slices, one and in batches, by every candidate."""

from contextlib import contextmanager
from typing import Iterator, Mapping

import torch
from torch import nn

from ..modeling.complexity import count_multiply_adds
from .context import MAYAKU, PLAIN, STOCK, TORCHVISION, Bench, records
from .detectors import with_soft_masks
from .differences import differences, worst
from .mayaku_peer import NOT_INSTALLED
from .results import Section, timed_section
from .timing import interleave
from .work import work_columns, work_notes

NEAR = 0.05
"""Pixels within which two boxes count as one: 1e-4 of a slice's side, what the exact paths are held to."""
DENSE = "the dense part at its largest number of RoIs, not pooling, NMS, pasting"
SPARED = "fast candidates read one channel of three, merge layers and convolve by Winograd"


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TF32: a GPU's convolutions in it differ by more than what candidates are held to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@_full_precision()
@torch.inference_mode()
def agreement(bench: Bench) -> Section:
    """Whether the candidates find the same as the torchvision peer, on slices that the timings use."""
    section = Section("agreement", "the same weights: largest differences to the torchvision peer")
    section.headers = ("candidate", "found", "unmatched", "box px", "score", "soft mask", "mask pixels", "pasted IoU")
    images = bench.images[:: 8 if bench.settings.quick else 4]
    peer = bench.segmenters[TORCHVISION]
    found = [with_soft_masks(peer, image) for image in images]
    for name, model in bench.segmenters.items():
        if name == TORCHVISION or "bf16" in name:
            continue
        each = [differences(found[i], with_soft_masks(model, one), tolerance=NEAR) for i, one in enumerate(images)]
        values = worst(each).as_dict()
        section.data[name] = values
        section.rows.append([name, *(f"{value:.3g}" for value in values.values())])
    peer_logits, *others = (
        torch.stack([model(records([image]))[0]["image_logits"].float().cpu() for image in images])
        for model in bench.classifiers.values()
    )
    for name, logits in zip(list(bench.classifiers)[1:], others, strict=True):
        section.data.setdefault(name, {})["image_logits"] = float((logits - peer_logits).abs().max())
    logits = ", ".join(f"{name} {values['image_logits']:.2g}" for name, values in section.data.items())
    section.notes = [
        f"{len(images)} slices; mask pixels: pasted by the same code, but for pixels at the threshold.",
        "torchvision pastes its masks at boxes rounded to whole pixels: hence the overlap (IoU) of pasted masks.",
        "bf16 detections are not matched here: its accuracy is a matter of AP, and its tests hold it.",
        f"Largest difference of image logits: {logits}.",
    ]
    return section


def segmentation(bench: Bench) -> Section:
    """One slice, batch 1: boxes, scores, and the masks of all detections pasted to the slice's size."""
    models = dict(bench.segmenters)
    if not bench.settings.quick:
        models |= bench.others
    with torch.inference_mode():
        counts = {name: len(model(records(bench.images[:1]))[0]["instances"]) for name, model in models.items()}
    seconds = _time(bench, models, 1, budget=12 if bench.settings.quick else 40)
    section = timed_section(
        "segmentation",
        f"one slice {_side(bench)}, batch 1: detections with masks pasted to full size",
        seconds,
        reference=TORCHVISION,
        extra=_flops_columns(bench, models, seconds) | {"masks": {name: str(count) for name, count in counts.items()}},
    )
    section.notes = [
        f"Weights: {bench.weights}; score threshold 0, {bench.cfg.TEST.DETECTIONS_PER_IMAGE} detections at most.",
        *work_notes(DENSE, SPARED, bench.device),
    ]
    if STOCK in models:
        section.notes.append(f"{STOCK}: the stock architecture with one class, random weights spread likewise.")
    if MAYAKU in models:
        section.notes.append(f"{MAYAKU}: mayaku's Mask R-CNN with our level, anchors and heads on its smallest ResNet.")
    elif not bench.settings.quick:
        section.notes.append(NOT_INSTALLED + ".")
    return section


def classification(bench: Bench) -> Section:
    """One slice, batch 1: the image class from ranked detections."""
    models = bench.classifiers
    seconds = _time(bench, models, 1, budget=8 if bench.settings.quick else 20)
    section = timed_section(
        "classification",
        f"one slice {_side(bench)}, batch 1: image logits",
        seconds,
        reference=TORCHVISION,
        extra=_flops_columns(bench, models, seconds),
    )
    section.notes = [
        "The peer gives logits only; ours also the slice's boxes, and what each ranked row was.",
        *work_notes(DENSE, SPARED, bench.device),
    ]
    return section


def batches(bench: Bench) -> list[Section]:
    """Batches of slices, segmentation and classification."""
    sizes = (4,) if bench.settings.quick else (4, 16)
    sections = []
    for kind, models in (("segmentation", bench.segmenters), ("classification", bench.classifiers)):
        for size in sizes:
            seconds = _time(bench, models, size, budget=5 if bench.settings.quick else 10, warmup=1)
            key, title = f"batches-{kind}-{size}", f"{kind} in batches of {size}"
            sections.append(timed_section(key, title, seconds, reference=TORCHVISION, per_run=size))
    return sections


def _time(bench: Bench, models: Mapping[str, nn.Module], batch: int, *, budget: float, warmup: int = 2):
    inputs = [
        records([bench.images[(first + i) % len(bench.images)] for i in range(batch)])
        for first in range(0, len(bench.images), batch)
    ]
    with torch.inference_mode():
        return interleave(
            {name: _runner(model, inputs) for name, model in models.items()},
            repeats=bench.settings.repeats,
            warmup=warmup,
            budget=budget,
            device=bench.device,
        )


def _runner(model: nn.Module, inputs: list[list[dict]]):
    return lambda number: model(inputs[number % len(inputs)])


def _flops_columns(bench: Bench, models: Mapping[str, nn.Module], seconds: Mapping[str, list[float]]):
    """The work of a slice, by candidate: that of the plain layers, whatever the candidate makes of them."""
    size = bench.images[0].shape[1]
    counts = {
        name: 2 * sum(count_multiply_adds(models[name], size).values()) for name in (PLAIN, STOCK) if name in models
    }
    flops = {name: counts[STOCK if name == STOCK else PLAIN] for name in models if name != MAYAKU}
    return work_columns(flops, seconds, bench.rates)


def _side(bench: Bench) -> str:
    height, width = bench.images[0].shape[1:]
    return f"{width}x{height}"
