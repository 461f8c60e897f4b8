"""Peak memory of predicting and of training, each candidate in a process of its own."""

from typing import Any

import torch
from detectron2.config import CfgNode

from .child import peak_of, run_job
from .context import PLAIN, TORCHVISION, Bench, build_candidate, fast_name, records
from .results import Section

MB = 2**20


def memory(bench: Bench) -> Section:
    """Peak memory of a slice's segmentation and classification, of a batch of 8, and of a training step."""
    from .training_sections import TRAINING

    quick = bench.settings.quick
    predicting = [TORCHVISION, *map(fast_name, bench.settings.dtypes)]
    jobs = [("segmentation", name, 1) for name in predicting]
    if not quick:
        jobs += [("segmentation", PLAIN, 1), ("segmentation", fast_name(bench.settings.dtypes[0]), 8)]
    jobs += [("training", name, 1) for name in (TORCHVISION, TRAINING)]
    section = Section("memory", "peak memory, each in a process of its own")
    section.headers = ("work", "candidate", "MB on top", "MB in all")
    for work, name, batch in jobs:
        kind = "train" if work == "training" else "predict"
        images = torch.stack(bench.images[:batch])
        found = run_job(kind, bench.cfg, name=name, images=images, state=dict(bench.state), count=batch)
        on_top = found.get("gpu", found["process"] - found["before"])
        section.data[f"{work} {name} {batch}"] = found
        section.rows.append(
            [f"{work}, batch {batch}", name, f"{on_top / MB:.0f}", f"{found.get('gpu', found['process']) / MB:.0f}"]
        )
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
