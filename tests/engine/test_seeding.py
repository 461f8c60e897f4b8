"""The seeds that commands take."""

import argparse
import importlib.util

from d2_covid.cli import build_parser
from d2_covid.engine.seeding import seed_number, seeded

import pytest
import torch

COMMANDS = {
    "datasets/prepare_cncb.py": "--seed",
    "datasets/prepare_covidx_ct.py": "--seed",
    "tools/make_figures.py": "--seed",
    "tools/make_tables.py": "--split-seed",
    "tools/score_classes.py": "--seed",
    "tools/visualize_data.py": "--seed",
    "d2-covid predict": "--seed",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_negative_seed_ends_a_command_in_a_sentence(command, repository, capsys):
    parser, arguments = build_parser(), ["predict", "in", "-o", "out"]
    if command.endswith(".py"):
        spec = importlib.util.spec_from_file_location("tool_with_a_seed", repository / command)
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        parser, arguments = tool.build_parser(), []
    with pytest.raises(SystemExit) as end:
        parser.parse_args([*arguments, COMMANDS[command], "-1"])
    said = f"argument {COMMANDS[command]}: a seed is a whole number from 0 to 4294967295, not -1"
    assert end.value.code == 2 and capsys.readouterr().err.rstrip().endswith(said)


def test_a_seeded_block_leaves_a_gpu_that_nothing_used_alone(monkeypatch):
    def start_the_gpu():
        raise AssertionError("takes the GPU's memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", start_the_gpu)
    with seeded(7):
        pass


def test_every_seed_that_is_taken_can_be_used():
    for text in ("0", "7", str(2**32 - 1)):
        with seeded(seed_number(text)):
            pass
    for text in ("-1", str(2**32), "1.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            seed_number(text)
