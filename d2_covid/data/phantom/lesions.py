"""The phantom's lesions: where they lie, what they look like, and the mask that outlines them.

How the classes differ follows the paper's section 2: COVID-19 shows several mid-sized ground-glass opacities near the
pleura of both lungs; common pneumonia few and large ones, more often consolidated, mostly on one side; controls none.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..lesion_masks import CONSOLIDATION, GGO

CONTROL, PNEUMONIA, COVID = 0, 1, 2


@dataclass(frozen=True)
class Lesion:
    """One lesion in space: an ellipsoid with a ragged border. Lengths in millimetres."""

    centre: tuple[float, float, float]  # x, y, z
    radii: tuple[float, float, float]  # along the pleura, away from it, along z
    turn: float  # radians from +x to the direction along the pleura
    haze: float  # Hounsfield units that ground glass adds, 0 for a consolidation without any
    core: float  # share of the radii that is consolidated, 0 for none
    ragged: float  # millimetres that the border strays
    paving: float  # 0..1, how marked crazy paving is
    bronchogram: bool  # whether air shows in the bronchi within the consolidation


def plan_lesions(
    rng: np.random.Generator, image_class: int, levels: np.ndarray, lung_at, height: float
) -> list[Lesion]:
    """Draw the lesions of a patient.

    Args:
        image_class: 0 control, 1 common pneumonia, 2 COVID-19.
        levels: rising levels of the slices that will be made; at least one of them will show a lesion.
        lung_at: ``level -> (mask, x, y)``: the lungs at a level, bool (h, w), and each pixel's millimetres.
        height: millimetres from level 0 to level 1.
    """
    if image_class == CONTROL:
        return []
    middle = levels[(levels > 0.3) & (levels < 0.8)]
    anchor = float(rng.choice(middle if len(middle) else levels))
    first_side = int(rng.choice([-1, 1]))
    if image_class == COVID:
        count = int(rng.integers(12, 20))
        sides = [first_side * (-1) ** i for i in range(count)]
        kinds = ["small" if rng.random() < 0.15 else "middle" for _ in range(count)]
        kinds[0] = kinds[1] = "middle"
    else:
        count = int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
        sides = [first_side if i == 0 or rng.random() < 0.75 else -first_side for i in range(count)]
        kinds = ["large"] * count
    lesions: list[Lesion] = []
    for i, (side, kind) in enumerate(zip(sides, kinds, strict=True)):
        level = anchor if i < (2 if image_class == COVID else 1) else float(np.clip(rng.normal(0.55, 0.22), 0.12, 0.9))
        lesion = _place(rng, image_class, kind, side, level, lung_at, height, lesions)
        if lesion is not None:
            lesions.append(lesion)
    return lesions


def _place(rng, image_class: int, kind: str, side: int, level: float, lung_at, height: float, others) -> Lesion | None:
    """Find room for one lesion at a level; None where that lung has none."""
    mask, x, y = lung_at(level)
    lung = (mask & (x * side > 0)).astype(np.uint8)
    if not lung.any():
        return None
    spacing = abs(float(x[0, 1] - x[0, 0])) + abs(float(y[0, 1] - y[0, 0]))
    depth = cv2.distanceTransform(np.pad(lung, 1), cv2.DIST_L2, 5)[1:-1, 1:-1] * spacing
    outer = np.abs(x) > 30  # the pleura of the chest wall rather than of the mediastinum
    if kind == "large":
        wanted = depth > min(16.0, 0.6 * depth.max())
    else:
        back = y > np.quantile(y[lung > 0], 0.35) if rng.random() < 0.7 else np.ones_like(outer)
        near = (depth > 2) & (depth < 11) if rng.random() < 0.85 else depth > 12
        wanted = near & outer & back & _lateral(x, y, lung)
    for other in others:
        gap = 1.05 * (max(other.radii[:2]) + 10) if kind != "large" else 30
        if abs(other.centre[2] / height - level) < 0.14:
            wanted &= np.hypot(x - other.centre[0], y - other.centre[1]) > gap
    rows, columns = np.nonzero(wanted & (lung > 0))
    if not len(rows):
        return None
    pick = int(rng.integers(len(rows)))
    cx, cy = float(x[rows[pick], columns[pick]]), float(y[rows[pick], columns[pick]])
    # the slope of the depth points away from the pleura
    smooth = cv2.GaussianBlur(depth, (0, 0), 3)
    dy, dx = np.gradient(smooth)
    row, column = rows[pick], columns[pick]
    turn = float(np.arctan2(dx[row, column], -dy[row, column]))
    return _shape(rng, image_class, kind, (cx, cy, level * height), turn)


def _lateral(x: np.ndarray, y: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Pixels in the outer half of each row of a lung: the side of the chest wall."""
    far = np.where(lung > 0, np.abs(x), np.nan)
    rows = np.flatnonzero(lung.any(1))
    edge = np.full(len(x), np.inf)
    for row in rows:
        edge[row] = 0.45 * np.nanmax(far[row]) + 0.55 * np.nanmin(far[row])
    return (np.abs(x) > edge[:, None]) | (y > np.quantile(y[lung > 0], 0.85))


