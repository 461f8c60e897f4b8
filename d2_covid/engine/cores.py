"""How many processor cores this process may use, and no more threads than that."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may use, at least 1: those it is bound to, or, if that is less, its container's share of
    time on them (the quota of a Linux control group, as ``docker run --cpus`` sets it)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(int, _quotas(_GROUPS, _OWN_GROUPS))]))


def limit_threads() -> None:
    """Compute with no more threads than :func:`usable_cores`. PyTorch counts the machine's cores: under a quota its
    threads wait for each other. A number that the user has set (``OMP_NUM_THREADS``) stays."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """Cores' worth of time that the groups of this process, and those around them, are given; of either version."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            top = root / controllers
            # Seen from inside a container, its own group is the top, whatever the path says.
            for group in {top, *(top / part for part in _with_parents(path))}:
                if controllers:  # the first version
                    limit, period = (_text(group / f"cpu.cfs_{name}_us") or "-1" for name in ("quota", "period"))
                else:
                    limit, period = (_text(group / "cpu.max").split() or ["max", "1"])[:2]
                if limit != "max" and float(limit) > 0 < float(period):
                    yield float(limit) / float(period)


def _with_parents(path: str) -> list[Path]:
    inner = Path(path.strip("/"))
    return [inner, *inner.parents]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
