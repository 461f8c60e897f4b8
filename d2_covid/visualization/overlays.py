"""Lesions drawn on a slice: translucent fill, mask outlines, boxes, and labels that keep out of each other's way.

Colour tells the class; a solid line tells an instance that has its partner (a prediction that found a lesion, a lesion
that was found), a dashed line one that has none. Everything is drawn at the size at which it is seen, so lines
stay crisp.
"""

from functools import lru_cache
from pathlib import Path
from typing import Sequence

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .instances import InstanceArrays

# After Okabe and Ito's palette, which every common form of colour vision tells apart: brighter, and without its dark
# members; first the two whose contrast holds both on black and on grey lung.
CLASS_COLOURS = ((86, 200, 255), (255, 176, 0), (240, 228, 66), (230, 140, 190), (60, 210, 160), (255, 120, 60))
FILL_ALPHA = 0.28
MIN_CANVAS = 512


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB colour of a class; colours repeat after the sixth."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, at ``size`` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def display_scale(height: int, width: int) -> int:
    """Whole factor that brings a slice to at least 512 pixels on its longer side: 1 for 512x512, 2 for 256x256."""
    return max(1, -(-MIN_CANVAS // max(height, width)))


def to_rgb(image: np.ndarray, scale: int = 1) -> np.ndarray:
    """A slice, (H, W) or (H, W, 3) uint8, as an RGB canvas of (H * scale, W * scale, 3)."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"a slice to draw on is uint8, (H, W) or (H, W, 3); this is {image.dtype}, {image.shape}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if scale == 1:
        return image.copy()
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def draw_instances(
    image: np.ndarray,
    instances: InstanceArrays,
    class_names: Sequence[str],
    *,
    matched: np.ndarray | None = None,
    scale: int | None = None,
    boxes: bool = True,
    labels: bool = True,
) -> np.ndarray:
    """Draw instances on a slice.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        instances: what to draw, in the slice's pixels.
        class_names: names of the K classes.
        matched: (R,) bool; instances that are False get dashed lines. None: all solid.
        scale: size of the canvas over that of the slice; None: :func:`display_scale`.
        boxes, labels: whether to draw them; masks are always tinted and outlined, where there are any.

    Returns:
        (H * scale, W * scale, 3) uint8, RGB. ``image`` is left as it is.
    """
    height, width = image.shape[:2]
    scale = display_scale(height, width) if scale is None else scale
    canvas = to_rgb(image, scale)
    if not len(instances):
        return canvas
    masks = None if instances.masks is None else [_resize_mask(mask, scale) for mask in instances.masks]
    if masks is not None:
        _fill(canvas, masks, instances.classes)

    unit = max(1, round(max(canvas.shape[:2]) / MIN_CANVAS))
    # Large ones first: a small lesion stays on top of its neighbours.
    order = np.argsort(-_areas(instances), kind="stable")
    spans = [box_span(box, scale, canvas.shape) for box in instances.boxes]
    for i in order:
        colour = class_colour(int(instances.classes[i]))
        dash = 0 if matched is None or matched[i] else 5 * unit
        if boxes:
            box_line(canvas, spans[i], colour, dash)
        if masks is not None:
            canvas[outline(masks[i], unit + 1, dash)] = colour
    if labels:
        texts = [_label(instances, i, class_names) for i in range(len(instances))]
        colours = [class_colour(int(c)) for c in instances.classes]
        canvas = draw_labels(canvas, spans, texts, colours, order, size=11 * unit)
    return canvas


def outline(mask: np.ndarray, thickness: int = 2, dash: int = 0) -> np.ndarray:
    """The border of a mask, as pixels that belong to the mask.

    Args:
        mask: (H, W) bool.
        thickness: in pixels, measured inwards.
        dash: length of a dash and of a gap in pixels; 0 draws the whole border.

    Returns:
        (H, W) bool, a subset of ``mask``.
    """
    border = np.zeros(mask.shape, np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        points = contour[:, 0]
        if dash:
            points = points[np.arange(len(points)) // dash % 2 == 0]
        border[points[:, 1], points[:, 0]] = 1
    if thickness > 1:
        border = cv2.dilate(border, np.ones((3, 3), np.uint8), iterations=thickness - 1)
    return border.astype(bool) & mask


def _resize_mask(mask: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return mask.astype(bool)
    # Linear, then cut at a half: the outline of an enlarged mask is smooth instead of stepped.
    return cv2.resize(mask.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR) >= 0.5


def _areas(instances: InstanceArrays) -> np.ndarray:
    if instances.masks is not None:
        return instances.masks.sum(axis=(1, 2))
    sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def _fill(canvas: np.ndarray, masks: Sequence[np.ndarray], classes: np.ndarray) -> None:
    """Tint each class once, however many of its masks overlap: what lies below stays visible."""
    for index in np.unique(classes):
        area = np.any([mask for mask, c in zip(masks, classes, strict=True) if c == index], axis=0)
        tint = np.array(class_colour(int(index)), float)
        canvas[area] = (canvas[area] * (1 - FILL_ALPHA) + tint * FILL_ALPHA).round().astype(np.uint8)


def box_span(box: np.ndarray, scale: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """First and last pixel of a box on the canvas, kept inside it: left, top, right, bottom."""
    left, top = np.floor(box[:2] * scale).astype(int)
    right, bottom = np.ceil(box[2:] * scale).astype(int) - 1
    right, bottom = (int(np.clip(v, 0, n - 1)) for v, n in ((right, shape[1]), (bottom, shape[0])))
    return int(np.clip(left, 0, right)), int(np.clip(top, 0, bottom)), right, bottom


def box_line(canvas: np.ndarray, span: tuple[int, int, int, int], colour: tuple[int, int, int], dash: int) -> None:
    """Draw a box, one pixel wide, into a canvas; ``dash``: length of a dash and of a gap, 0 for a whole line."""
    left, top, right, bottom = span
    rows, columns = np.arange(top, bottom + 1), np.arange(left, right + 1)
    if dash:
        rows, columns = (line[np.arange(len(line)) // dash % 2 == 0] for line in (rows, columns))
    for y in (top, bottom):
        canvas[y, columns] = colour
    for x in (left, right):
        canvas[rows, x] = colour


def _label(instances: InstanceArrays, index: int, class_names: Sequence[str]) -> str:
    name = class_names[int(instances.classes[index])]
    return name if instances.scores is None else f"{name} {instances.scores[index]:.2f}"


Span = tuple[int, int, int, int]


def place_labels(
    boxes: Sequence[Span], sizes: Sequence[tuple[int, int]], order: Sequence[int], shape: tuple[int, ...]
) -> list[Span]:
    """Where each box's label goes: on the canvas whole, and off labels and boxes as far as that is easy.

    Args:
        boxes: left, top, right, bottom of each.
        sizes: width, height of each label.
        order: the order in which labels take their place.
        shape: (height, width, ...) of the canvas.

    Returns:
        left, top, right, bottom of each label. Of eight places around and inside its box a label takes the one that
        covers least of the labels placed before it, then of the boxes.
    """
    placed: dict[int, Span] = {}
    for i in order:
        (left, top, right, bottom), (w, h) = boxes[i], sizes[i]
        corners = (
            (left, top - h - 1),
            (left, bottom + 2),
            (right - w + 1, top - h - 1),
            (right - w + 1, bottom + 2),
            (right + 2, top),
            (left - w - 1, top),
            (right + 2, bottom - h + 1),
            (left - w - 1, bottom - h + 1),
        )
        best, least = None, None
        for x, y in corners:
            x, y = max(0, min(x, shape[1] - w)), max(0, min(y, shape[0] - h))
            place = (x, y, x + w - 1, y + h - 1)
            cost = (sum(_covered(place, p) for p in placed.values()), sum(_covered(place, b) for b in boxes))
            if least is None or cost < least:
                best, least = place, cost
        placed[i] = best
    return [placed[i] for i in range(len(boxes))]


def _covered(a: Span, b: Span) -> int:
    """Pixels that two spans share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)


def draw_labels(
    canvas: np.ndarray,
    spans: Sequence[Span],
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    order: Sequence[int],
    size: int,
) -> np.ndarray:
    """A canvas with a label of ``size`` pixels at each span, placed by :func:`place_labels`."""
    letters = font(size, bold=True)
    pad = max(1, size // 6)
    ascent, descent = letters.getmetrics()
    sizes = [(round(letters.getlength(text)) + 2 * pad, ascent + descent) for text in texts]
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture, "RGBA")
    for place, text, colour in zip(place_labels(spans, sizes, order, canvas.shape), texts, colours, strict=True):
        pen.rectangle(place, fill=(0, 0, 0, 170))
        pen.text((place[0] + pad, place[1]), text, font=letters, fill=colour)
    return np.asarray(picture)
