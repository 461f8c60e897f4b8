"""Whether a cost is flat, linear or worse as work grows."""

from dataclasses import dataclass
from typing import Sequence

FLAT = 1.25
"""A cost that at most grows by this factor, over all sizes measured, is called flat."""
SLACK = 1.35
"""A cost is called linear while one more item costs at most so many times what it cost before."""


@dataclass(frozen=True)
class Growth:
    """How a cost grows.

    Attributes:
        verdict: "flat", "linear" (or less: items get no dearer), or "more than linear".
        per_item: what one item more costs between the two largest sizes.
        factor: the largest size's cost over the smallest's; costs in between may lie outside.
    """

    verdict: str
    per_item: float
    factor: float


def growth(sizes: Sequence[int], costs: Sequence[float]) -> Growth:
    """Judge the costs of work of growing sizes.

    A cost with a constant part, ``a + b * size``, is linear: what counts is what an item costs on top, at the largest
    sizes against the mean over all. Differences below 5 % of the largest cost are taken as noise.

    Args:
        sizes: ascending.
        costs: of the same length, above 0.

    Raises:
        ValueError: fewer than two sizes, or sizes that don't ascend.
    """
    if len(sizes) < 2 or len(sizes) != len(costs) or any(b <= a for a, b in zip(sizes, sizes[1:])):
        raise ValueError("growth needs two or more ascending sizes, and a cost for each")
    factor = costs[-1] / costs[0]
    last = (costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2])
    if max(costs) / min(costs) <= FLAT:
        return Growth("flat", max(last, 0.0), factor)
    before = (costs[-2] - costs[0]) / (sizes[-2] - sizes[0]) if len(sizes) > 2 else last
    noise = 0.05 * max(costs) / (sizes[-1] - sizes[-2])
    linear = last <= SLACK * max(before, 0.0) + noise
    return Growth("linear" if linear else "more than linear", max(last, 0.0), factor)
