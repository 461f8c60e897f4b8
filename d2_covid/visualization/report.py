"""``report.html``: one page about one series, to open from disk; written slice by slice, so it may be long.

The page holds the slices as JPEG pictures; lesions, lung and regions lie over them as outlines in the slice's own
pixels, so that they can be switched on and off, and stay sharp at any size.
"""

import io
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import cv2
import numpy as np
from PIL import Image

from ..data.files import atomic_write
from ..data.lung import METHOD, METHOD_GRAY
from ..data.volumes import Series
from ..engine.run_record import now, versions
from ..inference.predictions_json import input_facts, model_facts, result_facts, slice_facts
from ..inference.predictor import Predictor
from ..inference.series_result import SeriesResult
from ..inference.slice_result import SliceResult, decode_mask
from .overlays import class_colour
from .pages import css, data_uri, environment
from .report_tables import MOST_REGIONS, class_rows, deciding_slices, lesion_rows, measure_rows, regions, start_position
from .step_charts import load_chart, score_chart

TEMPLATE = "report.html"
MAX_SIDE, MIN_SIDE = 512, 160
FULL_SIZE_SLICES = 200
"""Up to so many slices have pictures of up to MAX_SIDE pixels a side; of more, the pictures get smaller, so that the
page doesn't grow."""

_QUALITY = 72


def write_report(
    path: str | Path, result: SeriesResult, series: Series, predictor: Predictor, tags: Mapping[str, str]
) -> None:
    """Write the page, whole or not at all. Reads each slice's pixels once more, and holds one at a time.

    Args:
        tags: what of the DICOM header was asked for by name; nothing else of it is shown.

    Raises:
        UserError: it can't be written, or a slice can no longer be read.
    """
    side = picture_side(len(result.slices))
    positions = {one.index: position for position, one in enumerate(result.slices)}
    template = environment().get_template(TEMPLATE)
    parts = template.generate(
        result=result,
        facts=result_facts(result),
        input=input_facts(series, dict(tags)),
        model=model_facts(predictor),
        device=predictor.cfg.MODEL.DEVICE,
        versions=versions(),
        written=now(),
        lung_method=METHOD_GRAY if result.lung_is_approximate else METHOD,
        measures=measure_rows(result),
        lesions=lesion_rows(result, positions),
        classes=class_rows(result, positions),
        oriented=series.geometry is not None and series.oriented,
        deciding=deciding_slices(result, positions, predictor.lesion_classes),
        load=load_chart(result.slices, predictor.lesion_classes),
        scores=score_chart(result.slices, predictor.image_classes),
        side=side,
        most_regions=MOST_REGIONS,
        settings={
            "aspect": 1.0 if result.spacing_mm is None else result.spacing_mm[1] / result.spacing_mm[2],
            "start": start_position(result),
            "colours": {name: css(class_colour(k)) for k, name in enumerate(predictor.lesion_classes)},
            "linked": result.lesions is not None,
            "with_masks": predictor.with_masks,
        },
        slices=_slices(result, series, predictor, side),
    )
    with atomic_write(path) as file:
        for part in parts:
            file.write(part)


def picture_side(num_slices: int) -> int:
    """Longest side of the pictures of a series of so many slices, in pixels."""
    if num_slices <= FULL_SIZE_SLICES:
        return MAX_SIDE
    return max(MIN_SIDE, int(MAX_SIDE * (FULL_SIZE_SLICES / num_slices) ** 0.5))


def picture(gray: np.ndarray, side: int = MAX_SIDE) -> str:
    """A slice, (H, W) uint8, as the data URI of a JPEG of at most ``side`` pixels a side."""
    height, width = gray.shape
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return data_uri("image/jpeg", buffer.getvalue())


def outline_path(mask: np.ndarray) -> str:
    """The borders of a mask, (H, W) bool, as an SVG path through the centres of its border pixels.

    Drawn with a line one pixel wide, it covers these pixels exactly; holes are left out by the rule "evenodd".
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    pieces = []
    for contour in contours:
        points = contour[:, 0]
        steps = np.diff(points, axis=0)
        pieces.append(f"M{points[0, 0]}.5 {points[0, 1]}.5" + "".join(f"l{x} {y}" for x, y in steps) + "z")
    return "".join(pieces)


def _slices(result: SeriesResult, series: Series, predictor: Predictor, side: int) -> Iterator[dict[str, Any]]:
    """What the page's script needs of each slice, in order."""
    classes = predictor.lesion_classes
    for one in result.slices:
        facts = slice_facts(one, series, classes)
        yield {
            **{key: facts[key] for key in ("index", "name", "height", "width", "lesion_area_mm2", "image_class")},
            "area_px": None if one.lesion_area_px is None else sum(one.lesion_area_px.values()),
            "scores": facts["image_scores"],
            "image": picture(series.gray(one.index, *predictor.window), side),
            "lung": "" if one.lung_mask is None else outline_path(decode_mask(one.lung_mask)),
            "instances": _instances(one, facts["instances"]),
            "regions": regions(one, classes),
        }


def _instances(one: SliceResult, facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **{key: fact[key] for key in ("class", "area_px", "area_mm2", "lesion")},
            "box": [round(edge, 1) for edge in fact["box"]],
            "score": round(fact["score"], 3),
            "path": None if instance.mask is None else outline_path(decode_mask(instance.mask)),
        }
        for instance, fact in zip(one.instances, facts, strict=True)
    ]
