#!/usr/bin/env python
"""The paper's Table 2 (segmentation, on CNCB) and Table 3 (classification, on COVIDx-CT), each from one command.

    python tools/make_tables.py --table 2 --cncb ~/ct/cncb --output tables
    python tools/make_tables.py --table 3 --cncb ~/ct/cncb --covidx ~/ct/covidx_ct --output tables

Prepares the data, trains and evaluates each model of the paper by its recipe, and writes table2.md, .csv and .json (or
table3) to the output folder after each model, with intervals, and with the paper's own figures apart. Table 3 starts
from Table 2's models: those in the output folder or in --weights-dir; with --cncb those that are missing are trained.

Run the same command again, and it goes on where it stopped; a model that failed is tried again. --dry-run shows the
commands, and how long they take on this machine. The paper reports 17 hours of training for its Table 2 and 28 for its
Table 3, on a GPU; a CPU takes weeks.

Exit status: 0 every row done; 1 rows failed, or another command is training them (the others stand in the table); 2 bad
input.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_covid.cli import parse_with_overrides, run_command
from d2_covid.config import get_config
from d2_covid.data.phantom import write_phantoms
from d2_covid.engine.seeding import seed_number
from d2_covid.engine.steps import about
from d2_covid.engine.unused_keys import check_typed_keys
from d2_covid.errors import UserError
from d2_covid.tables.estimate import Cost, costs, paper_minutes, total_words
from d2_covid.tables.jobs import Run
from d2_covid.tables.models import MODELS, RECIPES, SEGMENTATION, choose_models
from d2_covid.tables.options import IMAGENET, Options
from d2_covid.tables.pages import in_order, write_table
from d2_covid.tables.phantom_layouts import write_covidx_layout
from d2_covid.tables.plan import TABLE_OF, Plan, make_plan, printed
from d2_covid.tables.rows import outcome_of
from d2_covid.tables.run import carry_out, waiting_runs, whole_beside
from d2_covid.tables.settings import check_settings
from d2_covid.tables.sources import find_class_set, find_lesion_set

import torch

CHECKOUT = Path(__file__).resolve().parent.parent
QUICK = (
    *("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("TEST.BOOTSTRAP", "20", "TEST.DETECTIONS_PER_IMAGE", "5", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.CLASSIFIER.NUM_ROIS", "8", "MODEL.CLASSIFIER.HIDDEN_DIM", "8"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "DATALOADER.NUM_WORKERS", "0"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", type=int, choices=(2, 3), default=[], help="which to make; 2 3 for both")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--dry-run", action="store_true", help="show the commands and what they take, and stop")
    parser.add_argument(
        "--quick-check", action="store_true",
        help="both tables in a minute, on phantoms in the layouts of the two sets; the models learn nothing",
    )  # fmt: skip

    what = parser.add_argument_group("what to train")
    what.add_argument("--models", nargs="+", metavar="NAME", help=f"some of {', '.join(MODELS)} [all]")
    what.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a training with each [0]")
    what.add_argument("--recipe", choices=RECIPES, default="paper", help="configs as they are, or tuned/ [paper]")
    what.add_argument("--epochs", type=int, metavar="N", help="of each Mask R-CNN [as in the recipe: the paper's 100]")
    what.add_argument("--classifier-epochs", type=int, metavar="N", help="of each classifier [the recipe's: 50]")
    what.add_argument(
        "--init", default="", metavar="WEIGHTS",
        help=f"what each Mask R-CNN starts from: '{IMAGENET}' for torchvision's ResNets, or a checkpoint [random]",
    )  # fmt: skip
    what.add_argument("--device", metavar="NAME", help="cuda or cpu [cuda where there is one]")
    what.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides for every training")

    lesions = parser.add_argument_group("Table 2's data")
    lesions.add_argument("--cncb", type=Path, metavar="DIR", help="CNCB's slices and masks: image/ and mask/, or above")
    lesions.add_argument("--val-patients", nargs="+", default=[], metavar="ID", help="[the 20 of the paper's lists]")
    lesions.add_argument("--val-fraction", type=float, metavar="X", help="or a share of the patients, drawn")
    lesions.add_argument("--split-seed", type=seed_number, default=0, metavar="N", help="of that draw [0]")
    lesions.add_argument("--train-list", type=Path, metavar="TXT", help="or lists of slices, a file name a line")
    lesions.add_argument("--val-list", type=Path, metavar="TXT")

    classes = parser.add_argument_group("Table 3's data")
    classes.add_argument("--covidx", type=Path, metavar="DIR", help="COVIDx-CT: lists, and images in it or below")
    classes.add_argument("--covidx-images", type=Path, metavar="DIR", help="the images, if elsewhere")
    classes.add_argument("--covidx-train", type=Path, metavar="TXT", help="another list, such as the paper's 3,000")
    classes.add_argument("--covidx-test", type=Path, metavar="TXT", help="another list")
    classes.add_argument("--subset", type=int, metavar="N", help="training slices to draw, 0: all [3000]")
    classes.add_argument("--weights-dir", type=Path, metavar="DIR", help="trained Mask R-CNNs: NAME.pth, or Table 2's")
    return parser


def plan_of(args: argparse.Namespace) -> Plan:
    """Look at the data, and plan."""
    if not args.table:
        raise UserError("Say which to make: --table 2, --table 3, or --table 2 3.")
    kinds = [kind for kind, number in TABLE_OF.items() if number in args.table]
    if args.cncb is not None and args.weights_dir is None and SEGMENTATION not in kinds:
        kinds.append(SEGMENTATION)
    options = Options(
        args.output,
        tuple(choose_models(args.models, kinds, args.recipe)),
        tuple(dict.fromkeys(args.seeds)),
        args.recipe,
        args.epochs,
        args.classifier_epochs,
        args.init,
        args.weights_dir,
        args.device,
        tuple(args.opts),
        args.quick_check,
    )
    lesions = classes = None
    if args.cncb is not None:
        lesions = find_lesion_set(
            args.cncb,
            val_patients=args.val_patients,
            val_fraction=args.val_fraction,
            seed=args.split_seed,
            train_list=args.train_list,
            val_list=args.val_list,
        )
    if args.covidx is not None and 3 in args.table:
        classes = find_class_set(
            args.covidx, images=args.covidx_images, train=args.covidx_train, test=args.covidx_test, subset=args.subset
        )
    return make_plan(options, args.table, lesions, classes)


def quick_check(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of both tables on phantoms, which are made here."""
    phantoms, covidx = args.output / "phantoms" / "cncb", args.output / "phantoms" / "covidx_ct"
    if not (phantoms / "classes.csv").is_file():
        write_phantoms(phantoms, patients_per_class=2, slices_per_patient=3, seed=1, size=128, val_fraction=0.5)
    write_covidx_layout(phantoms, covidx)
    args.table, args.cncb, args.covidx = args.table or [2, 3], phantoms, covidx
    args.val_fraction, args.epochs, args.classifier_epochs = 0.5, 1, 1
    args.models = args.models or ["R18-T2"]
    args.opts = [*QUICK, *args.opts]
    return args


