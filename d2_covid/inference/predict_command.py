"""``d2-covid predict``: parses, calls, prints."""

import argparse
import sys
import warnings
from pathlib import Path

from tqdm import tqdm

from ..data.limits import one_line
from ..engine.inference_model import DTYPES
from ..engine.seeding import seed_everything, seed_number
from .batch_run import BatchOptions, BatchRun, Progress
from .outputs import NEEDS, choose_outputs
from .predictions_json import NOTICE
from .predictor import Predictor
from .summary_table import printed_table

_DESCRIPTION = """Find lesions, and with a classifier the class, in CT. INPUT is any mix of images (png, jpg, tif; 8 or
16 bit), DICOM files, NIfTI, MetaImage and NRRD volumes, folders of any of these at any depth, and globs. Each series
gets a folder in the output, named by its SeriesInstanceUID, file or folder; its report.html opens in a browser, without
a network. Where another input's result has that name, a number is added."""
_EPILOG = f"""exit status: 0 all done; 1 some failed, the others are done; 2 could not start, or nothing to
predict on. Outputs carry no header text of the patient unless --keep-tags names it; names of files and folders, and
UIDs, are kept. The schema of predictions.json is d2_covid/inference/schemas/predictions.schema.json. {NOTICE}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``predict`` takes."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, DICOM file, volume, folder or glob")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument(
        "--model",
        metavar="NAME|CONFIG",
        help="name of a config, or a yaml file; or, without --weights, name of a shipped model; default: what the "
        "weights say",
    )
    parser.add_argument(
        "--weights",
        metavar="NAME|FILE",
        help="name of a shipped model (d2-covid models lists them), or a checkpoint, such as model_best.pth of a "
        "training run; default: the lesion model that ships",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--save", metavar="LIST", help=f"of {','.join(NEEDS)} (default: all that the input and the installation allow)"
    )
    parser.add_argument("--resume", action="store_true", help="skip series whose results are whole and up to date")
    parser.add_argument(
        "--assume-window", action="store_true", help="take volumes not in Hounsfield units as gray of a lung window"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="detections from this score on are lesions (default: what the model says, mostly 0.5)",
    )
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("LEVEL", "WIDTH"), help="in Hounsfield units (default: the model's)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="slices to a pass (default: 4 on a CPU, else 8)")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="type of the features: bfloat16 is faster where the processor has it, and results differ a little; "
        "float16 is for a GPU (default: what the model says, float32)",
    )
    parser.add_argument(
        "--keep-tags",
        nargs="+",
        default=[],
        metavar="TAG",
        help="DICOM keywords to copy to predictions.json and the report: PatientID ...; those of "
        "DICOM's modules of patient and study go to the DICOM segmentation too",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of all random numbers (default: 0)")
    parser.add_argument("--debug", action="store_true", help="end at the first unforeseen error, and show where")


def run(args: argparse.Namespace) -> int:
    """Run ``d2-covid predict``; exit status as in its help."""
    with warnings.catch_warnings():
        # What PyTorch and highdicom warn of is for those who call them; it would stand between lines for the user.
        warnings.filterwarnings("ignore", category=UserWarning)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.batch_size is not None and args.batch_size < 1:
        args.parser.error("--batch-size must be 1 or more")
    save = None if args.save is None else [name.strip() for name in args.save.split(",") if name.strip()]
    choose_outputs(save)  # before the model takes its time to load
    seed_everything(args.seed)
    predictor = Predictor(
        args.model,
        args.weights,
        args.device,
        score_threshold=args.score_threshold,
        window=None if args.window is None else tuple(args.window),
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    options = BatchOptions(
        save=save,
        resume=args.resume,
        assume_window=args.assume_window,
        keep_tags=tuple(args.keep_tags),
        seed=args.seed,
        debug=args.debug,
        command=tuple(sys.argv),
        window_given=args.window is not None,
    )
    with _Bar() as bar:
        for warning in predictor.source.warnings:
            bar.say(f"warning: {warning}")
        if card := predictor.source.card:
            bar.say(f"model: {card.name}, which ships with d2_covid. {card.limits_line}")
        batch = BatchRun(predictor, args.inputs, args.output, options, report=bar.say, progress=bar)
        status = batch.run()
    if batch.rows:
        print(printed_table(batch.rows))
    print(f"{one_line(args.output / 'summary.csv')}, {one_line(args.output / 'run.json')}. {NOTICE}")
    return status


class _Bar(Progress):
    """A bar over scans, on stderr if that is a terminal; parts of a scan count, so that one large scan moves it too."""

    def __init__(self) -> None:
        self._bar = tqdm(
            unit="scan",
            disable=not sys.stderr.isatty(),
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} scans [{elapsed}<{remaining}]",
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def found(self, scans: int) -> None:
        self._bar.total = scans
        self._bar.refresh()

    def advance(self, share: float, name: str = "") -> None:
        self._bar.set_description_str(f"{name[-20:]} ", refresh=False)
        self._bar.update(share)

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._bar.write(line, file=sys.stderr)
