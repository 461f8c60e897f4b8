"""What pages and comments say is what the card, the benchmark, the records of the zoo and setup.py say."""

import json
import re
import statistics

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


def ap50_of_seeds(repository, row: str) -> list[float]:
    seeds = (repository / "docs" / "zoo").glob(f"{row}-s*.json")
    return [json.loads(path.read_text())["metrics"]["segm/AP50"]["value"] for path in seeds]


def test_how_lucky(readme, repository):
    """What ships is the best of its seeds; the page and the card say what the others reached."""
    found = ap50_of_seeds(repository, "tuned_3x-R18-T1-phantoms")
    card = json.loads((store_dir() / "lesion_r18_t1.json").read_text(encoding="utf-8"))
    (evaluation,) = card["evaluation"]
    assert len(found) == 3
    assert max(found) == pytest.approx(evaluation["metrics"]["segm/AP50"]["value"], abs=0.1)  # half precision
    mean, deviation = statistics.fmean(found), statistics.stdev(found)
    assert f"the best of three seeds, whose mean AP50 is {mean:.1f} ± {deviation:.1f} %" in readme
    told = f"their mean mask AP50 is {mean:.1f} % (standard deviation {deviation:.1f})"
    assert any(told in limit for limit in card["limits"])


def test_what_more_passes_bring(repository):
    """By all seeds, not by the best: the tuned recipe's comment on its passes."""
    short, long = (ap50_of_seeds(repository, f"{row}-R18-T1-phantoms") for row in ("tuned", "tuned_3x"))
    assert len(short) == len(long) == 3
    first, second = (f"{statistics.fmean(found):.1f}" for found in (short, long))
    comment = (repository / "configs" / "Base-LesionMaskRCNN-tuned.yaml").read_text(encoding="utf-8")
    assert first == second and f"27 reach no more (AP50, mean of three seeds: {first} both times)" in comment


def test_extras(repository):
    extras = re.findall(r'^    "(\w+)": \[$', (repository / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    page = (repository / "INSTALL.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `\.\[(\w+)\]`", page, re.MULTILINE)
    assert "peers" in extras and sorted(told) == sorted([*extras, "all"])
    assert "| `.[all]` | all but `peers` |" in page


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
