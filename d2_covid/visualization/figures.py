"""The paper's Figures 2 and 3 from plain arrays, each as the bytes of a PNG file.

The same input gives the same bytes. Shape shorthand: R detections of a slice in descending score, (H, W) its size, C
image classes.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from ..data.lesion_masks import CONSOLIDATION, GGO, LUNG
from .instances import InstanceArrays
from .overlays import CLASS_COLOURS, draw_instances
from .pages import css

# Colours of the values of a CNCB mask; lesions as on the overlays.
MASK_COLOURS = {
    LUNG: "#3b4654",
    GGO: css(CLASS_COLOURS[0]),
    CONSOLIDATION: css(CLASS_COLOURS[1]),
}
TRUE, PREDICTED, QUIET = "#0b6b2e", "#c0201a", "#6b7480"
HISTOGRAM_BINS = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class FigureSlice:
    """One slice of a figure.

    Attributes:
        name: what to call it.
        image: (H, W) ``uint8``.
        instances: its R detections, with scores, in descending order.
        mask_logits: (R, M, M) raw mask scores, each over its own box; None where there are no masks.
        truth: (H, W) values of a CNCB mask, or None where there is no ground truth.
        lungs: whether ``truth`` marks the lungs too.
        true_class: number of its class, or None where unknown.
        image_logits: (C,), or None without a classifier.
    """

    name: str
    image: np.ndarray
    instances: InstanceArrays
    mask_logits: np.ndarray | None = None
    truth: np.ndarray | None = None
    lungs: bool = True
    true_class: int | None = None
    image_logits: np.ndarray | None = None


def shown_detections(scores: np.ndarray, top: int, threshold: float) -> int:
    """How many of the ranked detections Figure 2 draws: at most ``top``, those that score at least ``threshold``, and
    always the first, if there is one."""
    above = int((np.asarray(scores)[:top] >= threshold).sum())
    return max(above, min(1, len(scores)))


def combined_score_map(mask_logits: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """One map of the raw scores of several RoIs, each independent of the others (paper, section 3.1).

    The M x M scores of a RoI are resized to its box; where boxes overlap, the higher score stays.

    Args:
        mask_logits: (R, M, M).
        boxes: (R, 4), XYXY in pixels.
        height, width: of the map.

    Returns:
        (height, width) float; nan where no box lies.
    """
    combined = np.full((height, width), np.nan, np.float32)
    for logits, box in zip(mask_logits, boxes, strict=True):
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.maximum(np.ceil(box[2:]).astype(int), (left + 1, top + 1))
        resized = cv2.resize(logits.astype(np.float32), (int(right - left), int(bottom - top)))
        inside = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        if inside[0].start >= inside[0].stop or inside[1].start >= inside[1].stop:
            continue
        part = resized[inside[0].start - top : inside[0].stop - top, inside[1].start - left : inside[1].stop - left]
        combined[inside] = np.fmax(combined[inside], part)
    return combined


def figure_2(
    slices: Sequence[FigureSlice],
    class_names: Sequence[str],
    image_classes: Sequence[str],
    *,
    top: int = 8,
    threshold: float = 0.1,
) -> bytes:
    """Four columns, a row a slice: detections on the input; combined raw mask scores; ground truth; classes.

    Args:
        slices: one or more.
        class_names: K lesion classes; image_classes: C.
        top, threshold: see :func:`shown_detections`.
    """
    figure = blank_figure(14.4, 3.6 * len(slices) + 0.3)
    # One colour scale for all rows, with white at 0, where the sigmoid is one half: the edge of a mask.
    maps = [_score_map(item, top, threshold) for item in slices]
    limit = max([float(np.nanmax(np.abs(m))) for m in maps if m is not None and np.isfinite(m).any()], default=1.0)
    grid = figure.subplots(len(slices), 4, squeeze=False)
    titles = ("detections", "combined raw mask scores", "ground truth", "image class")
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, size="medium", loc="left", weight="bold")
    picture = None
    for (detections, scores, truth, classes), item, score_map in zip(grid, slices, maps, strict=True):
        number = shown_detections(item.instances.scores, top, threshold)
        detections.imshow(draw_instances(item.image, item.instances.select(np.arange(number)), class_names))
        detections.set_xlabel(f"{item.name}\n{number} of {len(item.instances)} detections", size="small", loc="left")
        picture = _draw_map(scores, score_map, item.instances.boxes[:number], limit) or picture
        _draw_truth(truth, item)
        write_classes(classes, item.true_class, item.image_logits, image_classes)
        for axis in (detections, scores, truth, classes):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    if picture is not None:
        bar = figure.colorbar(picture, ax=grid[:, 1], aspect=16 * len(slices), shrink=0.6, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize="small", length=2)
    return png_bytes(figure)


def figure_3(slices: Sequence[FigureSlice], image_classes: Sequence[str], *, top: int = 16) -> bytes:
    """Scores of the detections, and scores against box areas: columns 1 and 2 the best ``top``, 3 and 4 all; a row a
    slice, in the paper one of each image class.

    Args:
        slices: one or more; image_classes: C names.
    """
    figure = blank_figure(14.4, 2.9 * len(slices) + 0.2)
    grid = figure.subplots(len(slices), 4, squeeze=False)
    for row, item in zip(grid, slices, strict=True):
        sides = np.clip(item.instances.boxes[:, 2:] - item.instances.boxes[:, :2], 0, None)
        areas, scores = sides[:, 0] * sides[:, 1], np.asarray(item.instances.scores)
        known = item.true_class is not None
        label = image_classes[item.true_class] if known else item.name
        for column, count in ((0, min(top, len(scores))), (2, len(scores))):
            histogram, scatter = row[column], row[column + 1]
            which = f"best {count}" if column == 0 else f"all {count}"
            histogram.hist(scores[:count], HISTOGRAM_BINS, color="#0072B2", edgecolor="white", linewidth=0.6)
            histogram.set_title(f"{label}: {which}", size="medium", loc="left")
            histogram.set(xlim=(0, 1), xlabel="score", ylabel="detections")
            histogram.yaxis.get_major_locator().set_params(integer=True)
            scatter.scatter(areas[:count], scores[:count], s=14, color="#D55E00", alpha=0.65, linewidth=0)
            scatter.set_title(f"{label}: {which}", size="medium", loc="left")
            scatter.set(ylim=(-0.03, 1.03), xlabel="box area, pixels", ylabel="score")
            scatter.set_xlim(left=0)
            for axis in (histogram, scatter):
                axis.grid(color="#e3e6ea", linewidth=0.8)
                axis.set_axisbelow(True)
                axis.spines[["top", "right"]].set_visible(False)
    return png_bytes(figure)


def _score_map(item: FigureSlice, top: int, threshold: float) -> np.ndarray | None:
    if item.mask_logits is None:
        return None
    number = shown_detections(item.instances.scores, top, threshold)
    return combined_score_map(item.mask_logits[:number], item.instances.boxes[:number], *item.image.shape)


def _draw_map(axis: Axes, score_map: np.ndarray | None, boxes: np.ndarray, limit: float) -> AxesImage | None:
    if score_map is None:
        say(axis, "no mask scores")
        return None
    axis.set_facecolor("#16191d")
    picture = axis.imshow(score_map, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    for left, top, right, bottom in boxes:
        box = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#8a939e", linewidth=0.6)
        axis.add_patch(box)
    axis.set_xlabel("above 0 (red): inside the mask", size="small", loc="left")
    return picture


def _draw_truth(axis: Axes, item: FigureSlice) -> None:
    if item.truth is None:
        say(axis, "no ground truth")
        return
    colours = ListedColormap(["#000000", *(MASK_COLOURS[value] for value in (LUNG, GGO, CONSOLIDATION))])
    axis.imshow(item.truth, cmap=colours, vmin=0, vmax=3, interpolation="nearest")
    names = {LUNG: "lung", GGO: "GGO or lesion", CONSOLIDATION: "consolidation"}
    present = [value for value in names if (item.truth == value).any()]
    if present:
        handles = [Patch(color=MASK_COLOURS[value], label=names[value]) for value in present]
        axis.legend(
            handles=handles, fontsize="x-small", loc="lower left", labelcolor="white", facecolor="black", framealpha=0.7
        )
    notes = [] if np.isin(item.truth, (GGO, CONSOLIDATION)).any() else ["no lesion"]
    notes += [] if item.lungs else ["lungs are not marked"]
    axis.set_xlabel(", ".join(notes), size="small", loc="left")


def write_classes(
    axis: Axes, true_class: int | None, image_logits: np.ndarray | None, image_classes: Sequence[str]
) -> None:
    """The true class in green, and each class's logit in red, the predicted one bold and marked."""
    axis.set(xlim=(0, 1), ylim=(1, 0), box_aspect=1)
    known = true_class is not None
    truth = f"{true_class}: {image_classes[true_class]}" if known else "not known"
    axis.text(0.06, 0.16, f"true class {truth}", color=TRUE if known else QUIET, size="large", weight="bold")
    if image_logits is None:
        axis.text(0.06, 0.34, "no classifier given", color=QUIET)
        return
    axis.text(0.06, 0.32, "class scores before softmax", color=QUIET, size="small")
    best = int(np.argmax(image_logits))
    for number, (name, logit) in enumerate(zip(image_classes, image_logits, strict=True)):
        weight = "bold" if number == best else "normal"
        y = 0.44 + 0.12 * number
        axis.text(0.06, y, f"{number}: {name}", color=PREDICTED, weight=weight)
        axis.text(0.94, y, f"{logit:+.2f}".replace("-", "\u2212"), color=PREDICTED, weight=weight, ha="right")


def say(axis: Axes, text: str) -> None:
    """Put a sentence where a picture would be."""
    axis.set_box_aspect(1)
    axis.text(0.5, 0.5, text, ha="center", va="center", color=QUIET, transform=axis.transAxes)


def blank_figure(width: float, height: float, dpi: int = 130) -> Figure:
    """A figure of so many inches, at ``dpi`` pixels an inch, without a screen."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """A figure as a PNG file; the same figure gives the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
