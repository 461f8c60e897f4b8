"""Writes a table as Markdown, csv and json: what was measured, and, apart from it, what the paper reports."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..data.files import atomic_write, write_json
from ..data.limits import counted
from ..paper_tables import TABLE_2, TABLE_2_NOTES, TABLE_3, TABLE_3_NOTES
from ..zoo.words import WILSON
from .models import CLASSIFICATION, MODELS, SEGMENTATION
from .plan import TABLE_OF, Plan
from .rows import COLUMNS, Column, Figure, Outcome, by_model, spread

TITLES = {
    SEGMENTATION: "Average precision of lesion segmentation",
    CLASSIFICATION: "Class sensitivity and overall accuracy of the image classifiers",
}
PAPER = {SEGMENTATION: (TABLE_2, TABLE_2_NOTES), CLASSIFICATION: (TABLE_3, TABLE_3_NOTES)}
PAPER_HEADING = {
    SEGMENTATION: "the paper's Table 2, on its own validation slices",
    CLASSIFICATION: "the paper's Table 3, on COVIDx-CT's test slices",
}
MEASURES = {
    SEGMENTATION: "The first three columns are the average precision that the paper counts: precision and recall of "
    "each slice by itself, averaged over slices; only masks that score above {paper_score_threshold} enter. COCO's "
    "counts all slices at once, up to {max_detections} masks each; the two are not comparable. Dice: overlap of the "
    "united masks that score {union_score_threshold} or more, a slice's mean.",
    CLASSIFICATION: "Sensitivity: share of a class's slices that are called so. Overall: share of all slices whose "
    "class is right. One slice is one case.",
}
READ_BY_S = (
    "Unless overridden, module S reads the box head's regression output, as in the paper's program (its text: box "
    "coordinates), and too few detections are repeated evenly, so that results repeat (its text: sampled)."
)
ALL_AS_THERE = "All as in the paper, or in its program and lists where its text is silent or differs."
NONE = "–"


def write_table(plan: Plan, kind: str, outcomes: Sequence[Outcome], command: str) -> list[Path]:
    """Write ``table<n>.md``, ``.csv`` and ``.json`` below the output folder, each whole or not at all.

    Args:
        kind: "segmentation" (Table 2) or "classification" (Table 3).
        outcomes: of the runs of that kind, in the order of the rows.
        command: that made them, for the page.

    Returns:
        The files.
    """
    stem = plan.options.output / f"table{TABLE_OF[kind]}"
    with atomic_write(stem.with_suffix(".md")) as file:
        file.write(markdown(plan, kind, outcomes, command))
    with atomic_write(stem.with_suffix(".csv")) as file:
        file.write(csv_text(kind, outcomes))
    write_json(stem.with_suffix(".json"), as_json(plan, kind, outcomes, command))
    return [stem.with_suffix(suffix) for suffix in (".md", ".csv", ".json")]


def markdown(plan: Plan, kind: str, outcomes: Sequence[Outcome], command: str) -> str:
    """The table as a page."""
    columns = COLUMNS[kind]
    papers, more = ([column for column in columns if bool(column.paper) == own] for own in (True, False))
    rows, further = [], []
    for model, found in by_model(outcomes).items():
        done = [outcome for outcome in found if outcome.state == "done"]
        minutes = spread([outcome.minutes for outcome in done]).mean
        trained = NONE if minutes is None else f"{minutes:.2f}"
        rows.append([model.words, *(_cell(done, column) for column in papers), trained, _seeds(found)])
        further.append([model.words, *(_cell(done, column) for column in more)])
    heads = [column.head for column in papers]
    notes = [*_how(plan, kind, outcomes), *_not_done(outcomes)]
    departures = plan.departures(kind)
    parts = [
        f"# Table {TABLE_OF[kind]}: {TITLES[kind]}",
        f"Measured with d2_covid, in percent, by\n\n```\n{command}\n```",
        _table(["Model", *heads, "Training, minutes", "Seeds"], rows),
        "More of the same models:",
        _table(["Model", *(column.head for column in more)], further),
        _bullets(notes),
        "**Not the paper's experiment:**" if departures else ALL_AS_THERE,
        *([_bullets(departures)] if departures else []),
        "Research software: not a medical device. These figures hold for the data named here, and for no other.",
        f"## Reported, not measured: {PAPER_HEADING[kind]}",
        "A. Ter-Sarkisov's own figures, in percent; the paper gives no intervals.",
        _table(["Model", *heads, "Training, minutes"], _paper_rows(kind)),
        _bullets(PAPER[kind][1]),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(kind: str, outcomes: Sequence[Outcome]) -> str:
    """A row for each run and for each row of the paper; the column ``source`` tells them apart."""
    columns = COLUMNS[kind]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{column.key}{end}" for column in columns for end in ("", "_low", "_high")]
    writer.writerow(["source", "model", "seed", "state", *ends, "training_minutes", "slices", "patients"])
    for outcome in outcomes:
        figures = [outcome.figures.get(column.key, Figure(None)) for column in columns]
        cells = [_plain(x) for figure in figures for x in (figure.value, figure.low, figure.high)]
        facts = [outcome.facts.get(name, "") for name in ("slices", "patients")]
        head = ["measured", outcome.run.model.words, outcome.run.seed, outcome.state]
        writer.writerow([*head, *cells, _plain(outcome.minutes), *facts])
    for row in PAPER[kind][0]:
        cells = [x for column in columns for x in (getattr(row, column.paper) if column.paper else "", "", "")]
        writer.writerow(["paper", row.words, "", "reported", *cells, row.minutes, "", ""])
    return text.getvalue()


def as_json(plan: Plan, kind: str, outcomes: Sequence[Outcome], command: str) -> dict[str, Any]:
    """Everything, as plain values."""
    columns = COLUMNS[kind]
    return {
        "table": TABLE_OF[kind],
        "unit": "percent",
        "command": command,
        "settings": plan.settings[kind],
        "not_the_papers_experiment": plan.departures(kind),
        "measured": [
            {
                "model": outcome.run.model.words,
                "config": outcome.run.model.config_name(kind),
                "seed": outcome.run.seed,
                "state": outcome.state,
                "reason": outcome.reason or None,
                "figures": {
                    key: {"value": figure.value, "low": figure.low, "high": figure.high}
                    for key, figure in outcome.figures.items()
                },
                "training_minutes": outcome.minutes,
                "facts": outcome.facts,
            }
            for outcome in outcomes
        ],
        "means": {
            model.words: {
                column.key: {"mean": found.mean, "deviation": found.deviation, "seeds": found.seeds}
                for column in columns
                for found in [spread([outcome.figures.get(column.key, Figure(None)).value for outcome in group])]
            }
            for model, group in by_model(outcomes).items()
        },
        "paper": {
            "rows": [
                {"model": row.words, "training_minutes": row.minutes}
                | {column.key: getattr(row, column.paper) for column in columns if column.paper}
                for row in PAPER[kind][0]
            ],
            "notes": list(PAPER[kind][1]),
        },
    }


def in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """By the paper's order of models, then by seed."""
    place = {name: number for number, name in enumerate(MODELS)}
    return sorted(outcomes, key=lambda outcome: (place[outcome.run.model.name], outcome.run.seed))


