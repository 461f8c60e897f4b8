"""Checkpoints appear whole or not at all, and hold nothing that runs."""

import errno
import json
import os
import pickle
import subprocess
import sys

from d2_covid.engine.checkpoint import CheckpointFolder, check_facts, model_facts, read_checkpoint, write_checkpoint
from d2_covid.engine.trainer import Trainer
from d2_covid.errors import UserError

import pytest
import torch

SMALL = {"model": {"w": torch.arange(4.0)}}


def test_everything_in_a_checkpoint_is_tensors_and_plain_values(tiny, tmp_path):
    Trainer(tiny("SOLVER.MAX_ITER", 2)).train()
    for name in ("model_final.pth", "model_best.pth"):
        torch.load(tmp_path / "run" / name, weights_only=True)  # raises on anything else
    final = read_checkpoint(tmp_path / "run" / "model_final.pth")
    facts = final["d2_covid"]
    assert (facts["mask_type"], facts["lesion_classes"], facts["num_classes"]) == ("merge", ["lesion"], 1)
    assert (facts["depth"], facts["truncation"], facts["seed"], facts["kind"]) == (18, "T2", 1, "model")
    assert json.loads(json.dumps(facts)) == facts
    assert set(final) == {"model", "d2_covid", "iteration", "optimizer", "scheduler", "grad_scaler"}
    best = read_checkpoint(tmp_path / "run" / "model_best.pth")
    assert set(best) == {"model", "d2_covid"} and best["d2_covid"]["best"]["metric"] == "segm/AP50"


def test_facts_of_the_classifier_come_on_top(tiny):
    cfg = tiny()
    lesion, classifier = model_facts(cfg), model_facts(cfg, classifier=True)
    assert classifier | lesion == classifier
    assert classifier.keys() - lesion.keys() >= {"num_rois", "features", "num_image_classes"}
    check_facts(lesion, cfg, "a segmentation checkpoint")  # says nothing of ranked detections: no conflict
    with pytest.raises(UserError, match="FEATURES boxes, the config says deltas"):
        check_facts(classifier | {"features": "boxes"}, cfg, "x.pth")


def write_bytes(path, content):
    path.write_bytes(content)
    return path


class Foreign:
    """A Python object in a pickle; loading it would be a chance to run code."""


def test_foreign_pickle_is_refused(tmp_path):
    torch.save({"model": SMALL["model"], "extra": Foreign()}, tmp_path / "a.pth")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"model": {}}))
    for name in ("a.pth", "b.pkl"):
        with pytest.raises(UserError, match="not a checkpoint of tensors and plain values"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_torn_file(size, tmp_path):
    path = tmp_path / "m.pth"
    write_checkpoint(path, SMALL)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="cut short"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"w": 3}}, {"model": [1]}])
def test_plain_values_that_are_no_weights(content, tmp_path):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UserError, match="weights"):
        read_checkpoint(tmp_path / "m.pth")


def test_missing_file_and_folder_in_its_place(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match="There is no checkpoint"):
            read_checkpoint(path)


def test_torn_last_checkpoint_names_the_others(tiny, tmp_path):
    Trainer(tiny("DATASETS.TEST", "()")).train()
    write_bytes(tmp_path / "run" / "model_final.pth", b"torn")
    with pytest.raises(UserError) as caught:
        Trainer(tiny("DATASETS.TEST", "()"), resume=True)
    assert "last_checkpoint; there are model_0000001.pth, model_0000003.pth" in str(caught.value)
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    assert Trainer(tiny("DATASETS.TEST", "()"), resume=True).start_iter == 2


def test_marker_of_a_file_that_is_gone(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    with pytest.raises(UserError, match="names model_0000007.pth, which is not there"):
        CheckpointFolder(tmp_path).last()


def test_last_is_none_before_the_first(tmp_path):
    assert CheckpointFolder(tmp_path / "nowhere").last() is None


@pytest.mark.parametrize(("keep", "left"), [(1, [3]), (2, [2, 3]), (0, [0, 1, 2, 3])])
def test_only_the_newest_are_kept(keep, left, tmp_path):
    folder = CheckpointFolder(tmp_path)
    write_checkpoint(tmp_path / "model_best.pth", SMALL)
    for iteration in range(4):
        folder.save(f"model_{iteration:07d}.pth", SMALL, keep=keep)
    assert [p.name for p in folder.all()] == [f"model_{i:07d}.pth" for i in left] + ["model_best.pth"]
    assert folder.last().name == "model_0000003.pth"
    folder.save("model_final.pth", SMALL, keep=keep)
    assert folder.last().name == "model_final.pth" and (tmp_path / "model_0000003.pth").exists()


FULL_DISK = """
import resource, signal, sys, torch
from d2_covid.cli import run_command
from d2_covid.engine.checkpoint import CheckpointFolder

def main():
    folder = CheckpointFolder(sys.argv[1])
    folder.save("model_0000001.pth", {"model": {"w": torch.zeros(10)}}, keep=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    folder.save("model_0000002.pth", {"model": {"w": torch.zeros(100_000)}}, keep=1)

sys.exit(run_command(main))
"""


def test_no_room_for_a_checkpoint(tmp_path):
    """A real failing write: the system lets no file grow over 50 kB."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"error: Cannot write {tmp_path}/model_0000002.pth: File too large."
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert CheckpointFolder(tmp_path).last().name == "model_0000001.pth"
    assert read_checkpoint(tmp_path / "model_0000001.pth")["model"]["w"].numel() == 10


def test_disk_that_fills_during_training(tiny, tmp_path, monkeypatch, reference_weights):
    """The run stops with one line; once there is room again, --resume goes on to the same weights."""
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            Trainer(tiny("DATASETS.TEST", "()")).train()
    assert CheckpointFolder(tmp_path / "run").last().name == "model_0000001.pth"
    assert not list((tmp_path / "run").glob(".*.part"))
    Trainer(tiny("DATASETS.TEST", "()"), resume=True).train()
    final = read_checkpoint(tmp_path / "run" / "model_final.pth")["model"]
    assert all(torch.equal(final[name], reference_weights[name]) for name in reference_weights)


def test_folder_that_can_not_be_written_to(tiny, tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="Cannot write .*run"):
        Trainer(tiny()).train()


def test_other_run_is_not_overwritten(tiny, tmp_path):
    folder = CheckpointFolder(tmp_path / "run")
    folder.save("model_0000001.pth", SMALL, keep=0)
    with pytest.raises(UserError, match="add --resume to go on with it, or give another OUTPUT_DIR"):
        Trainer(tiny())
    assert torch.equal(read_checkpoint(folder.last())["model"]["w"], SMALL["model"]["w"])


def test_weights_alone_are_not_resumed(tiny, tmp_path):
    Trainer(tiny("SOLVER.MAX_ITER", 2)).train()
    (tmp_path / "run" / "last_checkpoint").write_text("model_best.pth")
    with pytest.raises(UserError, match="holds weights alone, and can't be resumed"):
        Trainer(tiny(), resume=True)
