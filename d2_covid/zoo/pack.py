"""The best models of the zoo as small files: weights alone, in half precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import sha256_of
from ..engine.checkpoint import read_checkpoint, write_checkpoint
from ..engine.half import half_state
from ..errors import UserError
from .records import FINISHED


def best_record(
    records: Sequence[Mapping[str, Any]], metric: str, *, model: str | None = None, recipe: str | None = None
) -> Mapping[str, Any]:
    """The finished record with the highest ``metric``; of two alike, the first by name.

    Args:
        model, recipe: of these alone.

    Raises:
        UserError: no finished record has the metric.
    """
    found = [
        record
        for record in sorted(records, key=lambda record: record["name"])
        if record["status"] == FINISHED
        and record.get("metrics", {}).get(metric, {}).get("value") is not None
        and model in (None, record["model"])
        and recipe in (None, record["recipe"])
    ]
    if not found:
        of = "".join(f" of {what}" for what in (model, recipe) if what)
        raise UserError(f"No finished record{of} has a figure {metric}.")
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
