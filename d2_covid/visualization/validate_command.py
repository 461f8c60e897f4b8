"""``d2-covid validate``: parses, calls, prints."""

import argparse
import sys
from pathlib import Path

from ..data.limits import counted
from ..data.validation import Validation, validate, write_validation
from ..data.validation_findings import KINDS
from .validation_sheet import write_sheet

_DESCRIPTION = """Check a data set before training on it. SET is a dataset name (cncb_merge_train), a COCO json, a list
of slices (csv, or txt as COVIDx-CT has it) or a folder with image/ and mask/. Name the splits together, as in
cncb_merge_train cncb_merge_val, to compare them: no patient may be in two, and near-duplicate images are warned of."""
_EPILOG = """exit status: 0 no errors, warnings or none; 1 errors; 2 could not start. Writes validation.json, and
validation.png, which shows what it complains about."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``validate`` takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("sets", nargs="+", metavar="SET", help="dataset name, json, csv or folder")
    parser.add_argument("--images", metavar="DIR", type=Path, help="where the images of a json or list lie")
    parser.add_argument(
        "--classes", metavar="A,B", help="classes of a list (default: control,common pneumonia,COVID-19)"
    )
    parser.add_argument(
        "--output", "-o", metavar="DIR", type=Path, default=Path("validation"), help="default: validation"
    )
    parser.add_argument("--max-shown", metavar="N", type=int, default=10, help="findings shown of a kind (default: 10)")


def run(args: argparse.Namespace) -> int:
    """Run ``d2-covid validate``; exit status as in its help."""
    if args.max_shown < 1:
        args.parser.error("--max-shown must be 1 or more")
    classes = None if args.classes is None else [name.strip() for name in args.classes.split(",")]
    found = validate(args.sets, args.images, classes, args.max_shown, progress=sys.stderr.isatty())
    write_validation(args.output / "validation.json", found)
    panels = write_sheet(args.output / "validation.png", found.findings)
    print("\n".join(_lines(found)))
    print(f"{args.output / 'validation.json'}" + (f", {args.output / 'validation.png'}" if panels else ""))
    return 1 if found.errors else 0


def _lines(validation: Validation) -> list[str]:
    lines = []
    for split in validation.splits:
        counts = ", ".join(f"{name} {count}" for name, count in split.class_counts.items())
        patients = len({entry.patient_id for entry in split.slices} - {""})
        of_patients = counted(patients, "patient") if patients else "unknown patients"
        size = f"{counted(len(split.slices), 'slice')} of {of_patients}"
        lines.append(f"{split.name}: {size} ({counts})")
    findings = validation.findings
    for kind in findings.found():
        kept, count = findings.kept(kind), findings.counts[kind]
        lines.append(f"{KINDS[kind].severity}: {KINDS[kind].text}: {count}")
        lines += [f"    {one.message}" for one in kept]
        if KINDS[kind].severity != "info" and count > len(kept):
            lines.append(f"    ... and {count - len(kept)} more")
    lines.append(f"{validation.errors} errors, {validation.warnings} warnings")
    return lines
