"""What a section of the benchmark hands to the report: a table, plain data for json, and remarks."""

from dataclasses import asdict, dataclass, field
from typing import Any, Mapping, Sequence

from .timing import Spread, ratio, spread


@dataclass
class Section:
    """One part of the benchmark, done.

    Attributes:
        key: its name on the command line.
        title: what was measured, in words.
        headers, rows: the table, as it is to be read.
        data: the same and more as plain values.
        notes: one line each.
        reference: the candidate that the others are compared with.
        ratios: candidate's name to how many times faster than it.
        took: seconds that the section took.
    """

    key: str
    title: str
    headers: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reference: str = ""
    ratios: dict[str, Spread] = field(default_factory=dict)
    took: float = 0.0


TIMED_HEADERS = ("times faster", "candidate", "ms a {unit}", "{unit}s a second")


def timed_section(
    key: str,
    title: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    reference: str | None,
    unit: str = "slice",
    per_run: int = 1,
    notes: Sequence[str] = (),
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> Section:
    """A section of candidates that did the same work in the same rounds.

    Args:
        seconds: of one run, by candidate and round.
        reference: the candidate that ratios are taken to; None: no ratios.
        unit: what a run works on ...
        per_run: ... and how many of them.
        extra: more columns: header to cells by candidate.
    """
    extra = extra or {}
    section = Section(key, title, notes=list(notes), reference=reference or "")
    headers = [header.format(unit=unit) for header in TIMED_HEADERS]
    section.headers = [*(headers if reference else headers[1:]), *extra]
    for name, values in seconds.items():
        time = spread([value / per_run for value in values])
        cells = [name, span(time, 1e3), f"{1 / time.median:.3g}", *(column.get(name, "") for column in extra.values())]
        data = {"seconds": list(values), "per_run": per_run, "unit": unit, "time": asdict(time)}
        if reference:
            times = ratio(seconds[reference], values)
            if name != reference:
                section.ratios[name] = times
            cells = [span(times), *cells]
            data["times_faster"] = asdict(times)
        data |= {header: column[name] for header, column in extra.items() if name in column}
        section.rows.append(cells)
        section.data[name] = data
    return section


def span(values: Spread, factor: float = 1.0) -> str:
    """``1.52 (1.48 to 1.60)``: the median, and the quartiles if there was more than one value."""
    median = f"{values.median * factor:.3g}"
    if values.count < 2:
        return median
    return f"{median} ({values.low * factor:.3g} to {values.high * factor:.3g})"
