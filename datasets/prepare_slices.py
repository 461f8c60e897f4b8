#!/usr/bin/env python
"""Writes slices of DICOM series and volumes, and a list of them, for the image classifier; see datasets/README.md."""

import argparse
import csv
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.config import get_config
from d2_covid.data.discovery import discover
from d2_covid.data.files import write_csv, write_json
from d2_covid.data.globs import is_glob, reaches
from d2_covid.data.volumes import Series
from d2_covid.errors import UserError
from d2_covid.inference.outputs import DONE, whole_folder
from d2_covid.inference.resume import json_object

from PIL import Image
from tqdm import tqdm

DESCRIPTION = """\
Writes every slice of the CT in INPUT, read, turned and windowed as `d2-covid predict` does, as OUTPUT/<series>/0000.png
and so on, from feet to head, and OUTPUT/slices.csv (file,label,patient_id,scan_id), which training reads:
  python tools/train_net.py --register-slices NAME OUTPUT/slices.csv OUTPUT ...
The patient_id is the name of the first folder below INPUT (of a glob: below the folder before its first wildcard), so
let INPUT hold the patients' folders. A volume right in INPUT is a patient of its own, other files there are INPUT's.
No name is from a DICOM header, for privacy, but that of a series: its SeriesInstanceUID.
Exit status: 0 all done; 1 some failed, the others are done; 2 could not start, or wrote nothing.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, DICOM file, volume, folder or glob")
    parser.add_argument("--output", required=True, type=Path, help="folder of the set; replaces that of an earlier run")
    label = parser.add_mutually_exclusive_group(required=True)
    label.add_argument("--label", metavar="NAME", help="class of all slices, by name or number")
    label.add_argument("--labels", type=Path, metavar="CSV", help="csv of name,label: name of file, patient or INPUT")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of each series every Nth slice [1]")
    parser.add_argument("--level", type=float, default=-600, help="of the window, in Hounsfield units [-600]")
    parser.add_argument("--width", type=float, default=1500, help="of the window, in Hounsfield units [1500]")
    parser.add_argument("--assume-window", action="store_true", help="take volumes not in Hounsfield units as gray")
    return parser


def read_labels(path: Path) -> dict[str, str]:
    """Label by name, of a csv file with these columns; :class:`UserError` where it is none, or says two things."""
    labels: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                name, label = ((row.get(column) or "").strip() for column in ("name", "label"))
                if not name or not label or labels.setdefault(name, label) != label:
                    raise UserError(f"{path}: {name or 'a line'} has two labels, or lacks a name or a label; mend it.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a csv file of labels: {error}.") from error
    return labels


def patient_and_names(series: Series, inputs: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Patient of a series, and the names under which its label may be listed, the nearest first."""
    path = series.source_files[0]
    tops = [next(top for top in (Path(item), *Path(item).parents) if top.is_dir()) for item in inputs]
    top = min((top for top in tops if path.is_relative_to(top)), key=lambda top: len(top.parts), default=path.parent)
    below, top_name = path.relative_to(top).parts, top.resolve().name
    patient = below[0] if len(below) > 1 else series.identifier if series.kind == "volume" else top_name
    return patient, (path.name, patient, top_name)


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that an input holds or lies in, and one with files that no earlier run wrote."""
    for item in inputs:
        path, folder = Path(item).resolve(), output.resolve()
        nested = path.is_relative_to(folder) or folder.is_relative_to(path)
        if reaches(item, output, [None, "0000.png"]) if is_glob(item) else nested:
            raise UserError(f"--output {output} and the input {item} lie in one another; give a folder elsewhere.")
    found = os.listdir(output) if output.is_dir() else None
    if foreign := sorted(set(found or ()) - {DONE, *json_object(output / DONE).get("holds", ())}):
        raise UserError(f"{output} holds {foreign[0]}, which no earlier run wrote; give another folder, or move it.")
    if found == []:
        output.rmdir()  # as good as none


def write_series(series: Series, folder: Path, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Write the slices of a series: the files, and what can't be read, which costs a loose image only itself."""
    files, errors = [], []
    (folder / series.identifier).mkdir()
    for index in range(0, series.num_slices, args.every):
        try:
            gray = series.gray(index, args.level, args.width)
        except UserError as error:
            errors.append(str(error))
            if series.kind == "images":
                continue
            files = []
            break
        files.append(f"{series.identifier}/{index:04d}.png")
        Image.fromarray(gray).save(folder / files[-1])
    if not files:
        shutil.rmtree(folder / series.identifier)
    return files, errors


def write_all(args: argparse.Namespace, labels: dict[str, str], folder: Path) -> tuple[list[list[str]], bool]:
    """Write all series that can be read; the rows of the list, and whether something failed."""
    rows, failed = [], False
    with tqdm(unit="series", disable=not sys.stderr.isatty()) as bar:
        for item in discover(args.inputs, args.assume_window, on_found=bar.reset):
            if not isinstance(item, Series):
                failed = failed or item.failed
                bar.write(f"{'error' if item.failed else 'note'}: {item.message}", file=sys.stderr)
                continue
            patient, names = patient_and_names(item, args.inputs)
            label = args.label or next((labels[name] for name in names if name in labels), "")
            without = f"{item.identifier}: {args.labels} has a label for none of {', '.join(dict.fromkeys(names))}."
            files, errors = write_series(item, folder, args) if label else ([], [without])
            for line in [f"warning: {one}" for one in item.warnings] + [f"error: {one}" for one in errors]:
                bar.write(line, file=sys.stderr)
            rows += [[file, label, patient, item.identifier] for file in files]
            failed = failed or bool(errors)
            bar.update()
            del item  # what it holds, before the next is read
    return rows, failed


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.every < 1 or not args.width > 0:
        raise UserError("--every is 1 or more, and --width is above 0.")
    labels = {} if args.labels is None else read_labels(args.labels)
    output = Path(os.path.abspath(args.output))
    check_output(output, args.inputs)
    with whole_folder(output) as folder:
        rows, failed = write_all(args, labels, folder)
        if not rows:
            raise UserError("Nothing was written: the inputs hold no series that can be read and has a label.")
        write_csv(folder / "slices.csv", [("file", "label", "patient_id", "scan_id"), *rows])
        record = {"inputs": args.inputs, "window": [args.level, args.width], "holds": sorted(os.listdir(folder))}
        write_json(folder / DONE, record)  # by which a later run knows it
    print(f"wrote {len(rows)} slices of {len({row[2] for row in rows})} patients, and slices.csv, to {output}")
    window = get_config().INPUT.WINDOW
    if (args.level, args.width) != (window.LEVEL, window.WIDTH):
        keys = f"INPUT.WINDOW.LEVEL {args.level:g} INPUT.WINDOW.WIDTH {args.width:g}"
        print(f"train on them with {keys}: d2-covid predict windows scans as the model's config says")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run_command(main))