def _cell(done: Sequence[Outcome], column: Column) -> str:
    """One seed: value and interval; several: mean and standard deviation."""
    figures = [outcome.figures[column.key] for outcome in done]
    found = spread([figure.value for figure in figures])
    if found.mean is None:
        return NONE
    if found.deviation is not None:
        return f"{found.mean:.2f} ± {found.deviation:.2f}"
    low, high = next((figure.low, figure.high) for figure in figures if figure.value is not None)
    return f"{found.mean:.2f}" if None in (low, high) else f"{found.mean:.2f} [{low:.1f}, {high:.1f}]"


def _seeds(found: Sequence[Outcome]) -> str:
    done = sum(outcome.state == "done" for outcome in found)
    return str(done) if done == len(found) else f"{done} of {len(found)}"


def _how(plan: Plan, kind: str, outcomes: Sequence[Outcome]) -> list[str]:
    """How the figures came about: data, recipe, machine, intervals."""
    options = plan.options
    recipe = f"The {options.recipe} recipe (`configs/{kind}/{'' if options.recipe == 'paper' else 'tuned/'}`)"
    if kind == SEGMENTATION:
        recipe += f", starting from {options.init or 'random weights'}"
    else:
        place = f"in {options.weights_dir}" if options.weights_dir else "of Table 2"
        recipe += f", starting from the Mask R-CNNs {place}"
    lines = [f"{recipe}; the model at the end of its training, none chosen by these slices."]
    done = [outcome for outcome in outcomes if outcome.state == "done"]
    if not done:
        return lines
    facts = done[0].facts
    seen = f"{facts['training_slices']} training slices; measured on {counted(facts['slices'], 'slice')}"
    if facts["patients"]:
        seen += f" of {counted(facts['patients'], 'patient')}"
    if kind == SEGMENTATION:
        by_type = {outcome.run.dataset: outcome.facts["lesions"] for outcome in done}
        counts = {name: ", ".join(f"{kind} {n}" for kind, n in lesions.items()) for name, lesions in by_type.items()}
        lesions = "; ".join(f"{numbers} ({dataset})" for dataset, numbers in counts.items())
        seen += f" that the models were not trained on, {facts['slices_without_lesion']} of them without a lesion"
        lines += [f"{seen}. Lesions: {lesions}.", MEASURES[kind].format(**facts["settings"])]
    else:
        shares = ", ".join(f"{n} {name}" for name, n in facts["slices_by_class"].items())
        lines += [f"{seen} that the classifiers were not trained on ({shares}).", MEASURES[kind], READ_BY_S]
    lines.append(_intervals(done))
    devices = sorted({outcome.facts["device"] for outcome in done if outcome.facts["device"]})
    left_out = "evaluation" if kind == SEGMENTATION else "evaluation, and ranking detections ahead of training,"
    lines.append(f"Minutes are those of the training iterations alone, {left_out} left out, on {', '.join(devices)}.")
    versions = [outcome.facts["versions"] or {} for outcome in done]
    made = {f"d2_covid {v['d2_covid']} on PyTorch {v['torch']}" for v in versions if "torch" in v}
    lines += [f"Trained with {'; '.join(sorted(made))}."] if made else []
    return lines + sorted({note for outcome in done for note in outcome.facts["notes"]})


