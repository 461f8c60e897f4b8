"""One page about a run, to open from disk: what ran on what, how good it got, how it got there, and pictures."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image

from ..data.files import atomic_write
from .pages import data_uri, environment

TEMPLATE = "summary.html"


@dataclass(frozen=True)
class ResultRow:
    """A measured figure.

    Attributes:
        name: of the metric, in words.
        value: as it is to be read, such as ``"71.3 %"``.
        interval: its 95 % interval, such as ``"64.0 to 77.9 %"``, or why there is none.
        n: what it was measured on, such as ``"96 slices of 8 patients"``.
        note: what a reader needs to know to read it right.
    """

    name: str
    value: str
    interval: str = "none"
    n: str = ""
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image, (h, w, 3) uint8, with the words that stand for it."""

    image: np.ndarray
    text: str


@dataclass(frozen=True)
class Stage:
    """One part of a run, such as the training of a segmentation model.

    Attributes:
        title, lead: its heading, and a sentence or two below it.
        facts: what ran: label -> value, in the order in which they are shown.
        results: the figures, in a table.
        results_notes: how the figures were measured.
        curve: PNG bytes of the training curve, or None.
        confusion: PNG bytes of a confusion matrix, or None.
        pictures: overlays.
        pictures_note: how to read the overlays.
    """

    title: str
    lead: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[ResultRow] = ()
    results_notes: Sequence[str] = ()
    curve: bytes | None = None
    confusion: bytes | None = None
    pictures: Sequence[Picture] = ()
    pictures_note: str = ""


def summary_html(title: str, lead: str, stages: Sequence[Stage]) -> str:
    """The page as HTML that needs no other file and no network: styles and images are inside it."""
    templates = environment()
    templates.filters["photograph"] = _jpeg_uri
    templates.filters["png"] = lambda data: data_uri("image/png", data)
    return templates.get_template(TEMPLATE).render(title=title, lead=lead, stages=stages)


def write_summary(path: str | Path, title: str, lead: str, stages: Sequence[Stage]) -> None:
    """Write :func:`summary_html` to ``path``, whole or not at all."""
    html = summary_html(title, lead, stages)
    with atomic_write(path) as file:
        file.write(html)


def _jpeg_uri(image: np.ndarray) -> str:
    # JPEG without colour subsampling: a fifth of a PNG's size, and thin coloured lines stay sharp.
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=88, subsampling=0)
    return data_uri("image/jpeg", buffer.getvalue())
