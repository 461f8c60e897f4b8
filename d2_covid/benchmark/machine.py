"""The machine that measures: what it is, and how fast it multiplies matrices."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..engine.cores import usable_cores
from ..engine.run_record import versions
from .timing import interleave

_ISA = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, instruction sets, memory, GPU, versions and threads, as plain values; ``memory_gb`` in GiB."""
    info: dict[str, Any] = {
        "processor": processor_name(),
        "cores": usable_cores(),
        "isa": instruction_sets(),
        "memory_gb": _memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "device": device,
    }
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_properties(device)
        info["gpu"] = {
            "name": gpu.name,
            "memory_gb": round(gpu.total_memory / 2**30, 1),
            "capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
            "tf32": torch.backends.cudnn.allow_tf32,
        }
    return info


def processor_name() -> str:
    """The processor's own name, or the architecture where the system doesn't tell."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Instruction sets that matter here, as /proc/cpuinfo names them; empty where there is no such file."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    present = set(found[1].split()) if found else set()
    return [name for name in _ISA if name in present]


@torch.no_grad()
def matmul_rate(dtype: str, device: str = "cpu", *, size: int = 0, repeats: int = 5) -> float:
    """The best rate of a square matrix product, in FLOP/s (a multiply-add counts two).

    Args:
        dtype: "fp32" or "bf16".
        size: rows of the matrices; 0: 2048 on a CPU, 8192 on a GPU.
    """
    size = size or (8192 if device.startswith("cuda") else 2048)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, DTYPES[dtype]) for _ in range(2))
    seconds = interleave({"matmul": lambda number: a @ b}, repeats=repeats, warmup=2, device=device)["matmul"]
    return 2 * size**3 / min(seconds)


def one_line(machine: dict[str, Any]) -> str:
    """The machine in a line for people."""
    gpu = f", {machine['gpu']['name']}" if "gpu" in machine else ""
    isa = " ".join(machine["isa"]) or "no instruction sets known"
    return (
        f"{machine['processor']}, {machine['cores']} cores ({isa}), {machine['memory_gb']} GiB{gpu}; "
        f"{machine['threads']} threads"
    )


def _memory_gib() -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return round(int(found[1]) / 2**20, 1) if found else None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")[0] or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace") if os.path.isfile(path) else ""
