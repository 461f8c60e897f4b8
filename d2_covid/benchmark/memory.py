"""Peak memory of predicting and of training, each candidate in a process of its own."""

from typing import Any

import torch
from detectron2.config import CfgNode

from .child import peak_of, run_job
from .context import PLAIN, TORCHVISION, Bench, build_candidate, fast_name, records
from .results import Section

MB = 2**20
KINDS = {
    "segmentation": "predict",
    "classification": "predict",
    "training": "train",
    "classifier training": "train_classifier",
}
"""Work to the kind of its job."""


def memory(bench: Bench) -> Section:
    """Peak memory of a slice's segmentation and classification, of a batch of 8, and of a training step of each."""
    from .training_sections import TRAINING

    quick = bench.settings.quick
    fast, classifier = [fast_name(dtype) for dtype in bench.settings.dtypes], bench.classifier_cfg
    jobs = [("segmentation", name, 1) for name in (TORCHVISION, *fast)]
    if not quick:
        jobs += [("segmentation", PLAIN, 1), ("segmentation", fast[0], 8)]
        jobs += [("classification", name, 1) for name in (PLAIN, *fast)]
    jobs += [("training", name, 1) for name in (TORCHVISION, TRAINING)]
    jobs += [] if quick else [("classifier training", TRAINING, classifier.SOLVER.IMS_PER_BATCH)]
    section = Section("memory", "peak memory, each in a process of its own")
    section.headers = ("work", "candidate", "MB on top", "MB in all")
    for work, name, batch in jobs:
        cfg = classifier if work.startswith("classif") else bench.cfg
        images = torch.stack(bench.images[:batch])
        found = run_job(KINDS[work], cfg, name=name, images=images, state=dict(bench.state), count=batch)
        kind = "gpu" if "gpu" in found else "process"
        before = found.get("gpu_before" if kind == "gpu" else "before")
        on_top = "–" if before is None else f"{(found[kind] - before) / MB:.0f}"
        section.data[f"{work} {name} {batch}"] = found
        section.rows.append([f"{work}, batch {batch}", name, on_top, f"{found[kind] / MB:.0f}"])
    section.notes = ["On top: of the process with the model in it, before the work. On a GPU: PyTorch's allocations."]
    return section


def job_predict(cfg: CfgNode, job: dict[str, Any]) -> dict[str, int]:
    """Predict ``images`` (N, 3, h, w) as one batch with the candidate ``name``."""
    images = list(job["images"])
    model = build_candidate(job["name"], cfg, job.pop("state"), images)

    @torch.inference_mode()
    def work() -> None:
        for _ in range(2):
            model(records(images))

    return peak_of(work, cfg.MODEL.DEVICE)


def job_train(cfg: CfgNode, job: dict[str, Any]) -> dict[str, int]:
    """Train on one slice with 16 lesions, two steps."""
    from .training_sections import crowded_sample, training_steps

    size = job["images"].shape[-1]
    steps = training_steps(cfg, job.pop("state"), [crowded_sample(cfg, 16, size)])
    step = steps[job["name"]]()
    return peak_of(lambda: [step(number) for number in range(2)], cfg.MODEL.DEVICE)


def job_train_classifier(cfg: CfgNode, job: dict[str, Any]) -> dict[str, int]:
    """Train the classifier on ``images`` (N, 3, h, w) as one batch, two steps."""
    from .training_sections import classifier_steps

    images = list(job["images"])
    step = classifier_steps(cfg, job.pop("state"), images, len(images))[job["name"]]()
    return peak_of(lambda: [step(number) for number in range(2)], cfg.MODEL.DEVICE)
