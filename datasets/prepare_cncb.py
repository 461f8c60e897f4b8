#!/usr/bin/env python
"""Turns CT slices with lesion masks into the COCO jsons that training reads; see datasets/README.md."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.data.cncb import Preparation, check_pairing, prepare_lesions
from d2_covid.data.datasets import datasets_root
from d2_covid.data.lesion_masks import MASK_TYPES
from d2_covid.data.pairing import Pairing, find_cncb_folder, looks_flat, pair_cncb, pair_flat
from d2_covid.data.splits import Splits, split_by_csv, split_by_fraction, split_by_lists, split_by_patients
from d2_covid.engine.seeding import seed_number
from d2_covid.errors import UserError

DESCRIPTION = """\
Turns CT slices with lesion masks into COCO jsons, one for each mask type and split, and says what is in them.
The slices stay where they are; the jsons point to them.

Layouts
  cncb   SOURCE/image/<patient>/<slice>.jpg and SOURCE/mask/<patient>/<slice>.png
         (or both inside SOURCE/ct_lesion_seg, as CNCB/NCOV delivers them)
  flat   one folder of images and one of masks, files of a pair named alike:
         <patient>_<slice> or <patient>_<scan>_<slice>; other names with --patient-pattern
Mask values are 0 background, 1 lung, 2 ground-glass opacity (GGO), 3 consolidation. Slices without a lesion are kept.
"""

EXAMPLES = """\
examples
  CNCB/NCOV, a fifth of its patients for validation:
    %(prog)s --source ~/cncb/ct_lesion_seg --name cncb --val-fraction 0.2 --seed 0
  patients 1 and 4 for validation:
    %(prog)s --source ~/radiopaedia --name radiopaedia --val-patients 1 4
  masks that don't tell GGO from consolidation:
    %(prog)s --source ~/coronacases --name coronacases --mask-types merge --val-patients 6 7
  the paper's own folders and lists:
    %(prog)s --images ~/imgs --masks ~/masks --name cncb --train-list train.txt --val-list val.txt

Afterwards train with DATASETS.TRAIN "('NAME_merge_train',)" DATASETS.TEST "('NAME_merge_val',)".
Exit status: 0 done, 2 bad input (one line on stderr says what and where; nothing is written).
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_argument_group("where the slices are")
    where.add_argument("--source", type=Path, metavar="DIR", help="folder with image/ and mask/ (see Layouts)")
    where.add_argument("--images", type=Path, metavar="DIR", help="folder of images (flat layout)")
    where.add_argument("--masks", type=Path, metavar="DIR", help="folder of masks (flat layout)")
    where.add_argument(
        "--layout", choices=("auto", "cncb", "flat"), default="auto",
        help="auto: flat with --images and --masks, or where SOURCE/image holds files rather than folders; else cncb",
    )  # fmt: skip
    where.add_argument(
        "--patient-pattern", metavar="REGEX",
        help="flat layout: regular expression whose first group is the patient in a file name, e.g. '^([^-]+)-'",
    )  # fmt: skip

    what = parser.add_argument_group("what to make")
    what.add_argument("--name", help="name of the set; datasets are NAME_<mask type>_<split> [cncb]")
    what.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the set, whose name is NAME [$DETECTRON2_DATASETS/NAME]"
    )
    what.add_argument(
        "--mask-types", nargs="+", choices=tuple(MASK_TYPES), default=list(MASK_TYPES),
        help="merge: GGO and consolidation are one class; ggo: GGO only; both: two classes [all three]",
    )  # fmt: skip
    what.add_argument(
        "--min-area", type=int, default=100, metavar="PIXELS",
        help="connected areas of this many pixels or fewer become background; 0 keeps all [100, as in the paper]",
    )  # fmt: skip

    split = parser.add_argument_group("how to split, always by patient (one of these) [--val-fraction 0.2]")
    split.add_argument("--val-patients", nargs="+", metavar="ID", help="validate on these, train on the others")
    split.add_argument("--val-fraction", type=float, metavar="X", help="validate on this share of the patients, drawn")
    split.add_argument("--seed", type=seed_number, default=0, help="seed of that draw [0]")
    split.add_argument("--splits", type=Path, metavar="CSV", help="csv file with the columns patient_id and split")
    split.add_argument("--train-list", type=Path, metavar="TXT", help="list of training slices, a file name a line")
    split.add_argument("--val-list", type=Path, metavar="TXT", help="list of validation slices")

    strict = parser.add_argument_group("what to do with files that can't be used")
    strict.add_argument("--strict", action="store_true", help="an image without a mask, or the reverse, is an error")
    strict.add_argument("--skip-bad", action="store_true", help="leave out damaged or unfitting slices, naming each")
    return parser


