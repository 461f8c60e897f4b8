"""The sections of the benchmark by name, and the run that goes through them."""

import logging
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from ..data.files import atomic_write, write_json
from ..errors import UserError
from .context import Bench
from .export_section import exported
from .growth_sections import lesions, slices
from .inference_sections import agreement, batches, classification, segmentation
from .memory import memory
from .report import as_json, as_markdown, as_text, describe, summary
from .results import Section
from .run_sections import cached_classifier, evaluation, training_run
from .series_sections import loading, series
from .training_sections import classifier_training, training

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A section's function, and the runs that it belongs to when none are named.

    Attributes:
        quick: part of ``--quick``.
        gpu_only: a whole run of training or evaluation: minutes on a CPU, so only on a GPU unless it is named.
        cpu_only: it measures what runs on CPUs.
    """

    function: Callable[[Bench], Section | list[Section]]
    quick: bool = True
    gpu_only: bool = False
    cpu_only: bool = False


PARTS: dict[str, Part] = {
    "agreement": Part(agreement),
    "segmentation": Part(segmentation),
    "classification": Part(classification),
    "batches": Part(batches, quick=False),
    "training": Part(training),
    "classifier-training": Part(classifier_training),
    "loading": Part(loading),
    "series": Part(series, quick=False),
    "memory": Part(memory, quick=False),
    "export": Part(exported, quick=False, cpu_only=True),
    "growth-slices": Part(slices, quick=False),
    "growth-lesions": Part(lesions, quick=False),
    "evaluation": Part(evaluation, quick=False, gpu_only=True),
    "training-run": Part(training_run, quick=False, gpu_only=True),
    "cached-classifier": Part(cached_classifier, quick=False, gpu_only=True),
}


def choose_parts(only: Sequence[str], *, quick: bool, gpu: bool) -> list[str]:
    """Names of the sections to run, in order; of those in ``only``, a GPU leaves out what measures CPUs.

    Raises:
        UserError: a name that is none.
    """
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise UserError(f"There is no section {unknown[0]}; there are {', '.join(PARTS)}.")
    if only:
        return [name for name, part in PARTS.items() if name in only and not (gpu and part.cpu_only)]
    return [
        name
        for name, part in PARTS.items()
        if (part.quick or not quick) and not (part.cpu_only if gpu else part.gpu_only)
    ]


def page_of(output: Path, device: str) -> Path:
    """Where a device's report and figures go, without the ends of their names."""
    return output / ("benchmark" if device == "cpu" else f"benchmark-{device.replace(':', '-')}")


def run_parts(bench: Bench, names: Sequence[str], output: Path, say: Callable[[str], None]) -> tuple[str, bool]:
    """Run sections, and keep the device's page in ``output``, ``.json`` and ``.md``, up to date after each.

    A section that fails leaves its reason in the report, and the others go on.

    Args:
        say: takes a line for the user at each step.

    Returns:
        The report as text, and whether every section went well.
    """
    page = page_of(output, bench.device)
    sections: list[Section] = []
    shown: list[Section] = []
    well = True
    about = describe(bench.settings, bench.machine, dict(bench.rates), bench.inputs.origin, bench.model, bench.weights)
    facts = {
        "machine": bench.machine,
        "matmul_flops_per_second": dict(bench.rates),
        "model": bench.model,
        "weights": bench.weights,
        "data": bench.inputs.origin,
        "settings": {name: _plain(value) for name, value in vars(bench.settings).items() if name != "work"},
    }
    for number, name in enumerate(names, 1):
        started = time.perf_counter()
        try:
            done = PARTS[name].function(bench)
        except UserError:
            raise
        except Exception as error:  # the other sections' figures are worth having
            logger.error("section %s failed:\n%s", name, traceback.format_exc())
            done, well = Section(name, name, notes=[f"failed: {' '.join(str(error).split())[:300]}"]), False
        done = done if isinstance(done, list) else [done]
        took = time.perf_counter() - started
        done[0].took = took
        sections += done
        shown = [summary(sections, bench.device), *sections]
        write_json(page.with_suffix(".json"), as_json(facts, shown))
        with atomic_write(page.with_suffix(".md")) as file:
            file.write(as_markdown(about, shown, bench.device))
        say(f"{number}/{len(names)} {name}: {took:.0f} s")
    return as_text(about, shown), well


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
