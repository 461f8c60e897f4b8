"""Millimetres to pixels, and the few drawing operations that the phantom's anatomy is painted with."""

import cv2
import numpy as np

# Sub-pixel bits of OpenCV's fixed-point polygon coordinates.
_SHIFT = 5


def interpolate_keys(level: float, keys: np.ndarray) -> np.ndarray:
    """Linear interpolation between keyframes.

    Args:
        level: height in the chest, 0 at the apex of the lungs, 1 below the diaphragm.
        keys: (F, 1 + V) rows ``[level, values...]`` with rising levels.

    Returns:
        (V,) values at ``level``; those of the nearest keyframe outside the keyframes' range.
    """
    return np.array([np.interp(level, keys[:, 0], column) for column in keys[:, 1:].T])


def closed_curve(points: np.ndarray, steps: int = 12) -> np.ndarray:
    """(P * steps, 2) points of the closed Catmull-Rom curve through ``points`` (P, 2)."""
    before, after, later = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    u = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (before, points, after, later))
    curve = p1 + 0.5 * u * (p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3 + u * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


def outward(contour: np.ndarray) -> np.ndarray:
    """(P, 2) unit normals of a clockwise (as seen, y down) closed contour, pointing out of it."""
    tangent = np.roll(contour, -1, 0) - np.roll(contour, 1, 0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)


def ellipse(x: float, y: float, a: float, b: float, degrees: float = 0.0, points: int = 40) -> np.ndarray:
    """(points, 2) ellipse of half-axes ``a``, ``b`` whose first axis is turned by ``degrees`` towards +y."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    turn = np.deg2rad(degrees)
    u, v = a * np.cos(angle), b * np.sin(angle)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], 1)


class Canvas:
    """A square image and the patient's place in it.

    The patient's frame is in millimetres: +x to the patient's left (right in the picture), +y to the back (down).

    Args:
        size: pixels a side.
        field: field of view, millimetres a side.
        rotation: degrees the patient is turned on the table.
        offset: (x, y) millimetres from the isocentre.
        bends: (W, 5) smooth waves that make the two sides of a patient differ and no organ a perfect ellipse; a row is
            [x and y of the wave vector in radians a millimetre, phase, x and y of the shift in millimetres].
    """

    def __init__(self, size: int, field: float, rotation: float, offset: tuple[float, float], bends: np.ndarray):
        self.size, self.spacing, self._bends = size, field / size, bends
        turn = np.deg2rad(rotation)
        self._turn = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self._centre = np.array(offset) / self.spacing + (size - 1) / 2

    def _bend(self, points: np.ndarray) -> np.ndarray:
        return np.sin(points @ self._bends[:, :2].T + self._bends[:, 2]) @ self._bends[:, 3:]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(P, 2) millimetres of the patient's frame to (P, 2) pixel coordinates (column, row)."""
        return (points + self._bend(points)) @ self._turn.T / self.spacing + self._centre

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y in millimetres of every pixel's centre, two (size, size) float32 arrays."""
        steps = np.arange(self.size, dtype=np.float64)
        columns, rows = np.meshgrid(steps - self._centre[0], steps - self._centre[1])
        bent = np.stack([columns.ravel(), rows.ravel()], 1) @ self._turn * self.spacing
        # The bends are small and smooth, so that one fixed-point step undoes them to a fraction of a pixel.
        points = bent - self._bend(bent)
        return tuple(points.T.reshape(2, self.size, self.size).astype(np.float32))

    def layer(self) -> np.ndarray:
        """An empty (size, size) uint8 coverage layer."""
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, layer: np.ndarray, contour: np.ndarray, value: int = 255) -> None:
        """Draw a filled contour (P, 2 millimetres) with smooth edges on a coverage layer."""
        fixed = np.rint(self.pixels(contour) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(layer, [fixed], value, cv2.LINE_AA, _SHIFT)

    def paint(self, image: np.ndarray, contour: np.ndarray, value: float, opacity: float = 1.0) -> None:
        """Blend ``value`` into a float32 image inside a contour (P, 2 millimetres), in place."""
        pixels = self.pixels(contour)
        x0, y0 = np.maximum(np.floor(pixels.min(0)).astype(int) - 2, 0)
        x1, y1 = np.minimum(np.ceil(pixels.max(0)).astype(int) + 3, self.size)
        if x0 >= x1 or y0 >= y1:
            return
        layer = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.rint((pixels - (x0, y0)) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(layer, [fixed], 255, cv2.LINE_AA, _SHIFT)
        region = image[y0:y1, x0:x1]
        region += layer.astype(np.float32) * np.float32(opacity / 255) * (np.float32(value) - region)

    def tubes(self, layer: np.ndarray, starts: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> None:
        """Draw round-ended strokes, thinner ones first; strokes finer than a pixel come out fainter instead.

        Args:
            starts, ends: (T, 2) millimetres.
            radii: (T, 2) millimetres at each end.
        """
        first, last, half = self.pixels(starts), self.pixels(ends), radii / self.spacing
        along = last - first
        along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
        side = np.stack([-along[:, 1], along[:, 0]], 1)
        one = 1 << _SHIFT
        drawn = np.maximum(half - 0.35, 0.15)  # OpenCV's smooth edge adds about this much
        quads = np.stack(
            [
                first + side * drawn[:, :1], last + side * drawn[:, 1:],
                last - side * drawn[:, 1:], first - side * drawn[:, :1],
            ], 1,
        )  # fmt: skip
        quads = np.rint(quads * one).astype(np.int32)
        ends_fixed = np.rint(np.stack([first, last], 1) * one).astype(int)
        radii_fixed = np.rint(drawn * one).astype(int)
        values = np.rint(255 * np.clip(half.mean(1) / 0.75, 0.25, 1)).astype(int)
        for i in np.argsort(half.mean(1), kind="stable"):
            value = int(values[i])
            cv2.fillConvexPoly(layer, quads[i], value, cv2.LINE_AA, _SHIFT)
            for end in (0, 1):
                if drawn[i, end] > 0.6:
                    centre = (int(ends_fixed[i, end, 0]), int(ends_fixed[i, end, 1]))
                    cv2.circle(layer, centre, int(radii_fixed[i, end]), value, -1, cv2.LINE_AA, _SHIFT)


class Noise3d:
    """Smooth random fields that change gently from slice to slice.

    Args:
        rng: source of the coarse grid; the field is a fixed function of space afterwards.
        size: pixels a side of a slice.
        spacing: millimetres a pixel.
        grain: correlation length in millimetres.
        depth: extent along z in millimetres.
    """

    def __init__(self, rng: np.random.Generator, size: int, spacing: float, grain: float, depth: float):
        self._size, self._grain = size, grain
        cells = max(4, int(np.ceil(size * spacing / grain)) + 1)
        self._nodes = rng.standard_normal((int(np.ceil(depth / grain)) + 3, cells, cells), dtype=np.float32)

    def at(self, z: float) -> np.ndarray:
        """(size, size) float32 field at height ``z``, about zero mean and unit variance."""
        place = min(max(z / self._grain, 0.0), len(self._nodes) - 2.0)
        low, part = int(place), place - int(place)
        # Weights on the circle keep the variance between two planes.
        plane = np.cos(part * np.pi / 2) * self._nodes[low] + np.sin(part * np.pi / 2) * self._nodes[low + 1]
        field = cv2.resize(plane.astype(np.float32), (self._size, self._size), interpolation=cv2.INTER_CUBIC)
        return field * np.float32(1.35)
