#!/usr/bin/env python
"""Converts torchvision's ImageNet weights of a ResNet to a checkpoint for the backbones of d2_covid.

    python tools/convert_weights.py resnet18 --output r18.pth                      # downloads, or takes from the cache
    python tools/convert_weights.py resnet18 --input resnet18-f37072fd.pth --output r18.pth

The checkpoint goes into MODEL.WEIGHTS; truncated models leave out the stages they don't have. MODEL.WEIGHTS
torchvision://resnet18 does the same without a file. A checksum in the name of the input, as torchvision puts it there,
is verified. Exit status: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path
from typing import Sequence

from d2_covid.cli import run_command
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.engine.weights import (
    IMAGENET_MODELS,
    SCHEME,
    backbone_checkpoint,
    imagenet_checkpoint,
    stages_of,
    verify_checksum,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=IMAGENET_MODELS, help="which ResNet")
    parser.add_argument(
        "--input", metavar="FILE", help="state dict of torchvision's model (default: torchvision's own)"
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="checkpoint to write")
    args = parser.parse_args(argv)

    if args.input is None:
        checkpoint = imagenet_checkpoint(args.name)
        checked = True
    else:
        state = read_checkpoint(args.input)["model"]
        checked = verify_checksum(Path(args.input))
        checkpoint = backbone_checkpoint(state, args.name, source=Path(args.input).name)
    write_checkpoint(args.output, checkpoint)
    model = checkpoint["model"]
    millions = sum(tensor.numel() for tensor in model.values()) / 1e6
    print(
        f"{args.output}: {len(model)} tensors, {millions:.2f} million numbers, stages {', '.join(stages_of(model))}, "
        f"from {args.input or SCHEME + args.name} ({'checksum verified' if checked else 'no checksum in its name'})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