def announce(plan: Plan, found: dict[Run, Cost], machine: str) -> None:
    """Say what will be done, how long it takes and what it fills; refuse a disk that is too small."""
    print("\n".join(total_words(found)))
    known = [cost.seconds for cost in found.values() if cost.seconds is not None]
    disk = sum(cost.disk for cost in found.values())
    unknown = len(found) - len(known)
    print(
        f"{len(found)} trainings: {about(sum(known))} {machine}, roughly, and {disk / 1e9:.1f} GB"
        + (f"; {unknown} could not be timed" if unknown else "")
        + f". The paper reports {paper_minutes(found) / 60:.1f} hours of training for these on its GPU."
    )
    if departures := dict.fromkeys(line for kind in plan.settings for line in plan.departures(kind)):
        print("Not the paper's experiment:\n" + "\n".join(f"  {line}" for line in departures))
    folder = next(path for path in (plan.options.output, *plan.options.output.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if disk > free:
        raise UserError(f"{plan.options.output} has {free / 1e9:.1f} GB free, and the runs need {disk / 1e9:.1f} GB.")


def main(argv: Sequence[str] | None = None) -> int:
    """Make them; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return make_tables(parse_with_overrides(build_parser(), arguments), arguments)


def make_tables(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Plan, announce, carry out, write.

    Args:
        arguments: as typed, for the pages.
    """
    if args.quick_check:
        args = quick_check(args)
    plan = plan_of(args)
    # What each training would refuse, once the data is prepared; those of one config differ in their seeds alone.
    for run in {run.config_file: run for run in plan.runs}.values():
        check_typed_keys(get_config(run.config_file, run.overrides), run.overrides)
    check_settings(plan.options.output, plan.settings)
    if args.dry_run:
        print("\n".join(printed(plan, CHECKOUT)))
    on_gpu = torch.cuda.is_available() and not (args.device or "cuda").startswith("cpu")
    machine = "on this GPU" if on_gpu else f"on this CPU ({torch.get_num_threads()} threads)"
    found = costs(waiting_runs(plan), on_gpu=on_gpu)
    announce(plan, found, machine)
    if args.dry_run:
        return 0

    command = shlex.join(["python", "tools/make_tables.py", *arguments])
    kinds = [kind for kind, number in TABLE_OF.items() if number in args.table and kind in plan.settings]

    def write(failures: dict[Run, str]) -> list[Path]:
        waiting, beside = set(waiting_runs(plan)), whole_beside(plan)
        outcomes = [outcome_of(run, failures, run not in waiting) for run in [*plan.runs, *beside]]
        by_kind = {kind: in_order([one for one in outcomes if one.run.kind == kind]) for kind in kinds}
        return [path for kind in kinds for path in write_table(plan, kind, by_kind[kind], command)]

    seconds = {run: cost.seconds for run, cost in found.items()}
    failures = carry_out(
        plan,
        CHECKOUT,
        seconds=seconds,
        machine=machine,
        say=lambda line: print(line, flush=True),
        after_run=write,
    )
    print("\n" + "\n".join(str(path) for path in write(failures)))
    print("Research software: not a medical device.")
    if failures:
        names = ", ".join(run.name for run in failures)
        what = f"{len(failures)} of {len(plan.runs)} trainings failed ({names}); run it again to try again."
    elif left := waiting_runs(plan):
        names = ", ".join(run.name for run in left)
        what = f"Another command is training {names}; its rows are missing here until that has ended."
    else:
        return 0
    print(f"error: {what}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(run_command(main))