def _intervals(done: Sequence[Outcome]) -> str:
    several = any(len(found) > 1 for found in by_model(done).values())
    facts = done[0].facts
    if not facts["resamples"]:
        brackets = "No intervals were asked for (TEST.BOOTSTRAP 0)."
    else:
        of_classes = done[0].run.kind == CLASSIFICATION
        how = f"{WILSON if of_classes and not facts['patients'] else ''}bootstrap over {facts['resampled']}"
        brackets = f"In brackets: 95 % interval, {how}, {facts['resamples']} resamples."
    if several:
        brackets += " With ±: standard deviation over seeds; each seed's interval is in the csv file."
    return brackets


def _not_done(outcomes: Sequence[Outcome]) -> list[str]:
    failed = [
        f"{outcome.run.name} FAILED: {outcome.reason}. The same command tries it again."
        for outcome in outcomes
        if outcome.state == "failed"
    ]
    waiting = [outcome.run.name for outcome in outcomes if outcome.state == "not done"]
    return failed + ([f"Not done yet: {'; '.join(waiting)}."] if waiting else [])


def _paper_rows(kind: str) -> list[list[str]]:
    columns = [column for column in COLUMNS[kind] if column.paper]
    return [
        [row.words, *(f"{getattr(row, column.paper):.2f}" for column in columns), f"{row.minutes:g}"]
        for row in PAPER[kind][0]
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def _plain(value: float | None) -> str | float:
    return "" if value is None else round(value, 4)
