#!/usr/bin/env python
"""Puts a trained model among those that ship with d2_covid: weights in half precision, and their card.

    python tools/ship_weights.py --name lesion_r18_t1 --weights output/r18_t1/model_best.pth --metadata facts.json \
        --evaluate "radiopaedia patients 1 and 4" radiopaedia_merge_val
    python tools/ship_weights.py --name classifier_r18_t1 --weights output/classifier/model_best.pth \
        --metadata classifier_facts.json --base lesion_r18_t1 --evaluation "COVID-CT, val" output/classifier_eval
    python tools/ship_weights.py --name lesion_r18_t1 --metadata facts.json        # the card alone, with other words

--metadata is a json of what a person has to say: summary, intended_use, not_intended_use, limits (a list; its first
line goes with every prediction), training (recipe, command, data: a list of name, url, used, terms, citation) and
licence (weights, reason); an earlier card will do. Sizes, checksums, parameters, what half precision changed, the facts
of the training's run.json, and the figures are filled in. Without --weights the card alone is changed.

A lesion model that was shipped under the name before is replaced, once all that was asked for is done; ship the
classifiers built on it again.
Exit status: 0 done, 2 bad input.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Sequence

from d2_covid.cli import run_command
from d2_covid.data.preprocessing import read_slice
from d2_covid.data.registration import add_registration_options, register_named
from d2_covid.errors import UserError
from d2_covid.inference import shipped
from d2_covid.inference.model_source import choose_device
from d2_covid.inference.models_command import storage_text, summary_text
from d2_covid.inference.shipped import ShippedModel, find_shipped
from d2_covid.zoo.card_evaluations import evaluate, evaluation_of
from d2_covid.zoo.shipping import CompareOn, add_evaluations, draft_of, left_behind, read_facts, revise, ship


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the model, of a to z, 0 to 9 and _")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of a training; without, the card is changed")
    parser.add_argument("--metadata", metavar="FILE", help="json of what a person has to say; goes with --weights")
    parser.add_argument("--base", metavar="NAME", help="shipped lesion model that this classifier was trained on")
    parser.add_argument("--default", action="store_true", help="predict with it when no weights are named")
    parser.add_argument(
        "--evaluate",
        nargs=2,
        action="append",
        default=[],
        metavar=("TEXT", "DATASET"),
        help="measure the stored weights on this data set, which TEXT describes; repeatable",
    )
    add_registration_options(parser, "--evaluate")
    parser.add_argument(
        "--evaluation",
        nargs=2,
        action="append",
        default=[],
        metavar=("TEXT", "PATH"),
        help="take over figures: the folder of train_net.py --eval-only, or a record of the zoo; repeatable",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar=("TEXT", "IMAGE"),
        help="slices to compare stored and trained weights on, and what they are (default: phantom CT)",
    )
    parser.add_argument("--device", default="auto", help="for --evaluate: auto, cpu, cuda (default: auto)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where models that ship lie (default: the package's)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="changes to the config that the weights carry"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    store = args.store or shipped.store_dir()
    device = choose_device(args.device)
    register_named(args)
    # Figures may turn out to be of other weights, or of no data set: then what shipped before is still there.
    with draft_of(store) as draft:
        model = _ship(args, draft) if args.weights else _revise(args, draft)
        for words, path in args.evaluation:
            model = add_evaluations(model, evaluation_of(words, path, model))
        for words, dataset in args.evaluate:
            with tempfile.TemporaryDirectory() as folder:
                model = add_evaluations(model, evaluate(words, [dataset], model, Path(folder), device))
    model = find_shipped(model.name, store)
    print(summary_text(model.card))
    print(f"  {storage_text(model.card.storage)}")
    print(f"{model.path}, {model.path.with_suffix('.json')}")
    for name in left_behind(model):
        print(f"{name} was built on another {model.name}: ship it again.")
    return 0


def _ship(args: argparse.Namespace, store: Path) -> ShippedModel:
    if args.metadata is None:
        raise UserError("--weights needs --metadata, the json of what a person has to say of the model.")
    compare_on = None
    if args.compare:
        words, *images = args.compare
        if not images:
            raise UserError("--compare takes what the slices are, in words, and then the images.")
        compare_on = CompareOn([read_slice(path) for path in images], words)
    return ship(
        args.name,
        args.weights,
        read_facts(args.metadata),
        store,
        base=args.base,
        opts=args.opts,
        default=args.default,
        compare_on=compare_on,
    )


def _revise(args: argparse.Namespace, store: Path) -> ShippedModel:
    for option in ("base", "opts", "compare"):
        if getattr(args, option):
            raise UserError(f"--{option} goes with --weights.")
    facts = {} if args.metadata is None else read_facts(args.metadata)
    return revise(find_shipped(args.name, store), facts, default=args.default)


if __name__ == "__main__":
    sys.exit(run_command(main))
