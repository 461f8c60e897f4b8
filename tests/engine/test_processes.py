"""Several processes train one model (on the CPU here, through gloo; GPUs go through NCCL)."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.engine.evaluation import validation_losses
from d2_covid.engine.tasks import task_of
from d2_covid.engine.trainer import Trainer
from d2_covid.engine.weights import load_weights
from d2_covid.errors import UserError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch._subclasses import FakeTensorMode


def in_processes(count: int, store, work) -> None:
    """Run ``work(rank)`` in ``count`` forked processes of one group."""

    def process(rank):
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=count)
        comm._LOCAL_PROCESS_GROUP = torch.distributed.group.WORLD
        work(rank)
        torch.distributed.destroy_process_group()

    processes = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in range(count)]
    for started in processes:
        started.start()
    for started in processes:
        started.join(120)
    assert [started.exitcode for started in processes] == [0] * count


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_else(tiny, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH 2 can't be shared evenly by 4 processes"):
        Trainer(tiny("DATASETS.TRAIN", "('nowhere',)"))


needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")


@needs_gloo
def test_machines_with_folders_of_their_own_do_not_resume_apart(tiny, tmp_path):
    opts = ("DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1)
    Trainer(tiny(*opts, "OUTPUT_DIR", tmp_path / "0")).train()  # the main process alone leaves checkpoints

    def resume(rank):
        with pytest.raises(UserError, match=rf"iterations \(0, 1\): OUTPUT_DIR .*{rank} must be one folder"):
            Trainer(tiny(*opts, "OUTPUT_DIR", tmp_path / str(rank)), resume=True)

    in_processes(2, tmp_path / "store", resume)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU nothing is skipped for its sake")
def test_what_needs_forks_passes_with_the_gpu_hidden():
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(Path(__file__).parent), "-m", "forks"]
    result = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert result.returncode == 0 and "passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.forks
@needs_gloo
def test_forked_processes_compute_gradients_after_an_export(tmp_path):
    with FakeTensorMode():  # as torch.export does
        torch.ones(1)
    torch.ones(1, requires_grad=True).sum().backward()
    in_processes(1, tmp_path / "store", lambda rank: torch.ones(1, requires_grad=True).sum().backward())


@pytest.mark.forks
@needs_gloo
def test_two_processes(tiny, tmp_path):
    cfg = tiny("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4)

    def train(rank):
        trainer = Trainer(cfg)
        result = trainer.train()
        torch.save(trainer.weights()["model"], tmp_path / f"{rank}.pth")
        assert bool(result) == (rank == 0)

    in_processes(2, tmp_path / "store", train)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first), "BatchNorm statistics included"
    saved = read_checkpoint(tmp_path / "run" / "model_final.pth")["model"]
    assert all(torch.equal(first[name], saved[name]) for name in first)

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished" and record["iterations"] == 4
    # One process alone finds the same validation loss: each slice draws the same RoIs wherever it is evaluated.
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    model = build_model(cfg)
    load_weights(model, cfg, complete=True)
    alone = validation_losses(cfg, task_of(cfg), model, seed=1)
    assert alone["val/total_loss"] == pytest.approx(record["result"]["val/total_loss"], rel=1e-5)
