"""Whether the result of a series is still that of its files, model and options."""

import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

from .. import __version__
from ..data.volumes import Series
from .outputs import DONE
from .predictions_json import SCHEMA_VERSION
from .predictor import Predictor
from .summary_table import SummaryRow

EDITION = 5
"""Raised when the same files, model and options come to other figures: earlier results are then no longer whole."""


def result_key(
    predictor: Predictor, series: Series, save: Sequence[str], assume_window: bool, keep_tags: Sequence[str]
) -> str:
    """A digest of all that a result depends on: files (by path, size and time), warnings of them, model, options and
    this version.

    Raises:
        OSError: a file is gone.
    """
    files = []
    for path in series.source_files:
        status = path.stat()
        files.append((str(path), status.st_size, status.st_mtime_ns))
    versions, model = (
        (__version__, SCHEMA_VERSION, EDITION),
        (predictor.source.weights_sha256, config_sha256(predictor)),
    )
    parts = [versions, model, list(save), assume_window, list(keep_tags), files, series.warnings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def config_sha256(predictor: Predictor) -> str:
    """SHA-256 of all that decides on a prediction besides the weights: config, window, threshold, names."""
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "", ""
    settings = (cfg.dump(), predictor.window, predictor.score_threshold, predictor.image_classes)
    return hashlib.sha256(repr(settings).encode()).hexdigest()


def whole_result(folder: Path, key: str) -> dict[str, Any] | None:
    """What a series' folder says of itself, if it was made under this key, of every slice, and has all its files."""
    done = json_object(folder / DONE)
    try:
        if done["key"] != key or SummaryRow(**done["row"]).status != "done":
            return None
        whole = {"warnings", "left_out"} <= done.keys()
        whole = whole and all((folder / name).stat().st_size == size for name, size in done["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return done if whole else None


def slices_of_result(folder: Path) -> int:
    """Slices of the result in a series' folder; 0 where there is none."""
    row = json_object(folder / DONE).get("row")
    count = row.get("slices") if isinstance(row, dict) else None
    return count if isinstance(count, int) else 0


def json_object(path: Path) -> dict[str, Any]:
    """The object in a json file; empty where none can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
