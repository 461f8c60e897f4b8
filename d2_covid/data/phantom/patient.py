"""A procedural chest CT: patients made of slices, with exact masks of their lungs and lesions.

Nothing here comes from a scan. The pictures are for trying the software out and for tests: they are no evidence of how
a model does on people.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ...errors import UserError
from ..lesion_masks import LUNG
from ..preprocessing import window_to_uint8
from .anatomy import Anatomy
from .atlas import AIR, BLOOD, HEIGHT
from .build import Build
from .canvas import Canvas, Noise3d
from .lesions import draw_lesions, plan_lesions
from .skeleton import draw_cover, draw_table
from .vessels import LungTrees

_TOP, _BOTTOM = (0.02, 0.09), (0.92, 0.99)  # levels between which the first and the last slice lie
_OUTSIDE = -2048  # Hounsfield value outside the scanner's field of view


@dataclass(frozen=True)
class PhantomSlice:
    """One axial slice, head to foot in a patient's list."""

    image: np.ndarray  # (H, W) uint8, in the lung window
    mask: np.ndarray  # (H, W) uint8: 0 background, 1 lung, 2 GGO, 3 consolidation
    hounsfield: np.ndarray  # (H, W) int16


def phantom_patient(seed: int, image_class: int, num_slices: int, size: int = 512) -> list[PhantomSlice]:
    """Make one patient.

    The same arguments give the same bytes on the same machine and library versions. The anatomy depends on ``seed``
    alone: other classes of one seed are the same person with other lesions.

    Args:
        seed: any non-negative integer.
        image_class: 0 control, 1 common pneumonia, 2 COVID-19.
        num_slices: slices from the apex of the lungs to below the diaphragm, evenly spaced.
        size: pixels a side.

    Raises:
        UserError: an argument out of its range.
    """
    if image_class not in (0, 1, 2):
        raise UserError(f"A phantom's image class is 0, 1 or 2, not {image_class}.")
    if num_slices < 1 or size < 64 or seed < 0:
        raise UserError(
            "A phantom has a slice or more of 64 pixels or more, and a seed from 0 on, "
            f"not {num_slices} slices of {size} pixels and seed {seed}."
        )
    return _Patient(seed, image_class, num_slices, size).slices()


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _draw_bends(rng: np.random.Generator) -> np.ndarray:
    """(6, 5) waves for :class:`Canvas`: a long one of a few millimetres, shorter ones of about one."""
    length = np.array([330, 200, 95, 70, 55, 45]) * rng.uniform(0.85, 1.15, 6)
    height = np.array([2.8, 1.8, 0.7, 0.55, 0.45, 0.4])[:, None] * rng.normal(0, 1, (6, 2)).clip(-1.6, 1.6)
    angle = rng.uniform(0, 2 * np.pi, 6)
    wave = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([wave, rng.uniform(0, 2 * np.pi, (6, 1)), height], 1)


