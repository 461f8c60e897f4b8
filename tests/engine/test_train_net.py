"""The command: what it prints, leaves on disk and refuses."""

import json

from d2_covid.cli import run_command
from d2_covid.config import config_dir

import pytest
import torch

from .conftest import TINY, make_lesions


@pytest.fixture
def command(load_tool, lesion_sets, tmp_path):
    """Runs train_net.py on the tiny sets: flags, then overrides; returns its exit status."""
    tool = load_tool("train_net")

    def run(*flags, opts=(), config="segmentation/mask_rcnn_R_18_T2_FPN.yaml"):
        argv = ["--config-file", config, *flags]
        for split, path in lesion_sets.items():
            argv += ["--register-lesions", f"own_{split}", path, path.parent / "image"]
        argv += [*TINY, "DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_test',)"]
        argv += ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", "2", *opts]
        return run_command(lambda: tool.main([str(arg) for arg in argv]))

    return run


def test_train_then_evaluate(command, tmp_path, capsys):
    assert command() == 0
    assert "segm/AP50" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model_final.pth", "model_best.pth", "metrics.json", "run.json", "config.yaml", "log.txt"} <= names

    options = ["MODEL.WEIGHTS", tmp_path / "run/model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated"]
    assert command("--eval-only", opts=options) == 0
    trained = json.loads((tmp_path / "run/run.json").read_text())["result"]
    evaluation = json.loads((tmp_path / "evaluated/evaluation.json").read_text())
    assert evaluation["weights"].endswith("model_final.pth")
    assert evaluation["data"][0]["slices"] == 3
    assert evaluation["result"] == {name: value for name, value in trained.items() if not name.startswith("val/")}
    assert command("--eval-only", "--resume") == 0  # the last checkpoint of the run itself


def test_run_record(command, tmp_path):
    command(opts=["SEED", "-1"])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "finished" and record["iterations"] == 2
    assert record["config"]["SOLVER"]["MAX_ITER"] == 2 and record["config"]["SEED"] == -1
    assert isinstance(record["seed"], int) and record["seed"] >= 0
    assert {"torch", "torchvision", "detectron2", "d2_covid", "python", "numpy"} == set(record["versions"])
    assert record["device"].startswith("cpu")
    train = record["data"]["train"][0]
    assert (train["name"], train["slices"], len(train["fingerprint"])) == ("own_train", 6, 64)
    session = record["sessions"][0]
    assert "--config-file" in session["command"] and session["seconds"] > 0
    assert session["started"] <= session["ended"]
    assert (session["first_iteration"], session["last_iteration"], session["resumed_from"]) == (0, 1, None)


def test_second_run_in_the_same_folder(command, capsys):
    assert command(opts=["DATASETS.TEST", "()"]) == 0
    capsys.readouterr()
    assert command(opts=["DATASETS.TEST", "()"]) == 2
    assert "add --resume to go on with it, or give another OUTPUT_DIR" in capsys.readouterr().err
    assert command("--resume", opts=["DATASETS.TEST", "()"]) == 0