def find_pairs(args: argparse.Namespace) -> Pairing:
    """Pairs of the layout that the arguments say or that the folders show."""
    if (args.images is None) != (args.masks is None):
        raise UserError("Give both --images and --masks, or --source.")
    if (args.images is None) == (args.source is None):
        raise UserError("Give either --source, or --images and --masks; --help shows examples.")
    if args.images is not None:
        if args.layout == "cncb":
            raise UserError("--images and --masks are for the flat layout; with --layout cncb give --source.")
        return pair_flat(args.images, args.masks, args.patient_pattern)
    try:
        folder = find_cncb_folder(args.source)
    except UserError as error:
        if args.source.is_dir() and not (args.source / "image").is_dir():
            raise UserError(f"{error} For one folder of images and one of masks use --images and --masks.") from error
        raise
    if args.layout == "flat" or args.layout == "auto" and looks_flat(folder / "image"):
        return pair_flat(folder / "image", folder / "mask", args.patient_pattern)
    if args.patient_pattern is not None:
        raise UserError("--patient-pattern is for the flat layout; in the cncb layout a folder is a patient.")
    return pair_cncb(folder)


def output_folder(args: argparse.Namespace) -> Path:
    """Folder of the set; its last part is the set's name."""
    if args.output is None:
        return datasets_root() / (args.name or "cncb")
    output = Path(os.path.abspath(args.output))
    if args.name not in (None, output.name):
        raise UserError(
            f"--name {args.name} and --output {args.output} don't go together: a set has the name of its folder, "
            f"here {output.name}; leave out one of them, or end --output in {args.name}."
        )
    return output


def make_splits(args: argparse.Namespace, pairing: Pairing) -> Splits:
    """Splits by the one way that the arguments choose."""
    lists = {"train": args.train_list, "val": args.val_list}
    lists = {split: path for split, path in lists.items() if path is not None}
    chosen = [
        option
        for option, given in (
            ("--val-patients", args.val_patients),
            ("--val-fraction", args.val_fraction is not None),
            ("--splits", args.splits),
            ("--train-list/--val-list", lists),
        )
        if given
    ]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} are two ways to split; give one.")
    if args.val_patients:
        return split_by_patients(pairing.pairs, args.val_patients)
    if args.splits:
        return split_by_csv(pairing.pairs, args.splits)
    if lists:
        return split_by_lists(pairing.pairs, lists)
    return split_by_fraction(pairing.pairs, 0.2 if args.val_fraction is None else args.val_fraction, args.seed)


def report(done: Preparation, name: str, output: Path) -> None:
    for line in done.warnings():
        print(f"warning: {line}", file=sys.stderr)
    print(done.text())
    names = ", ".join(f"{name}_{split.mask_type}_{split.split}" for split in done.splits)
    print(f"Dataset names, with DETECTRON2_DATASETS={output.parent}: {names}")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    output = output_folder(args)
    pairing = find_pairs(args)
    if args.strict:
        check_pairing(pairing)
    done = prepare_lesions(
        pairing,
        make_splits(args, pairing),
        output,
        mask_types=args.mask_types,
        min_area=args.min_area,
        description=f"Lesions in chest CT: {output.name}",
        source=str(pairing.image_root.absolute()),
        skip_bad=args.skip_bad,
    )
    report(done, output.name, output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
