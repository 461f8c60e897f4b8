"""Table 1, as the command prints it."""

import importlib.util
import subprocess
import sys

from d2_covid import get_config
from d2_covid.errors import UserError
from d2_covid.modeling.complexity import count_multiply_adds

import pytest
from detectron2.modeling import build_model


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


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_size_below_1_is_refused(repository, size):
    spec = importlib.util.spec_from_file_location("tool_analyze_model", repository / "tools" / "analyze_model.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.raises(UserError, match=f"^--size must be 1 or more, not {size}\\.$"):
        tool.main(["--all", "--size", size])


def test_what_is_counted_is_the_padded_image():
    few = ["MODEL.RPN.POST_NMS_TOPK_TEST", 1, "TEST.DETECTIONS_PER_IMAGE", 1]
    model = build_model(get_config("segmentation/mask_rcnn_R_50_FPN.yaml", ["MODEL.DEVICE", "cpu", *few]))
    assert count_multiply_adds(model, 33) == count_multiply_adds(model, 64) != count_multiply_adds(model, 32)


def test_a_model_that_can_not_be_built_is_one_line(repository):
    config = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
    result = _analyze(repository, "--config-file", config, "MODEL.RPN.IN_FEATURES", "['p4']")
    assert result.returncode == 2 and "no model that can be built (KeyError: p4)" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_unknown_config_is_one_line(repository):
    result = _analyze(repository, "--config-file", "nowhere.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("error: No config file nowhere.yaml") and result.stderr.count("\n") == 1