def test_resume_without_a_checkpoint_starts(command, tmp_path):
    assert command("--resume", opts=["DATASETS.TEST", "()"]) == 0
    assert (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.parametrize(
    ("flags", "opts", "message"),
    [
        ((), ["SOLVER.NOPE", "1"], "Non-existent key: SOLVER.NOPE"),
        ((), ["DATASETS.TRAIN", "('nowhere_merge_train',)"], "nowhere_merge_train needs"),
        ((), ["DATASETS.TRAIN", "('what',)"], "Unknown dataset 'what'"),
        ((), ["DATASETS.TRAIN", "()"], "no dataset to train on"),
        ((), ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"], "names no dataset"),
        ((), ["DATASETS.MASK_TYPE", "both"], "'both'"),
        ((), ["MODEL.WEIGHTS", "gone.pth"], "no checkpoint gone.pth"),
        ((), ["SOLVER.OPTIMIZER", "Adagrad"], "not 'Adagrad'"),
        ((), ["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH must be 1 or more"),
        ((), ["OUTPUT_DIR", "/dev/null/run"], "/dev/null/run"),
        ((), ["DATASETS.TEST", "('own_train',)"], "Patients 1, 2 in both"),
        (("--eval-only",), [], "--eval-only needs the model"),
        (("--eval-only",), ["DATASETS.TEST", "()", "MODEL.WEIGHTS", "x.pth"], "no dataset to evaluate on"),
        (("--eval-only", "--resume"), [], "has no checkpoint to evaluate"),
        (("--num-gpus", "64"), [], "--num-gpus 64, but PyTorch finds"),
        ((), ["MODEL.DEVICE", "gpu"], "can't compute on device 'gpu' here"),
        ((), ["VIS_PERIOD", "5"], "VIS_PERIOD 5 does nothing in d2_covid"),
        ((), ["SOLVER.EPOCHS", "1"], "SOLVER.MAX_ITER 2 does nothing with SOLVER.EPOCHS 1"),
        (("--eval-only",), ["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED True does nothing in d2_covid"),
    ],
)
def test_bad_input_is_one_line_and_status_two(flags, opts, message, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert command(*flags, opts=opts) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and shown[0].startswith("error: ") and message in shown[0], shown
    assert not list(tmp_path.glob("**/*.pth"))


@pytest.mark.parametrize(
    ("flags", "opts", "message"),
    [
        ((), ["MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "1"], "IMS_PER_BATCH 1 can't be shared evenly by 4"),
        ((), ["MODEL.DEVICE", "cuda:1"], "MODEL.DEVICE is cuda:1, but each of several processes has a GPU"),
        ((), ["SOLVER.NOPE", "1"], "Non-existent key: SOLVER.NOPE"),
        ((), ["MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "9"], "SOLVER.MAX_ITER 9 does nothing with SOLVER.EPOCHS"),
        (("--eval-only",), ["MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "1"], ""),
    ],
)
def test_what_every_process_would_refuse_is_said_once(flags, opts, message, load_tool, monkeypatch, capsys):
    tool, launched = load_tool("train_net"), []
    monkeypatch.setattr(tool.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(tool, "launch", lambda *_, **__: launched.append(True))
    argv = ["--config-file", "segmentation/mask_rcnn_R_18_T2_FPN.yaml", "--num-gpus", "4", *flags, *opts]
    assert run_command(lambda: tool.main(argv)) == (2 if message else 0)
    said = capsys.readouterr().err.splitlines()
    assert len(launched) == (not message)
    assert len(said) == bool(message) and all(message in line for line in said)


def test_the_help_resumes_with_options_before_overrides(load_tool):
    tool = load_tool("train_net")
    (line,) = (line for line in tool.__doc__.splitlines() if "--resume" in line)
    args = tool.build_parser().parse_args(line.split()[2:])
    assert args.resume and args.opts == ["OUTPUT_DIR", "output/r18_t1"]


def test_missing_config(command, capsys):
    assert command(config="nowhere.yaml") == 2
    assert "No config file nowhere.yaml" in capsys.readouterr().err


def test_a_schedule_of_a_files_own_that_its_base_overrules(load_tool, tmp_path, capsys):
    base = config_dir() / "segmentation" / "mask_rcnn_R_18_T2_FPN.yaml"
    (tmp_path / "own.yaml").write_text(f"_BASE_: {base}\nSOLVER: {{MAX_ITER: 5000}}\n")
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run")]
    assert run_command(lambda: load_tool("train_net").main(["--config-file", str(tmp_path / "own.yaml"), *opts])) == 2
    assert "own.yaml: SOLVER.MAX_ITER 5000 does nothing with SOLVER.EPOCHS 100" in capsys.readouterr().err


def test_device_that_is_not_there(command, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command(opts=["MODEL.DEVICE", "cuda"]) == 2
    assert "finds no CUDA device; use MODEL.DEVICE cpu" in capsys.readouterr().err


def test_slice_that_is_torn_stops_with_its_name(command, tmp_path, capsys):
    path = make_lesions(tmp_path / "torn", "train", ["7"], 2)
    image = tmp_path / "torn/image/7/1.png"
    image.write_bytes(image.read_bytes()[:100])
    flags = ["--register-lesions", "torn_set", path, path.parent / "image"]
    opts = ["DATASETS.TRAIN", "('torn_set',)", "DATALOADER.NUM_WORKERS", "1", "DATASETS.TEST", "()"]
    assert command(*flags, opts=opts) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and str(image) in shown[0]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"].startswith("failed: ") and str(image) in record["status"]


@pytest.mark.parametrize(
    ("raised", "status", "said", "ended"),
    [
        (KeyboardInterrupt(), 130, "interrupted", 1),
        ((-9, "process 1 terminated with signal SIGKILL"), 2, "process 1 terminated with signal SIGKILL", 0),
        ((2, "process 1 terminated with exit code 2"), 2, "", 0),
    ],
)
def test_how_a_run_of_several_processes_ends(raised, status, said, ended, load_tool, monkeypatch, capsys):
    tool, calls = load_tool("train_net"), []

    def launch(*_, **__):
        if isinstance(raised, KeyboardInterrupt):
            raise raised
        code, message = raised
        raise torch.multiprocessing.ProcessExitedException(message, error_index=1, error_pid=1, exit_code=code)

    monkeypatch.setattr(tool.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(tool, "launch", launch)
    monkeypatch.setattr(tool, "end_own", lambda: calls.append(True))
    argv = ["--config-file", "segmentation/mask_rcnn_R_18_T2_FPN.yaml", "--num-gpus", "4", "MODEL.DEVICE", "cuda"]
    argv += ["SOLVER.IMS_PER_BATCH", "4"]
    assert run_command(lambda: tool.main(argv)) == status
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == bool(said) and len(calls) == ended
