"""Records of the zoo gathered into rows: those that differ by their seed alone, as mean and spread."""

import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .grids import CLASSIFIER_GRIDS, GRIDS, MODELS, SEEDS
from .records import FINISHED

EXPECTED = ("tuned", "paper")
"""Recipes whose rows the table has whether they were run or not."""

_ORDER = (*GRIDS, *CLASSIFIER_GRIDS)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None where there is none (of one seed, the deviation)."""

    mean: float | None
    deviation: float | None = None

    def text(self, digits: int) -> str:
        """Such as ``28.2 ± 1.1``; ``–`` for none."""
        if self.mean is None:
            return "–"
        after = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{after}"


@dataclass(frozen=True)
class Group:
    """Trainings of one recipe, model and start.

    Attributes:
        kind, recipe, model, start: as in :class:`.grids.Row`.
        records: of those that finished, by seed.
        missing: what became of the other seeds, in words, by seed.
        command: of the first seed.
        opts: overrides that make the recipe.
    """

    kind: str
    recipe: str
    model: str
    start: str
    records: tuple[Mapping[str, Any], ...]
    missing: Mapping[int, str]
    command: str
    opts: tuple[str, ...] = ()

    def metric(self, name: str) -> Spread:
        """A figure over the seeds; none unless every finished seed has it."""
        return spread([record.get("metrics", {}).get(name, {}).get("value") for record in self.records])

    def fact(self, name: str) -> Spread:
        """A number of the records, such as ``step_seconds``, likewise."""
        return spread([record.get(name) for record in self.records])

    def interval(self, name: str) -> tuple[float, float] | None:
        """The lowest low and the highest high end of a figure's intervals over the seeds; None if one lacks them."""
        ends = [record.get("metrics", {}).get(name, {}) for record in self.records]
        lows, highs = [[end.get(which) for end in ends] for which in ("low", "high")]
        return None if not ends or None in lows or None in highs else (min(lows), max(highs))

    def values(self, name: str) -> list[Any]:
        """The different values of a fact, in order of seeds."""
        return list(dict.fromkeys(record[name] for record in self.records if record.get(name) is not None))


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation; none if there is no value or one is missing."""
    if not values or None in values:
        return Spread(None)
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def groups_of(records: Sequence[Mapping[str, Any]], kind: str) -> list[Group]:
    """The groups of a kind, ``lesion`` or ``classifier``: those with a record and, of lesions, :data:`EXPECTED`.

    By recipe, those of :data:`.grids.GRIDS` first and in its order, then start, then model. Trainings on phantoms are
    no such group (:func:`phantom_groups`).

    Raises:
        UserError: records of one recipe that were not trained the same way, or not from the same weights.
    """
    found = [record for record in records if record["kind"] == kind and not on_phantoms(record)]
    rows = [row for recipe in EXPECTED for row in GRIDS[recipe]()] if kind == "lesion" else []
    keys = dict.fromkeys([*((row.recipe, row.start, row.model) for row in rows), *map(_key, found)])
    commands = {(row.recipe, row.start, row.model): row.command() for row in reversed(rows)}
    groups = [_group(kind, key, [r for r in found if _key(r) == key], commands.get(key, ""), SEEDS) for key in keys]
    told = {name for name, _ in started_elsewhere(records)}
    for group in groups:
        _check_starts(group, told)
    return sorted(groups, key=lambda group: (*_place(group.recipe), group.start, list(MODELS).index(group.model)))


def phantom_groups(records: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Trainings on phantoms, one a group; those of the grid are there whether they were run or not."""
    found = [record for record in records if on_phantoms(record)]
    rows = GRIDS["phantom"]()
    commands = {(row.recipe, row.start, row.model): row.command() for row in rows}
    keys = dict.fromkeys([*commands, *map(_key, found)])
    return [
        _group("lesion", key, [r for r in found if _key(r) == key], commands.get(key, ""), [rows[0].seed])
        for key in keys
    ]


def started_elsewhere(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names of finished trainings that started from another model than the one whose record stands beside theirs, each
    with the name of that model's row."""
    by_name = {record["name"]: record for record in records}
    needs = {row.name: row.needs for grid in GRIDS.values() for row in grid()}
    found = []
    for name, record in by_name.items():
        start = by_name.get(needs.get(name), {})
        known = record["status"] == FINISHED and None not in (start.get("weights_sha256"), record.get("start_sha256"))
        if known and start["weights_sha256"] != record["start_sha256"]:
            found.append((name, start["name"]))
    return found


def on_phantoms(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a training on phantoms."""
    return record["config"].endswith("_phantom.yaml")


def _key(record: Mapping[str, Any]) -> tuple[str, str, str]:
    return record["recipe"], record["start"], record["model"]


def _group(
    kind: str, key: tuple[str, str, str], records: Sequence[Mapping[str, Any]], command: str, seeds: Sequence[int]
) -> Group:
    recipe, start, model = key
    if len({tuple(record.get("opts", ())) for record in records}) > 1:
        names = ", ".join(record["name"] for record in records)
        raise UserError(f"{names} are said to be of one recipe, {recipe}, and differ in its overrides; run them again.")
    for split in ("train", "test"):
        found = {(one["name"], one["sha256"]) for r in records if r["status"] == FINISHED for one in _known(r, split)}
        if len({name for name, _ in found}) < len(found):
            names = ", ".join(record["name"] for record in records)
            raise UserError(f"{names} were run on other data than each other ({split}); run them again, or apart.")
    by_seed = {record["seed"]: record for record in records}
    finished = tuple(by_seed[seed] for seed in sorted(by_seed) if by_seed[seed]["status"] == FINISHED)
    missing = {
        seed: _why(by_seed.get(seed))
        for seed in sorted({*seeds, *by_seed})
        if by_seed.get(seed, {}).get("status") != FINISHED
    }
    first = by_seed[min(by_seed)] if by_seed else {"command": command}
    return Group(kind, recipe, model, start, finished, missing, first["command"], tuple(first.get("opts", ())))


def _check_starts(group: Group, told: Container[str]) -> None:
    """Refuse seeds that started from different weights: they are no spread.

    Args:
        told: names of trainings whose other start the page tells.
    """
    if group.kind == "lesion" and group.start in GRIDS:  # each goes on from the model of its own seed
        return
    starts = {one.get("start_sha256") for one in group.records if one["name"] not in told} - {None}
    if len(starts) > 1:
        names = ", ".join(record["name"] for record in group.records)
        raise UserError(f"{names} started from other weights than each other; run them again, or apart.")


def _known(record: Mapping[str, Any], split: str) -> list[Mapping[str, Any]]:
    """Data of a record whose content is known."""
    return [one for one in record.get("data", {}).get(split, ()) if one.get("sha256")]


def _why(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "not run"
    status = record["status"].split(":")[0]
    if "max_iter" not in record:
        return status
    return f"{status} after {record.get('iterations', 0):,} of {record['max_iter']:,} iterations"


def stem_of(recipe: str) -> str | None:
    """The recipe that a variant, such as ``tuned_lr1e3``, is one of, by its name; None where it is none's."""
    stems = [name for name in _ORDER if recipe == name or recipe.startswith(f"{name}_")]
    return max(stems, key=len) if stems else None


def _place(recipe: str) -> tuple[int, str]:
    """Where a recipe stands: in the grids' order, a variant behind its stem."""
    stem = stem_of(recipe)
    return (len(_ORDER) if stem is None else _ORDER.index(stem)), recipe
