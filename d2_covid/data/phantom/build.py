"""What makes one phantom patient's chest their own."""

from dataclasses import dataclass

import numpy as np

from .atlas import AIR


@dataclass(frozen=True)
class Build:
    """What makes one patient's chest their own. Lengths in millimetres, densities in Hounsfield units."""

    width: float  # scale of the chest, side to side
    depth: float  # scale of the chest, front to back
    fat: float  # under the skin
    muscle: float  # outside the ribs
    breast: float  # 0 for none
    heart: float  # scale of the heart
    contrast: float  # extra density of blood
    dome_tops: tuple[float, float]  # levels at which the right and the left dome of the diaphragm appear
    parenchyma: float  # density of healthy lung
    junction: float  # half-width of the tissue between the lungs at the front
    rib_phase: float  # 0..1, where the ribs lie
    stomach: float  # density of what fills the stomach
    bone: float  # scale of bone density
    arms_up: float  # 0..1, how much shoulder the picture shows

    @staticmethod
    def draw(rng: np.random.Generator) -> "Build":
        """Draw a build: half of the patients with breasts, a third with contrast medium."""
        female, stout = rng.random() < 0.5, rng.beta(1.6, 3.0)
        right = rng.uniform(0.66, 0.76)
        return Build(
            width=rng.uniform(0.92, 1.12) * (0.95 if female else 1.03),
            depth=rng.uniform(0.90, 1.10) * (0.96 if female else 1.03) + 0.08 * stout,
            fat=5 + 28 * stout,
            muscle=rng.uniform(6, 11) if female else rng.uniform(8, 16),
            breast=rng.uniform(12, 34) if female else 0.0,
            heart=rng.uniform(0.90, 1.12),
            contrast=rng.uniform(90, 220) if rng.random() < 0.35 else 0.0,
            dome_tops=(right, right + rng.uniform(0.02, 0.08)),
            parenchyma=rng.uniform(-885, -820),
            junction=rng.uniform(1.2, 6),
            rib_phase=rng.random(),
            stomach=AIR if rng.random() < 0.6 else 15.0,
            bone=rng.uniform(0.75, 1.1),
            arms_up=rng.random(),
        )
