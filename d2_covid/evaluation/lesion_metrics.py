"""The families of lesion metrics in one form: values, values under slice weights, and what each rests on.

N slices, K lesion classes. With K > 1 each family also has its figures by class, named ``<metric>-<class>`` as
Detectron2 names them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import AveragePrecision
from .overlap import confusion_pixels, empty_reference_counts, overlap_by_slice, overlap_values
from .paper_ap import paper_ap_table, paper_ap_values
from .slice_instances import SliceInstances


@dataclass(frozen=True)
class MetricFamily:
    """Metrics worked out together.

    Attributes:
        task: first part of their names: ``bbox``, ``segm``, ``paper_ap`` or ``union``.
        values: by name; nan where undefined.
        weighted: the values with slice n taken ``weights[n]`` times; takes (N,) integers.
        slices: slices behind each value.
        instances: ground-truth lesions behind each value.
        notes: by name, what must be said about a value, above all what slices without ground truth did.
    """

    task: str
    values: Mapping[str, float]
    weighted: Callable[[np.ndarray], Mapping[str, float]]
    slices: Mapping[str, int]
    instances: Mapping[str, int]
    notes: Mapping[str, str]


def coco_family(
    slices: Sequence[SliceInstances], classes: Sequence[str], task: str, max_detections: int
) -> MetricFamily:
    """COCO AP in percent; ``task`` is ``bbox`` or ``segm``."""
    precision = AveragePrecision(slices, classes, task, max_detections)
    rules = {suffix: _coco_rule(slices, classes, k) for suffix, k in _suffixes(classes).items()}
    return MetricFamily(
        task=task,
        values=precision.values,
        weighted=precision.weighted,
        slices=dict.fromkeys(precision.values, len(slices)),
        instances=precision.instances,
        notes={
            name: " ".join(filter(None, (precision.notes.get(name), rules[_suffix_of(name)])))
            for name in precision.values
        },
    )


def paper_family(slices: Sequence[SliceInstances], classes: Sequence[str], score_threshold: float) -> MetricFamily:
    """The paper's AP in percent (:mod:`~d2_covid.evaluation.paper_ap`)."""
    parts = {suffix: paper_ap_table(slices, score_threshold, k) for suffix, k in _suffixes(classes).items()}

    def weighted(weights: np.ndarray | None) -> dict[str, float]:
        by_part = {suffix: paper_ap_values(table, weights) for suffix, table in parts.items()}
        return {name + suffix: value for suffix, values in by_part.items() for name, value in values.items()}

    values = weighted(None)
    instances, notes = {}, {}
    for suffix, k in _suffixes(classes).items():
        rule = _paper_rule(slices, parts[suffix], score_threshold, k)
        for name in values:
            if _suffix_of(name) == suffix:
                instances[name], notes[name] = _truths(slices, k), rule
    return MetricFamily("paper_ap", values, weighted, dict.fromkeys(values, len(slices)), instances, notes)


def union_family(slices: Sequence[SliceInstances], classes: Sequence[str], score_threshold: float) -> MetricFamily:
    """Dice, sensitivity and specificity in [0, 1] (:mod:`~d2_covid.evaluation.overlap`)."""
    parts = {suffix: confusion_pixels(slices, score_threshold, k) for suffix, k in _suffixes(classes).items()}

    def weighted(weights: np.ndarray | None) -> dict[str, float]:
        by_part = {suffix: overlap_values(pixels, weights) for suffix, pixels in parts.items()}
        return {name + suffix: value for suffix, values in by_part.items() for name, value in values.items()}

    values = weighted(None)
    counts, instances, notes = {}, {}, {}
    for suffix, k in _suffixes(classes).items():
        of_slice = overlap_by_slice(parts[suffix])
        rules = _union_rules(slices, parts[suffix], k)
        for name in values:
            if _suffix_of(name) == suffix:
                metric = name.removesuffix(suffix)
                counts[name] = int(np.isfinite(of_slice[metric]).sum()) if metric in of_slice else len(slices)
                instances[name], notes[name] = _truths(slices, k), rules[metric]
    return MetricFamily("union", values, weighted, counts, instances, notes)


def _suffixes(classes: Sequence[str]) -> dict[str, int | None]:
    """Endings of names: none for all classes together (None), and with K > 1 ``-<class>`` for each."""
    return {"": None} | ({f"-{name}": k for k, name in enumerate(classes)} if len(classes) > 1 else {})


def _suffix_of(name: str) -> str:
    _, dash, label = name.partition("-")
    return dash + label


def _truths(slices: Sequence[SliceInstances], of_class: int | None) -> int:
    return sum(len(item.truth_indices(of_class)) for item in slices)


def _crowd_rule(slices: Sequence[SliceInstances], of_class: int | None) -> str:
    count = sum(len(item.truth_indices(of_class, crowd=True)) for item in slices)
    return f" Crowd regions: {count}, left out with what is found in them." if count else ""


def _coco_rule(slices: Sequence[SliceInstances], classes: Sequence[str], of_class: int | None) -> str:
    without = sum(not _truths([item], of_class) for item in slices)
    what, each = ("", "") if of_class is None else (f" of {classes[of_class]}", " of that class")
    rule = f"Slices without ground truth{what}: {without}; each of their detections{each} is a false positive."
    return rule + _crowd_rule(slices, of_class)


def _paper_rule(
    slices: Sequence[SliceInstances], table: np.ndarray, score_threshold: float, of_class: int | None
) -> str:
    without = [not _truths([item], of_class) for item in slices]
    agreed = int(table[without, 0].sum())
    return (
        f"Slices without ground truth: {sum(without)}; {agreed} without a detection above {score_threshold:g} count as "
        f"1, {sum(without) - agreed} as 0.{_crowd_rule(slices, of_class)}"
    )


def _union_rules(slices: Sequence[SliceInstances], pixels: np.ndarray, of_class: int | None) -> dict[str, str]:
    empty, crowd = empty_reference_counts(pixels), _crowd_rule(slices, of_class)
    start = f"Slices without ground truth: {empty['empty_reference']}"
    added = f"{start}; their pixels are added like all others."
    specificity = overlap_by_slice(pixels)["specificity"]
    rules = {
        "dice": f"{start}; {empty['empty_reference_empty_prediction']} with no prediction either are left out, "
        f"{empty['empty_reference_with_prediction']} with a prediction count as 0.",
        "sensitivity": f"{start}; they are left out.",
        "specificity": f"{start}; they count. Left out as all lesion: {int(np.isnan(specificity).sum())}.",
        "pooled_dice": added,
        "pooled_sensitivity": added,
        "pooled_specificity": added,
    }
    return {name: rule + crowd for name, rule in rules.items()}
