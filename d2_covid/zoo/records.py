"""The record of one training of the model zoo: what ran, on what, for how long, and what came out."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.files import sha256_of, write_json
from ..engine.checkpoint import read_checkpoint
from ..engine.hooks import METRICS
from ..engine.run_record import RunRecord
from ..errors import UserError
from ..modeling.complexity import is_counted
from .grids import Row, record_file

SCHEMA_VERSION = 1
FINISHED, NOT_FINISHED, FAILED = "finished", "not finished", "failed"
_METRICS_LEFT_OUT = ("APs", "APm", "APl")  # a few lesions of four patients, by size: noise


def row_facts(row: Row) -> dict[str, Any]:
    """What a record says of its row."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": row.name,
        "kind": row.kind,
        "recipe": row.recipe,
        "model": row.model,
        "start": row.start,
        "seed": row.seed,
        "config": row.config,
        "opts": list(row.opts),
        "command": row.command(),
    }


def run_facts(run: Path, facts_of_sets: Mapping[str, Any]) -> dict[str, Any]:
    """What a training left in its folder, as far as it came: all of it for one that has finished.

    Args:
        run: ``OUTPUT_DIR`` of the training.
        facts_of_sets: by dataset name, what the data's preparation noted of it; may lack some.

    Returns:
        Those of ``parameters``, ``training_slices``, ``iterations``, ``max_iter``, ``batch``, ``step_seconds``,
        ``device``, ``versions``, ``data``, ``metrics`` and ``weights_sha256`` that are known.

    Raises:
        UserError: a file of the run is damaged.
    """
    facts: dict[str, Any] = {}
    record = _read_json(run / RunRecord.FILE)
    if record:
        sets = record["data"]["train"]
        batch = record["config"]["SOLVER"]["IMS_PER_BATCH"]
        facts |= {
            "training_slices": sum(_trained_on(dataset, record["config"], facts_of_sets) for dataset in sets),
            "max_iter": record["max_iter"],
            "batch": batch,
            "device": re.sub(r"^cuda(:\d+)?: ", "", record["device"]),
            "versions": record["versions"],
            "data": {
                split: [_dataset(dataset, facts_of_sets) for dataset in record["data"][split]]
                for split in ("train", "test")
            },
        }
        if record["status"] == FINISHED:
            facts["iterations"] = record["iterations"]
    done, seconds = step_seconds(run / METRICS)
    facts.setdefault("iterations", done)
    facts["step_seconds"] = round(seconds, 1)
    metrics: dict[str, Any] = {}
    for results in sorted(run.glob("inference/*/results.json")):
        metrics |= metrics_of(_read_json(results) or {})
    if metrics:
        facts["metrics"] = metrics
    final = run / "model_final.pth"
    if final.is_file():
        facts["weights_sha256"] = sha256_of(final)
        facts["parameters"] = parameters_in(read_checkpoint(final)["model"])
    return facts


def sets_of(row: Row, facts_of_sets: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The ``data`` of :func:`run_facts` of a row that is yet to run; ``slices`` is None where the facts lack it."""
    names = row.cfg().DATASETS
    return {
        split: [
            _dataset({"name": name, "slices": facts_of_sets.get(name, {}).get("slices")}, facts_of_sets)
            for name in names[split.upper()]
        ]
        for split in ("train", "test")
    }


def step_seconds(metrics: Path) -> tuple[int, float]:
    """Iterations that a ``metrics.json`` tells of, and the seconds they took without evaluation and checkpoints.

    Each line that has a time, has the median of the last 20 iterations; it stands for all since the one before.
    However often a run was interrupted, an iteration counts once.
    """
    if not metrics.is_file():
        return 0, 0.0
    done, timed, seconds = 0, 0, 0.0
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut short by the end of the run
        done = max(done, line["iteration"] + 1)
        if "time" in line:
            seconds += (done - timed) * line["time"]
            timed = done
    return done, seconds


def metrics_of(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """``{name: {value, low, high}}`` of a ``results.json``: lesions (``metrics``) or classes (``measures``)."""
    found = {
        name: _figure(entry)
        for name, entry in results.get("metrics", {}).items()
        if name.partition("/")[2] not in _METRICS_LEFT_OUT
    }
    measures = {**results.get("measures", {}), **{n: results["calibration"][n] for n in ("ece", "brier")}} if (
        "measures" in results
    ) else {}  # fmt: skip
    return found | {f"image/{name}": _figure(entry) for name, entry in measures.items()}


def parameters_in(state: Mapping[str, Any]) -> int:
    """Weights and BatchNorm statistics in a state dict, as the paper's Table 1 counts them."""
    return sum(tensor.numel() for name, tensor in state.items() if is_counted(name))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record below the zoo's ``folder``, whole or not at all."""
    write_json(folder / record_file(record["name"]), record)


def read_record(folder: Path, row_name: str) -> dict[str, Any] | None:
    """The record of a row below the zoo's ``folder``; None where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / record_file(row_name)
    return read_record_file(path) if path.is_file() else None


def read_record_file(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"There is no record {path}.")
    return _checked(path, _read_json(path))


def read_records(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Every record in ``folders`` (their ``*.json``), by name.

    Raises:
        UserError: a folder is not there, a file is no record, or two have one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder} with records of the zoo.")
        for path in sorted(folder.glob("*.json")):
            record = read_record_file(path)
            if found.get(record["name"], record) != record:
                raise UserError(f"{path}: another record of {record['name']} was read before; keep one of them.")
            found[record["name"]] = record
    return [found[name] for name in sorted(found)]


def _trained_on(dataset: Mapping[str, Any], config: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
    left_out = config["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"]
    return dataset["slices"] - (facts.get(dataset["name"], {}).get("slices_without_lesion", 0) if left_out else 0)


def _dataset(dataset: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    known = facts.get(dataset["name"], {})
    kept = {key: known[key] for key in ("patients", "lesions", "slices_without_lesion", "sha256") if key in known}
    if "patients" in kept:
        kept["patients"] = len(kept["patients"])
    return {"name": dataset["name"], "slices": dataset["slices"], **kept}


def _figure(entry: Mapping[str, Any]) -> dict[str, float | None]:
    interval = entry.get("interval") or {}
    values = {"value": entry["value"], "low": interval.get("low"), "high": interval.get("high")}
    return {name: None if value is None else float(f"{value:.6g}") for name, value in values.items()}


def _checked(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or not {"name", "status", "kind", "recipe", "model", "start"} <= record.keys():
        raise UserError(f"{path} is not a record of the model zoo.")
    if record.get("schema_version", 0) > SCHEMA_VERSION:
        raise UserError(f"{path} was written by a newer d2_covid; update d2_covid.")
    return record


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}).") from error
