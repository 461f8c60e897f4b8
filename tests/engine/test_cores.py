"""Threads: as many as there are cores to use, also in a container with a share of a large machine."""

from d2_covid.engine import cores

import pytest
import torch


def groups(tmp_path, own: str, **files: str):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(cores._quotas(tmp_path / "groups", tmp_path / "own"))


@pytest.mark.parametrize(
    "own, files, quotas",
    [
        ("0::/\n", {"cpu_max": "200000 100000\n"}, [2.0]),  # inside a container
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "150000 100000\n"}, [1.5]),
        ("0::/far/away\n", {"cpu_max": "300000 100000\n"}, [3.0]),  # a path of the host
        ("0::/\n", {}, []),
        ("1:cpu:/\n", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, []),
        ("4:memory:/x\n3:cpu,cpuacct:/x\n", {
            "cpu,cpuacct__x__cpu_cfs_quota_us": "400000", "cpu,cpuacct__x__cpu_cfs_period_us": "100000",
        }, [4.0]),
    ],
)  # fmt: skip
def test_a_containers_quota_is_read(tmp_path, own, files, quotas):
    assert groups(tmp_path, own, **files) == quotas


def test_no_more_threads_than_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "_quotas", lambda *_: iter([1.5]))
    assert cores.usable_cores() == 1
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        cores.limit_threads()
        assert torch.get_num_threads() == 2  # the user's own number
        monkeypatch.delenv("OMP_NUM_THREADS")
        cores.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_share_below_one_core_is_one(monkeypatch):
    monkeypatch.setattr(cores, "_quotas", lambda *_: iter([0.5]))
    assert cores.usable_cores() == 1


def test_commands_that_compute_heed_it(monkeypatch, tmp_path):
    """Training and evaluation, which GPUs do in processes of their own, and every command, before anything computes."""
    from d2_covid import cli, get_config
    from d2_covid.engine import run

    def stop():
        raise ZeroDivisionError

    monkeypatch.setattr(run, "limit_threads", stop)
    monkeypatch.setattr(run, "task_of", lambda cfg: type("Task", (), {"check_datasets": lambda self, cfg: None})())
    monkeypatch.setattr(cli, "limit_threads", stop)
    cfg = get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "x"])
    for work in (run.run_training, run.run_evaluation):
        with pytest.raises(ZeroDivisionError):
            work(cfg.clone())
    with pytest.raises(ZeroDivisionError):
        cli.main(["predict", str(tmp_path), "-o", str(tmp_path / "out")])
