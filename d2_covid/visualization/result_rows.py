"""The figures of ``results.json`` in words, for a reader who has not met their names."""

from typing import Any, Mapping

from ..data.limits import counted
from ..evaluation.classification_metrics import metric_name
from .summary import ResultRow

# Metric -> its name in words, and what it says; the order in which they are shown.
LESION_METRICS = {
    "segm/AP50": ("Mask AP50", "lesions found and outlined with an overlap (IoU) of at least 0.5"),
    "segm/AP75": ("Mask AP75", "the same at 0.75: how exact the outlines are"),
    "segm/AP": ("Mask AP", "COCO's average precision, mean over overlaps of 0.50 to 0.95"),
    "bbox/AP50": ("Box AP50", "the same for boxes, at an overlap of 0.5"),
    "bbox/AP": ("Box AP", "mean over overlaps of 0.50 to 0.95"),
    "paper_ap/AP50": ("AP50 as the paper counts", "mean over slices instead of over all detections"),
    "paper_ap/AP": ("AP as the paper counts", "mean over slices and over overlaps of 0.50 to 0.95"),
    "union/dice": ("Dice of the lesion area", "mean over slices"),
    "union/pooled_dice": ("Dice of the lesion area, pooled", "over the pixels of all slices together"),
    "union/sensitivity": ("Pixel sensitivity", "share of lesion pixels that were found, mean over slices"),
    "union/specificity": ("Pixel specificity", "share of the other pixels that were left alone, mean over slices"),
}

CLASS_METRICS = {
    "accuracy": ("Accuracy", "share of slices whose class is right"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
    "macro_f1": ("Macro F1", "mean F1 score of the classes"),
    "auc": ("ROC AUC", "one class against the rest; mean of the classes, of two the second"),
}


def lesion_rows(results: Mapping[str, Any]) -> list[ResultRow]:
    """The table of a lesion evaluation.

    Args:
        results: ``results.json`` of :class:`~d2_covid.evaluation.lesion.LesionEvaluator`.

    Returns:
        A row for each metric of :data:`LESION_METRICS` that was measured.
    """
    return [
        _row(name, words, note, results["metrics"][name])
        for name, (words, note) in LESION_METRICS.items()
        if name in results["metrics"]
    ]


def _row(name: str, words: str, note: str, figure: Mapping[str, Any]) -> ResultRow:
    digits, unit = (3, "") if name.startswith("union/") else (1, " %")
    interval = figure["interval"]
    ends = interval["low"], interval["high"]
    return ResultRow(
        name=words,
        value="undefined" if figure["value"] is None else f"{figure['value']:.{digits}f}{unit}",
        interval="none" if None in ends else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}{unit}",
        n=_slices(figure),
        note=note,
    )


def class_rows(results: Mapping[str, Any]) -> list[ResultRow]:
    """The table of a classifier's evaluation.

    Args:
        results: ``results.json`` of :class:`~d2_covid.evaluation.classification.ImageClassEvaluator`.

    Returns:
        A row for each metric of :data:`CLASS_METRICS`, and one for the sensitivity to each class.
    """
    metrics = dict(CLASS_METRICS)
    for name in results["classes"]:
        key = metric_name("sensitivity", name)
        metrics[key] = (f"Sensitivity, {name}", f"share of the slices of {name} that are called so")
    n = _slices(results)
    return [_class_row(*words, results["measures"][key], n) for key, words in metrics.items()]


def _class_row(name: str, note: str, figure: Mapping[str, Any], n: str) -> ResultRow:
    counts = f" ({figure['numerator']} of {figure['denominator']})" if "numerator" in figure else ""
    interval = figure.get("interval") or {"low": None, "high": None}
    ends = interval["low"], interval["high"]
    return ResultRow(
        name=name,
        value="undefined" if figure["value"] is None else f"{figure['value']:.3f}{counts}",
        interval="none" if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}",
        n=n,
        note=note,
    )


def class_notes(results: Mapping[str, Any]) -> list[str]:
    """How a classifier's figures were measured: slices by class, and what the intervals rest on."""
    shares = ", ".join(f"{name} {count}" for name, count in zip(results["classes"], results["slices_by_class"]))
    intervals = results["intervals"]
    notes = [f"Slices by class: {shares}."]
    if intervals["resamples"]:
        notes.append(f"Intervals: bootstrap over {intervals['unit']}s, {intervals['resamples']} resamples.")
    return notes + [intervals["note"]] * bool(intervals["note"])


def results_notes(results: Mapping[str, Any]) -> list[str]:
    """How the figures were measured: what was counted, where the intervals come from, what empty slices did."""
    settings = results["settings"]
    lesions = ", ".join(f"{name} {count}" for name, count in results["instances"].items())
    notes = [
        f"{_slices(results)}; "
        f"true instances: {lesions}; {counted(results['slices_without_ground_truth'], 'slice')} without a lesion."
    ]
    if settings["bootstrap"]:
        notes.append(f"Intervals: bootstrap over {results['resampled']}, {settings['bootstrap']} resamples.")
    by_note: dict[str, list[str]] = {}
    for name, (words, _) in LESION_METRICS.items():
        note = results["metrics"].get(name, {}).get("note")
        if note:
            by_note.setdefault(note, []).append(words)
    return notes + [f"{', '.join(words)}: {note}" for note, words in by_note.items()]


def _slices(counts: Mapping[str, Any]) -> str:
    """How many, and of how many patients, where they are known."""
    of_patients = f" of {counted(counts['patients'], 'patient')}" if counts["patients"] else ""
    return counted(counts["slices"], "slice") + of_patients
