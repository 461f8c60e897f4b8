"""The phantom's bones, shoulders and table."""

import numpy as np

from .atlas import AIR, BLOOD, CARTILAGE, CORTEX, FAT, HEIGHT, MARROW, MUSCLE
from .build import Build
from .canvas import Canvas, ellipse, outward

_RIB_PITCH, _RIB_SLOPE, _RIB_HALF = 24.0, 92.0, 7.0  # millimetres: between ribs, fall from back to front, half-height


def _bone(canvas: Canvas, image: np.ndarray, contour: np.ndarray, rind: float, build: Build, marrow: float = MARROW):
    """Paint a bone: a dense rind (millimetres) around marrow."""
    canvas.paint(image, contour, CORTEX * build.bone)
    canvas.paint(image, contour - rind * outward(contour), marrow * build.bone)


def _band(middle: np.ndarray, normal: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Clockwise closed contour of a strip: ``middle`` (P, 2) plus and minus ``half`` (P,) along ``normal``."""
    return np.concatenate([middle + normal * half[:, None], (middle - normal * half[:, None])[::-1]])


def _taper(count: int) -> np.ndarray:
    """(count,) profile of a lens, 0 at both ends and 1 in the middle."""
    return np.sqrt(np.maximum(1 - np.linspace(-1, 1, count) ** 2, 0.02))


def draw_skeleton(
    canvas: Canvas, image: np.ndarray, level: float, cage: np.ndarray, spine: tuple[float, float, float], build: Build
) -> None:
    """Paint ribs, sternum and spine of a level into ``image``, in place."""
    _draw_ribs(canvas, image, level, cage, build)
    front = cage[:, 1].min()
    if 0.09 < level < 0.8:
        a, b = (24, 7) if level < 0.26 else (15, 5.5) if level < 0.68 else (8, 4)
        _bone(canvas, image, ellipse(0, front - b - 3, a * build.width, b), 1.3, build, 130)
    _draw_vertebra(canvas, image, level, spine, build)


def _draw_ribs(canvas: Canvas, image: np.ndarray, level: float, cage: np.ndarray, build: Build) -> None:
    """Ribs fall from the spine to the front, so that a level cuts each one in a short arc along the wall."""
    count = len(cage)
    for side in (1, -1):
        half = cage[: count // 2 + 1] if side == 1 else np.roll(cage, -1, 0)[: count // 2 - 1 : -1]
        normal = outward(cage)
        normal = normal[: count // 2 + 1] if side == 1 else np.roll(normal, -1, 0)[: count // 2 - 1 : -1]
        place = np.linspace(0, 1, len(half))  # 0 sternum, 1 spine
        z = level * HEIGHT + (build.rib_phase + 0.08 * side) * _RIB_PITCH
        for rib in range(-1, 12):
            away = (z - (rib * _RIB_PITCH + _RIB_SLOPE * (1 - place) ** 1.15)) / _RIB_HALF
            part = np.flatnonzero((np.abs(away) < 1) & (place > 0.07) & (place < 0.93))
            if len(part) < 3:
                continue
            fine = np.linspace(part[0], part[-1], 4 * len(part))
            middle = np.stack([np.interp(fine, part, half[part, i]) for i in (0, 1)], 1)
            direction = np.stack([np.interp(fine, part, normal[part, i]) for i in (0, 1)], 1)
            band = _band(middle + 6.5 * direction, direction, 4.2 * _taper(len(fine)))
            if side == -1:
                band = band[::-1]
            if place[part].mean() < 0.2:
                canvas.paint(image, band, CARTILAGE)
            else:
                _bone(canvas, image, band, 1.5, build)


def _draw_vertebra(canvas: Canvas, image: np.ndarray, level: float, spine: tuple[float, float, float], build: Build):
    """Body, canal, arch and processes; between two bodies the disc shows instead."""
    y, a, b = spine
    beat = (level * HEIGHT / 25 + build.rib_phase) % 1
    canal = y + b + 7
    # muscles beside the spinous process
    for side in (-1, 1):
        canvas.paint(image, ellipse(side * (a + 4), canal + 18, a * 0.95, 14, side * 20), MUSCLE + 6)
    arch = [(9, canal - 11), (15, canal - 5), (12, canal + 7), (4, canal + 14)]
    arch = np.array(arch + [(-x, v) for x, v in arch[::-1]])
    _bone(canvas, image, arch, 1.4, build)
    reach = 20 + 8 * np.sin(beat * np.pi)
    _bone(canvas, image, ellipse(0, canal + 12 + reach / 2, 3.4, reach / 2 + 3), 1.2, build)
    if beat < 0.6:
        for side in (-1, 1):
            wing = ellipse(side * 25, canal + 3, 15, 5, -side * 16 + 180 * (side < 0))
            _bone(canvas, image, wing, 1.4, build)
            place = ellipse(side * (a + 10), y + b * 0.75, 8.5, 5.5, -side * 35)  # head of the rib
            _bone(canvas, image, place, 1.4, build)
    body = ellipse(0, y, a, b)
    body[:, 1] = np.minimum(body[:, 1], y + b * 0.82)
    if beat > 0.86:
        canvas.paint(image, body, 110)  # disc
        canvas.paint(image, body - 3.0 * outward(body), 80)
    else:
        _bone(canvas, image, body, 1.3, build)
    canvas.paint(image, ellipse(0, canal, 9, 7.5), 25)
    canvas.paint(image, ellipse(0, canal, 5, 4), 40)


def draw_shoulders(canvas: Canvas, image: np.ndarray, level: float, cage: np.ndarray, build: Build) -> None:
    """Paint shoulder blades, collar bones and the heads of the arms into ``image``, in place."""
    count, normal = len(cage), outward(cage)
    for side in (1, -1):
        if 0.0 <= level < 0.46:
            fade = min(1.0, (0.46 - level) / 0.12)
            ends = (0.40 - 0.08 * fade, 0.40) if level > 0.34 else (0.25 + 0.06 * (level / 0.34), 0.41)
            part = np.linspace(ends[0] * count, ends[1] * count, 24)
            if side == -1:
                part = count - part[::-1]
            steps = np.arange(count)
            middle = np.stack([np.interp(part, steps, cage[:, i]) for i in (0, 1)], 1)
            direction = np.stack([np.interp(part, steps, normal[:, i]) for i in (0, 1)], 1)
            lateral = np.linspace(1, 0, len(part)) if side == 1 else np.linspace(0, 1, len(part))
            off = 20 + 0.35 * build.muscle + max(0.0, 1 - level / 0.3) * (10 + 26 * lateral)
            middle = middle + direction * off[:, None]
            thick = (2.0 + 4.0 * lateral**2 * (level < 0.3)) * _taper(len(part)) + 0.6
            canvas.paint(image, _band(middle, direction, thick + 9), MUSCLE + 4)
            _bone(canvas, image, _band(middle, direction, thick), 1.3, build)
            if level < 0.16:  # spine of the blade, and the shoulder joint
                root = middle[len(part) // 2]
                out = direction[len(part) // 2] * 20 + np.array([side * 10.0, 0])
                along = np.linspace(0, 1, 12)[:, None]
                across = np.array([-out[1], out[0]]) / np.linalg.norm(out)
                _bone(canvas, image, _band(root + along * out, np.tile(across, (12, 1)), 3.4 * _taper(12)), 1.2, build)
        if level < 0.13:
            centre = np.array([side * (26 + 64 * (1 - level / 0.13)) * build.width, cage[:, 1].min() - 8 - 60 * level])
            _bone(canvas, image, ellipse(*centre, 24, 6, side * -14), 1.6, build)


def draw_table(canvas: Canvas, image: np.ndarray, y: float, curve: float, thick: float) -> None:
    """Paint a curved table whose top touches ``y`` (millimetres) at its middle; ``curve`` is its radius."""
    x = np.linspace(-230, 230, 60)
    rise = np.clip(x**2 / (2 * curve), 0, 70)
    normal = np.tile([0.0, -1.0], (len(x), 1))
    for drop, half, value in ((thick / 2, thick / 2, AIR + 45), (0, 1.1, -380), (thick, 1.3, 40)):
        middle = np.stack([x, y + 3 + drop - rise], 1)
        canvas.paint(image, _band(middle, normal, np.full(len(x), half)), value)


def draw_cover(canvas: Canvas, image: np.ndarray, rng: np.random.Generator, top: float) -> None:
    """Paint folds of clothing and a lead or two above the body into ``image``, in place."""
    for _ in range(int(rng.integers(1, 5))):
        x = np.linspace(-170, 170, 90)
        wave = sum(rng.uniform(1, 7) * np.sin(x / rng.uniform(8, 50) + rng.uniform(0, 6)) for _ in range(3))
        y = top - rng.uniform(6, 26) + wave + (x / 170) ** 2 * rng.uniform(40, 90)
        middle = np.stack([x, y], 1)
        canvas.paint(image, _band(middle, np.tile([0.0, -1.0], (90, 1)), np.full(90, 0.7)), rng.uniform(-900, -700))
    for _ in range(int(rng.integers(0, 3))):
        place = np.array([rng.uniform(-90, 90), top - rng.uniform(1, 6)])
        canvas.paint(image, ellipse(*place, 3, 3), FAT + 400)
        canvas.paint(image, ellipse(*place, 1.4, 1.4), AIR + BLOOD)
