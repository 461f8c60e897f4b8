"""COCO run-length codes: the lengths of the runs in one, which tell whether it fits its image before it is decoded."""

from collections.abc import Sequence

import numpy as np

_MOST_CHARACTERS = 7  # of one run, five bits each: pycocotools counts pixels in 32 bits


def run_lengths(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Lengths of the runs of a mask, down its columns: background and lesion by turns, background first.

    Args:
        counts: compressed as pycocotools does it, or the lengths themselves.

    Returns:
        (n,) ``int64`` pixels.

    Raises:
        ValueError: a length is no whole number from 0 on, or a compressed code is malformed.
    """
    if isinstance(counts, (str, bytes)):
        runs = _decompressed(counts.encode("ascii") if isinstance(counts, str) else counts)
    else:
        runs = np.array([int(run) for run in counts], dtype=np.int64)
        if runs.tolist() != list(counts):
            raise ValueError("its runs are not whole numbers of pixels")
    if (runs < 0).any():
        raise ValueError(f"it has a run of {runs.min()} pixels")
    return runs


def check_covers(counts: str | bytes | Sequence[int], height: int, width: int) -> None:
    """Refuse a run-length code that does not cover its image: pycocotools decodes one that is too short without a word,
    and those after it in the list shifted.

    Raises:
        ValueError: says how many pixels it has, or what :func:`run_lengths` refuses.
    """
    pixels = int(run_lengths(counts).sum())
    if pixels != height * width:
        raise ValueError(f"its runs add up to {pixels} pixels, not {height * width}")


def _decompressed(counts: bytes) -> np.ndarray:
    # Five bits a character, low ones first; the sixth says that the run has more.
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(bits < 32)
    characters = np.diff(ends, prepend=-1)
    if (bits & ~63).any() or (bits[-1:] >= 32).any() or (characters > _MOST_CHARACTERS).any():
        raise ValueError("its counts are no compressed run-length code")
    starts = ends + 1 - characters
    place = np.arange(len(bits)) - np.repeat(starts, characters)
    runs = np.add.reduceat((bits & 31) << (5 * place), starts)
    runs -= (bits[ends] >> 4) << (5 * characters)  # the sign
    # From the fourth on, a run is written as the difference from the one of its kind before.
    for kind in (1, 2):
        runs[kind::2] = runs[kind::2].cumsum()
    return runs
