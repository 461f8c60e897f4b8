"""Tells Hounsfield units from gray values, and makes the one or the other of a reader's values."""

from dataclasses import dataclass
from typing import Callable, Literal

import numpy as np

from ..errors import UserError
from .limits import one_line
from .preprocessing import turns_nearly_black

# Voxels without a value become this: air.
AIR_HU = -1024.0
# Every CT of the chest has this share of voxels (air around the patient, lung) in this range of Hounsfield units. What
# is below is no air but padding, of raw values too.
_AIR_ABOVE_HU, _AIR_BELOW_HU = -1500.0, -200.0
LEAST_AIR = 0.01
_SAMPLED_SLICES = 5

ASSUME_WINDOW_HINT = "--assume-window (assume_window=True)"


@dataclass(frozen=True)
class Unit:
    """What a reader's values are: Hounsfield units, or gray of a window already applied.

    Attributes:
        kind: ``unit`` is gray from 0 to 1, ``byte`` from 0 to 255, ``short`` from 0 to 65535.
        inverted: low is white (MONOCHROME1); for gray only.
    """

    kind: Literal["hounsfield", "unit", "byte", "short"] = "hounsfield"
    inverted: bool = False

    @property
    def hounsfield(self) -> bool:
        return self.kind == "hounsfield"

    def convert(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape as ``float32`` Hounsfield units or ``uint8`` gray; what is no value becomes air."""
        if self.kind == "hounsfield":
            with np.errstate(over="ignore"):
                hounsfield = np.array(values, dtype=np.float32)
            hounsfield[~_is_value(hounsfield)] = AIR_HU
            return hounsfield
        missing = ~_is_value(values)
        values = np.where(missing, 0, values)
        if self.kind == "short":  # as preprocessing.read_slice does
            gray = (values.astype(np.int64) + 128) // 257
        else:
            gray = np.floor(values.astype(np.float64) * (255.0 if self.kind == "unit" else 1.0) + 0.5)
        gray = np.clip(gray, 0, 255).astype(np.uint8)
        gray = 255 - gray if self.inverted else gray
        gray[missing] = 0
        return gray


def _is_value(values: np.ndarray) -> np.ndarray:
    """Where ``values`` are neither NaN nor infinite, nor the largest floats that some programs fill gaps with."""
    return np.abs(values) < np.float32(1e30)


@dataclass
class _Range:
    """Running count, range and share of air of a volume's values."""

    lowest: float = np.inf
    highest: float = -np.inf
    finite: int = 0
    air: int = 0
    total: int = 0
    floating: bool = False
    fractions: bool = False

    def add(self, values: np.ndarray) -> None:
        self.floating = values.dtype.kind == "f"
        self.total += values.size
        if self.floating:
            values = values[_is_value(values)]
            self.fractions = self.fractions or bool((values != np.rint(values)).any())
        if values.size:
            self.finite += values.size
            self.lowest = min(self.lowest, float(values.min()))
            self.highest = max(self.highest, float(values.max()))
            self.air += int(np.count_nonzero((values < _AIR_BELOW_HU) & (values > _AIR_ABOVE_HU)))

    def has_air(self, least: float) -> bool:
        return self.finite > 0 and self.air >= least * self.finite


def sampled_slices(count: int) -> list[int]:
    """A few of the slices 0..count-1 that stand for all of them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, _SAMPLED_SLICES))})


def decide_unit(
    read: Callable[[int], np.ndarray],
    count: int,
    name: object,
    assume_window: bool = False,
    *,
    count_missing: bool = True,
    least_air: float = LEAST_AIR,
) -> tuple[Unit, tuple[str, ...]]:
    """Whether the values of ``count`` slices are Hounsfield units, from the values themselves.

    A chest CT in Hounsfield units has air: at least 1 % of its voxels lie below -200, and above -1500, since padding is
    no air. A few slices are looked at, and all of them only where those have no air, or where voxels without a value
    are to be counted.

    Args:
        read: gives the values of slice 0..count-1, in the reader's own type.
        name: what a message calls the data: its path.
        assume_window: take values that can't be Hounsfield units as gray, where their range allows it.
        count_missing: read floating-point slices through, to warn of voxels that are not finite.
        least_air: share of voxels that must be air.

    Returns:
        The unit, and warnings of one line each.

    Raises:
        UserError: the values can't be Hounsfield units, and are not to be or can't be taken as gray.
    """
    name = one_line(name)
    found = _Range()
    for index in sampled_slices(count):
        found.add(read(index))
    if not found.has_air(least_air) or (found.floating and count_missing):
        found = _Range()
        for index in range(count):
            found.add(read(index))
    if not found.finite:
        raise UserError(f"{name}: no voxel has a finite value; replace or remove it.")
    warnings = ()
    if count_missing and found.finite < found.total:
        warnings = (f"{name}: {found.total - found.finite:,} of {found.total:,} voxels are not finite; taken as air.",)
    if found.has_air(least_air):
        return Unit(), warnings
    values = f"{name}: values from {found.lowest:g} to {found.highest:g}"
    if not assume_window:
        raise UserError(
            f"{values} can't be Hounsfield units: a chest CT has air, below {_AIR_BELOW_HU:g}. Give the CT in "
            f"Hounsfield units or, if a lung window is already applied, use {ASSUME_WINDOW_HINT}."
        )
    warnings += (f"{values} are taken as gray of a lung window already applied.",)
    if found.fractions and 0 <= found.lowest and found.highest <= 1:
        return Unit("unit"), warnings
    if 0 <= found.lowest and found.highest <= 255:
        return Unit("byte"), warnings
    if 0 <= found.lowest and found.highest <= 65535 and not found.fractions:
        if turns_nearly_black(found.highest):
            warnings += (
                f"{name}: gray up to {found.highest:g} is read as 0 to 65535, so that all of it is nearly black; give "
                "the CT in Hounsfield units, or as 8-bit gray after windowing.",
            )
        return Unit("short"), warnings
    raise UserError(
        f"{values} are neither Hounsfield units nor gray (0 to 1, 0 to 255, or whole numbers 0 to 65535); "
        "give the CT in Hounsfield units."
    )
