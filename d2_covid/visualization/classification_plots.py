"""Plots about a classifier, each as the bytes of a PNG file: confusion matrix, ROC and precision-recall, reliability.

The same input gives the same bytes. C image classes, B reliability bins.
"""

from typing import Any, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from ..evaluation.classification_metrics import group_counts, precision_recall_curve, roc_curve, score_groups
from .figures import QUIET, blank_figure, png_bytes

# Okabe and Ito's colours, with a line style each: to be told apart without colour, too.
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#56B4E9", "-"), ("#E69F00", "--"))
DPI = 160


def confusion_plot(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> bytes:
    """Confusion matrix, rows true and columns predicted: counts, the share of the row below them and as shade."""
    table = np.asarray(counts)
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
    side = 1.9 + 1.25 * len(class_names)
    figure = blank_figure(side + 0.5, side, DPI)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if shares[row, column] > 0.55 else "#1b2430"
        share = f"{shares[row, column]:.1%}" if totals[row] else "no slice"
        axis.text(column, row - 0.08, f"{count:,}", ha="center", va="center", color=colour, size=13, weight="bold")
        axis.text(column, row + 0.22, share, ha="center", va="center", color=colour, size=9)
    labels = [name.replace(" ", "\n") for name in class_names]
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return png_bytes(figure)


def curves_plot(truth: np.ndarray, scores: np.ndarray, class_names: Sequence[str]) -> bytes:
    """ROC curves beside precision-recall curves, each class against the rest; with two classes the second alone.

    Args:
        truth: (S,) int; scores: (S, C).
    """
    figure = blank_figure(9.6, 4.6, DPI)
    roc, recall = figure.subplots(1, 2)
    for number, name in enumerate(class_names):
        positive = np.asarray(truth) == number
        # The first of two classes would be the same ROC curve, turned round.
        if (len(class_names) == 2 and number == 0) or not 0 < positive.sum() < len(positive):
            continue
        colour, style = LINES[number % len(LINES)]
        counts = group_counts(positive, score_groups(scores[:, number]))
        roc.plot(*roc_curve(*counts), style, color=colour, label=name, linewidth=1.8)
        x, y = precision_recall_curve(*counts)
        recall.plot(np.r_[0, x], np.r_[y[:1], y], style, color=colour, label=name, linewidth=1.8, drawstyle="steps-pre")
        recall.axhline(positive.mean(), color=colour, linewidth=0.8, alpha=0.5)
    roc.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    _square(roc, "1 - specificity", "sensitivity", "ROC")
    _square(recall, "recall (sensitivity)", "precision (PPV)", "precision-recall; thin lines: share of the class")
    return png_bytes(figure)


def reliability_plot(bins: Mapping[str, Any]) -> bytes:
    """Share right against mean score of each bin, with how many slices it holds.

    Args:
        bins: ``calibration.bins`` of ``results.json``: ``edges`` (B + 1), ``slices``, ``confidence`` and ``accuracy``
            (B each, None where a bin is empty).
    """
    count = np.array(bins["slices"], float)
    confidence, accuracy = (np.array([np.nan if v is None else v for v in bins[k]]) for k in ("confidence", "accuracy"))
    edges = np.array(bins["edges"])
    figure = blank_figure(4.8, 4.6, DPI)
    above, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    above.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    above.bar(
        edges[:-1], np.nan_to_num(accuracy), np.diff(edges), align="edge", color="#56B4E9", edgecolor="white", alpha=0.6
    )
    above.plot(confidence, accuracy, "o", color="#0072B2", label="bin")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
    above.set_title("reliability of the predicted class; on the line: calibrated", size="medium", loc="left")
    below.bar(edges[:-1], count, np.diff(edges), align="edge", color=QUIET, edgecolor="white")
    below.set(xlabel="score of the predicted class", ylabel="slices")
    for axis in (above, below):
        _quiet(axis)
    return png_bytes(figure)


def _square(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axis.set_title(title, size="medium", loc="left")
    _quiet(axis)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize="small", loc="lower right" if title == "ROC" else "lower left")


def _quiet(axis: Axes) -> None:
    axis.grid(color="#e3e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
