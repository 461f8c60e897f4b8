"""What a model says about a series, gathered slice by slice."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np

from ..data.limits import one_line
from ..data.volumes import Series
from ..evaluation.patient_classification import AGGREGATIONS
from .linking import Lesion, LesionLinker
from .patient import patient_result
from .slice_result import SliceResult, decode_mask


@dataclass(frozen=True)
class ClassByRule:
    """Class of the series by one way of gathering its slices (:mod:`d2_covid.evaluation.patient_classification`).

    Attributes:
        rule, k: "any_k", "top_k_mean" or "mean", and its number of slices (None for "mean").
        scores, slices_by_class: by class name.
        deciding_slices: indices of the slices that carry the class, the highest score first: for "any_k" those that
            show it, or, where too few show a disease, the k that speak most for class 0; else the k with the highest
            scores.
    """

    rule: str
    k: int | None
    image_class: str
    scores: dict[str, float]
    slices_by_class: dict[str, int]
    deciding_slices: tuple[int, ...]


@dataclass(frozen=True)
class FailedSlice:
    """A loose image that could not be read."""

    index: int
    name: str
    message: str


@dataclass(frozen=True)
class SeriesResult:
    """One series.

    Attributes:
        shape: (slices, rows, columns) axial; None for loose images.
        spacing_mm: (slice, row, column); None for loose images.
        slices: those that were read, in order.
        lesion_volume_ml: None without masks or without a place in the patient; volume_ml_by_class likewise, by class.
        lung_volume_ml: of the lung alone, without lesions that the method leaves out.
        lesion_share_of_lung: lesions over lung and lesions together, 0 to 1; None without masks, or where no lung was
            found. By volume, or by pixels for loose images.
        lung_is_approximate: there were no Hounsfield units to tell the lung by.
        lesions: linked across slices, the largest first; None without masks or without a place in the patient.
        classes: by each rule; empty from a model that doesn't classify.
        warnings: one line each: those of the series first, then what came up.
        seconds: by stage.
    """

    identifier: str
    kind: str
    num_slices: int
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    slices: tuple[SliceResult, ...]
    failed_slices: tuple[FailedSlice, ...]
    lesion_volume_ml: float | None
    volume_ml_by_class: dict[str, float] | None
    lung_volume_ml: float | None
    lesion_share_of_lung: float | None
    lung_is_approximate: bool
    lesions: tuple[Lesion, ...] | None
    classes: tuple[ClassByRule, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def lesion_count(self) -> int | None:
        """Lesions after linking across slices."""
        return None if self.lesions is None else len(self.lesions)

    @property
    def image_class(self) -> str | None:
        """Class by the first rule, "any_k"; None from a model that doesn't classify."""
        return self.classes[0].image_class if self.classes else None


