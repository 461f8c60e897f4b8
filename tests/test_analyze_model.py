"""Table 1, as the command prints it."""

import subprocess
import sys

import pytest


def _analyze(repository, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/analyze_model.py", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


@pytest.mark.parametrize(
    "config, cells",
    [
        ("segmentation/mask_rcnn_R_18_T2_FPN", ["3.92", "4.02", "an FPN that reads 512 maps"]),
        ("classification/covid_ct_mask_net_R_50_FPN", ["34.14", "2.36", "the mask modules too"]),
    ],
)
def test_row_gives_measured_and_paper_and_the_reason(repository, config, cells):
    result = _analyze(repository, "--config-file", f"{config}.yaml", "--size", "64")
    assert result.returncode == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith(config.split("/")[1]))
    assert all(cell in row for cell in cells), row


def test_unknown_config_is_one_line(repository):
    result = _analyze(repository, "--config-file", "nowhere.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("error: No config file nowhere.yaml") and result.stderr.count("\n") == 1
