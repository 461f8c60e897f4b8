"""Randomness without state: whatever is random at some point is seeded from the run's seed and that point alone.

So an iteration draws the same numbers whether the run got there in one go or was killed and resumed, and whatever
the number of loader workers.
"""

import argparse
import hashlib
import random
import secrets
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A number of 32 bits that depends on all arguments and on nothing else.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, so that two purposes never share a stream.
        position: where in the run, such as iteration and rank.
    """
    text = " ".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def draw_seed() -> int:
    """A fresh seed for a run whose config names none."""
    return secrets.randbelow(2**31)


def seed_number(text: str) -> int:
    """The ``type`` of a ``--seed`` option: a whole number that every generator takes, 0 to 2**32 - 1.

    Raises:
        argparse.ArgumentTypeError: it is none; the parser then names option and number.
    """
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 to {2**32 - 1}, not {text}")
    return int(text)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (every device) with a number of 32 bits."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with everything seeded, and leave the generators' states as they were before it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # A GPU that nothing has used yet has no state to keep, and asking for it would take its memory.
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            seed_everything(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
