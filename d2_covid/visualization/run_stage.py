"""A finished training run as a part of the summary page: read from the files in its folder."""

import json
from pathlib import Path
from typing import Any, Sequence

from ..data.limits import counted
from ..engine.hooks import METRICS
from ..engine.run_record import RunRecord
from ..errors import UserError
from .classification_plots import confusion_plot
from .curves import read_metrics, training_curve
from .result_rows import class_notes, class_rows, lesion_rows, results_notes
from .summary import Picture, Stage

PICTURES_NOTE = (
    "Slices that the model was not trained on, with predictions that score {score} or more. Solid lines: a lesion that "
    "was found, a prediction that found one (overlap, IoU, of at least 0.5). Dashed lines: one without the other."
)


def segmentation_stage(
    folder: str | Path,
    dataset: str,
    title: str,
    lead: str,
    config: str,
    pictures: Sequence[Picture] = (),
    score_threshold: float = 0.5,
) -> Stage:
    """The part of a page about a segmentation run.

    Args:
        folder: the run's OUTPUT_DIR, with ``run.json``, ``metrics.json`` and its last evaluation.
        dataset: which of ``DATASETS.TEST`` the figures are of.
        title, lead: heading and first sentences.
        config: name of the config, as the reader knows it.
        pictures: panels of slices of ``dataset``.
        score_threshold: least score of the predictions drawn on them.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    folder = Path(folder)
    run = read_json(folder / RunRecord.FILE)
    results = read_json(folder / "inference" / dataset / "results.json")
    return Stage(
        title=title,
        lead=lead,
        facts={"Configuration": config, **run_facts(run), "Folder": str(folder.resolve())},
        results=lesion_rows(results),
        results_notes=results_notes(results),
        curve=training_curve(read_metrics(folder / METRICS)),
        pictures=pictures,
        pictures_note=PICTURES_NOTE.format(score=score_threshold) if pictures else "",
    )


def classification_stage(folder: str | Path, dataset: str, title: str, lead: str, config: str) -> Stage:
    """The part of a page about a classifier's run; arguments and errors as for :func:`segmentation_stage`."""
    folder = Path(folder)
    run = read_json(folder / RunRecord.FILE)
    evaluation = folder / "inference" / dataset
    results = read_json(evaluation / "results.json")
    facts = {"Configuration": config, **run_facts(run), "Folder": str(folder.resolve())}
    return Stage(
        title=title,
        lead=lead,
        facts=facts | {"All measures and plots": str((evaluation / "classification.html").resolve())},
        results=class_rows(results),
        results_notes=class_notes(results),
        confusion=confusion_plot(results["confusion"]["counts"], results["classes"]),
    )


def run_facts(run: dict[str, Any]) -> dict[str, str]:
    """What a ``run.json`` says of data, length, machine and seed, in words."""
    batch = run["config"]["SOLVER"]["IMS_PER_BATCH"]
    seconds = sum(session.get("seconds", 0) for session in run["sessions"])
    resumed = len(run["sessions"]) - 1
    facts = {
        label: ", ".join(f"{data['name']}, {counted(data['slices'], 'slice')}" for data in run["data"][split])
        for label, split in (("Training data", "train"), ("Measured on", "test"))
    }
    return facts | {
        "Training": f"{counted(run['iterations'], 'iteration')} of {counted(batch, 'slice')}",
        "Time with evaluations": f"{seconds:.0f} s" + (f", resumed {counted(resumed, 'time')}" if resumed else ""),
        "Device": f"{run['device']}, {counted(run['threads'], 'thread')}",
        "Seed": str(run["seed"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A json file of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a finished training run has it.") from error
    except ValueError as error:
        raise UserError(f"{path} is not json; was the file edited?") from error
