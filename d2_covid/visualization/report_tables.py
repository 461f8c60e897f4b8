"""The words and numbers of a series' report."""

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np

from ..inference.series_result import ClassByRule, SeriesResult
from ..inference.slice_result import SliceResult
from .classification_page import AGGREGATIONS

MOST_DECIDING, MOST_LESIONS, MOST_REGIONS = 6, 20, 5
_LEAST_SHARE = 0.005


@dataclass(frozen=True)
class Measure:
    """A number as it is read, and what it rests on."""

    name: str
    value: str
    limits: str


def measure_rows(result: SeriesResult) -> list[Measure]:
    """The numbers of a series, those that it has no ground for included."""
    no_masks = all(one.lesion_area_px is None for one in result.slices)
    loose = "Loose images have no place and no size in the patient."
    why = "The model has no masks." if no_masks else loose
    found = sum(one.has_lesion for one in result.slices)
    by_class = ""
    if result.volume_ml_by_class is not None and len(result.volume_ml_by_class) > 1:
        by_class = " By class: " + ", ".join(f"{name} {ml(v)}" for name, v in result.volume_ml_by_class.items()) + "."
    share = result.lesion_share_of_lung
    basis = "volume" if result.lung_volume_ml is not None else "pixels"
    share_limits = f"Lesions over lung and lesions together, by {basis}."
    if result.lung_is_approximate:
        share_limits += " Approximate: without Hounsfield units the lung is a guess from gray."
    if share is None:
        share_limits = "The model has no masks." if no_masks else "No lung was found."
    rows = [
        Measure(
            "Lesion volume",
            ml(result.lesion_volume_ml),
            why
            if result.lesion_volume_ml is None
            else "Marked pixels times pixel area times what each slice stands for along the axis. It moves with the "
            f"score threshold and with the spacing of the slices.{by_class}",
        ),
        Measure("Share of the lung", "none" if share is None else f"{100 * share:.1f} %", share_limits),
        Measure(
            "Lesion count",
            "none" if result.lesion_count is None else f"{result.lesion_count:,}",
            why
            if result.lesion_count is None
            else "Bodies of marked voxels that touch, across slices. One missed slice splits a lesion in two; two that "
            "touch count as one.",
        ),
        Measure(
            "Slices with a lesion",
            f"{found:,} of {len(result.slices):,}",
            f"At least one {'detection' if no_masks else 'marked pixel'} from the score threshold on.",
        ),
        Measure(
            "Lung volume",
            ml(result.lung_volume_ml),
            loose if result.lung_volume_ml is None else "Lung alone, by the method below; no measure of lung function.",
        ),
    ]
    if result.classes:
        rows.insert(0, _class_measure(result.classes))
    return rows


def _class_measure(classes: Sequence[ClassByRule]) -> Measure:
    """The class of the series as a headline; where the rules disagree, that is the headline."""
    limits = "A class is always given, also for what the model has never seen."
    if len({by_rule.image_class for by_rule in classes}) == 1:
        return Measure("Class of the series", classes[0].image_class, f"By every rule below. {limits}")
    said = "; ".join(f"{rule_words(by_rule.rule, by_rule.k)}: {by_rule.image_class}" for by_rule in classes)
    return Measure("Class of the series", "the rules disagree", f"By rule, {said}. {limits}")


def lesion_rows(result: SeriesResult, positions: Mapping[int, int]) -> dict[str, Any] | None:
    """The largest lesions, and how many more there are; None where lesions are not linked."""
    if result.lesions is None:
        return None
    largest: dict[int, tuple[int, int]] = {}
    for one in result.slices:
        for found in one.instances:
            if found.lesion is not None and (found.area_px or 0) > largest.get(found.lesion, (-1, 0))[0]:
                largest[found.lesion] = (found.area_px or 0, one.index)
    rows = []
    for lesion in result.lesions[:MOST_LESIONS]:
        index = largest.get(lesion.number, (0, lesion.first_slice))[1]
        rows.append({"lesion": lesion, "ml": ml(lesion.volume_ml), "index": index, "position": positions[index]})
    return {"rows": rows, "more": len(result.lesions) - len(rows)}


def class_rows(result: SeriesResult, positions: Mapping[int, int]) -> list[dict[str, Any]]:
    """The class by each rule, with the slices behind it."""
    return [
        {
            "words": rule_words(rule.rule, rule.k),
            "image_class": rule.image_class,
            "scores": rule.scores,
            "slices_by_class": rule.slices_by_class,
            "deciding": [{"index": k, "position": positions[k]} for k in rule.deciding_slices[:MOST_DECIDING]],
            "more": max(0, len(rule.deciding_slices) - MOST_DECIDING),
        }
        for rule in result.classes
    ]


def deciding_slices(
    result: SeriesResult, positions: Mapping[int, int], lesion_classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The first slices that carry the class by the first rule, with their most telling regions."""
    if not result.classes:
        return []
    rows = []
    for index in result.classes[0].deciding_slices[:MOST_DECIDING]:
        one = result.slices[positions[index]]
        found = regions(one, lesion_classes)
        rows.append(
            {
                "index": index,
                "position": positions[index],
                "image_class": one.image_class,
                "score": (one.image_scores or {})[one.image_class],
                "regions": found[:MOST_REGIONS],
                "more": max(0, len(found) - MOST_REGIONS),
            }
        )
    return rows


def regions(one: SliceResult, lesion_classes: Sequence[str]) -> list[dict[str, Any]]:
    """The regions of a slice that the classifier looked at, by falling size of their share in its class; those whose
    share rounds to nothing are left out."""
    found = one.contributions
    if found is None:
        return []
    order = [k for k in np.argsort(-np.abs(found.shares), kind="stable") if abs(found.shares[k]) >= _LEAST_SHARE]
    return [
        {
            "number": number,
            "box": found.boxes[k].astype(float).round(1).tolist(),
            "class": lesion_classes[found.classes[k]],
            "score": round(float(found.scores[k]), 3),
            "share": round(float(found.shares[k]), 4),
            "removal": round(float(found.removal[k]), 4),
        }
        for number, k in enumerate(order, start=1)
    ]


def start_position(result: SeriesResult) -> int:
    """Which slice to show first: the one with most lesion, else the middle one."""
    loads = [sum((one.lesion_area_px or {}).values()) or len(one.instances) for one in result.slices]
    return loads.index(max(loads)) if any(loads) else len(loads) // 2


def rule_words(rule: str, k: int | None) -> str:
    """An aggregation rule in words."""
    return AGGREGATIONS[rule].format(k=k)


def ml(volume: float | None) -> str:
    """A volume in millilitres, as exact as it is worth."""
    if volume is None:
        return "none"
    return f"{volume:,.0f} ml" if volume >= 100 else f"{volume:.1f} ml" if volume >= 1 else f"{volume:.2f} ml"
