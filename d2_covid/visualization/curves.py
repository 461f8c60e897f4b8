"""The course of a training, from the ``metrics.json`` that Detectron2 writes."""

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from ..errors import UserError
from .figures import blank_figure, png_bytes

# One of Okabe and Ito's colours and one line style each: to be told apart without colour, too.
LOSSES = {
    "total_loss": ("training", "#0072B2", "-"),
    "val/total_loss": ("validation", "#D55E00", "o-"),
}
ACCURACIES = {
    "segm/AP50": ("mask AP50", "#0072B2", "o-"),
    "segm/AP": ("mask AP", "#56B4E9", "s--"),
    "bbox/AP50": ("box AP50", "#D55E00", "^:"),
}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.json``, one a line, in order of iteration.

    A last line cut off when training was killed is left out; of records that a resumed training wrote again, the newer
    one counts.

    Raises:
        UserError: the file is missing, or a line before the last is not json.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it is written while a model trains.") from error
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not json; was the file edited?") from error
        iteration = record.get("iteration", 0)
        records[iteration] = {**records.get(iteration, {}), **record}
    return [records[iteration] for iteration in sorted(records)]


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of one metric, where it was measured: two (T,) float arrays."""
    pairs = [(r.get("iteration", 0), r[key]) for r in records if _is_number(r.get(key))]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def training_curve(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses over iterations, and beside them average precision where it was measured during training.

    Args:
        records: as :func:`read_metrics` returns them.

    Returns:
        A PNG file's bytes; the same records give the same bytes.
    """
    figure = blank_figure(9.0, 3.2, dpi=160)
    measured = any(len(series(records, key)[0]) for key in ACCURACIES)
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    _plot(axes[0], records, LOSSES, "loss")
    axes[0].set_ylim(bottom=0)
    if measured:
        _plot(axes[1], records, ACCURACIES, "average precision, %")
        axes[1].set_ylim(0, 100)
    return png_bytes(figure)


def _plot(axis, records: Sequence[Mapping[str, Any]], lines: Mapping[str, tuple[str, str, str]], label: str) -> None:
    for key, (name, colour, style) in lines.items():
        iterations, values = series(records, key)
        if len(iterations):
            axis.plot(iterations, values, style, color=colour, label=name, markersize=3.5, linewidth=1.4)
    axis.set_xlabel("iteration")
    axis.set_ylabel(label)
    axis.set_xlim(left=0)
    axis.grid(color="#e3e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.lines:
        axis.legend(frameon=False, fontsize="small")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
