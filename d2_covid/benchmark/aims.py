"""What this project aims at: ratios on two cores, and the rates of whole runs on a GPU."""

CPU_RATIOS = {
    ("segmentation", "d2_covid fp32"): 3.0,
    ("segmentation", "d2_covid bf16"): 5.0,
    ("classification", "d2_covid fp32"): 2.0,
    ("classification", "d2_covid bf16"): 4.0,
    ("training", "d2_covid"): 1.3,
    ("classifier-training", "d2_covid"): 1.3,
}
"""Times faster than the torchvision peer, on two cores, at batch 1; by section and candidate."""

RATE, SCHEDULE, SECONDS = "slices a second", "the paper's schedule, minutes", "seconds"
"""Heads of the columns that GPU aims stand in."""

GPU_AIMS = {
    "evaluation": {RATE: "500 or more"},
    "training-run": {RATE: "200 or more", SCHEDULE: "6 or less"},
    "classifier-training-run": {SCHEDULE: "5 or less"},
    "cached-classifier": {SECONDS: "300 or less together"},
}
"""On one H200, by section and column: the paper's schedules are 100 epochs of 650 slices, and 50 of 3,000."""


def ratio_aim(section: str, candidate: str, device: str) -> float | None:
    """The ratio aimed at; None on a GPU, and where there is none."""
    return None if device.startswith("cuda") else CPU_RATIOS.get((section, candidate))


def gpu_aims(section: str, device: str) -> dict[str, str]:
    """The section's aims by column; none on a CPU."""
    return dict(GPU_AIMS.get(section, {})) if device.startswith("cuda") else {}


def aimed(header: str, aims: dict[str, str]) -> str:
    """A column's head, and what is aimed at in it."""
    return f"{header} (aim on an H200: {aims[header]})" if header in aims else header
