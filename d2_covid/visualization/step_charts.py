"""Charts over the slices of a series as SVG paths: x is the slice, y runs from 0 at the top to 100 at the bottom."""

from dataclasses import dataclass
from typing import Sequence

from ..inference.slice_result import SliceResult
from .overlays import class_colour
from .pages import css

_FIRST_IMAGE_CLASS_COLOUR = 2  # the first two belong to the lesion classes
_DASHES = ("3 3", "8 3", "")


@dataclass(frozen=True)
class Curve:
    """A class in a chart: its name, its path, and how it is drawn."""

    name: str
    path: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of ``count`` slices, (count, 100) units large.

    Attributes:
        title, unit: what it shows.
        top: the value at its upper edge.
        summary: the same in a sentence, for who can't see it.
    """

    title: str
    unit: str
    top: float
    count: int
    curves: tuple[Curve, ...]
    summary: str


def load_chart(slices: Sequence[SliceResult], lesion_classes: Sequence[str]) -> Chart:
    """Lesions along the axis: area by class, one on top of the other; from a model without masks, their number."""
    first = slices[0]
    if first.lesion_area_px is None:
        unit, digits = "lesions found", 0
        values = [
            [float(sum(found.class_name == name for found in one.instances)) for name in lesion_classes]
            for one in slices
        ]
    else:
        placed = all(one.pixel_area_mm2 is not None for one in slices)
        unit, digits = ("mm²", 0) if placed else ("pixels", 0)
        values = [
            [(one.lesion_area_px or {}).get(name, 0) * ((one.pixel_area_mm2 or 1.0) if placed else 1.0)
             for name in lesion_classes]
            for one in slices
        ]  # fmt: skip
    totals = [sum(row) for row in values]
    top = nice_top(max(totals))
    curves = []
    for number, name in enumerate(lesion_classes):
        path = "".join(
            bar(position, sum(row[:number]) / top * 100, row[number] / top * 100)
            for position, row in enumerate(values)
            if row[number]
        )
        curves.append(Curve(name, path, css(class_colour(number))))
    peak = max(range(len(slices)), key=totals.__getitem__)
    summary = "No lesions on any slice."
    if totals[peak]:
        summary = (
            f"Lesions on {sum(total > 0 for total in totals)} of {len(slices)} slices, most on slice "
            f"{slices[peak].index}: {totals[peak]:,.{digits}f} {unit}."
        )
    return Chart("Lesion load along the axis", unit, top, len(slices), tuple(curves), summary)


def score_chart(slices: Sequence[SliceResult], image_classes: Sequence[str]) -> Chart | None:
    """Image scores by slice; None from a model that doesn't classify."""
    if not image_classes:
        return None
    curves = []
    for number, name in enumerate(image_classes):
        scores = [(one.image_scores or {})[name] for one in slices]
        path = "".join(
            f"{'L' if position else 'M'}{position} {100 - 100 * score:.1f}h1" for position, score in enumerate(scores)
        )
        colour = css(class_colour(_FIRST_IMAGE_CLASS_COLOUR + number))
        curves.append(Curve(name, path, colour, _DASHES[number % len(_DASHES)]))
    counts = [sum(one.image_class == name for one in slices) for name in image_classes]
    summary = "Class with the highest score: " + ", ".join(
        f"{name} on {count} of {len(slices)} slices" for name, count in zip(image_classes, counts, strict=True)
    )
    return Chart("Image scores by slice", "score", 1.0, len(slices), tuple(curves), summary + ".")


def bar(position: int, below: float, height: float) -> str:
    """A bar one slice wide, that starts at ``below`` per cent of the chart's height."""
    return f"M{position} {100 - below:.2f}v{-height:.2f}h1v{height:.2f}z"


def nice_top(value: float) -> float:
    """The least of 1, 2, 2.5, 4, 5, 10, 20, 25 ... that is not below ``value``; 1 for nothing at all."""
    top = 1.0
    while top < value:
        for factor in (2, 2.5, 4, 5, 10):
            if top * factor >= value:
                return top * factor
        top *= 10
    return top
