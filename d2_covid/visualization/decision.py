"""Why a slice has its class: its regions as coloured boxes with their share, and what each adds to the class's logit.

Plain arrays in, pictures out. Shape shorthand: n detections of a slice, C image classes.
"""

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .figures import QUIET, blank_figure, png_bytes, say, write_classes
from .overlays import CLASS_COLOURS, MIN_CANVAS, box_line, box_span, display_scale, draw_labels, to_rgb

# Orange and blue after Okabe and Ito's palette: brighter on a slice, their own on paper. Dashes tell the two apart
# without colour.
FOR, AGAINST = CLASS_COLOURS[5], CLASS_COLOURS[0]
FOR_BAR, AGAINST_BAR = "#D55E00", "#0072B2"
LEAST_SHARE = 0.01
MOST_WIDTH = 3


@dataclass(frozen=True)
class Decision:
    """One slice, its class and the detections behind it.

    Attributes:
        name: what to call it.
        image: (H, W) ``uint8``.
        boxes: (n, 4), XYXY in the slice's pixels.
        contributions: (n,), gradient times input of the logit of the predicted class.
        shares: (n,), the contributions over the sum of their absolute values; all 0 where nothing contributes.
        removal: (n,), by how much that logit falls without each detection.
        image_logits: (C,); the highest is the predicted class.
        agreement: Spearman's rank correlation of contributions and removal over all n; NaN where it is not defined.
        true_class: number of its class, or None where unknown.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    contributions: np.ndarray
    shares: np.ndarray
    removal: np.ndarray
    image_logits: np.ndarray
    agreement: float
    true_class: int | None = None


def telling_regions(shares: np.ndarray, limit: int) -> np.ndarray:
    """Indices of at most ``limit`` regions by falling size of their share, each of 1 % or more."""
    size = np.abs(np.asarray(shares, float))
    order = np.argsort(-size, kind="stable")[:limit]
    return order[size[order] >= LEAST_SHARE]


def draw_decision(
    image: np.ndarray, boxes: np.ndarray, shares: np.ndarray, *, limit: int = 8, scale: int | None = None
) -> np.ndarray:
    """The regions that speak for the class (orange, whole lines) and against it (blue, dashed), on the slice.

    Args:
        image: (H, W) or (H, W, 3) ``uint8``.
        boxes: (n, 4), XYXY in the slice's pixels; shares: (n,), -1 to 1. The larger a share, the wider the line.
        limit: how many regions to draw at most; see :func:`telling_regions`.
        scale: size of the canvas over that of the slice; None: :func:`~.overlays.display_scale`.

    Returns:
        (H * scale, W * scale, 3) ``uint8``, RGB; each region labelled with its rank and share.
    """
    scale = display_scale(*image.shape[:2]) if scale is None else scale
    canvas = to_rgb(image, scale)
    shown = telling_regions(shares, limit)
    if not len(shown):
        return canvas
    unit = max(1, round(max(canvas.shape[:2]) / MIN_CANVAS))
    spans = [box_span(boxes[i], scale, canvas.shape) for i in shown]
    colours = [FOR if shares[i] > 0 else AGAINST for i in shown]
    largest = float(np.abs(shares).max())
    # The most telling last: it stays on top.
    for span, colour, i in reversed(list(zip(spans, colours, shown, strict=True))):
        width = unit * max(1, round(MOST_WIDTH * abs(float(shares[i])) / largest))
        for inset in range(width):
            left, top, right, bottom = span[0] + inset, span[1] + inset, span[2] - inset, span[3] - inset
            if left <= right and top <= bottom:
                box_line(canvas, (left, top, right, bottom), colour, 0 if shares[i] > 0 else 6 * unit)
    texts = [f"{rank}: {percent(shares[i])}" for rank, i in enumerate(shown, start=1)]
    return draw_labels(canvas, spans, texts, colours, range(len(shown)), size=12 * unit)


def percent(share: float) -> str:
    """A share with its sign, such as ``+34 %``."""
    return f"{100 * share:+.0f} %".replace("-", "\u2212")


def left_out(shares: np.ndarray, limit: int) -> str:
    """What :func:`draw_decision` does not show of ``shares``, in words."""
    shares = np.asarray(shares, float)
    if not len(shares):
        return "no detection: the class is the classifier's bias"
    if not np.any(shares):
        return f"{len(shares)} detections, none of which moves the class"
    shown = telling_regions(shares, limit)
    more = len(shares) - len(shown)
    if not more:
        return "all detections"
    rest = 1 - np.abs(shares[shown]).sum() / np.abs(shares).sum()
    amount = "less than 1 %" if rest < 0.01 else f"{100 * rest:.0f} %"
    return f"+ {more} more, together {amount} of all that counts"


def figure_why(slices: Sequence[Decision], image_classes: Sequence[str], *, limit: int = 8) -> bytes:
    """Three columns, a row a slice: telling regions; what each adds by gradient and by removal; classes and agreement.

    Args:
        slices: one or more.
        image_classes: C names.
        limit: regions to show of a slice at most.

    Returns:
        A PNG file; the same input gives the same bytes.
    """
    figure = blank_figure(14.4, 4.6 * len(slices) + 0.3)
    grid = figure.subplots(len(slices), 3, squeeze=False, width_ratios=(1, 1.15, 0.85))
    titles = (
        "regions for the class and (blue, dashed) against",
        "what each region adds to its logit",
        "image class (bold: predicted)",
    )
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, size="medium", loc="left", weight="bold")
    for (regions, bars, classes), item in zip(grid, slices, strict=True):
        regions.imshow(draw_decision(item.image, item.boxes, item.shares, limit=limit), interpolation="antialiased")
        regions.set_xlabel(f"{item.name}\n{left_out(item.shares, limit)}", size="small", loc="left")
        _draw_bars(bars, item, image_classes, limit)
        write_classes(classes, item.true_class, item.image_logits, image_classes)
        _write_agreement(classes, item)
        for axis in (regions, classes):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    return png_bytes(figure)


def _draw_bars(axis: Axes, item: Decision, image_classes: Sequence[str], limit: int) -> None:
    """Two bars a region, from the most telling down: gradient times input filled, removal hatched."""
    shown = telling_regions(item.shares, limit)
    if not len(shown):
        say(axis, "no region to rank")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return
    places = np.arange(len(shown))
    for values, shift, hatched in ((item.contributions[shown], -0.19, False), (item.removal[shown], 0.19, True)):
        colours = [FOR_BAR if value > 0 else AGAINST_BAR for value in values]
        faces = "white" if hatched else colours
        axis.barh(places + shift, values, 0.34, color=faces, edgecolor=colours, hatch="////" if hatched else None)
    axis.axvline(0, color="#1b2430", linewidth=0.8)
    labels = [f"{rank}: {percent(item.shares[i])}" for rank, i in enumerate(shown, start=1)]
    axis.set_yticks(places, labels)
    # Room for eight regions, so that bars are equally thick in all rows; and for the key below them.
    axis.set_ylim(max(len(shown), limit) + 0.4, -0.6)
    axis.set_xlabel(f"logit of {image_classes[int(np.argmax(item.image_logits))]}", size="small", loc="left")
    axis.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    key = [
        Patch(facecolor=QUIET, edgecolor=QUIET, label="gradient times input"),
        Patch(facecolor="white", edgecolor=QUIET, hatch="////", label="fall when removed"),
    ]
    axis.legend(handles=key, fontsize="small", frameon=False, loc="lower right", ncols=2)


def _write_agreement(axis: Axes, item: Decision) -> None:
    """Below the classes: the logit as the sum of what the regions add and the rest, and how well the two ways agree."""
    together = float(np.sum(item.contributions))
    rest = float(np.max(item.image_logits)) - together
    known = np.isfinite(item.agreement)
    agreement = f"{item.agreement:+.2f}" if known else "not defined"
    lines = (
        ("predicted logit: from all regions", f"{together:+.2f}"),
        ("predicted logit: from the bias", f"{rest:+.2f}"),
        ("rank agreement, gradient and removal", agreement),
        ("(Spearman, over all detections)", f"n = {len(item.shares)}"),
    )
    y = 0.52 + 0.12 * len(item.image_logits)
    for number, (text, value) in enumerate(lines):
        axis.text(0.06, y + 0.075 * number, text, color=QUIET, size="small")
        value = value.replace("-", "\u2212")
        axis.text(0.94, y + 0.075 * number, value, color=QUIET, size="small", ha="right")
