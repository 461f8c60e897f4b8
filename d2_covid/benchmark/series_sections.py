"""Whole series from files to results, and the reading of slices alone."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from ..data.mappers import LesionDatasetMapper
from ..engine.carried_config import carried_facts
from ..engine.checkpoint import model_facts, write_checkpoint
from ..engine.loader import shuffled_order, train_batches
from ..inference.predictor import Predictor
from .context import PLAIN, TORCHVISION, Bench, State, build_candidate, fast_name, records, without_draws
from .results import Section, timed_section
from .timing import interleave

PREDICTOR, STOCK_MAPPER, OWN_MAPPER = "d2-covid predict", "Detectron2's DatasetMapper", "d2_covid's mapper"


def series(bench: Bench) -> Section:
    """A series from its files to its results: reading, window, lungs, detector, lesions linked over slices.

    Everything around the model is ours in every row; the rows tell what the model in the middle is.
    """
    weights = write_weights(bench.cfg, bench.state, bench.settings.work / "model.pth")
    predictor = Predictor(bench.cfg, weights, bench.device)
    models = {TORCHVISION: None, PLAIN: None, PREDICTOR: predictor.model}
    if "bf16" in bench.settings.dtypes:
        models[fast_name("bf16")] = None
    for name, model in models.items():
        if model is None:
            models[name] = build_candidate(name, predictor.cfg, bench.state, bench.images)
    last = {}

    def runner(name: str):
        def run(number: int) -> None:
            predictor.model = models[name]
            last[name] = predictor.series(bench.inputs.series)

        return run

    # Untimed: a whole run, for files, reader and lungs, and a slice through each model.
    runner(PREDICTOR)(0)
    with torch.no_grad():
        for model in models.values():
            model(records(bench.images[:1]))
    seconds = interleave(
        {name: runner(name) for name in models},
        repeats=1 if bench.settings.quick else min(3, bench.settings.repeats),
        warmup=0,
        budget=0 if bench.settings.quick else 45,
        device=bench.device,
    )
    count = len(last[PREDICTOR].slices)
    lesions = sum(len(one.instances) for one in last[PREDICTOR].slices) / count
    section = timed_section(
        "series",
        f"a series of {count} slices, files to results",
        seconds,
        reference=TORCHVISION,
        per_run=count,
        notes=[
            "Reading, lungs and results are ours in every row; the candidate is the model in the middle.",
            f"{lesions:.1f} detections a slice at the score threshold {predictor.score_threshold:g}; "
            f"seconds by stage ({PREDICTOR}): {last[PREDICTOR].seconds}.",
        ],
    )
    return section


def loading(bench: Bench) -> Section:
    """Reading, decoding and mapping of training samples, without a model."""
    cfg, dicts = without_draws(bench.cfg), bench.inputs.dicts  # Detectron2's mapper knows no such augmentation
    dicts = [dicts[i % len(dicts)] for i in range(32 if bench.settings.quick else 128)]
    stock = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(list(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN, "choice")],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    mappers = {STOCK_MAPPER: stock, OWN_MAPPER: LesionDatasetMapper(cfg, is_train=True)}

    def runner(mapper, workers: int):
        def run(number: int) -> None:
            batches = train_batches(
                dicts,
                mapper,
                shuffled_order(len(dicts), number),
                batch_size=1,
                seed=number,
                start_iter=0,
                max_iter=len(dicts),
                num_workers=workers,
            )
            for _ in batches:
                pass

        return run

    workers = (0,) if bench.settings.quick else (0, 2)
    seconds = interleave(
        {f"{name}, {count} workers": runner(mapper, count) for count in workers for name, mapper in mappers.items()},
        repeats=3,
        warmup=1,
        budget=6 if bench.settings.quick else 15,
    )
    return timed_section(
        "loading",
        f"data loading alone: {len(dicts)} slices with their lesions",
        seconds,
        reference=f"{STOCK_MAPPER}, 0 workers",
        per_run=len(dicts),
        notes=["With workers, the time to start them is counted."],
    )


def write_weights(cfg: CfgNode, state: State, path: Path) -> Path:
    """A checkpoint that carries its config, as training writes it."""
    facts = model_facts(cfg) | carried_facts(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, {"model": dict(state), "d2_covid": facts})
    return path
