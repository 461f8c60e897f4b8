"""A run that was killed and resumed ends with the very weights of one that was not."""

import json
import multiprocessing
import os
import signal
import subprocess
import time

from d2_covid.engine import checkpoint as checkpoint_module
from d2_covid.engine import hooks
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.engine.trainer import Trainer
from d2_covid.errors import UserError

import pytest
import torch

from .conftest import assert_same_tensors


def weights(folder) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "model_final.pth")["model"]


def kill_at(count: int, function):
    """``function``, but its ``count``-th call ends the process as ``kill -9`` does."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


def in_step(count):
    Trainer.run_step = kill_at(count, Trainer.run_step)


def while_writing_a_checkpoint(count):
    os.fsync = kill_at(count, os.fsync)


def before_the_marker(count):
    checkpoint_module.atomic_write = kill_at(2 * count, checkpoint_module.atomic_write)


def in_evaluation(count):
    hooks.Evaluate._evaluate = kill_at(count, hooks.Evaluate._evaluate)


def before_the_best_is_saved(count):
    hooks.write_checkpoint = kill_at(count, hooks.write_checkpoint)


def killed_run(cfg, resume, trap, count) -> None:
    """Run in a forked process that the trap kills."""

    def run():
        trap(count)
        Trainer(cfg, resume=resume).train()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("trap", "count"),
    [
        (in_step, 1),
        (in_step, 4),
        (while_writing_a_checkpoint, 5),
        (before_the_marker, 2),
        (in_evaluation, 2),
        (in_evaluation, 3),
        (before_the_best_is_saved, 1),
    ],
)
@pytest.mark.forks
def test_killed_and_resumed(trap, count, tiny, tmp_path, reference):
    killed_run(tiny(), False, trap, count)
    assert not (tmp_path / "run" / "model_final.pth").exists() or trap is in_evaluation
    result = Trainer(tiny(), resume=True).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(reference))
    assert result["val/total_loss"] == json.loads((reference / "run.json").read_text())["result"]["val/total_loss"]
    assert not list((tmp_path / "run").glob(".*"))
    best, best_reference = (read_checkpoint(f / "model_best.pth") for f in (tmp_path / "run", reference))
    assert best["d2_covid"]["best"] == best_reference["d2_covid"]["best"]
    assert_same_tensors(best["model"], best_reference["model"])


@pytest.mark.forks
def test_killed_twice(tiny, tmp_path, reference):
    killed_run(tiny(), False, in_step, 4)
    killed_run(tiny(), True, in_step, 2)
    Trainer(tiny(), resume=True).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(reference))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [s["status"] for s in record["sessions"]] == ["running", "running", "finished"]
    assert [s["resumed_from"] for s in record["sessions"]] == [None, "model_0000001.pth", "model_0000001.pth"]


@pytest.mark.parametrize(
    "opts",
    [
        ("SOLVER.AMP.ENABLED", True),
        ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.IMS_PER_BATCH", 4),
        ("SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", 3),
    ],
)
@pytest.mark.forks
def test_every_part_of_the_state_is_resumed(opts, tiny, tmp_path):
    opts = (*opts, "DATASETS.TEST", "()")
    killed_run(tiny(*opts), False, in_step, 4)
    Trainer(tiny(*opts), resume=True).train()
    Trainer(tiny(*opts, "OUTPUT_DIR", tmp_path / "whole")).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_run_of_another_device_is_resumed(name, tiny, tmp_path):
    """A GPU's model is not channels last, nor is then what its checkpoint keeps of the optimiser."""
    opts = ("SOLVER.OPTIMIZER", name, "DATASETS.TEST", "()")
    Trainer(tiny(*opts, "SOLVER.MAX_ITER", 2)).train()
    path = tmp_path / "run" / "model_final.pth"
    checkpoint, moved = read_checkpoint(path), 0
    for state in checkpoint["optimizer"]["state"].values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                moved += not value.is_contiguous()
                state[key] = value.contiguous()
    assert moved > 5
    write_checkpoint(path, checkpoint)
    resumed = Trainer(tiny(*opts, "SOLVER.MAX_ITER", 4), resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    Trainer(tiny(*opts, "SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / "whole")).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_other_settings_are_named(tiny, caplog):
    opts = ("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    Trainer(tiny(*opts)).train()
    Trainer(tiny(*opts, "SOLVER.GAMMA", 0.5, "DATALOADER.NUM_WORKERS", 3), resume=True)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the run began with another setting: SOLVER.GAMMA 0.1 -> 0.5"]


@pytest.mark.parametrize(
    "key, value",
    [("SOLVER.IMS_PER_BATCH", 1), ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True)],
)
def test_another_order_of_slices_is_refused(tiny, key, value):
    """Iteration 2 would be other slices, and the schedule end at another number of passes."""
    opts = ("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    Trainer(tiny(*opts)).train()
    with pytest.raises(UserError, match=f"began with {key} .*, and with {value} its iterations are other slices"):
        Trainer(tiny(*opts, key, value), resume=True)


def test_amp_on_a_processor_without_bfloat16_is_warned_of(tiny, monkeypatch, caplog):
    monkeypatch.setattr("d2_covid.engine.inference_model.cpu_has_bfloat16", lambda: False)
    Trainer(tiny("SOLVER.AMP.ENABLED", True))
    assert "not known to have bfloat16 instructions; without them SOLVER.AMP.ENABLED False is faster" in caplog.text
    caplog.clear()
    Trainer(tiny())
    assert "bfloat16" not in caplog.text


def test_damaged_record_is_refused(tiny, tmp_path):
    Trainer(tiny("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")).train()
    (tmp_path / "run" / "run.json").write_text('{"seed": 1')
    with pytest.raises(UserError, match="run.json is not a run record"):
        Trainer(tiny("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()"), resume=True)


@pytest.mark.forks
def test_metrics_of_a_resumed_run_are_not_doubled(tiny, tmp_path, reference):
    killed_run(tiny(), False, in_step, 4)
    with open(tmp_path / "run" / "metrics.json", "a") as file:
        file.write('{"iteration": 5, "total_loss": 1.0}\n{"iterat')  # written after the checkpoint, and cut short
    Trainer(tiny(), resume=True).train()
    iterations = [
        json.loads(line)["iteration"] for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()
    ]
    assert iterations == [1, 3, 5]


@pytest.mark.forks
def test_seed_that_was_drawn_is_kept(tiny, tmp_path):
    killed_run(tiny("SEED", -1), False, in_step, 2)
    seed = json.loads((tmp_path / "run" / "run.json").read_text())["seed"]
    trainer = Trainer(tiny("SEED", -1, "SOLVER.MAX_ITER", 2), resume=True)
    assert trainer.seed == seed
    trainer.train()
    assert read_checkpoint(tmp_path / "run" / "model_final.pth")["d2_covid"]["seed"] == seed
    assert Trainer(tiny("SEED", -1), resume=True).seed == seed


def test_number_of_workers_changes_nothing(tiny, tmp_path, reference):
    Trainer(tiny("DATALOADER.NUM_WORKERS", 2)).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(reference))


@pytest.mark.parametrize("opts", [("TEST.VALIDATION_LOSS", False), ("DATASETS.TEST", "()")])
def test_validation_changes_nothing(opts, tiny, tmp_path, reference):
    Trainer(tiny(*opts)).train()
    assert_same_tensors(weights(tmp_path / "run"), weights(reference))


def test_another_seed_trains_another_model(tiny, tmp_path, reference):
    Trainer(tiny("SEED", 2, "DATASETS.TEST", "()")).train()
    ours, theirs = weights(tmp_path / "run"), weights(reference)
    assert not torch.equal(
        ours["proposal_generator.rpn_head.conv.weight"], theirs["proposal_generator.rpn_head.conv.weight"]
    )


def test_finished_run_is_left_as_it_is(tiny, tmp_path, reference):
    Trainer(tiny()).train()
    before = (tmp_path / "run" / "model_final.pth").stat().st_mtime_ns
    Trainer(tiny(), resume=True).train()
    assert (tmp_path / "run" / "model_final.pth").stat().st_mtime_ns == before
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished" and "val/total_loss" in record["result"]


def test_longer_schedule_goes_on_from_the_final_checkpoint(tiny, tmp_path, caplog):
    Trainer(tiny("SOLVER.MAX_ITER", 4)).train()
    trainer = Trainer(tiny(), resume=True)
    assert trainer.start_iter == 4
    trainer.train()
    assert read_checkpoint(tmp_path / "run" / "model_final.pth")["iteration"] == 5


def test_changed_training_data_is_refused(tiny, lesion_sets, tmp_path):
    Trainer(tiny("SOLVER.MAX_ITER", 2)).train()
    path = lesion_sets["train"]
    before = path.read_text()
    try:
        path.write_text(before + " ")
        with pytest.raises(UserError, match="training data changed"):
            Trainer(tiny(), resume=True)
    finally:
        path.write_text(before)


def test_another_optimiser_is_refused_with_or_without_a_record(tiny, tmp_path):
    opts = ("DATASETS.TEST", "()")
    Trainer(tiny("SOLVER.MAX_ITER", 2, *opts)).train()
    for other, message in (
        (("SOLVER.OPTIMIZER", "SGD"), "SOLVER.OPTIMIZER Adam, not SGD"),
        (("SOLVER.BASE_LR", 0.5), r"SOLVER.BASE_LR .* 0.001, not 0.5"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Trainer(tiny(*other, *opts), resume=True)
        assert "MODEL.WEIGHTS" in str(error.value) and "\n" not in str(error.value)
        (tmp_path / "run" / "run.json").unlink(missing_ok=True)
    assert Trainer(tiny(*opts), resume=True).start_iter == 2


def test_a_run_that_is_past_its_end_is_refused(tiny, tmp_path):
    opts = ("DATASETS.TEST", "()")
    Trainer(tiny("SOLVER.MAX_ITER", 4, *opts)).train()
    before = (tmp_path / "run" / "run.json").read_text()
    for other, asked in (
        (("SOLVER.MAX_ITER", 2), "SOLVER.MAX_ITER is 2"),
        (("SOLVER.EPOCHS", 1), "SOLVER.EPOCHS 1 makes 3"),
    ):
        with pytest.raises(UserError, match=f"has done 4 iterations, and {asked}"):
            Trainer(tiny(*other, *opts), resume=True)
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_command_killed_from_outside(tiny_command, tmp_path, reference):
    """The whole command, killed at whatever moment follows its second checkpoint."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(tiny_command(), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "model_0000003.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(tiny_command(flags=["--resume"]), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "segm/AP50" in done.stdout
    assert_same_tensors(weights(tmp_path), weights(reference))