class _Patient:
    """Everything that a patient's slices share."""

    def __init__(self, seed: int, image_class: int, num_slices: int, size: int):
        rng = _generator(seed, 0)
        build = Build.draw(rng)
        self.seed, self.build = seed, build
        reach = 110 * build.width + 26 + 0.6 * build.muscle + 1.15 * build.fat
        self.field = float(np.clip(2 * reach * rng.uniform(1.02, 1.3), 300, 500))
        middle = 5 * build.depth + 0.06 * build.fat - 0.25 * build.breast  # of the body, front to back
        offset = (rng.normal(0, 5), rng.normal(-middle - 4, 7))
        self.canvas = Canvas(size, self.field, rng.normal(0, 2.5), offset, _draw_bends(rng))
        self.room = Canvas(size, self.field, 0.0, offset, np.zeros((0, 5)))  # neither turned nor bent
        self.anatomy = Anatomy(build, self.canvas)
        self.thick = np.exp(-((self.anatomy.x / 120) ** 2 + (self.anatomy.y / 90) ** 2))  # what the beam has to pass
        self.trees = LungTrees(rng, build.width, build.depth, rng.uniform(0.85, 1.2))
        spacing = self.canvas.spacing
        self.border = Noise3d(rng, size, spacing, 10.0, HEIGHT)
        self.swell = Noise3d(rng, size, spacing, 26.0, HEIGHT)
        self.texture = Noise3d(rng, size, spacing, 4.2, HEIGHT)
        self.noise = rng.uniform(16, 48)  # Hounsfield units
        self.grain = rng.uniform(0.35, 0.8) * size / 512  # pixels: a sharp to a soft reconstruction
        self.blur = rng.uniform(0.55, 0.9) * max(size / 512, 0.4)
        self.circle = rng.uniform(0.485, 0.5) * size if rng.random() < 0.6 else None
        self.table = (rng.uniform(300, 900), rng.uniform(9, 24))
        self.cover = int(rng.integers(2**31)) if rng.random() < 0.5 else None
        self.window = (rng.normal(-600, 20), rng.normal(1500, 50))
        self.dependent = rng.uniform(20, 110)  # how much denser the lowest lung is
        self.motion = rng.uniform(0.02, 0.06) if rng.random() < 0.5 else 0.0
        ends = rng.uniform(*_TOP), rng.uniform(*_BOTTOM)
        self.levels = np.linspace(*ends, num_slices) if num_slices > 1 else np.array([sum(ends) / 2])
        self.lesions = plan_lesions(_generator(seed, 1, image_class), image_class, self.levels, self._lung_at, HEIGHT)

    def _lung_at(self, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.anatomy.lung(level) > 0.5, self.anatomy.x, self.anatomy.y

    def slices(self) -> list[PhantomSlice]:
        bottom = max(self.anatomy.bottom(float(level)) for level in self.levels)
        return [self._slice(i, float(level), bottom) for i, level in enumerate(self.levels)]

    def _slice(self, index: int, level: float, bottom: float) -> PhantomSlice:
        rng, canvas, z = _generator(self.seed, 2, index), self.canvas, level * HEIGHT
        section = self.anatomy.section(level, self.motion)
        lung = section.lung
        image = np.full((canvas.size, canvas.size), AIR, np.float32)
        draw_table(self.room, image, bottom, *self.table)
        if self.cover is not None:
            draw_cover(self.room, image, _generator(self.cover), -92 * self.build.depth - self.build.fat)
        image += section.body * (section.hounsfield - image)
        coarse, texture = self.border.at(z), self.texture.at(z)
        swell = self.swell.at(z)
        lesions = draw_lesions(self.lesions, self.anatomy.x, self.anatomy.y, z, lung, coarse, swell, texture)

        tissue = self._parenchyma(level, lung, coarse, texture) + lesions.haze
        share = np.float32(1 / 255)
        trees = self.trees
        vessels = trees.draw(canvas, z, trees.vessels) * share
        tissue += vessels * (BLOOD + self.build.contrast - tissue)
        tissue += lesions.dense * (22 + 14 * texture - tissue)
        walls = trees.draw(canvas, z, trees.bronchi, grow=0.9) * share
        air = trees.draw(canvas, z, trees.bronchi) * share
        open_ = 1 - lesions.dense
        tissue += 0.8 * walls * open_ * (-150 - tissue)
        tissue += air * open_ * (AIR + 60 - tissue)
        if lesions.bronchogram.any():
            fine = trees.draw(canvas, z, trees.bronchioles, grow=0.3) * share
            tissue += fine * lesions.bronchogram * (-820 - tissue)
        image += lung * (tissue - image)
        image += 0.9 * trees.draw(canvas, z, trees.airways, grow=1.5) * share * (10 - image)
        airway = trees.draw(canvas, z, trees.airways) * share
        image += airway * (AIR + 15 - image)

        image += 9 * (texture + coarse) * (image > -300)  # marbling of fat and muscle
        image = cv2.GaussianBlur(image, (0, 0), self.blur)
        image += self._noise(rng, level, section.lung)
        mask = (lung > 0.5).astype(np.uint8) * np.uint8(LUNG)
        mask[(airway > 0.5) & (lesions.mask == 0)] = 0
        mask = np.maximum(mask, lesions.mask)
        hounsfield = np.rint(np.clip(image, -1024, 3071)).astype(np.int16)
        if self.circle is not None:
            middle = (canvas.size - 1) / 2
            steps = (np.arange(canvas.size) - middle) ** 2
            outside = steps[:, None] + steps > self.circle**2
            hounsfield[outside], mask[outside] = _OUTSIDE, 0
        return PhantomSlice(window_to_uint8(hounsfield, *self.window), mask, hounsfield)

    def _parenchyma(self, level: float, lung: np.ndarray, coarse: np.ndarray, texture: np.ndarray) -> np.ndarray:
        """Healthy lung: denser towards the back, slightly mottled, with a fissure's faint line."""
        depth, build = self.build.depth, self.build
        fall = np.clip((self.anatomy.y / (80 * depth) + 1) / 2, 0, 1)
        tissue = build.parenchyma + 45 * fall + 7 * coarse + 9 * texture
        edge = np.clip((self.anatomy.y / (80 * depth) - 0.86 + 0.03 * coarse) / 0.12, 0, 1)
        tissue += self.dependent * edge**2
        layer = self.canvas.layer()
        x = np.linspace(28, 112, 30) * build.width
        for side in (-1, 1):
            y = (58 - 105 * (level - 0.2) - 14 * np.sin((x - 28) / 84 * np.pi) + side * 3) * depth
            line = np.stack([side * x, y], 1)
            self.canvas.tubes(layer, line[:-1], line[1:], np.full((29, 2), 0.42))
        return tissue + layer * np.float32(0.55 / 255) * np.float32(230)

    def _noise(self, rng: np.random.Generator, level: float, lung: np.ndarray) -> np.ndarray:
        """CT noise: correlated between neighbours, stronger where the beam has passed most, and faint streaks."""
        size = self.canvas.size
        white = rng.standard_normal((size, size), dtype=np.float32)
        fine = cv2.GaussianBlur(white, (0, 0), self.grain)
        fine -= 0.7 * cv2.GaussianBlur(white, (0, 0), self.grain + 1.6)
        fine *= np.float32(1 / fine.std())
        streak = rng.standard_normal((size, size), dtype=np.float32)
        streak = cv2.GaussianBlur(streak, (0, 0), sigmaX=0.06 * size, sigmaY=0.6)
        streak *= np.float32(1 / streak.std())
        strength = np.float32(self.noise) * (0.55 + 0.6 * self.thick) * (1 - 0.25 * lung)
        return strength * (fine + np.float32(0.18 + 1.1 * np.exp(-((level / 0.12) ** 2))) * streak * self.thick)
