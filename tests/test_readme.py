"""The figures in README.md are those of the card and of the benchmark that it names."""

import json
import re

from d2_covid.inference.shipped import store_dir

import pytest


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return " ".join((repository / "README.md").read_text(encoding="utf-8").split())


def test_how_good(readme):
    card = json.loads((store_dir() / "lesion_r18_t1.json").read_text(encoding="utf-8"))
    assert card["default"]
    (evaluation,) = card["evaluation"]
    assert f"On {evaluation['slices']} slices of {evaluation['patients']} patients" in readme
    ap, dice = (evaluation["metrics"][name] for name in ("segm/AP50", "union/dice"))
    assert "a mask AP50 of {value:.1f} % (95 % interval {low:.1f} to {high:.1f})".format(**ap) in readme
    assert "a Dice of {value:.2f} ({low:.2f} to {high:.2f})".format(**dice) in readme


def test_how_fast(readme, repository):
    page = (repository / "BENCHMARK.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    peer = [row for row in rows if len(row) == 5 and row[3] == "torchvision"]

    def ratio(candidate: str, work: str) -> float:
        (found,) = (row[0] for row in peer if row[2] == candidate and row[4].startswith(work))
        return round(float(found.split()[0]), 1)

    number = r"([\d.]+) times"
    told = re.search(f"{number} as many slices .* {number} in bfloat16; a training step {number}", readme)
    slices, step = "one slice 512x512, batch 1: detections", "a training step of segmentation"
    measured = ratio("d2_covid fp32", slices), ratio("d2_covid bf16", slices), ratio("d2_covid", step)
    assert tuple(map(float, told.groups())) == measured
