#!/usr/bin/env python
"""Table 1 of the paper, measured: parameters and multiply-adds of every model, beside the paper's figures."""

import argparse
import sys
from pathlib import Path
from typing import Sequence

from d2_covid import get_config
from d2_covid.cli import parse_with_overrides, run_command
from d2_covid.config import config_dir
from d2_covid.engine.setup import build_described
from d2_covid.errors import UserError
from d2_covid.modeling.backbone import truncation_of
from d2_covid.modeling.complexity import count_multiply_adds, count_parameters, fpn_input_surplus
from d2_covid.paper_tables import size_of

from tabulate import tabulate

TOLERANCE = 0.011  # the paper gives two decimals, and truncates some


def _difference(name: str, total: float, with_512: float | None, with_masks: float) -> str:
    """Why the paper's total for ``name`` differs from ``total`` (both in millions), or an empty string."""
    paper = None if size_of(name) is None else size_of(name).total
    if paper is None or abs(paper - total) < TOLERANCE:
        return ""
    if with_512 is not None and abs(paper - with_512) < TOLERANCE:
        return f"the paper counts an FPN that reads 512 maps ({with_512:.2f}M); its text says fewer"
    if abs(paper - with_masks) < TOLERANCE:
        return f"the paper counts the mask modules too ({with_masks:.2f}M); the classifier has none"
    return "not explained"


def analyze(config_file: Path, size: int, opts: Sequence[str]) -> list:
    """One row of the table: name, total, paper's, trainable, paper's, multiply-adds by part, and the reason."""
    cfg = get_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    model = build_described(cfg)
    total, trainable = (count / 1e6 for count in count_parameters(model))
    with_512 = None
    if truncation_of(cfg) in ("T1", "T2"):
        with_512 = total + fpn_input_surplus(model) / 1e6
    with_masks = total
    if not cfg.MODEL.MASK_ON:
        cfg.MODEL.MASK_ON = True
        with_masks = count_parameters(build_described(cfg))[0] / 1e6
    multiply_adds = count_multiply_adds(model, size)
    paper = size_of(config_file.stem)
    paper_total, paper_trainable = (None, None) if paper is None else (paper.total, paper.trainable)
    return [
        config_file.stem,
        f"{total:.2f}",
        "" if paper_total is None else f"{paper_total:.2f}",
        f"{trainable:.2f}",
        "" if paper_trainable is None else f"{paper_trainable:.2f}",
        *(f"{multiply_adds[part] / 1e9:.2f}" for part in ("backbone", "rpn", "box", "mask")),
        f"{sum(multiply_adds.values()) / 1e9:.2f}",
        _difference(config_file.stem, total, with_512, with_masks),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="all configs of the paper's models")
    which.add_argument("--config-file", nargs="+", metavar="FILE", help="these configs only")
    parser.add_argument("--size", type=int, default=512, help="side of the input image, pixels (default 512)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parse_with_overrides(parser, argv)
    if args.size < 1:
        raise UserError(f"--size must be 1 or more, not {args.size}.")

    files = [Path(name) for name in args.config_file or ()]
    if args.all:
        files = [
            path for room in ("segmentation", "classification") for path in sorted((config_dir() / room).glob("*.yaml"))
        ]
    rows = [analyze(path, args.size, args.opts) for path in files]
    headers = ["model", "total", "paper", "trainable", "paper", "backbone", "rpn", "box", "mask", "sum", "difference"]
    print("Millions of parameters (totals with BatchNorm statistics, as in the paper), billions of multiply-adds")
    print(f"for one {args.size}x{args.size} image, at the largest number of RoIs that the config allows; module S,")
    print("below 0.01, is left out.")
    print(tabulate(rows, headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