class SeriesSummary:
    """Gathers slice results into a :class:`SeriesResult`; keeps no pixels.

    Args:
        with_masks: whether the model has a mask head.
        k: slices behind the series' class (``TEST.PATIENT_K``).
    """

    def __init__(
        self, series: Series, lesion_classes: Sequence[str], image_classes: Sequence[str], *, with_masks: bool, k: int
    ) -> None:
        self._series, self._image_classes, self._k = series, tuple(image_classes), k
        self._slices: list[SliceResult] = []
        self._failed: list[FailedSlice] = []
        # Pixels of each instance by the linker's node, by place in the slices.
        self._pieces: dict[int, list[dict[int, int]]] = {}
        self._linker = LesionLinker() if with_masks and series.geometry is not None else None
        self._extents = series.slice_extents_mm if series.geometry is not None else None
        self._shares = series.geometry.pixel_shares if series.geometry is not None else np.ones((1, 1))
        self._with_masks, self._names = with_masks, tuple(lesion_classes)
        self._pixels = dict.fromkeys(self._names, 0)
        self._mm3 = dict.fromkeys(self._names, 0.0)
        self._lung_mm3, self._both_mm3, self._lung_pixels, self._both_pixels = 0.0, 0.0, 0, 0

    def add(self, result: SliceResult, labels: np.ndarray | None, masks: np.ndarray | None) -> None:
        """Take the next slice: its result, its label map (H, W), and the masks (R, H, W) of its instances."""
        voxel = 0.0
        if self._extents is not None and result.pixel_area_mm2 is not None:
            voxel = float(self._extents[result.index]) * result.pixel_area_mm2
            self._add_volumes(result, labels, voxel)
        for name, pixels in (result.lesion_area_px or {}).items():
            self._pixels[name] += pixels
        self._lung_pixels += result.lung_area_px or 0
        self._both_pixels += result.lung_and_lesions_area_px or 0
        if self._linker is not None and labels is not None and masks is not None:
            nodes = self._linker.add(labels > 0, result.index, voxel, self._shares)
            self._pieces[len(self._slices)] = [_pixels_by_node(nodes[mask]) for mask in masks]
        self._slices.append(result)

    def _add_volumes(self, result: SliceResult, labels: np.ndarray | None, voxel_mm3: float) -> None:
        shares = np.broadcast_to(self._shares, (result.height, result.width))

        def volume(mask: np.ndarray) -> float:
            return float(shares[mask].sum()) * voxel_mm3

        lung = decode_mask(result.lung_mask) if result.lung_mask else np.zeros(shares.shape, bool)
        self._lung_mm3 += volume(lung)
        self._both_mm3 += volume(lung if labels is None else lung | (labels > 0))
        if labels is not None:
            for number, name in enumerate(self._names, start=1):
                self._mm3[name] += volume(labels == number)

    def failed(self, index: int, message: str) -> None:
        """Note that a slice could not be read."""
        self._failed.append(FailedSlice(index, self._series.slice_names[index], message))

    def finish(self, seconds: dict[str, float]) -> SeriesResult:
        """The whole."""
        series, placed = self._series, self._extents is not None
        lesions = None
        if self._linker is not None:
            lesions, numbers = self._linker.finish()
            for place, pieces in self._pieces.items():
                self._slices[place] = _numbered(self._slices[place], pieces, numbers)
        volumes = {name: mm3 / 1000 for name, mm3 in self._mm3.items()} if placed and self._with_masks else None
        share = None
        if self._with_masks and self._lung_pixels:
            share = sum(self._pixels.values()) / self._both_pixels
            if placed and self._both_mm3 > 0:
                share = sum(self._mm3.values()) / self._both_mm3
        return SeriesResult(
            identifier=series.identifier,
            kind=series.kind,
            num_slices=series.num_slices,
            shape=series.shape,
            spacing_mm=series.spacing,
            slices=tuple(self._slices),
            failed_slices=tuple(self._failed),
            lesion_volume_ml=None if volumes is None else sum(volumes.values()),
            volume_ml_by_class=volumes,
            lung_volume_ml=self._lung_mm3 / 1000 if placed else None,
            lesion_share_of_lung=share,
            lung_is_approximate=not series.hounsfield,
            lesions=lesions,
            classes=classes_by_rule(self._slices, self._image_classes, self._k) if self._image_classes else (),
            warnings=series.warnings + (() if self._lung_pixels else (_no_lung(series),)),
            seconds=seconds,
        )


def classes_by_rule(slices: Sequence[SliceResult], image_classes: Sequence[str], k: int) -> tuple[ClassByRule, ...]:
    """The class of a series by each aggregation rule; none for a series without slices."""
    if not slices:
        return ()
    scores = np.array([[(one.image_scores or {})[name] for name in image_classes] for one in slices])
    found = []
    for rule in AGGREGATIONS:
        result = patient_result(scores, image_classes, rule, k)
        number = list(image_classes).index(result["image_class"])
        order = np.argsort(-scores[:, number], kind="stable")
        deciding = order[:k]
        if rule == "any_k" and number > 0:
            deciding = [row for row in order if scores[row].argmax() == number]
        found.append(
            ClassByRule(
                rule=rule,
                k=result["k"],
                image_class=result["image_class"],
                scores=result["scores"],
                slices_by_class=result["slices_by_class"],
                deciding_slices=tuple(slices[row].index for row in deciding),
            )
        )
    return tuple(found)


def _no_lung(series: Series) -> str:
    return (
        f"{one_line(series.identifier)}: no lung was found in any slice, as in images cropped to it, where it touches "
        "the border; there is no share of the lung, and a lung volume of 0 is no measure."
    )


def _pixels_by_node(nodes: np.ndarray) -> dict[int, int]:
    pixels = np.bincount(nodes)
    return {int(node): int(pixels[node]) for node in np.flatnonzero(pixels)}


def _numbered(result: SliceResult, pieces: list[dict[int, int]], numbers: dict[int, int]) -> SliceResult:
    """A slice whose instances have the number of their lesion: one in pieces that of the lesion with most of it."""
    instances = []
    for instance, pixels_by_node in zip(result.instances, pieces, strict=True):
        pixels: Counter[int] = Counter()
        for node, count in pixels_by_node.items():
            pixels[numbers[node]] += count
        instances.append(
            replace(instance, lesion=min(pixels, key=lambda number: (-pixels[number], number), default=None))
        )
    return replace(result, instances=tuple(instances))