def _shape(rng, image_class: int, kind: str, centre: tuple[float, float, float], turn: float) -> Lesion:
    """Size and texture of a lesion of a class."""
    if kind == "large":
        across = rng.uniform(32, 48)
        radii = (across * rng.uniform(0.9, 1.3), across * rng.uniform(0.75, 1.05), rng.uniform(45, 80))
        core = rng.uniform(0.62, 0.95) if rng.random() < 0.75 else 0.0
    elif kind == "middle":
        across = rng.uniform(8, 15)
        radii = (across * rng.uniform(1.2, 2.1), across, rng.uniform(24, 50))
        core = rng.uniform(0.45, 0.75) if rng.random() < 0.3 else 0.0
    else:
        radii = (rng.uniform(2.6, 6.5),) * 3
        core = 0.0
    haze = rng.uniform(230, 420)
    if core > 0.85 or (core and rng.random() < 0.2):  # a thin rim is not read as ground glass
        core, haze = 1.0, 0.0
    return Lesion(
        centre=centre,
        radii=radii,
        turn=turn + rng.normal(0, 0.15),
        haze=haze,
        core=core,
        ragged=rng.uniform(1.2, 2.6) if kind != "small" else 0.6,
        paving=rng.uniform(0.4, 1.0) if rng.random() < (0.45 if image_class == COVID else 0.15) else 0.0,
        bronchogram=rng.random() < 0.6,
    )


@dataclass
class LesionLayers:
    """What the lesions do to one slice: (H, W) float32, and the mask as uint8."""

    haze: np.ndarray  # Hounsfield units added to the lung
    dense: np.ndarray  # share of a pixel that is consolidated
    bronchogram: np.ndarray  # share of a pixel whose bronchi keep their air
    mask: np.ndarray  # 0, GGO or CONSOLIDATION


def draw_lesions(
    lesions: list[Lesion],
    x: np.ndarray,
    y: np.ndarray,
    z: float,
    lung: np.ndarray,
    border: np.ndarray,
    swell: np.ndarray,
    texture: np.ndarray,
) -> LesionLayers:
    """Draw the lesions that a slice cuts.

    Args:
        x, y: (H, W) millimetres of each pixel.
        z: height of the slice in millimetres.
        lung: (H, W) float32 share of lung; nothing is drawn outside it.
        border, swell: (H, W) smooth fields about zero that shape the borders (grains about 10 and 26 mm).
        texture: (H, W) field about zero that mottles the haze (grain about 3 mm).
    """
    layers = LesionLayers(*(np.zeros_like(lung) for _ in range(3)), np.zeros(lung.shape, np.uint8))
    cut = [lesion for lesion in lesions if abs(z - lesion.centre[2]) < lesion.radii[2]]
    left, top, width, height = cv2.boundingRect((lung > 0).astype(np.uint8))
    if not cut or not width:
        return layers
    box = np.s_[top : top + height, left : left + width]
    part = LesionLayers(layers.haze[box], layers.dense[box], layers.bronchogram[box], layers.mask[box])
    _draw_within(cut, part, x[box], y[box], z, lung[box], border[box], swell[box], texture[box])
    return layers


def _draw_within(lesions, layers: LesionLayers, x, y, z: float, lung, border, swell, texture) -> None:
    """Draw on the layers, in place; arguments as in :func:`draw_lesions`."""
    inside = lung > 0.5
    net = np.exp(-((texture / 0.22) ** 2))  # lines where the field changes sign: a net, as thickened septa make
    for lesion in lesions:
        shrink = np.sqrt(1 - ((z - lesion.centre[2]) / lesion.radii[2]) ** 2)
        a, b = lesion.radii[0] * shrink, lesion.radii[1] * shrink
        dx, dy = x - lesion.centre[0], y - lesion.centre[1]
        cos, sin = np.cos(lesion.turn), np.sin(lesion.turn)
        reach = np.sqrt(((dx * cos + dy * sin) / a) ** 2 + ((dy * cos - dx * sin) / b) ** 2)
        # stray by so many millimetres: slow swells that grow with the lesion, and finer fraying
        stray = lesion.ragged * border + min(0.16 * min(a, b), 5.0) * swell
        reach = (reach - stray / np.float32(min(a, b)) * np.minimum(reach, 1.0)).astype(np.float32)
        if lesion.haze:
            fuzz = np.float32(min(0.9, 5.0 / min(a, b)))  # millimetres over which the haze fades, as a share
            alpha = np.clip((1 - reach) / fuzz + 0.5, 0, 1) * lung
            outline = _outline((alpha > 0.5) & inside, 1)
            alpha *= cv2.dilate(outline, np.ones((9, 9), np.uint8))
            mottled = lesion.haze * (1 + 0.16 * texture + lesion.paving * (0.55 * net - 0.15))
            np.maximum(layers.haze, alpha * alpha * (3 - 2 * alpha) * mottled, out=layers.haze)
            np.maximum(layers.mask, outline * np.uint8(GGO), out=layers.mask)
        if lesion.core and lesion.core * shrink > 0.25:
            radius = np.float32(lesion.core * min(a, b))
            edge = min(0.6, 3.2 / radius)
            dense = np.clip((1 - reach / lesion.core + 1.5 * border / radius) / edge + 0.5, 0, 1) * lung
            core = _outline((dense > 0.5) & inside, 40)
            dense *= cv2.dilate(core, np.ones((5, 5), np.uint8))
            np.maximum(layers.dense, dense, out=layers.dense)
            if lesion.bronchogram:
                np.maximum(layers.bronchogram, dense, out=layers.bronchogram)
            np.maximum(layers.mask, core * np.uint8(CONSOLIDATION), out=layers.mask)


def _outline(mask: np.ndarray, least: int) -> np.ndarray:
    """uint8 mask as a reader would outline it: whiskers off, scraps beside the main part dropped."""
    mask = mask.astype(np.uint8)
    if not mask.any():
        return mask
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    mask = opened if opened.any() else mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    keep = (areas >= max(least, 0.2 * areas.max())) & (areas > 0)
    return keep[labels].astype(np.uint8)
