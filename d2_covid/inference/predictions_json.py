"""``predictions.json``: all that was found in a series, as ``schemas/predictions.schema.json`` describes it.

Slices stand a line each, so that a series of a thousand slices stays readable, and is written without a second copy
of it in memory.
"""

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..data.files import atomic_write
from ..data.volumes import Series
from .predictor import Predictor
from .series_result import SeriesResult
from .slice_result import SliceResult

SCHEMA_VERSION = 1
NOTICE = "Research use only: not a medical device, and not for diagnosis."


def schema() -> dict[str, Any]:
    """The JSON Schema of ``predictions.json``."""
    text = resources.files("d2_covid.inference").joinpath("schemas/predictions.schema.json").read_text("utf-8")
    return json.loads(text)


def model_facts(predictor: Predictor) -> dict[str, Any]:
    """Which model, and how it was asked."""
    cfg, source = predictor.cfg, predictor.source
    card = source.card
    return {
        "name": source.name,
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "mask_type": cfg.DATASETS.MASK_TYPE,
        "weights": source.weights.name,
        "weights_sha256": source.weights_sha256,
        "shipped": None
        if card is None
        else {"name": card.name, "limits": card.limits_line, "licence": card.licence.weights},
        "lesion_classes": list(predictor.lesion_classes),
        "image_classes": list(predictor.image_classes),
        "score_threshold": predictor.score_threshold,
        "window": {"level": predictor.window[0], "width": predictor.window[1]},
    }


def input_path(series: Series) -> str:
    """Where a series was read: its file, or the folder of several; empty for an array."""
    files = series.source_files
    of_folder = len(files) > 1 and series.kind != "volume"  # a volume's second file is its voxels
    return str(files[0].parent if of_folder else files[0]) if files else ""


def input_facts(series: Series, tags: dict[str, str]) -> dict[str, Any]:
    """What was read."""
    placed = series.geometry is not None
    return {
        "identifier": series.identifier,
        "kind": series.kind,
        "path": input_path(series),
        "files": len(series.source_files),
        "slices": series.num_slices,
        "hounsfield": series.hounsfield,
        "shape": list(series.shape) if series.shape else None,
        "spacing_mm": [_short(edge) for edge in series.spacing] if series.spacing else None,
        "affine_lps": series.affine.tolist() if placed else None,
        "source_affine_lps": series.source_affine.tolist() if placed else None,
        "tags": tags,
    }


def result_facts(result: SeriesResult) -> dict[str, Any]:
    """The numbers of a series."""
    volumes = result.volume_ml_by_class
    return {
        "lesion_volume_ml": _short(result.lesion_volume_ml),
        "lesion_volume_ml_by_class": None if volumes is None else {name: _short(v) for name, v in volumes.items()},
        "lung_volume_ml": _short(result.lung_volume_ml),
        "lesion_share_of_lung": _short(result.lesion_share_of_lung, 6),
        "lung_is_approximate": result.lung_is_approximate,
        "lesion_count": result.lesion_count,
        "lesions": None if result.lesions is None else [
            asdict(lesion) | {"volume_ml": _short(lesion.volume_ml)} for lesion in result.lesions
        ],
        "classes": [asdict(rule) for rule in result.classes],
    }  # fmt: skip


def slice_facts(result: SliceResult, series: Series, lesion_classes: tuple[str, ...]) -> dict[str, Any]:
    """One slice."""
    instances = [
        {
            "box": list(one.box),
            "score": round(one.score, 6),
            "class": one.class_name,
            "area_px": one.area_px,
            "area_mm2": _short(one.area_mm2),
            "lesion": one.lesion,
            "mask": one.mask,
        }
        for one in result.instances
    ]
    facts: dict[str, Any] = {
        "index": result.index,
        "name": result.name,
        "height": result.height,
        "width": result.width,
        "lesion_area_px": result.lesion_area_px,
        "lesion_area_mm2": _short(result.lesion_area_mm2),
        "lung_area_px": result.lung_area_px,
        "image_class": result.image_class,
        "image_scores": None
        if result.image_scores is None
        else {name: round(score, 6) for name, score in result.image_scores.items()},
        "instances": instances,
    }
    if series.instances and series.geometry is not None and series.geometry.is_axial:
        instance = series.instances[series.geometry.source_index(result.index)[1]]
        facts |= {"sop_instance_uid": instance.sop_instance_uid, "frame": instance.frame}
    found = result.contributions
    if found is not None:
        facts["contributions"] = {
            "boxes": _rounded(found.boxes, 2),
            "scores": _rounded(found.scores, 6),
            "classes": [lesion_classes[number] for number in found.classes],
            "rows": found.rows.tolist(),
            "contributions": _rounded(found.contributions, 6),
            "shares": _rounded(found.shares, 6),
            "removal": _rounded(found.removal, 6),
        }
    return facts


def write_predictions(
    path: str | Path, result: SeriesResult, series: Series, predictor: Predictor, tags: dict[str, str]
) -> None:
    """Write ``predictions.json``, whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    head = {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "d2_covid": __version__,
        "model": model_facts(predictor),
        "input": input_facts(series, tags),
        "label_values": {"0": "background"}
        | {str(number): name for number, name in enumerate(predictor.lesion_classes, start=1)},
        "result": result_facts(result),
        "warnings": list(result.warnings),
        "failed_slices": [asdict(one) for one in result.failed_slices],
    }
    with atomic_write(path) as file:
        file.write("{\n")
        for key, value in head.items():
            file.write(f"{json.dumps(key)}: {_json(value)},\n")
        file.write('"slices": [')
        for number, one in enumerate(result.slices):
            file.write(",\n" if number else "\n")
            file.write(_json(slice_facts(one, series, predictor.lesion_classes)))
        file.write("\n]\n}\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _short(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(float(value), digits)


def _rounded(values: np.ndarray, digits: int) -> list:
    return np.asarray(values, np.float64).round(digits).tolist()
