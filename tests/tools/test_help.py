"""What --help says of options that come from Detectron2."""

import importlib.util


def test_train_nets_help_speaks_of_what_is_here(repository):
    spec = importlib.util.spec_from_file_location("train_net_for_its_help", repository / "tools" / "train_net.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = " ".join(tool.build_parser().format_help().split())
    assert "DefaultTrainer" not in text and "LazyConfig" not in text
    assert "--resume go on from the last checkpoint in OUTPUT_DIR" in text and "KEY VALUE" in text
