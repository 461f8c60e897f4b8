"""The work of a model's plain layers, and the share of the machine's matrix rate that it amounts to."""

from typing import Mapping, Sequence

from torch.utils.flop_counter import FlopCounterMode

from .timing import Work, spread

GFLOP, SHARE = "GFLOP, plain layers", "of matmul rate"


def work_columns(
    flops: Mapping[str, float], seconds: Mapping[str, Sequence[float]], rates: Mapping[str, float]
) -> dict[str, dict[str, str]]:
    """Columns of a timed section, for the candidates whose FLOP are known.

    Args:
        flops: of a run, by candidate.
        seconds: of each run, by candidate.
        rates: FLOP/s of a matrix product by dtype.
    """
    gflop, share = {}, {}
    for name, count in flops.items():
        rate = rates["bf16" if "bf16" in name else "fp32"]
        gflop[name] = f"{count / 1e9:.1f}"
        share[name] = f"{count / spread(seconds[name]).median / rate:.1%}"
    return {GFLOP: gflop, SHARE: share}


def work_notes(counted: str, spared: str, device: str) -> list[str]:
    """What the columns say, and don't.

    Args:
        counted: what the FLOP are of, in words ...
        spared: ... and which of them a fast candidate doesn't do.
    """
    notes = [
        f"GFLOP: {counted}; two a multiply-add. Of the plain layers, the same for all candidates of that model.",
        f"A share above 100% of the matmul rate is work spared, not done: {spared}.",
    ]
    if device.startswith("cuda"):
        notes.append("The fp32 rate is without TF32, in which convolutions may be: that too raises the share.")
    return notes


def flops_of(run: Work, rounds: int) -> float:
    """FLOP of a run, forward and backward, a mean over its first rounds: of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        for number in range(rounds):
            run(number)
    return counter.get_total_flops() / rounds
