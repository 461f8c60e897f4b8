#!/usr/bin/env python3
"""Prepare COVIDx-CT (1, 2A, 2B, 3A, 3B) for the image classifier: check its lists and images, draw a subset.

Writes into $DETECTRON2_DATASETS/covidx_ct: train.csv, val.csv and test.csv (file,label,patient_id,scan_id), a link
``image`` to the images, and splits.json, which says how they were made. Nothing is copied. Of the train
list 3,000 slices are drawn, as many as the paper's; it may also be the paper's own (one file a line, class first): then
give --subset 0.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.data.datasets import datasets_root
from d2_covid.data.files import sha256_of, write_csv, write_json
from d2_covid.data.slice_lists import IMAGE_CLASSES, ListedSlice, count_by_class, read_one_split
from d2_covid.data.slices import balanced_subset, check_files_apart, find_images, patient_overlap
from d2_covid.engine.seeding import seed_number
from d2_covid.errors import UserError

SPLITS = ("train", "val", "test")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the COVIDx-CT images")
    parser.add_argument("--train", type=Path, required=True, help="split file, as train_COVIDx-CT.txt")
    parser.add_argument("--val", type=Path, help="split file, as val_COVIDx-CT.txt")
    parser.add_argument("--test", type=Path, help="split file, as test_COVIDx-CT.txt")
    parser.add_argument(
        "--subset", type=int, default=3000, help="training slices to draw, equally many a class (3000; 0: all)"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the draw (0)")
    parser.add_argument("--output", type=Path, help="folder to write ($DETECTRON2_DATASETS/covidx_ct)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    output = args.output or datasets_root() / "covidx_ct"
    lists = {split: path for split in SPLITS if (path := getattr(args, split)) is not None}
    for split, path in lists.items():
        if path.resolve() in {(output / f"{name}.csv").resolve() for name in lists}:
            raise UserError(f"--{split} {path} is where a prepared list goes; move it, or give another --output.")
    listed = {split: read_one_split(path) for split, path in lists.items()}
    files = {split: find_images(entries, args.images, lists[split]) for split, entries in listed.items()}
    root = args.images.resolve()
    relative = {
        entry.file: _below(args.images, path)
        for split, entries in listed.items()
        for entry, path in zip(entries, files[split], strict=True)
    }

    # Over the whole lists, before anything is drawn from them.
    shared = prove_patients_apart(listed)
    if args.subset:
        listed["train"] = balanced_subset(listed["train"], args.subset, len(IMAGE_CLASSES), args.seed)
    print_counts(listed)
    if shared:
        first = "; ".join(f"{patient} in {' and '.join(splits)}" for patient, splits in list(shared.items())[:3])
        raise UserError(f"{len(shared)} patients are in two splits ({first}); nothing was written.")
    check_files_apart({f"--{split}": paths for split, paths in files.items()})

    link_images(output / "image", root)
    for split, entries in listed.items():
        write_list(output / f"{split}.csv", entries, relative)
    write_json(
        output / "splits.json",
        {
            "images": str(root),
            "lists": {split: {"file": str(path.resolve()), "sha256": sha256_of(path)} for split, path in lists.items()},
            "subset": args.subset or None,
            "seed": args.seed,
            "classes": list(IMAGE_CLASSES),
            "slices": {split: count_by_class(entries, len(IMAGE_CLASSES)) for split, entries in listed.items()},
            "patients": {split: len({e.patient_id for e in entries} - {""}) for split, entries in listed.items()},
        },
    )
    former = [f"{split}.csv" for split in SPLITS if split not in listed and (output / f"{split}.csv").exists()]
    if former:
        message = f"{output} keeps lists of a former run: {', '.join(former)}. Make them again too, or remove them."
        print(f"warning: {message}", file=sys.stderr)
    print(f"wrote {', '.join(f'{split}.csv' for split in listed)} and splits.json to {output}")
    return 0


def _below(folder: Path, path: Path) -> str:
    """``path`` from ``folder`` on, whose lists may name files by their whole paths."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        whole = path.parent.resolve() / path.name
    if not whole.is_relative_to(folder.resolve()):
        raise UserError(f"{path} is not in --images {folder}.")
    return whole.relative_to(folder.resolve()).as_posix()


def prove_patients_apart(listed: dict[str, list[ListedSlice]]) -> dict[str, tuple[str, ...]]:
    """Print how many patients the splits have and share; returns the shared ones and their splits."""
    patients = {split: {entry.patient_id for entry in entries} - {""} for split, entries in listed.items()}
    for split, entries in listed.items():
        unknown = sum(not entry.patient_id for entry in entries)
        note = f"; {unknown} names tell no patient, so this check does not cover them" if unknown else ""
        print(f"{split}: all {len(entries)} images found, {len(patients[split])} patients{note}")
    names = list(patients)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            print(f"patients in both {one} and {other}: {len(patients[one] & patients[other])}")
    return patient_overlap(patients)


def print_counts(listed: dict[str, list[ListedSlice]]) -> None:
    """A table of slices by split and class."""
    rows = [["split", *IMAGE_CLASSES, "slices", "patients"]]
    for split, entries in listed.items():
        counts = count_by_class(entries, len(IMAGE_CLASSES))
        rows.append([split, *map(str, counts), str(sum(counts)), str(len({e.patient_id for e in entries} - {""}))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def write_list(path: Path, entries: Sequence[ListedSlice], relative: dict[str, str]) -> None:
    rows = ([relative[e.file], e.image_class, e.patient_id, e.scan_id] for e in entries)
    write_csv(path, [["file", "label", "patient_id", "scan_id"], *rows])


def link_images(link: Path, images: Path) -> None:
    """Make ``link`` stand for the folder ``images``; a link from an earlier run is replaced."""
    if link.is_dir() and link.resolve() == images:
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is in the way: it should become a link to {images}. Move it, or give --output.")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        os.symlink(images, link, target_is_directory=True)
    except OSError as error:
        raise UserError(f"Cannot make the link {link} to {images}: {error.strerror or error}.") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
