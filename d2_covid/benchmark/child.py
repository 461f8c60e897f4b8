"""Work whose memory is measured, in a process of its own: what ran before it must not count.

    python -m d2_covid.benchmark.child JOB.pth

A job is a file of tensors and plain values; the child's answer is the last line of its output, json.
"""

import gc
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import torch
from detectron2.config import CfgNode

from ..config import get_config
from ..engine.run_record import plain_config

JOBS: dict[str, str] = {
    "predict": "memory",
    "train": "memory",
    "train_classifier": "memory",
    "slices": "growth_sections",
    "lesions": "growth_sections",
}
"""Kinds of jobs, and the module whose function ``job_<kind>`` does them: from the job to plain values."""


def run_job(kind: str, cfg: CfgNode, **job: Any) -> dict[str, Any]:
    """Do a job in a new process.

    Args:
        job: tensors and plain values, for the job's function.

    Raises:
        RuntimeError: the child failed; with what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pth"
        job |= {"kind": kind, "config": plain_config(cfg), "threads": torch.get_num_threads()}
        torch.save(job, path)
        command = [sys.executable, "-m", "d2_covid.benchmark.child", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"the benchmark's child ({kind}) failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def main(path: str) -> None:
    """Do the job in the file ``path`` and print its answer."""
    import importlib

    job = torch.load(path, weights_only=True)
    torch.set_num_threads(job["threads"])
    cfg = get_config()
    cfg.merge_from_other_cfg(CfgNode(job.pop("config")))
    kind = job.pop("kind")
    module = importlib.import_module(f".{JOBS[kind]}", __package__)
    print(json.dumps(getattr(module, f"job_{kind}")(cfg, job)))


def peak_of(work: Callable[[], object], device: str) -> dict[str, int]:
    """Bytes that ``work`` takes at its peak: of this process (``process``, and ``before`` it), and of the GPU's
    (``gpu`` and ``gpu_before``).

    On Linux the peak is that of ``work`` itself; elsewhere, that of the process so far, and nothing tells ``before``,
    which is then left out.
    """
    gc.collect()
    found = {"before": before} if (before := _status("VmRSS")) else {}
    _reset_peak()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        found["gpu_before"] = torch.cuda.memory_allocated(device)
    work()
    found["process"] = peak_bytes()
    if cuda:
        torch.cuda.synchronize(device)
        found["gpu"] = torch.cuda.max_memory_allocated(device)
    return found


def current_bytes() -> int:
    """Memory of this process now; the peak so far where the system doesn't tell."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Most memory that this process has had, since :func:`peak_of` last began where the system can tell.

    Not ``ru_maxrss`` where there is better: it begins with that of the parent.

    Raises:
        RuntimeError: the system does not tell, as Windows.
    """
    if found := _status("VmHWM"):
        return found
    try:
        import resource
    except ImportError as error:
        raise RuntimeError("this system does not tell a process's memory") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE) if path.is_file() else None
    return int(found[1]) * 1024 if found else 0


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or a system that forbids it: the peak is that of the process so far
        pass


if __name__ == "__main__":
    main(sys.argv[1])
