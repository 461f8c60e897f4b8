"""The speed of exported models, on the CPU: the same slice, from gray to detections with pasted masks."""

from typing import Callable

import numpy as np
import torch

from ..errors import UserError
from ..export import Session, session
from ..export.model import ExportOptions, export_model, plain_model
from ..inference.model_source import ModelSource, resolve_model
from .context import TORCHVISION, Bench, fast_name, records
from .results import Section, timed_section
from .series_sections import write_weights
from .timing import Work, interleave


def exported(bench: Bench) -> Section:
    """One slice through the exported whole model, ONNX and PyTorch's, beside the models they came from."""
    weights = write_weights(bench.cfg, bench.state, bench.settings.work / "exported.pth")
    source = resolve_model(bench.cfg, weights, "cpu")
    images = bench.images
    runs: dict[str, Work] = {}
    notes = [
        "Exported models take a gray slice, resize it and paste masks with NumPy, as users without PyTorch run them."
    ]
    for name in (TORCHVISION, fast_name("fp32")):
        if name in bench.segmenters:
            runs[name] = _model_run(bench.segmenters[name], images)
    for kind in ("onnx", "pt2"):
        try:
            runs[f"exported, {kind}"] = _session_run(_exported_session(bench, source, kind), images)
        except UserError as error:  # a package of the extra "export" is missing
            notes.append(f"exported, {kind}: left out. {error}")
    with torch.inference_mode():
        seconds = interleave(runs, repeats=bench.settings.repeats, budget=15)
    title = f"exported models: one slice {images[0].shape[2]}x{images[0].shape[1]}, batch 1"
    return timed_section("export", title, seconds, reference=TORCHVISION, notes=notes)


def _exported_session(bench: Bench, source: ModelSource, kind: str) -> Session:
    folder = bench.settings.work / f"exported-{kind}"
    export_model(plain_model(source.cfg), source, ExportOptions(kind=kind)).write(folder)
    return session(folder, torch.get_num_threads())


def _model_run(model: torch.nn.Module, images: list[torch.Tensor]) -> Callable[[int], object]:
    return lambda number: model(records([images[number % len(images)]]))


def _session_run(run: Session, images: list[torch.Tensor]) -> Callable[[int], object]:
    slices = [np.ascontiguousarray(image[0].numpy()) for image in images]
    return lambda number: run(slices[number % len(slices)])
