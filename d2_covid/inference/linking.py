"""Lesions across slices: what touches in a stack of masks is one lesion. Holds one slice at a time."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Lesion:
    """One lesion of a series: voxels that touch by a face, an edge or a corner.

    Attributes:
        number: 1 for the largest, then by falling volume.
        first_slice, last_slice: axial slices that it reaches from and to.
    """

    number: int
    voxels: int
    volume_ml: float
    first_slice: int
    last_slice: int


class LesionLinker:
    """Connected components (26 neighbours) of a stack of masks that comes slice by slice, in order."""

    def __init__(self) -> None:
        # Node 0 is the background; a node is a component of one slice.
        self._parents, self._voxels, self._mm3 = [0], [0], [0.0]
        self._slice = [-1]
        self._previous: np.ndarray | None = None

    def add(self, mask: np.ndarray, index: int, voxel_mm3: float, shares: np.ndarray | float = 1.0) -> np.ndarray:
        """Take the next slice.

        Args:
            mask: (H, W) bool, of the same size as the others.
            index: number of the slice; :meth:`finish` names lesions' ends by it.
            voxel_mm3: volume of one of its pixels.
            shares: of that volume, for each pixel; broadcasts to (H, W).

        Returns:
            (H, W) int32: the node of each pixel, 0 outside the mask.
        """
        labels, count = ndimage.label(mask, structure=_EIGHT_CONNECTED)
        base = len(self._parents) - 1
        nodes = np.where(labels > 0, labels + base, 0).astype(np.int32)
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
        weighed = np.bincount(labels[mask], np.broadcast_to(shares, mask.shape)[mask], minlength=count + 1)[1:]
        self._parents += range(base + 1, base + 1 + count)
        self._voxels += areas
        self._mm3 += (weighed * voxel_mm3).tolist()
        self._slice += [index] * count
        if self._previous is not None and count:
            self._join(self._previous, nodes)
        self._previous = nodes if count else None
        return nodes

    def _join(self, before: np.ndarray, now: np.ndarray) -> None:
        rows, columns = np.flatnonzero(now.any(axis=1)), np.flatnonzero(now.any(axis=0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        here = now[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # One pixel more on each side: neighbours in the slice before may lie diagonally.
        around = np.pad(before, 1)[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
        for down in range(3):
            for right in range(3):
                there = around[down : down + height, right : right + width]
                both = (there > 0) & (here > 0)
                for a, b in np.unique(np.stack([there[both], here[both]], axis=1), axis=0).tolist():
                    self._parents[self._root(b)] = self._root(a)

    def _root(self, node: int) -> int:
        while self._parents[node] != node:
            self._parents[node] = self._parents[self._parents[node]]
            node = self._parents[node]
        return node

    def finish(self) -> tuple[tuple[Lesion, ...], dict[int, int]]:
        """The lesions, largest first, and the number of the lesion that each node belongs to."""
        members: dict[int, list[int]] = {}
        for node in range(1, len(self._parents)):
            members.setdefault(self._root(node), []).append(node)
        volumes = {root: sum(self._mm3[node] for node in nodes) for root, nodes in members.items()}
        order = sorted(members, key=lambda root: (-volumes[root], members[root][0]))
        lesions, numbers = [], {}
        for number, root in enumerate(order, start=1):
            nodes = members[root]
            slices = [self._slice[node] for node in nodes]
            voxels = sum(self._voxels[node] for node in nodes)
            lesions.append(Lesion(number, voxels, volumes[root] / 1000, min(slices), max(slices)))
            numbers |= dict.fromkeys(nodes, number)
        return tuple(lesions), numbers
