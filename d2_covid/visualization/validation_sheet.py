"""A contact sheet of what the check of a data set complains about."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..data.preprocessing import read_slice
from ..data.validation_findings import KINDS, Finding, Findings
from ..errors import UserError
from .overlays import CLASS_COLOURS, font
from .panels import INK, PAPER, QUIET, contact_sheet, save_png, side_by_side

PICTURE = 256
MAX_PANELS = 40

_MASK_VALUES = 32


def write_sheet(path: str | Path, findings: Findings) -> int:
    """Draw the first findings that have something to show, each kind getting its share, and write them as PNG.

    Returns:
        How many panels there are; with none, no file is written, and one of an earlier check is removed.

    Raises:
        UserError: it can't be written.
    """
    kinds = [kind for kind in findings.found() if any(one.pictures for one in findings.kept(kind))]
    share = max(1, MAX_PANELS // max(1, len(kinds)))
    shown = [one for kind in kinds for one in [one for one in findings.kept(kind) if one.pictures][:share]]
    if shown:
        save_png(path, contact_sheet([_panel(one) for one in shown], height=round(PICTURE * 1.2)))
    else:
        Path(path).unlink(missing_ok=True)
    return len(shown)


def _panel(finding: Finding) -> np.ndarray:
    """One or two pictures under the kind of finding, with their names."""
    slice_file, others = finding.pictures[0], finding.pictures[1:2]
    pictures = [_picture(slice_file, finding.boxes, False), *(_picture(file, (), True) for file in others)]
    kind = KINDS[finding.kind]
    names = [str(Path(*Path(file).parts[-2:])) for file in finding.pictures[:2]]
    # The row is as wide as two pictures, so that words fit and panels line up.
    pictures += [np.full_like(pictures[0], PAPER)] * (2 - len(pictures))
    return side_by_side(pictures, [f"{kind.severity}: {kind.text}"[:64], ""], " · ".join(names))


def _picture(file: str, boxes: tuple[tuple[float, ...], ...], stretch: bool) -> np.ndarray:
    """A square with the image in it, or with the reason why there is none.

    Args:
        stretch: spread the few values of a mask from black to white.
    """
    square = Image.new("RGB", (PICTURE, PICTURE), PAPER)
    pen = ImageDraw.Draw(square)
    try:
        pixels = read_slice(file)
    except UserError:
        pen.rectangle((1, 1, PICTURE - 2, PICTURE - 2), outline=QUIET)
        pen.text((PICTURE / 2, PICTURE / 2), "can't be read", font=font(14), fill=INK, anchor="mm")
        return np.asarray(square)
    if stretch and 0 < pixels.max() <= _MASK_VALUES:
        pixels *= 255 // pixels.max()
    height, width = pixels.shape
    scale = PICTURE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    for x, y, w, h in boxes:
        # A frame around the place: a lesion of a few pixels would be hidden under it.
        frame = (x * scale - 4, y * scale - 4, (x + w) * scale + 4, (y + h) * scale + 4)
        pen.rectangle(frame, outline=CLASS_COLOURS[1], width=2)
    return np.asarray(square)
