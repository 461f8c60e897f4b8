"""A trained model, loaded once and called often: on a slice, a series or a volume."""

import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode

from ..data.discovery import discover
from ..data.lesion_masks import encode_mask
from ..data.lung import lung_mask, lung_masks
from ..data.preprocessing import network_input
from ..data.volumes import Series, series_from_array
from ..errors import UserError
from .batch import load_model
from .explanation import explain
from .model_source import keep_scores_from, resolve_model
from .series_result import SeriesResult, SeriesSummary
from .slice_result import SliceResult, lesion_instances, pack_contributions, paint_labels
from .unread import with_unread

SliceCallback = Callable[[SliceResult, np.ndarray], None]
"""Called with each slice's result and its gray pixels, (H, W) uint8, as they come."""


class Predictor:
    """Finds lesions and, with a classifier, the class of slices and series. Research use only.

    Args:
        config: path of a yaml file, name of a shipped one such as ``"mask_rcnn_R_18_T1_FPN"``, or a config; None: the
            one that the weights carry.
        weights: a checkpoint, or the name of a model that ships; None: the config's ``MODEL.WEIGHTS``, or, without a
            config, the lesion model that ships. Only tensors and plain values are read from it.
        device: "auto", "cpu", "cuda", "cuda:1".
        score_threshold: detections that score at least this are lesions; None: ``TEST.UNION_SCORE_THRESH``.
        window: level and width in Hounsfield units; None: the config's ``INPUT.WINDOW``.
        batch_size: slices to a pass of the model; None: 4 on a CPU, 8 elsewhere.
        dtype: type of the features, "float32", "bfloat16" or, on a GPU, "float16"; None: ``TEST.DTYPE``.

    Raises:
        UserError: no such config or weights; weights of another model, damaged, or a pickle of Python objects; no such
            device, or none for this ``dtype``; a threshold outside 0 to 1, or a width that is not above 0.
    """

    def __init__(
        self,
        config: str | Path | CfgNode | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        *,
        score_threshold: float | None = None,
        window: tuple[float, float] | None = None,
        batch_size: int | None = None,
        dtype: str | None = None,
    ) -> None:
        self.source = resolve_model(config, weights, device)
        self.cfg = cfg = self.source.cfg
        self.score_threshold = float(cfg.TEST.UNION_SCORE_THRESH if score_threshold is None else score_threshold)
        level, width = (cfg.INPUT.WINDOW.LEVEL, cfg.INPUT.WINDOW.WIDTH) if window is None else window
        self.window = (float(level), float(width))
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"The score threshold must be from 0 to 1, not {self.score_threshold:g}.")
        if not (np.isfinite(self.window).all() and self.window[1] > 0):
            raise UserError(f"A window is a level and a width above 0 in Hounsfield units, not {level:g} {width:g}.")
        keep_scores_from(cfg, self.score_threshold)
        if dtype is not None:
            cfg.TEST.DTYPE = dtype
        self.batch_size = batch_size or (4 if cfg.MODEL.DEVICE == "cpu" else 8)
        self.lesion_classes, self.image_classes = self.source.lesion_classes, self.source.image_classes
        self.with_masks = bool(cfg.MODEL.MASK_ON)
        self.model = load_model(cfg)

    def slice(
        self, array: np.ndarray, spacing: tuple[float, float] | None = None, *, assume_window: bool = False
    ) -> SliceResult:
        """Predict on one axial slice.

        Args:
            array: (H, W): ``uint8`` gray of a lung window, or Hounsfield units of any other type.
            spacing: (row, column) in mm; without it there are no areas in mm2.
            assume_window: take another type than ``uint8`` as gray too, from 0 to 1, to 255 or to 65535.

        Raises:
            UserError: no two-dimensional array of numbers, or one that can't be in Hounsfield units.
        """
        array = np.asarray(array)
        if array.ndim != 2:
            raise UserError(f"A slice is an array (rows, columns), not one of shape {array.shape}; use volume().")
        edges = None if spacing is None else (1.0, *spacing)
        assume_window = assume_window or array.dtype == np.uint8
        series = series_from_array(array, edges, identifier="slice", assume_window=assume_window)
        if spacing is None:
            series = replace(series, geometry=None)
        (result,) = self.series(series).slices
        return replace(result, instances=tuple(replace(one, lesion=None) for one in result.instances))

    def volume(
        self,
        array: np.ndarray,
        spacing: tuple[float, float, float] | None = None,
        *,
        affine: np.ndarray | None = None,
        assume_window: bool = False,
        on_slice: SliceCallback | None = None,
    ) -> SeriesResult:
        """Predict on a volume in memory; arguments as for :func:`~d2_covid.data.volumes.series_from_array`.

        Raises:
            UserError: it can't be taken as a CT.
        """
        series = series_from_array(array, spacing, affine, identifier="volume", assume_window=assume_window)
        return self.series(series, on_slice=on_slice)

    def series(
        self, source: str | Path | Series, *, assume_window: bool = False, on_slice: SliceCallback | None = None
    ) -> SeriesResult:
        """Predict on a series, reading it slice by slice.

        Args:
            source: from :func:`~d2_covid.data.discovery.discover`, or a path that holds exactly one series; what can't
                be read beside it is among the warnings.
            assume_window: see there; for a path only.
            on_slice: called for each slice, in order.

        Raises:
            UserError: it can't be read, or the path holds none or several; of loose images, not one can be read.
        """
        series = source if isinstance(source, Series) else _only_series(source, assume_window)
        seconds = dict.fromkeys(("read", "lung", "model"), 0.0)
        summary = SeriesSummary(
            series,
            self.lesion_classes,
            self.image_classes,
            with_masks=self.with_masks,
            k=self.cfg.TEST.PATIENT_K,
        )
        lungs = lung_masks(series) if series.geometry is not None else None
        done = 0
        for batch in self._batches(series, summary, seconds):
            with _timed(seconds, "model"):
                outputs = self._forward([tensor for _, _, tensor in batch], [gray.shape for _, gray, _ in batch])
            for (index, gray, _), output in zip(batch, outputs, strict=True):
                with _timed(seconds, "lung"):
                    if lungs is not None:
                        lung = next(lungs)
                    else:
                        lung = lung_mask(series.slice(index) if series.hounsfield else gray)
                with _timed(seconds, "model"):
                    result = self._slice_result(series, index, output, lung, summary)
                if on_slice is not None:
                    on_slice(result, gray)
                done += 1
        result = summary.finish({stage: round(value, 3) for stage, value in seconds.items()})
        if not done:
            message = result.failed_slices[0].message if result.failed_slices else "it has no slices"
            raise UserError(f"{series.identifier}: no slice can be read; the first: {message}")
        return result

    def network_input(self, series: Series, index: int) -> torch.Tensor:
        """What the model is fed for a slice: (3, h, w) uint8, the bytes that evaluation makes of the same pixels."""
        return self._network_input(series.gray(index, *self.window))

    def _network_input(self, gray: np.ndarray) -> torch.Tensor:
        return network_input(gray, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

    def _batches(
        self, series: Series, summary: SeriesSummary, seconds: dict[str, float]
    ) -> Iterator[list[tuple[int, np.ndarray, torch.Tensor]]]:
        """Slices (index, gray, network input) in order, a batch at a time; those of a batch have one size, so that none
        is padded and its result depends on no neighbour."""
        batch: list[tuple[int, np.ndarray, torch.Tensor]] = []
        for index in range(series.num_slices):
            with _timed(seconds, "read"):
                try:
                    gray = series.gray(index, *self.window)
                except UserError as error:
                    if series.kind != "images":
                        raise
                    summary.failed(index, str(error))
                    continue
                tensor = self._network_input(gray)
            if batch and batch[0][2].shape != tensor.shape:
                yield batch
                batch = []
            batch.append((index, gray, tensor))
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    @torch.no_grad()
    def _forward(self, tensors: list[torch.Tensor], shapes: list[tuple[int, ...]]) -> list[dict]:
        records = [
            {"image": tensor, "height": shape[0], "width": shape[1]}
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]
        return self.model(records)

    def _slice_result(
        self, series: Series, index: int, output: dict, lung: np.ndarray, summary: SeriesSummary
    ) -> SliceResult:
        instances = output["instances"].to("cpu")
        height, width = instances.image_size
        area = series.pixel_area_mm2
        labels = masks = areas = None
        both = lung
        if instances.has("pred_masks"):
            masks = instances.pred_masks.numpy().astype(bool)
            labels = paint_labels(masks, instances.pred_classes.tolist(), height, width)
            counts = np.bincount(labels.ravel(), minlength=len(self.lesion_classes) + 1)[1:].tolist()
            areas = dict(zip(self.lesion_classes, counts, strict=True))
            both = lung | (labels > 0)
        image_class = image_scores = contributions = None
        if self.image_classes:
            values = output["image_scores"].tolist()
            image_class = self.image_classes[int(np.argmax(values))]
            image_scores = dict(zip(self.image_classes, values, strict=True))
            explanation = explain(self.model, output, int(np.argmax(values)))
            contributions = pack_contributions(explanation, output["ranked"].detection)
        result = SliceResult(
            index=index,
            name=series.slice_names[index],
            height=height,
            width=width,
            instances=lesion_instances(instances, self.lesion_classes, area),
            lesion_area_px=areas,
            pixel_area_mm2=area,
            lung_mask=encode_mask(lung),
            lung_area_px=int(lung.sum()),
            lung_and_lesions_area_px=int(both.sum()),
            image_class=image_class,
            image_scores=image_scores,
            contributions=contributions,
        )
        summary.add(result, labels, masks)
        return result


def _only_series(path: str | Path, assume_window: bool) -> Series:
    found, problems = [], []
    for item in discover([path], assume_window=assume_window):
        if isinstance(item, Series):
            found.append(item)
            if len(found) > 1:
                raise UserError(f"{path} holds more than one series; name one of them, or use d2-covid predict.")
        else:
            problems.append(item)
    failed = [problem for problem in problems if problem.failed] or problems
    if failed and not found:
        raise UserError(failed[0].message)
    if not found:
        raise UserError(f"{path} holds no CT that can be read.")
    return with_unread(found[0], problems)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that a block takes to ``seconds[stage]``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
