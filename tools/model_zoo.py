#!/usr/bin/env python
"""Trains the models of the zoo, keeps a record of each training, and writes MODEL_ZOO.md and MODEL_CARD.md.

    python tools/model_zoo.py data --source ~/ct --output output/zoo/data        # sets and splits; images stay there
    python tools/model_zoo.py run --grid phantom tuned --jobs 4                  # trainings, several at a time
    python tools/model_zoo.py run --grid classifier                              # on the best lesion models so far
    python tools/model_zoo.py pack --best segm/AP50 --model R18-T1 -o r18_t1.pth # weights alone, half precision
    python tools/model_zoo.py table                                              # MODEL_ZOO.md, from docs/zoo
    python tools/model_zoo.py card                                               # MODEL_CARD.md, from the shipped cards

run goes on where it was stopped. Exit status: 0 done, 1 some row has not finished, 2 bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from d2_covid.cli import run_command
from d2_covid.data.files import atomic_write, sha256_of
from d2_covid.engine.unused_keys import check_typed_keys
from d2_covid.errors import UserError
from d2_covid.inference.shipped import shipped_models
from d2_covid.zoo.card import card_page
from d2_covid.zoo.data import prepare_data
from d2_covid.zoo.detectors import detector_rows
from d2_covid.zoo.grids import CLASSIFIER_GRIDS, GRIDS, MODELS, Row, changed, final_weights, lesion_grid, phantom_row
from d2_covid.zoo.machine import Machine
from d2_covid.zoo.pack import best_record, pack
from d2_covid.zoo.peers import read_peers
from d2_covid.zoo.records import FINISHED, read_records
from d2_covid.zoo.runner import Runner
from d2_covid.zoo.table import zoo_page

CHECKOUT = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command sets ``work``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="make the zoo's data sets")
    data.add_argument("--source", type=Path, required=True, metavar="DIR", help="radiopaedia/, coronacases/, covid_ct/")
    data.add_argument("--output", type=Path, default=Path("output/zoo/data"), metavar="DIR", help="[output/zoo/data]")
    data.add_argument("--workers", type=int, default=0, metavar="N", help="processes that help making phantoms [0]")
    data.set_defaults(work=make_data)

    run = commands.add_parser("run", help="train a grid of models")
    grids = ", ".join([*GRIDS, *CLASSIFIER_GRIDS])
    run.add_argument("--grid", nargs="+", required=True, metavar="NAME", help=f"one or more of {grids}")
    run.add_argument("--output", type=Path, default=Path("output/zoo"), metavar="DIR", help="folder [output/zoo]")
    run.add_argument("--data", type=Path, metavar="DIR", help="what `data` made [OUTPUT/data]")
    run.add_argument("--only", nargs="+", metavar="PATTERN", help="rows whose name fits one, as '*R18-T1*-s1'")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time [1]")
    run.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read data, a training [2]")
    run.add_argument("--device", default="", help="cuda or cpu [what the machine has]")
    run.add_argument("--time-limit", type=float, metavar="S", help="stop after this many seconds; run again to go on")
    run.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for every row")
    run.add_argument("--label", metavar="NAME", help="name of the recipe that --opts or --phantoms make")
    run.add_argument("--phantoms", default="", metavar="NAME", help="start from the phantom models of this recipe")
    run.add_argument(
        "--detector", action="append", default=[], metavar="MODEL=FILE",
        help="lesion model of the classifiers of a model, as R18-T1=r18_t1.pth [the best AP50 in OUTPUT/records]",
    )  # fmt: skip
    run.add_argument("--list", action="store_true", help="print the rows' commands, and run nothing")
    run.set_defaults(work=run_grid)

    small = commands.add_parser("pack", help="a model as a small file")
    small.add_argument("--zoo", type=Path, default=Path("output/zoo"), metavar="DIR", help="folder [output/zoo]")
    small.add_argument(
        "--best", default="segm/AP50", metavar="METRIC", help="the model with the highest on CT [segm/AP50]"
    )
    small.add_argument("--model", choices=MODELS, help="of this model alone")
    small.add_argument("--recipe", metavar="NAME", help="of this recipe alone; phantom: by its figures on phantoms")
    small.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    small.set_defaults(work=make_pack)

    table = commands.add_parser("table", help="write MODEL_ZOO.md from records")
    table.add_argument(
        "--records",
        nargs="+",
        type=Path,
        default=[CHECKOUT / "docs/zoo"],
        metavar="DIR",
        help="folders, other libraries' results in their subfolder peers [docs/zoo]",
    )
    page = CHECKOUT / "MODEL_ZOO.md"
    table.add_argument("-o", "--output", type=Path, default=page, metavar="FILE", help="[MODEL_ZOO.md]")
    table.set_defaults(work=write_table)

    card = commands.add_parser("card", help="write MODEL_CARD.md from the cards of the shipped models")
    card.add_argument("--models", type=Path, metavar="DIR", help="folder of the cards [the package's]")
    page = CHECKOUT / "MODEL_CARD.md"
    card.add_argument("-o", "--output", type=Path, default=page, metavar="FILE", help="[MODEL_CARD.md]")
    card.set_defaults(work=write_card)
    return parser


def make_data(args: argparse.Namespace) -> int:
    """`data`."""
    for line in prepare_data(args.source, args.output, workers=args.workers):
        print(line)
    return 0


def rows_of(args: argparse.Namespace) -> list[Row]:
    """The rows that `run` is asked for."""
    rows: list[Row] = []
    for name in args.grid:
        if name in CLASSIFIER_GRIDS:
            found = detector_rows(name, args.output, args.detector)
        else:
            found = lesion_grid(name)
        rows += changed(found, args.opts, args.label, args.phantoms)
    if args.label and len(args.grid) > 1:
        raise UserError("--label names one recipe; give one --grid with it.")
    if args.only:
        chosen = [row for row in rows if any(fnmatch(row.name, pattern) for pattern in args.only)]
        if not chosen:
            names = ", ".join(row.name for row in rows)
            raise UserError(f"No row is called {' or '.join(args.only)}; there are {names}.")
        rows = chosen
    if args.phantoms and not any(row.needs == phantom_row(row.model, args.phantoms).name for row in rows):
        raise UserError(f"--phantoms {args.phantoms}: none of these rows starts from a phantom model; leave it out.")
    return rows


def run_grid(args: argparse.Namespace) -> int:
    """`run`."""
    rows = rows_of(args)
    for row in rows:  # what each training would refuse, one after the other
        check_typed_keys(row.cfg(), row.opts)
    if args.list:
        for row in rows:
            print(f"# {row.name}\n{row.command()}")
        return 0
    for name, value, least in (("--jobs", args.jobs, 1), ("--workers", args.workers, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; it takes {least} or more.")
    machine = Machine(args.jobs, args.workers, args.device, args.time_limit)
    folder = args.output.resolve()

    def command(row: Row) -> list[str]:
        _, _, *rest = row.arguments(str(folder))
        config = ["--config-file", str(CHECKOUT / row.config)]
        # Seeds read the same ranked detections: computed once for all.
        cache = ["MODEL.CLASSIFIER.CACHE_DIR", str(folder / "ranked_cache")] if row.kind == "classifier" else []
        script = str(CHECKOUT / "tools/train_net.py")
        # What --opts asks for goes before how rows are run here.
        return [sys.executable, script, "--resume", *config, *machine.options(), *cache, *rest]

    at_once = f"{machine.jobs} at a time with {machine.threads} threads each"
    print(f"{len(rows)} rows, {at_once}; logs in {args.output / 'logs'}", flush=True)
    say = lambda line: print(line, flush=True)  # noqa: E731
    ends = Runner(folder, args.data or args.output / "data", machine, command, say).run(rows)
    return 0 if all(end == FINISHED for end in ends.values()) else 1


def make_pack(args: argparse.Namespace) -> int:
    """`pack`."""
    record = best_record(read_records([args.zoo / "records"]), args.best, model=args.model, recipe=args.recipe)
    source = args.zoo / final_weights(record["name"])
    if not source.is_file() or sha256_of(source) != record["weights_sha256"]:
        raise UserError(f"{source} is not the model that the record of {record['name']} tells of; train it again.")
    size = pack(source, args.output)
    figure = record["metrics"][args.best]["value"]
    print(f"{args.output}: {record['name']}, {args.best} {figure:.4g}, {size} bytes, sha256 {sha256_of(args.output)}")
    return 0


def write_table(args: argparse.Namespace) -> int:
    """`table`."""
    records = read_records(args.records)
    peers = [peer for folder in args.records for peer in read_peers(folder / "peers")]
    _write(args.output, zoo_page(records, peers))
    finished = sum(record["status"] == FINISHED for record in records)
    print(f"{args.output}: {finished} of {len(records)} trainings finished")
    return 0


def write_card(args: argparse.Namespace) -> int:
    """`card`."""
    if args.models is not None and not args.models.is_dir():
        raise UserError(f"--models {args.models}: there is no such folder; give the one that holds the cards.")
    models = shipped_models(args.models)
    _write(args.output, card_page([model.card for model in models]))
    print(f"{args.output}: {', '.join(model.name for model in models) or 'no model'}")
    return 0


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = build_parser().parse_args(argv)
    return args.work(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
