"""The table at the end of a run over many scans."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Sequence

from tabulate import tabulate

from ..data.files import write_csv


@dataclass
class SummaryRow:
    """One series, or one input that gave none.

    Attributes:
        status: "done", "partly" (some loose images can't be read), "failed", or "whole already".
        lung_share_percent: lesions over lung and lesions together.
        image_class: by the rule "any_k".
        path: where it was read, by which series of one name are told apart; not in the printed table.
    """

    series: str
    status: str
    kind: str = ""
    slices: int | None = None
    slices_with_lesion: int | None = None
    lesions: int | None = None
    lesion_ml: float | None = None
    lung_share_percent: float | None = None
    image_class: str | None = None
    seconds: float | None = None
    message: str = ""
    path: str = ""


COLUMNS = tuple(field.name for field in fields(SummaryRow))


def write_summary(path: str | Path, rows: Sequence[SummaryRow]) -> None:
    """Write the rows as CSV, whole or not at all; what a series has no number for stays empty."""
    cells = [["" if (value := getattr(row, name)) is None else value for name in COLUMNS] for row in rows]
    write_csv(path, [COLUMNS, *cells])


def printed_table(rows: Sequence[SummaryRow], width: int = 40) -> str:
    """The rows as a table for the terminal, long names shortened in their middle; columns that are empty left out."""
    printed = [name for name in COLUMNS if name not in ("message", "path")]
    columns = [name for name in printed if any(getattr(row, name) not in (None, "") for row in rows)]
    cells = [[_cell(getattr(row, name), width) for name in columns] for row in rows]
    return tabulate(cells, [name.replace("_", " ") for name in columns], disable_numparse=True)


def _cell(value: object, width: int) -> str:
    text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return text if len(text) <= width else f"{text[: width // 2 - 2]}...{text[-(width - width // 2 - 1) :]}"
