"""What was measured of a model, as its card says it."""

import dataclasses
from pathlib import Path
from typing import Any, Mapping, Sequence

from ..data.files import read_json
from ..engine.run import run_evaluation
from ..errors import UserError
from ..inference.model_card import Evaluation, Metric
from ..inference.model_source import resolve_model
from ..inference.shipped import ShippedModel
from .records import metrics_of
from .words import WILSON


def evaluation_of(words: str, path: str | Path, model: ShippedModel) -> list[Evaluation]:
    """What was measured before: the folder of a ``tools/train_net.py --eval-only``, or a record of the zoo.

    Args:
        words: which data and which split.

    Returns:
        An entry for each data set.

    Raises:
        UserError: it is neither, or it is of other weights than the model's, stored or as trained.
    """
    path = Path(path)
    if path.is_dir():
        record = read_object(path / "evaluation.json")
        measured = record.get("weights_sha256")
        names = [dataset["name"] for dataset in record.get("data", [])]
        results = [read_object(path / "inference" / name / "results.json") for name in names]
        entries = [_from_results(words, one, several=len(results) > 1) for one in results]
    else:
        record = read_object(path)
        measured = record.get("weights_sha256")
        entries = [_from_record(words, record)] if record.get("metrics") else []
    if not entries:
        raise UserError(f"{path} holds no figures of an evaluation.")
    known = {model.card.sha256: "stored", model.card.storage.trained_sha256: "trained"}
    if measured not in known:
        raise UserError(f"{path} is an evaluation of other weights than {model.name}'s.")
    return [dataclasses.replace(entry, weights=known[measured]) for entry in entries]


def evaluate(words: str, datasets: Sequence[str], model: ShippedModel, output: Path, device: str) -> list[Evaluation]:
    """Measure the stored weights, with the config that they carry, on registered data sets.

    Args:
        output: folder for the evaluation's files.

    Raises:
        UserError: no such data set, or one for another kind of model.
    """
    cfg = resolve_model(weights=model.path, device=device).cfg
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = tuple(datasets), str(output)
    run_evaluation(cfg)
    return evaluation_of(words, output, model)


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a json file that holds an object.

    Raises:
        UserError: it can't be read, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold an object.")
    return value


def _from_results(words: str, results: Mapping[str, Any], several: bool) -> Evaluation:
    """A ``results.json`` of lesions or of classes."""
    if "measures" in results:
        how, notes = results["intervals"], [results["intervals"]["note"]]
        lesions, unit, resamples = None, how["unit"], how["resamples"]
        wilson = WILSON if unit == "slice" else ""
        interval = f"95 %, {wilson}bootstrap over {unit}s, {resamples} resamples"
    else:
        resamples, unit = results["settings"]["bootstrap"], results["resampled"]
        lesions = sum(results["instances"].values())
        interval = f"95 %, bootstrap over {results[unit]} {unit}, {resamples} resamples"
        notes = _notes({name: results["metrics"][name] for name in metrics_of(results)})
    return Evaluation(
        data=f"{words} ({results['dataset']})" if several else words,
        weights="stored",
        slices=results["slices"],
        patients=results["patients"],
        lesions=lesions,
        interval=interval if resamples else "none",
        notes=tuple(dict.fromkeys(filter(None, notes))),
        metrics={name: Metric(**metric) for name, metric in metrics_of(results).items()},
    )


def _notes(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each note once, behind the metrics that it belongs to; a task that has it throughout is named alone."""
    names: dict[str, list[str]] = {}
    for name, entry in metrics.items():
        for note in filter(None, (entry["note"], entry["interval"]["note"])):
            names.setdefault(note, []).append(name)
    tasks = [name.split("/")[0] for name in metrics]
    notes = []
    for note, found in names.items():
        of = [name.split("/")[0] for name in found]
        short = [task if of.count(task) == tasks.count(task) else name for task, name in zip(of, found)]
        notes.append(f"{', '.join(dict.fromkeys(short))}: {note}")
    return notes


def _interval_of_record(kind: str | None, patients: int | None) -> str:
    # As evaluations do it: classes of slices whose patients are unknown are counted, and have Wilson's.
    wilson = WILSON if kind == "classifier" and not patients else ""
    return f"95 %, {wilson}bootstrap over {'patients' if patients else 'slices'}"


def _from_record(words: str, record: Mapping[str, Any]) -> Evaluation:
    """A record of the zoo."""
    sets = record.get("data", {}).get("test", [])
    counts = {key: [one.get(key) for one in sets] for key in ("slices", "patients", "lesions")}
    totals = {key: sum(found) if found and None not in found else None for key, found in counts.items()}
    return Evaluation(
        data=words,
        weights="trained",
        slices=totals["slices"] or 0,
        patients=totals["patients"],
        lesions=totals["lesions"],
        interval=_interval_of_record(record.get("kind"), totals["patients"]),
        notes=(),
        metrics={name: Metric(**metric) for name, metric in record["metrics"].items()},
    )
