"""Pictures side by side under their titles, with a caption: slice | ground truth | prediction."""

from io import BytesIO
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..data.files import atomic_write
from ..data.limits import counted
from .instances import InstanceArrays, in_crowd, match
from .overlays import class_colour, display_scale, draw_instances, font, to_rgb

PAPER, INK, QUIET = (18, 20, 23), (238, 240, 242), (168, 174, 182)
MATCH_IOU = 0.5
UNMATCHED = f"dashed: no match (IoU < {MATCH_IOU})"


def slice_panel(
    image: np.ndarray,
    class_names: Sequence[str],
    truth: InstanceArrays | None = None,
    predictions: InstanceArrays | None = None,
    *,
    name: str = "",
    scale: int | None = None,
) -> np.ndarray:
    """One slice as it is, beside it with its ground truth, and beside that with what was predicted.

    With both, dashed lines mark lesions that no prediction found and predictions that found no lesion, at a mask
    overlap (IoU) of 0.5. Crowd regions, and predictions in them, are drawn, but neither counted nor dashed.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        truth, predictions: None leaves that picture out.
        name: what to call the slice in the caption, such as ``"patient 4 · 87.jpg"``.
        scale: as in :func:`draw_instances`.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    scale = display_scale(*image.shape[:2]) if scale is None else scale
    found = correct = None
    text = caption(name, truth, predictions)
    if truth is not None and predictions is not None:
        found, correct = match(truth, predictions, MATCH_IOU)
        aside = in_crowd(truth, predictions, correct, MATCH_IOU)
        text = caption(name, truth, predictions.select(~aside), found, correct[~aside])
        found, correct = found | ~truth.lesions, correct | aside
    pictures, titles = [to_rgb(image, scale)], ["slice"]
    if truth is not None:
        pictures.append(draw_instances(image, truth, class_names, matched=found, scale=scale))
        titles.append("ground truth")
    if predictions is not None:
        pictures.append(draw_instances(image, predictions, class_names, matched=correct, scale=scale))
        titles.append("prediction")
    unmatched = found is not None and not (found.all() and correct.all())
    return side_by_side(pictures, titles, text, class_names, note=UNMATCHED if unmatched else "")


def caption(
    name: str,
    truth: InstanceArrays | None,
    predictions: InstanceArrays | None,
    found: np.ndarray | None = None,
    correct: np.ndarray | None = None,
) -> str:
    """The slice's name and its counts, in words."""
    parts = [name] if name else []
    if truth is not None:
        lesions = int(truth.lesions.sum())
        text = counted(lesions, "lesion")
        if found is not None and lesions:
            text += f", {int(found.sum())} found"
        parts.append(text)
    if predictions is not None:
        text = f"{len(predictions)} predicted"
        if correct is not None and len(predictions):
            text += f", {int(correct.sum())} right"
        parts.append(text)
    return " · ".join(parts)


def side_by_side(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    text: str = "",
    class_names: Sequence[str] = (),
    note: str = "",
) -> np.ndarray:
    """Pictures of one size, (h, w, 3) uint8, in a row: titles above; below the caption, a note, a colour key."""
    height, width = pictures[0].shape[:2]
    unit = max(1.0, height / 512)
    gap, size = round(6 * unit), round(13 * unit)
    bar = round(size * 1.9)
    total = len(pictures) * width + (len(pictures) - 1) * gap
    sheet = Image.new("RGB", (total, height + 2 * bar), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x = i * (width + gap)
        sheet.paste(Image.fromarray(picture), (x, bar))
        pen.text((x + gap, bar / 2), title, font=font(size, bold=True), fill=INK, anchor="lm")
    middle = bar + height + bar / 2
    right = total - gap
    for index, label in reversed(list(enumerate(class_names))):
        right -= round(font(size).getlength(label))
        pen.text((right, middle), label, font=font(size), fill=INK, anchor="lm")
        right -= size
        pen.rectangle((right, middle - size // 3, right + size // 1.5, middle + size // 3), fill=class_colour(index))
        right -= gap * 2
    if note:
        pen.text((right, middle), note, font=font(size), fill=QUIET, anchor="rm")
        right -= round(font(size).getlength(note)) + gap
    pen.text((gap, middle), _shortened(text, right - gap, size), font=font(size), fill=QUIET, anchor="lm")
    return np.asarray(sheet)


def contact_sheet(panels: Sequence[np.ndarray], height: int = 340, gap: int = 8) -> np.ndarray:
    """Panels as thumbnails of ``height`` pixels in a grid about as wide as high, in reading order.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    thumbs = [_thumbnail(panel, height) for panel in panels]
    width = max(thumb.width for thumb in thumbs) + gap
    columns = next(c for c in range(1, len(thumbs) + 1) if c * width >= -(-len(thumbs) // c) * (height + gap))
    rows = -(-len(thumbs) // columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * (height + gap) + gap), PAPER)
    for i, thumb in enumerate(thumbs):
        sheet.paste(thumb, (gap + i % columns * width, gap + i // columns * (height + gap)))
    return np.asarray(sheet)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write an image, (h, w, 3) uint8, as PNG: whole or not at all."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    with atomic_write(path, mode="wb") as file:
        file.write(buffer.getvalue())


def _thumbnail(panel: np.ndarray, height: int) -> Image.Image:
    picture = Image.fromarray(panel)
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)


def _shortened(text: str, room: float, size: int) -> str:
    """``text``, cut at its front until it fits: the end of a path and the counts are what matters."""
    letters = font(size)
    if letters.getlength(text) <= room:
        return text
    while text and letters.getlength("…" + text) > room:
        text = text[1:]
    return "…" + text if text else ""
