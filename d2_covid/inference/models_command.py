"""``d2-covid models``: lists the models that ship, and prints what is known of one."""

import argparse
import json
import sys
import textwrap
from typing import Iterator

from ..errors import UserError
from . import shipped
from .model_card import Evaluation, Metric, ModelCard, Storage
from .predictions_json import NOTICE
from .shipped import find_shipped, shipped_models, verified

HEADLINE = {"lesion": ("segm/AP50", "mask AP50"), "classifier": ("image/accuracy", "accuracy")}
"""The figure that the list shows, by kind of model, and its name in words."""

_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``models`` takes."""
    parser.description = "List the models that ship with d2_covid, or print the card of one."
    parser.epilog = "exit status: 0 done; 2 no such model, or a file is damaged. " + NOTICE
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the card of this model")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the card as json")
    how.add_argument(
        "--path",
        action="store_true",
        help="print where the weights lie, for MODEL.WEIGHTS of tools/train_net.py; a classifier's lack the tensors "
        "that it shares with its lesion model, and only d2_covid puts them back",
    )


def run(args: argparse.Namespace) -> int:
    """Run ``d2-covid models``; exit status as in its help."""
    if args.name is None:
        if args.json or args.path:
            args.parser.error("--json and --path go with the NAME of a model")
        return _list()
    model = verified(find_shipped(args.name))
    if args.path:
        print(model.path)
    elif args.json:
        print(json.dumps(model.card.as_dict(), indent=2, ensure_ascii=False))
    else:
        print(card_text(model.card))
    return 0


def _list() -> int:
    models, status = shipped_models(), 0
    if not models:
        print(f"This copy of d2_covid ships no models: there are none in {shipped.store_dir()}.")
    for model in models:
        print(summary_text(model.card))
        try:
            verified(model)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    return status


def summary_text(card: ModelCard) -> str:
    """A card in a few lines: name, kind, size, its main figure with n, and the line of its limits."""
    default = ", the default" if card.default else ""
    base = f", with the tensors of {card.base.name}" if card.base else ""
    lines = [f"{card.name}: {card.kind} model{default}; {card.size_bytes / 1e6:.1f} MB{base}"]
    lines += [f"  {headline(card, one)}" for one in card.evaluation] or ["  not measured"]
    return "\n".join([*lines, *_wrapped(card.limits_line, "  limits: ")])


def headline(card: ModelCard, evaluation: Evaluation) -> str:
    """``mask AP50 32.4 [15.0, 69.0] on 125 slices of 4 patients: ...``."""
    name, words = HEADLINE[card.kind]
    if name not in evaluation.metrics:
        name = words = next(iter(evaluation.metrics))
    patients = f" of {_count(evaluation.patients, 'patient')}" if evaluation.patients else ""
    figure = figure_text(name, evaluation.metrics[name])
    return f"{words} {figure} on {_count(evaluation.slices, 'slice')}{patients}: {evaluation.data}"


def figure_text(name: str, metric: Metric) -> str:
    """A figure with its interval: percent with one digit, shares with three."""
    digits = 1 if name.startswith(("bbox/", "segm/", "paper_ap/")) else 3
    if metric.value is None:
        return "undefined"
    text = f"{metric.value:.{digits}f}"
    if metric.low is None or metric.high is None:
        return text
    return f"{text} [{metric.low:.{digits}f}, {metric.high:.{digits}f}]"


def card_text(card: ModelCard) -> str:
    """The whole card, to read in a terminal."""
    return "\n".join(_card_lines(card))


def _card_lines(card: ModelCard) -> Iterator[str]:
    built, training = card.architecture, card.training
    yield f"{card.name}: {card.summary}"
    yield NOTICE
    yield ""
    yield from _wrapped(card.intended_use, "intended use: ")
    yield from _wrapped(card.not_intended_use, "not intended: ")
    yield "limits:"
    for line in card.limits:
        yield from _wrapped(line, "  - ")
    yield ""
    images = f"; image classes: {', '.join(built.image_classes)}" if built.image_classes else ""
    yield f"model: {built.config}, {built.parameters / 1e6:.2f} million parameters"
    yield f"finds: {', '.join(built.lesion_classes)}{images}"
    base = f"; shares tensors with {card.base.name}" if card.base else ""
    yield f"file: {card.file}, {card.size_bytes:,} bytes, SHA-256 {card.sha256}{base}"
    yield f"written: {card.date} by d2_covid {card.d2_covid}"
    yield from _wrapped(storage_text(card.storage), "stored: ")
    for one in card.evaluation:
        yield ""
        yield from _evaluation_lines(one)
    yield ""
    yield from _wrapped(training.recipe, "training: ")
    yield from _wrapped(training.command, "  command: ")
    yield from _wrapped(_known_facts(card), "  ")
    for source in training.data:
        yield from _wrapped(f"{source.name}, {source.used}. {source.url}", "  data: ")
        yield from _wrapped(source.terms, "    terms: ")
        yield from _wrapped(source.citation, "    cite: ")
    yield ""
    yield from _wrapped(f"{card.licence.weights} ({card.licence.reason})", "terms of these weights: ")


def storage_text(storage: Storage) -> str:
    """How the weights are stored, and what that has changed."""
    found = storage.comparison
    if found is None:
        return f"{storage.tensors}."
    parts = [f"{_count(found.detections, 'detection')}, {found.unmatched} without a partner"]
    for value, words in (
        (found.score_difference, "largest difference of a score {:.2g}"),
        (found.box_difference_px, "of a box edge {:.2g} px"),
        (found.mask_dice, "Dice of the masks {:.4f}"),
        (found.image_score_difference, "largest difference of an image score {:.2g}"),
    ):
        parts += [] if value is None else [words.format(value)]
    slices = f"{_count(found.slices, 'slice')} ({found.on})"
    return f"{storage.tensors}. Against the model as trained, on {slices}: {', '.join(parts)}."


def _evaluation_lines(one: Evaluation) -> Iterator[str]:
    counts = [_count(one.slices, "slice")]
    counts += [_count(one.patients, "patient")] if one.patients else []
    counts += [_count(one.lesions, "lesion")] if one.lesions else []
    which = "these weights" if one.weights == "stored" else "the weights before they were stored in half precision"
    yield from _wrapped(f"{one.data}: {', '.join(counts)}; {which}", "measured on ")
    width = max(map(len, one.metrics))
    for name, metric in one.metrics.items():
        yield f"  {name:<{width}}  {figure_text(name, metric)}"
    for note in (f"intervals: {one.interval}", *one.notes):
        yield from _wrapped(note, "  - ")


def _known_facts(card: ModelCard) -> str:
    training = card.training
    facts = [
        "" if training.slices is None else _count(training.slices, "slice"),
        "" if training.patients is None else _count(training.patients, "patient"),
        "" if training.seconds is None else f"{training.seconds / 60:.0f} minutes",
        training.device or "",
        "" if training.seed is None else f"seed {training.seed}",
    ]
    return ", ".join(filter(None, facts))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _wrapped(text: str, prefix: str) -> list[str]:
    if not text:
        return []
    indent = " " * min(len(prefix), 4)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=prefix, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
