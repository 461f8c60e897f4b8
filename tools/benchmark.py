#!/usr/bin/env python
"""Measures d2_covid beside torchvision's Mask R-CNN and others, in one run on this machine.

    python tools/benchmark.py                         # the CPU, then a GPU if there is one; 15 minutes on two cores
    python tools/benchmark.py --quick                 # the ratios alone, in less than a minute
    python tools/benchmark.py --only segmentation,training
    python tools/benchmark.py --device cuda --only evaluation,training-run,cached-classifier

Prints tables, and leaves benchmark.md and benchmark.json, with every time of every round, in the output folder; of a
GPU, benchmark-cuda.md and benchmark-cuda.json.

Real CT is taken from the folder $D2_COVID_REAL_DATA: radiopaedia/, in CNCB's layout, and ct_md/normal001/*.dcm. Where
the variable is not set, phantoms are made.

Exit status: 0 done, 1 a section failed (the report says why), 2 bad input.
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from d2_covid.benchmark.context import DEFAULT_MODEL, Bench, Settings, choose_weights
from d2_covid.benchmark.inputs import REAL_DATA, Inputs, load_inputs, real_data_folder
from d2_covid.benchmark.machine import DTYPES, describe_machine, matmul_rate
from d2_covid.benchmark.sections import PARTS, choose_parts, page_of, run_parts
from d2_covid.cli import run_command
from d2_covid.errors import UserError, check_choice
from d2_covid.inference.model_source import choose_device

import torch

MODELS = ("R_18_T1", "R_18_T2", "R_18_full", "R_34_T1", "R_34_T2", "R_34_full")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="SECTION,...", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="less work, fewer sections and candidates")
    parser.add_argument("--model", choices=MODELS, help=f"default: that of the weights, else {DEFAULT_MODEL}")
    parser.add_argument(
        "--weights",
        default="auto",
        help="a checkpoint, the name of a shipped model, or 'seeded': random, spread so that much is found "
        "(default: seeded, unless a shipped model has the very shape of --model's config, as those of tuned configs do "
        "not)",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, or auto (default): the CPU, and then the GPU where there is one"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (default: as many as cores to use)")
    parser.add_argument("--dtype", default=",".join(DTYPES), help=f"of the fast path (default {','.join(DTYPES)})")
    parser.add_argument("--repeats", type=int, default=10, help="rounds of a timing, at most (default 10)")
    parser.add_argument("--phantoms", action="store_true", help="measure on phantoms even where there is real CT")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"), help="default: output/benchmark")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = build_parser()
    args = parser.parse_args(argv)
    devices = choose_devices(args.device)
    if args.repeats < 1 or args.threads < 0:
        raise UserError("--repeats takes 1 or more, and --threads 0 or more.")
    if args.threads:
        torch.set_num_threads(args.threads)
    dtypes, only = ([one for one in given.split(",") if one] for given in (args.dtype, args.only))
    for dtype in dtypes:
        check_choice("--dtype", dtype, list(DTYPES))
    names = {device: choose_parts(only, quick=args.quick, gpu=device.startswith("cuda")) for device in devices}
    if not any(names.values()):
        raise UserError(f"--only {args.only} measures what runs on CPUs; leave out --device {args.device}.")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to --output {args.output}: {error.strerror}.") from error
    _quiet()
    with tempfile.TemporaryDirectory(prefix="d2_covid_benchmark_") as folder:
        work = Path(folder)
        settings = Settings(
            model=args.model,
            weights=args.weights,
            device=devices[0],
            dtypes=tuple(dtypes),
            repeats=min(args.repeats, 3) if args.quick else args.repeats,
            quick=args.quick,
            work=work,
            opts=tuple(args.opts),
        )
        real = None if args.phantoms else real_data_folder()
        size = choose_weights(settings)[0].INPUT.MIN_SIZE_TEST
        inputs = load_inputs(work, real=real, slices=16 if args.quick else 64, phantom_size=size)
        hint = "" if real or args.phantoms else f"; set ${REAL_DATA} for real CT"
        say(f"data: {inputs.origin}{hint}")
        well = [
            measure(replace(settings, device=device, work=page_of(work, device)), inputs, chosen, args.output)
            for device, chosen in names.items()
            if chosen
        ]
    return 0 if all(well) else 1


def choose_devices(device: str) -> list[str]:
    """What to measure on, in order.

    Raises:
        UserError: PyTorch knows or finds no such device.
    """
    if device == "auto":
        return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [choose_device(device)]


def measure(settings: Settings, inputs: Inputs, names: Sequence[str], output: Path) -> bool:
    """Run sections on one device, and print their report; whether every section went well."""
    device = settings.device
    settings.work.mkdir()
    machine = describe_machine(device)
    say(f"{len(names)} sections on {device}, {machine['threads']} threads: {', '.join(names)}")
    rates = {dtype: matmul_rate(dtype, device) for dtype in DTYPES}
    report, well = run_parts(Bench(settings, inputs, machine, rates), names, output, say)
    page = page_of(output, device)
    print(report)
    print(f"The report is in {page.with_suffix('.md')}, every figure in {page.with_suffix('.json')}.")
    return well


def say(line: str) -> None:
    """A line about the progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def _quiet() -> None:
    """Only what this command says itself: a training run's log would stand between its lines."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    warnings.filterwarnings("ignore", category=UserWarning, module="detectron2|torch|torchvision")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


if __name__ == "__main__":
    sys.exit(run_command(main))
