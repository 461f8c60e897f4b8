#!/usr/bin/env python
"""Makes a set of procedural phantom CT to train and try things on; see datasets/README.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.data.datasets import datasets_root
from d2_covid.data.phantom import PhantomSet, write_phantoms
from d2_covid.data.slice_lists import IMAGE_CLASSES

DESCRIPTION = """\
Makes phantom patients of three classes (control, common pneumonia, COVID-19) with exact masks of their lesions, and
the COCO jsons and class list that training reads. No scan of a person is in it: it serves to try the software out, and
says nothing about how a model does on people. The same options give the same files.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the set [$DETECTRON2_DATASETS/phantom]")
    parser.add_argument("--patients", type=int, default=10, metavar="N", help="patients a class [10]")
    parser.add_argument("--slices", type=int, default=10, metavar="N", help="slices a patient [10]")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="width and height of a slice [512]")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn [0]")
    parser.add_argument(
        "--val-fraction", type=float, default=0.25, metavar="X",
        help="share of each class's patients to validate on; 0 for none [0.25]",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside this one [0]")
    parser.add_argument("--overwrite", action="store_true", help="replace the set of phantoms that is there")
    return parser


def report(made: PhantomSet) -> None:
    patients = ", ".join(f"{count} {split}" for split, count in made.patients.items())
    print(f"{made.root}: {made.slices} slices of {sum(made.patients.values())} phantom patients ({patients})")
    for split, counts in made.listed.items():
        shown = ", ".join(f"{count} {name}" for count, name in zip(counts, IMAGE_CLASSES, strict=True))
        print(f"{made.root / 'classes.csv'}, {split}: {shown}")
    for summary in made.lesions:
        print("\n".join(summary.lines()))
    names = [f"{made.root.name}_{s.mask_type}_{s.split}" for s in made.lesions]
    names += [f"{made.root.name}_classes_{split}" for split in made.listed if made.root.name == "phantom"]
    print(f"Dataset names, with DETECTRON2_DATASETS={made.root.parent}: {', '.join(names)}")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    output = args.output if args.output is not None else datasets_root() / "phantom"
    made = write_phantoms(
        output,
        patients_per_class=args.patients,
        slices_per_patient=args.slices,
        seed=args.seed,
        size=args.size,
        val_fraction=args.val_fraction,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    report(made)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
