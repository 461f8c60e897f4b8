"""The readable page about a classifier's evaluation, to open from disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from ..data.files import atomic_write
from ..evaluation.classification_metrics import metric_name
from ..evaluation.classification_results import SlicePredictions
from .classification_plots import confusion_plot, curves_plot, reliability_plot
from .pages import data_uri, environment

TEMPLATE = "classification.html"

# Measure -> its name in words, and what it says.
OVERALL = {
    "accuracy": ("Accuracy", "share that is right"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "mcc": ("Matthews correlation", "1 all right, 0 no better than chance"),
    "auc": ("ROC AUC", "one class against the rest, mean of the classes; of two, the second"),
    "average_precision": ("PR AUC", "average precision, in the same way"),
}
PER_CLASS = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "auc": "ROC AUC",
    "average_precision": "PR AUC",
}
AGGREGATIONS = {
    "any_k": "a disease that at least {k} slices show",
    "top_k_mean": "mean of the {k} highest scores of each class",
    "mean": "mean of all slices",
}


@dataclass(frozen=True)
class Cell:
    """A measure as it is read: its value, its counts ("35 / 43"), its interval ("0.79 to 0.85"), and a remark."""

    value: str
    counts: str = ""
    interval: str = ""
    note: str = ""


def cell(entry: Mapping[str, Any]) -> Cell:
    """A measure of ``results.json`` in words."""
    interval = entry.get("interval") or {}
    low, high = interval.get("low"), interval.get("high")
    return Cell(
        value="undefined" if entry["value"] is None else f"{entry['value']:.3f}",
        counts="" if entry.get("numerator") is None else f"{entry['numerator']:,} / {entry['denominator']:,}",
        interval="" if low is None or high is None else f"{low:.3f} to {high:.3f}",
        note=entry.get("reason") or interval.get("note", ""),
    )


def write_classification_page(results: Mapping[str, Any], predictions: SlicePredictions, path: str | Path) -> None:
    """Write the page, whole or not at all: one file with its plots inside, readable without a network.

    Args:
        results: as :class:`~d2_covid.evaluation.classification.ImageClassEvaluator` writes them to ``results.json``.
        predictions: what they were measured on.
    """
    html = classification_html(results, predictions)
    with atomic_write(path) as file:
        file.write(html)


def classification_html(results: Mapping[str, Any], predictions: SlicePredictions) -> str:
    """The page's HTML; see :func:`write_classification_page`."""
    names, measures = results["classes"], results["measures"]
    plots = {"confusion": confusion_plot(results["confusion"]["counts"], names)}
    if results["slices"]:
        plots["curves"] = curves_plot(predictions.truth, predictions.scores, names)
        plots["reliability"] = reliability_plot(results["calibration"]["bins"])
    template = environment().get_template(TEMPLATE)
    return template.render(
        results=results,
        level=f"{results['intervals']['level']:.0%}".replace("%", " %"),
        overall=[(words, note, cell(measures[name])) for name, (words, note) in OVERALL.items()],
        per_class=[
            (words, [cell(measures[metric_name(kind, name)]) for name in names]) for kind, words in PER_CLASS.items()
        ],
        calibration={name: cell(results["calibration"][name]) for name in ("ece", "brier")},
        patients=[
            (
                method,
                AGGREGATIONS[method].format(k=entry["k"]),
                entry,
                [cell(entry["measures"][name]) for name in ("accuracy", "balanced_accuracy", "auc")]
                + [cell(entry["measures"][metric_name("sensitivity", name)]) for name in names],
            )
            for method, entry in results["by_patient"].items()
        ],
        plots={name: data_uri("image/png", data) for name, data in plots.items()},
    )
