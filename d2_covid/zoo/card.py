"""MODEL_CARD.md, from the cards of the models that ship."""

from collections.abc import Sequence

from ..inference.model_card import Comparison, Evaluation, Metric, ModelCard
from .markdown import markdown
from .words import CARD_HEAD, CARD_NONE

_SHOWN = {
    "segm/AP": "mask AP, %",
    "segm/AP50": "mask AP50, %",
    "segm/AP75": "mask AP75, %",
    "bbox/AP": "box AP, %",
    "bbox/AP50": "box AP50, %",
    "paper_ap/AP": "paper's AP, %",
    "union/dice": "Dice",
    "union/pooled_dice": "pooled Dice",
    "image/accuracy": "accuracy",
    "image/balanced_accuracy": "balanced accuracy",
    "image/auc": "ROC area",
    "image/ece": "expected calibration error",
}
"""Figures that stand on the page, of those that the card has, and in words; others by class follow."""
_BY_CLASS = ("sensitivity", "specificity")


def card_page(cards: Sequence[ModelCard]) -> str:
    """The whole of MODEL_CARD.md: the default model first, as :func:`~d2_covid.inference.shipped.shipped_models` has
    them."""
    if not cards:
        return f"{CARD_HEAD}\n{CARD_NONE}"
    listed = [
        [f"[`{card.name}`](#{card.name})", card.kind, f"{card.size_bytes / 1e6:.1f} MB", card.summary] for card in cards
    ]
    table = markdown(["model", "kind", "file", "what it does"], listed)
    return "\n".join([CARD_HEAD, table, "", *("\n".join(_card(card)) for card in cards)])


def _card(card: ModelCard) -> list[str]:
    lines = [f"## {card.name}", "", card.summary, ""]
    lines += ["### Use", "", f"**For:** {card.intended_use}", "", f"**Not for:** {card.not_intended_use}", ""]
    lines += ["### Limits", "", *(f"- {line}" for line in card.limits), ""]
    lines += ["### What was measured", ""]
    for evaluation in card.evaluation:
        lines += [*_evaluation(evaluation), ""]
    if not card.evaluation:
        lines += ["Nothing yet.", ""]
    lines += ["### Training data and their terms", ""]
    for source in card.training.data:
        terms = f"*Terms:* {_ended(source.terms)} *Cite:* {source.citation}"
        lines += [f"- [{source.name}]({source.url}): {_ended(source.used)} {terms}"]
    lines += ["", f"**Licence of the weights:** {_ended(card.licence.weights)} {card.licence.reason}", ""]
    lines += ["### How it was trained", "", _ended(card.training.recipe), "", "```", card.training.command, "```", ""]
    lines += [markdown(["", ""], _facts(card)), ""]
    return lines


def _evaluation(evaluation: Evaluation) -> list[str]:
    counts = [f"{evaluation.slices:,} slices"]
    counts += [f"{evaluation.patients:,} patients"] if evaluation.patients is not None else []
    counts += [f"{evaluation.lesions:,} lesions"] if evaluation.lesions is not None else []
    of = "the weights that ship" if evaluation.weights == "stored" else "the weights before they were stored"
    lines = [f"**{evaluation.data}** ({', '.join(counts)}), of {of}; intervals: {evaluation.interval}.", ""]
    names = [name for name in _SHOWN if name in evaluation.metrics]
    names += [name for name in evaluation.metrics if name.startswith(tuple(f"image/{kind}-" for kind in _BY_CLASS))]
    rows = [[_SHOWN.get(name, _by_class(name)), *_figure(name, evaluation.metrics[name])] for name in names]
    return [*lines, markdown(["figure", "value", "95 % interval"], rows), *_notes(evaluation)]


def _notes(evaluation: Evaluation) -> list[str]:
    return ["", *(f"- {note}" for note in evaluation.notes)] if evaluation.notes else []


def _by_class(name: str) -> str:
    kind, _, label = name.removeprefix("image/").partition("-")
    return f"{kind} to {label.replace('_', ' ')}" if kind == "sensitivity" else f"{kind} of {label.replace('_', ' ')}"


def _figure(name: str, metric: Metric) -> list[str]:
    digits = 3 if name.startswith(("union/", "image/")) else 1
    value, low, high = (None if one is None else f"{one:.{digits}f}" for one in (metric.value, metric.low, metric.high))
    return [value or "undefined", f"{low} to {high}" if low and high else "none"]


def _facts(card: ModelCard) -> list[list[str]]:
    training, stored = card.training, card.storage.comparison
    rows = [
        ["config", f"`{card.architecture.config}`"],
        ["parameters", f"{card.architecture.parameters:,}"],
        ["lesion classes", ", ".join(card.architecture.lesion_classes)],
        ["image classes", ", ".join(card.architecture.image_classes)],
        ["training", ", ".join(_training(card))],
        ["seed", None if training.seed is None else str(training.seed)],
        ["file", f"`{card.file}`, {card.size_bytes:,} bytes"],
        ["SHA-256", f"`{card.sha256}`"],
        ["shares tensors with", f"`{card.base.name}`, SHA-256 `{card.base.sha256}`" if card.base else None],
        ["stored", card.storage.tensors],
        ["SHA-256 as trained", f"`{card.storage.trained_sha256}`"],
        ["shipped", f"{card.date}, by d2_covid {card.d2_covid}"],
    ]
    if stored is not None:
        rows.insert(-1, ["changed by storing", _comparison(stored)])
    return [[name, value] for name, value in rows if value]


def _training(card: ModelCard) -> list[str]:
    training = card.training
    parts = [] if training.slices is None else [f"{training.slices:,} slices"]
    parts += [] if training.patients is None else [f"{training.patients:,} patients"]
    parts += [] if training.seconds is None else [f"{training.seconds:,.0f} s"]
    return parts + ([] if training.device is None else [training.device])


def _comparison(stored: Comparison) -> str:
    parts = [f"on {stored.on}, {stored.slices} slices: {stored.detections:,} detections, {stored.unmatched} unmatched"]
    differences = (
        ("scores by {:.2g}", stored.score_difference),
        ("boxes by {:.2g} pixels", stored.box_difference_px),
        ("image scores by {:.2g}", stored.image_score_difference),
    )
    found = [text.format(value) for text, value in differences if value is not None]
    parts += [f"at most {', '.join(found)}"] if found else []
    parts += [] if stored.mask_dice is None else [f"Dice of the united masks {stored.mask_dice:.4f}"]
    return "; ".join(parts)


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
