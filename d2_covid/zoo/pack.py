"""The best models of the zoo as small files: weights alone, in half precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import sha256_of
from ..engine.checkpoint import read_checkpoint, write_checkpoint
from ..engine.half import half_state
from ..errors import UserError
from .data import SET
from .records import FINISHED

_CT = {"lesion": f"{SET}_merge_val", "classifier": "covid_ct_val"}


def judged_on_ct(record: Mapping[str, Any]) -> bool:
    """Whether a record's figures are of the zoo's CT: how well a model does on phantoms says nothing about CT."""
    judged_on = [dataset["name"] for dataset in record.get("data", {}).get("test", [])]
    return judged_on == [_CT.get(record["kind"])]


def best_record(
    records: Sequence[Mapping[str, Any]], metric: str, *, model: str | None = None, recipe: str | None = None
) -> Mapping[str, Any]:
    """The finished record with the highest ``metric`` on CT; of two alike, the first by name.

    Args:
        model, recipe: of these alone; of a recipe that has none on CT, as ``phantom``, the highest on its own data.

    Raises:
        UserError: no such record has the metric.
    """
    known = [
        record
        for record in sorted(records, key=lambda record: record["name"])
        if record["status"] == FINISHED
        and record.get("metrics", {}).get(metric, {}).get("value") is not None
        and model in (None, record["model"])
        and recipe in (None, record["recipe"])
    ]
    found = [record for record in known if judged_on_ct(record)] or (known if recipe else [])
    if not found:
        of = "".join(f" of {what}" for what in (model, recipe) if what)
        where = " on CT; name a recipe for one on other data" if known else ""
        raise UserError(f"No finished record{of} has a figure {metric}{where}.")
    return max(found, key=lambda record: record["metrics"][metric]["value"])


def pack(source: Path, target: Path) -> int:
    """Write the weights and facts of ``source`` in half precision to ``target``; returns its size in bytes.

    What training goes on with is left out. The facts get ``trained_sha256``, the hash of ``source``, by which a model
    that ships finds its record.

    Raises:
        UserError: ``source`` can't be read, or has weights beyond half precision, or ``target`` can't be written.
    """
    checkpoint = read_checkpoint(source)
    facts = {**checkpoint.get("d2_covid", {}), "trained_sha256": sha256_of(source)}
    write_checkpoint(target, {"model": half_state(checkpoint["model"]), "d2_covid": facts})
    return target.stat().st_size
