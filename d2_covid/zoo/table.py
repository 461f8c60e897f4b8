"""MODEL_ZOO.md, from the records of the zoo and the figures of the paper."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .. import paper_tables
from .markdown import markdown
from .peers import peer_section
from .summary import Group, groups_of, phantom_groups, started_elsewhere, stem_of
from .words import (
    CLASSIFIER_HEAD,
    COMMANDS_HEAD,
    LESION_NOTES,
    OTHER_START,
    PAPER_HEAD,
    PHANTOM_HEAD,
    RECIPES,
    ZOO_HEAD,
)

_AP = ("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP", "paper_ap/AP")
_DICE = ("union/dice", "union/pooled_dice")
_CLASS = (
    *("image/accuracy", "image/balanced_accuracy", "image/sensitivity-COVID-19", "image/specificity-COVID-19"),
    *("image/auc-COVID-19", "image/ece"),
)
_TRAINING = ("parameters", "seeds", "slices × passes", "seconds: steps (all)", "device")
_OF_LESIONS = ("mask AP", "AP50", "AP75", "box AP", "paper's AP", "Dice", "pooled Dice")
_OF_CLASSES = (
    *("accuracy", "balanced accuracy", "COVID-19 sensitivity", "COVID-19 specificity"),
    *("ROC area", "calibration error"),
)


def zoo_page(records: Sequence[Mapping[str, Any]], peers: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole of MODEL_ZOO.md.

    Args:
        records: of the zoo's trainings.
        peers: results of other libraries (:func:`.peers.read_peers`).

    Raises:
        UserError: records of one recipe that were not trained the same way, or none of a training that a peer followed.
    """
    lesions, classifiers = groups_of(records, "lesion"), groups_of(records, "classifier")
    phantoms = phantom_groups(records)
    parts = [ZOO_HEAD, _lesions(lesions, records), _phantoms(phantoms)]
    parts += [peer_section(records, peers)] if peers else []
    parts += [_classifiers(classifiers), _missing([*lesions, *phantoms, *classifiers]), _papers()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _lesions(groups: Sequence[Group], records: Sequence[Mapping[str, Any]]) -> str:
    train, val = (_data_of(groups, split) for split in ("train", "test"))
    about = ["## Lesions, on public COVID-19 CT", ""]
    if train and val:
        about += [f"Trained on {_counts(train)}, validated on {_counts(val)}; merged masks (one class, lesion).", ""]
    rows, intervals = [], []
    finished = {(g.recipe, g.start, g.model): number for number, g in enumerate(groups, 1) if g.records}
    for number, group in enumerate(groups, 1):
        row = [str(number), f"`{group.recipe}`", group.start, group.model]
        figures = [group.metric(name).text(1) for name in _AP] + [group.metric(name).text(3) for name in _DICE]
        in_half = finished.get((f"{group.recipe}_bf16", group.start, group.model))
        rows.append([*row, *_training(group, in_half), *figures])
        if group.records:
            ends = [_interval(group, name, 1) for name in _AP] + [_interval(group, name, 3) for name in _DICE]
            intervals.append([*row, *ends])
    first = ("", "recipe", "start", "model")
    notes = LESION_NOTES.format(patients=val.get("patients", "The"))
    if other := started_elsewhere(records):
        notes += "".join(f"{line}\n" for line in [OTHER_START, *(f"  - `{a}`, from `{b}`." for a, b in other)])
    parts = [*about, markdown([*first, *_TRAINING, *_OF_LESIONS], rows), "", _recipes(groups), "", notes]
    if intervals:
        title = "95 % intervals over the patients of the validation split:"
        parts += [title, "", markdown([*first, *_OF_LESIONS], intervals), ""]
    parts += [COMMANDS_HEAD]
    return "\n".join([*parts, _commands(groups), "", *_machines(groups)])


def _phantoms(groups: Sequence[Group]) -> str:
    rows = [[f"`{g.recipe}`", g.model, *_training(g), g.metric("segm/AP50").text(1)] for g in groups]
    table = markdown(["recipe", "model", *_TRAINING, "mask AP50 on phantoms"], rows)
    return "\n".join(["### Trainings on phantoms", "", PHANTOM_HEAD, table, "", _commands(groups, "p")])


def _classifiers(groups: Sequence[Group]) -> str:
    title = "## Classes of slices, on COVID-CT"
    if not groups:
        return f"{title}\n\nNot run: `python tools/model_zoo.py run --grid classifier classifier_paper`.\n"
    train, val = (_data_of(groups, split) for split in ("train", "test"))
    rows = []
    for number, group in enumerate(groups, 1):
        figures = [group.metric(name).text(3) for name in _CLASS]
        row = [f"c{number}", f"`{group.recipe}`", group.start, group.model, *_training(group)]
        rows.append([*row, *figures, _interval(group, "image/accuracy", 3)])
    head = ("", "recipe", "lesion model", "model", *_TRAINING, *_OF_CLASSES, "accuracy, 95 %")
    about = CLASSIFIER_HEAD.format(train=_counts(train) if train else "–", val=_counts(val) if val else "–")
    parts = [title, "", about, markdown(head, rows), "", *_beside_guessing(groups)]
    parts += [_recipes(groups), "", _commands(groups, "c"), ""]
    return "\n".join([*parts, *_machines(groups)])


def _beside_guessing(groups: Sequence[Group]) -> list[str]:
    """How many of the trainings are shown to tell the classes apart at all."""
    areas = [record.get("metrics", {}).get("image/auc-COVID-19", {}) for group in groups for record in group.records]
    lows = [area["low"] for area in areas if area.get("low") is not None]
    if not lows:
        return []
    better = sum(low > 0.5 for low in lows)
    words = "**Beside guessing**, whose ROC area is 0.5: trainings with a 95 % interval of that area above it:"
    return [f"{words} {better or 'none'} of {len(lows)}.", "", *_rounded_areas(groups)]


def _rounded_areas(groups: Sequence[Group]) -> list[str]:
    """Said of records from when scores were in single precision: of two classes, both areas are one number."""
    names = ("image/auc-COVID-19", "image/auc-not_COVID-19")
    values = [[r.get("metrics", {}).get(name, {}).get("value") for name in names] for g in groups for r in g.records]
    apart = [abs(a - b) for a, b in values if a is not None and b is not None and abs(a - b) > 1e-9]
    if not apart:
        return []
    words = (
        f"In {len(apart)} of {len(values)} trainings the areas of the two classes, which should be one number, differ"
    )
    why = "scores were kept in single precision, in which those of sure decisions are all 1, and tie"
    return [f"{words} by up to {max(apart):.3f}: {why}.", ""]


def _missing(groups: Sequence[Group]) -> str:
    """What a reader would look for and not find: by recipe, start and reason, the models and seeds."""
    missing: dict[tuple[str, str, str, str], list[str]] = {}
    for group in groups:
        for why in dict.fromkeys(group.missing.values()):
            seeds = [str(seed) for seed, said in group.missing.items() if said == why]
            words = f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
            missing.setdefault((group.recipe, group.start, words, why), []).append(group.model)
    lines = [
        f"- `{recipe}`, {start}, {', '.join(models)}, {seeds}: {why}."
        for (recipe, start, seeds, why), models in missing.items()
    ]
    return "\n".join(["## What is missing", "", *(lines or ["Nothing: every row has every seed."])])


def _papers() -> str:
    """The paper's own figures, apart from all others."""
    lesions = [
        [row.words, _millions(row.name), *_percent(row.ap50, row.ap75, row.ap), f"{row.minutes:g}"]
        for row in paper_tables.TABLE_2
    ]
    classes = [
        [row.words, _millions(row.name), *_percent(row.covid, row.pneumonia, row.control, row.accuracy)]
        + [f"{row.minutes:g}"]
        for row in paper_tables.TABLE_3
    ]
    parts = [
        "## The paper's own figures, on its own data",
        "",
        PAPER_HEAD,
        "Lesions, merged masks unless it says otherwise, CNCB's validation split (Table 2; parameters: Table 1):",
        "",
        markdown(["model", "parameters", "AP50", "AP75", "AP", "minutes"], lesions),
        "",
        *(f"- {note}" for note in paper_tables.TABLE_2_NOTES),
        "",
        "Class sensitivity and overall accuracy on COVIDx-CT's test split (Table 3; parameters: Table 1):",
        "",
        markdown(["model", "parameters", "COVID-19", "pneumonia", "control", "accuracy", "minutes"], classes),
        "",
        *(f"- {note}" for note in paper_tables.TABLE_3_NOTES),
    ]
    return "\n".join(parts)


def _percent(*values: float) -> list[str]:
    return [f"{value:.2f}" for value in values]


def _millions(name: str) -> str:
    size = paper_tables.size_of(name)
    return "–" if size is None else f"{size.total:.2f} M"


def _training(group: Group, in_half: int | None = None) -> list[str]:
    """Cells of parameters, seeds, slices × passes, seconds and device; ``in_half``: row of the same in bfloat16."""
    if not group.records:
        return ["–", f"0; in bfloat16: row {in_half}" if in_half else "0", "–", "–", "–"]
    first = group.records[0]
    passes = first["iterations"] * first["batch"] / first["training_slices"]
    steps, everything = group.fact("step_seconds"), group.fact("seconds")
    seconds = f"{steps.mean:,.0f}" + ("" if everything.mean is None else f" ({everything.mean:,.0f})")
    jobs = [f"{n} at a time" for n in group.values("jobs") if n > 1]
    device = ", ".join([" / ".join(group.values("device")), *jobs])
    return [
        f"{statistics.fmean(group.values('parameters')) / 1e6:.2f} M",
        str(len(group.records)),
        f"{first['training_slices']:,} × {passes:.3g}",
        seconds,
        device,
    ]


def _interval(group: Group, name: str, digits: int) -> str:
    ends = group.interval(name)
    return "–" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def _recipes(groups: Sequence[Group]) -> str:
    lines = ["Recipes:\n"]
    for recipe in dict.fromkeys(group.recipe for group in groups):
        opts = next((group.opts for group in groups if group.recipe == recipe and group.opts), ())
        stem = stem_of(recipe)
        words = RECIPES.get(recipe) or (f"`{stem}` with other values" if stem else "no recipe of the grids")
        values = " ".join(" ".join(pair) for pair in zip(opts[::2], opts[1::2]))
        lines.append(f"- `{recipe}`: {words}." + (f" Overrides: `{values}`." if values else ""))
    return "\n".join(lines)


def _commands(groups: Sequence[Group], letter: str = "") -> str:
    lines = ["```"]
    for number, group in enumerate(groups, 1):
        lines += [f"# {letter}{number}: {group.recipe}, {group.start}, {group.model}", group.command]
    return "\n".join([*lines, "```"])


def _machines(groups: Sequence[Group]) -> list[str]:
    """Which versions computed the figures, a line for each set of them."""
    return list(
        dict.fromkeys(
            f"Computed with {', '.join(f'{name} {version}' for name, version in record['versions'].items())}."
            for group in groups
            for record in group.records
        )
    )


def _data_of(groups: Sequence[Group], split: str) -> dict[str, Any]:
    """Counts of the data that the groups share; the last, where some were run on other data."""
    return next((dict(record["data"][split][0]) for g in reversed(groups) for record in reversed(g.records)), {})


def _counts(data: Mapping[str, Any]) -> str:
    words = [f"{data['slices']:,} slices"]
    if "patients" in data:
        words.append(f"{data['patients']} patients")
    if "lesions" in data:
        words.append(f"{data['lesions']:,} lesions")
    return f"{words[0]} ({', '.join(words[1:])})" if words[1:] else words[0]
