"""The benchmark as text, as Markdown and as json: ratios first."""

from dataclasses import asdict
from typing import Any, Sequence

from tabulate import tabulate

from .aims import ratio_aim
from .context import Settings
from .machine import one_line
from .results import Section, span

_ABOUT = "Ratios are taken round by round: the median, and in brackets the quartiles (of under four, the extremes)."


def summary(sections: Sequence[Section], device: str) -> Section:
    """The ratios of all sections to their peers, and on a CPU those aimed at."""
    found = Section("summary", "ratios", headers=("times faster", "aim", "candidate", "than", "work"))
    for section in sections:
        for name, times in section.ratios.items():
            aim = ratio_aim(section.key, name, device)
            found.rows.append([span(times), f"{aim:g}" if aim else "", name, section.reference, section.title])
            found.data[f"{section.key}: {name}"] = asdict(times) | {"than": section.reference, "aim": aim}
    return found


def as_text(about: Sequence[str], sections: Sequence[Section]) -> str:
    """Tables for a terminal."""
    return _rendered(about, sections, "simple", "{}\n")


def as_markdown(about: Sequence[str], sections: Sequence[Section], device: str) -> str:
    """The same as Markdown, a page of its device."""
    return f"# Benchmark on {device}\n\n" + _rendered(about, sections, "github", "## {}\n")


def as_json(about: dict[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """Everything as plain values: every time of every round."""
    return about | {
        "sections": {
            one.key: {"title": one.title, "took": one.took, "notes": one.notes, **one.data} for one in sections
        }
    }


def describe(
    settings: Settings, machine: dict[str, Any], rates: dict[str, float], origin: str, model: str, weights: str
) -> list[str]:
    """What stands above the tables: machine, versions, model, data."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    products = ", ".join(f"{dtype} {rate / 1e9:.0f}" for dtype, rate in rates.items())
    return [
        f"Machine: {one_line(machine)}; device {settings.device}.",
        f"Matrix products, measured: {products} GFLOP/s.",
        f"Versions: {versions}.",
        f"Model: {model}; weights: {weights}. Data: {origin}.",
        _ABOUT,
    ]


def _rendered(about: Sequence[str], sections: Sequence[Section], style: str, heading: str) -> str:
    parts = ["\n".join(f"- {line}" for line in about) + "\n"]
    for section in sections:
        if not section.rows and not section.notes:
            continue
        parts.append(heading.format(section.title[:1].upper() + section.title[1:]))
        if section.rows:
            parts.append(tabulate(section.rows, section.headers, tablefmt=style, disable_numparse=True) + "\n")
        parts += ["\n".join(f"- {note}" for note in section.notes) + "\n"] if section.notes else []
    return "\n".join(parts)
