"""The trees inside the phantom's lungs: arteries, veins and airways, grown once a patient and cut level by level."""

from dataclasses import dataclass

import numpy as np

from .atlas import CAGE_SCALE, HEIGHT
from .canvas import Canvas

_SLAB = 1.6  # half of a slice's thickness, millimetres
_THIN = 0.34  # radius of the finest vessel drawn, millimetres
# Roots in an average chest: |x|, y, z in millimetres (z from level 0 downwards).
_HILUM, _ATRIUM = (34.0, 8.0, 112.0), (30.0, 10.0, 142.0)
# Trachea and main bronchi of an average chest: x, y, z of both ends, inner radius.
_AIRWAYS = np.array(
    [
        (0, -2, -5, 0, 4, 50, 8.5), (0, 4, 50, 1, 15, 98, 8.5),
        (1, 15, 97, -13, 15, 107, 6.4), (-13, 15, 107, -31, 13, 122, 5.4), (-31, 13, 122, -36, 18, 148, 4.2),
        (-31, 13, 122, -50, 6, 108, 2.8), (-36, 18, 148, -46, 32, 178, 2.6), (-36, 18, 148, -54, -12, 170, 2.0),
        (1, 15, 97, 15, 17, 107, 6.0), (15, 17, 107, 34, 21, 126, 4.8), (34, 21, 126, 42, 32, 154, 3.4),
        (34, 21, 126, 52, -2, 116, 2.6), (42, 32, 154, 52, 42, 184, 2.3), (52, -2, 116, 60, -20, 134, 1.8),
    ]
)  # fmt: skip


@dataclass
class Tubes:
    """T straight pieces of a tree: ``starts``, ``ends`` (T, 3) and ``radii`` (T, 2), millimetres."""

    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray

    def cut(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces' parts within a slice at height ``z``: starts (S, 2), ends (S, 2), radii (S, 2)."""
        # A tube that runs within the slice shows as far as its own radius reaches into it.
        reach = _SLAB + 0.7 * self.radii.max(1)
        rise = self.ends[:, 2] - self.starts[:, 2]
        rise = np.where(np.abs(rise) < 1e-3, 1e-3, rise)
        a, b = (z - reach - self.starts[:, 2]) / rise, (z + reach - self.starts[:, 2]) / rise
        low, high = np.clip(np.minimum(a, b), 0, 1), np.clip(np.maximum(a, b), 0, 1)
        seen = (np.maximum(a, b) > 0) & (np.minimum(a, b) < 1)
        low, high = low[seen, None], high[seen, None]
        starts, along = self.starts[seen, :2], (self.ends - self.starts)[seen, :2]
        first, change = self.radii[seen, :1], (self.radii[:, 1:] - self.radii[:, :1])[seen]
        radii = np.concatenate([first + low * change, first + high * change], 1)
        return starts + low * along, starts + high * along, radii


def _grow(rng: np.random.Generator, root: np.ndarray, targets: np.ndarray, trunk: float) -> Tubes:
    """Join ``targets`` (M, 3) to ``root``, nearest first, each to the node that keeps its way from the root short."""
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1), kind="stable")]
    count = len(targets) + 1
    nodes, parents, way = np.empty((count, 3)), np.zeros(count, int), np.zeros(count)
    nodes[0] = root
    for i, target in enumerate(targets, 1):
        distance = np.linalg.norm(nodes[:i] - target, axis=1)
        parent = int(np.argmin(distance + 0.55 * way[:i]))
        nodes[i], parents[i], way[i] = target, parent, way[parent] + distance[parent]
    leaves = np.zeros(count)
    has_child = np.zeros(count, bool)
    has_child[parents[1:]] = True
    leaves[~has_child] = 1
    for i in range(count - 1, 0, -1):  # a parent always comes before its children
        leaves[parents[i]] += leaves[i]
    # Murray's law: the cube of the radius adds up at a fork; a little less than a cube fits lungs better.
    radius = _THIN * leaves ** (1 / 2.5)
    radius = np.minimum(radius, trunk)
    start, end = nodes[parents[1:]], nodes[1:]
    length = np.linalg.norm(end - start, axis=1, keepdims=True)
    middle = (start + end) / 2 + rng.normal(0, 0.045, (count - 1, 3)) * length
    from_radius = np.minimum(radius[parents[1:]], radius[1:] * 1.35)
    halfway = (from_radius + radius[1:]) / 2
    return Tubes(
        np.concatenate([start, middle]),
        np.concatenate([middle, end]),
        np.concatenate([np.stack([from_radius, halfway], 1), np.stack([halfway, radius[1:]], 1)]),
    )


def _lung_points(rng: np.random.Generator, count: int, side: int, width: float, depth: float) -> np.ndarray:
    """(count, 3) points spread over one lung, millimetres."""
    z = HEIGHT * rng.uniform(0.01, 1.0, count)
    scale = np.stack([np.interp(z / HEIGHT, CAGE_SCALE[:, 0], CAGE_SCALE[:, i]) for i in (1, 2)], 1)
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    x = 62 + 46 * reach * np.cos(angle) * np.where(np.cos(angle) < 0, 1.0, 0.98)
    y = 8 + 68 * reach * np.sin(angle)
    return np.stack([side * x * scale[:, 0] * width, y * scale[:, 1] * depth, z], 1)


class LungTrees:
    """Arteries, veins and airways of one patient.

    Args:
        rng: where the branches go.
        width, depth: scales of the chest.
        density: scale of the number of branches.
    """

    def __init__(self, rng: np.random.Generator, width: float, depth: float, density: float = 1.0):
        scale = np.array([width, depth, 1.0])
        arteries, veins = [], []
        for side in (-1, 1):
            flip = np.array([side, 1, 1]) * scale
            for group, root, count in ((arteries, _HILUM, 800), (veins, _ATRIUM, 560)):
                points = _lung_points(rng, int(count * density), side, width, depth)
                group.append(_grow(rng, np.array(root) * flip, points, 5.0))
        self.vessels = _join(arteries + veins)
        self._arteries = _join(arteries)
        starts, ends = _AIRWAYS[:, :3] * scale, _AIRWAYS[:, 3:6] * scale
        self.airways = Tubes(starts, ends, np.stack([_AIRWAYS[:, 6]] * 2, 1))
        self.bronchi = _beside(self._arteries, 1.5, 4.5)
        self.bronchioles = _beside(self._arteries, 0.62, 3.0)

    def draw(self, canvas: Canvas, z: float, tubes: Tubes, grow: float = 0.0) -> np.ndarray:
        """(H, W) uint8 coverage of the ``tubes`` at height ``z``, each ``grow`` millimetres wider."""
        layer = canvas.layer()
        starts, ends, radii = tubes.cut(z)
        if len(starts):
            canvas.tubes(layer, starts, ends, radii + grow)
        return layer


def _join(trees: list[Tubes]) -> Tubes:
    return Tubes(*(np.concatenate([getattr(t, name) for t in trees]) for name in ("starts", "ends", "radii")))


def _beside(arteries: Tubes, least: float, most: float) -> Tubes:
    """The airways that run beside the arteries of a radius between ``least`` and ``most`` millimetres."""
    mean = arteries.radii.mean(1)
    chosen = (mean >= least) & (mean <= most)
    shift = 1.75 * mean[chosen, None] * np.array([[0.8, 0.6, 0.0]])
    return Tubes(arteries.starts[chosen] + shift, arteries.ends[chosen] + shift, arteries.radii[chosen] * 0.62)
