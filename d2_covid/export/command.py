"""``d2-covid export``: parses, calls, prints."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Iterator

import numpy as np

from ..data.phantom import phantom_patient
from ..data.preprocessing import read_slice
from ..errors import UserError
from ..inference.model_source import keep_scores_from, resolve_model
from ..inference.predictions_json import NOTICE
from .check import Difference
from .model import EXAMPLE, MANIFEST, PARTS, ExportOptions, check_export, export_model, plain_model
from .write import FORMATS, LARGEST_BATCH, require_format

_DESCRIPTION = f"""Write a trained model for use without Detectron2: OUT/{FORMATS["onnx"]} (or {FORMATS["pt2"]}),
OUT/{MANIFEST}, which says how to prepare slices and what comes out, and OUT/{EXAMPLE}, which runs the model with NumPy
and ONNX Runtime. First it is compared with the model itself, on a phantom, a black slice and those of --check."""
_COLUMNS = ["detections", "unmatched", "box", "score", "mask", "pixels", "image_score"]
_EPILOG = "exit status: 0 done; 1 the exported model differs from the model; 2 could not start. " + NOTICE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``export`` takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("-o", "--output", required=True, metavar="OUT", type=Path, help="folder for the files")
    parser.add_argument(
        "--weights",
        metavar="NAME|FILE",
        help="name of a shipped model (d2-covid models lists them), or a checkpoint; default: the lesion model that "
        "ships",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|CONFIG",
        help="name of a config, or a yaml file; or, without --weights, name of a shipped model; default: what the "
        "weights say",
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument(
        "--part", choices=PARTS, default="whole", help="dense: feature maps and the RPN's outputs only (default: whole)"
    )
    parser.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="images to a call (default: dynamic)")
    parser.add_argument("--height", type=int, metavar="H", help="of all slices, with --width (default: any)")
    parser.add_argument("--width", type=int, metavar="W")
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="least score of a detection, and of what counts as a lesion (default: the config's two)",
    )
    parser.add_argument("--check", nargs="+", default=[], metavar="SLICE", help="image files to compare on as well")


def run(args: argparse.Namespace) -> int:
    """Run ``d2-covid export``; exit status as in its help."""
    with warnings.catch_warnings():
        # What PyTorch warns of is for those who call it; it would stand between lines for the user.
        warnings.filterwarnings("ignore", category=UserWarning)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    options = _options(args)
    require_format(options.kind)  # before the model takes its time to load
    slices = [(Path(name).name, read_slice(name)) for name in args.check]
    source = resolve_model(args.model, args.weights, "cpu")
    for warning in source.warnings:
        print(f"warning: {warning}")
    if args.score_threshold is not None:
        source.cfg.TEST.UNION_SCORE_THRESH = args.score_threshold  # from here on run.py prints, as predict counts
        keep_scores_from(source.cfg, args.score_threshold)
    model = plain_model(source.cfg)
    exported = export_model(model, source, options)
    slices += _always_checked(options.slice_size)
    for name, image in slices:
        exported.check_slice(name, image)
    exported, differences = check_export(exported, model, source.cfg, slices)
    exported.write(args.output)
    print("\n".join(_table(differences, options.part)))
    info = exported.manifest
    shape = " x ".join(str(length) for length in info["input"]["shape"])
    size = len(exported.content) / 1e6
    print(f"{args.output / info['file']}: {source.name}, {options.part}, {size:.1f} MB, input {shape}. {NOTICE}")
    if not info["check"]["passed"]:
        print(f"error: it differs from the model by more than {MANIFEST} allows; see the table.", file=sys.stderr)
        return 1
    return 0


def _options(args: argparse.Namespace) -> ExportOptions:
    if (args.height is None) != (args.width is None):
        args.parser.error("--height and --width go together")
    if args.height is not None and min(args.height, args.width) < 1:
        raise UserError(f"--height and --width must be 1 or more, not {args.height} and {args.width}.")
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold must be from 0 to 1, not {args.score_threshold:g}.")
    batch = None
    if args.batch != "dynamic":
        if not args.batch.isdecimal() or not 1 <= int(args.batch) <= LARGEST_BATCH:
            raise UserError(f"--batch must be dynamic, or a number from 1 to {LARGEST_BATCH}, not {args.batch!r}.")
        batch = int(args.batch)
    size = None if args.height is None else (args.height, args.width)
    return ExportOptions(part=args.part, kind=args.format, batch=batch, slice_size=size)


def _always_checked(slice_size: tuple[int, int] | None) -> Iterator[tuple[str, np.ndarray]]:
    height, width = slice_size or (512, 512)
    phantom = phantom_patient(seed=1, image_class=2, num_slices=3, size=max(height, width, 64))[1].image
    yield "phantom", np.ascontiguousarray(phantom[:height, :width])
    yield "black", np.zeros((height, width), np.uint8)


def _table(differences: list[Difference], part: str) -> Iterator[str]:
    columns = ["dense"] if part == "dense" else _COLUMNS
    width = max(len("slice"), *(len(difference.name) for difference in differences))
    yield "  ".join([f"{'slice':<{width}}", *(f"{name:>11}" for name in columns)])
    for difference in differences:
        values = (getattr(difference, name) for name in columns)
        cells = (f"{value:>11}" if isinstance(value, int) else f"{value:>11.1e}" for value in values)
        yield "  ".join([f"{difference.name:<{width}}", *cells])
