"""Training augmentation, drawn from a given generator so that a sample looks the same whichever worker makes it."""

from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode
from fvcore.transforms.transform import BlendTransform, HFlipTransform, Transform, TransformList, VFlipTransform

from ..errors import UserError


class AffineTransform(Transform):
    """Turn and scale about the centre, in one interpolation; the canvas keeps its size, and black fills it up.

    Detectron2's ``RotationTransform`` and ``ExtentTransform`` would blur twice, and the latter warps masks bilinearly.
    """

    def __init__(self, height: int, width: int, angle: float, scale: float):
        """``angle`` in degrees, counter-clockwise as seen on the screen; ``scale`` above 1 enlarges."""
        super().__init__()
        self.height, self.width = height, width
        # OpenCV counts from pixel centres, coordinates of boxes from pixel corners: half a pixel apart.
        self.of_pixels = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        self.of_coords = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(img, self.of_pixels, (self.width, self.height), flags=cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(segmentation, self.of_pixels, (self.width, self.height), flags=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return np.asarray(coords, dtype=float) @ self.of_coords[:, :2].T + self.of_coords[:, 2]


@dataclass(frozen=True)
class Augmentation:
    """How far each augmentation may go; 0 is off (the paper's choice for all). Keys of ``INPUT.AUGMENTATION``."""

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    intensity: float = 0.0

    def __post_init__(self):
        for name, low, high in (
            ("horizontal_flip", 0, 1),
            ("vertical_flip", 0, 1),
            ("rotation", 0, 180),
            ("scale", 0, 0.9),
            ("intensity", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"INPUT.AUGMENTATION.{name.upper()} is {value}; it takes {low} to {high}.")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Augmentation":
        """Read ``cfg.INPUT.AUGMENTATION``."""
        node = cfg.INPUT.AUGMENTATION
        return cls(**{name: float(node[name.upper()]) for name in cls.__dataclass_fields__})

    @property
    def enabled(self) -> bool:
        """Whether anything may change."""
        return any(getattr(self, name) > 0 for name in self.__dataclass_fields__)

    def draw(self, rng: np.random.Generator, image: np.ndarray) -> TransformList:
        """The transforms of one sample.

        Every number is drawn whether it is used or not, so that switching one augmentation on leaves the others as
        they were.

        Args:
            image: (H, W) ``uint8`` slice; contrast is changed about its mean.
        """
        height, width = image.shape
        chance_h, chance_v = rng.random(2)
        turn, zoom, brightness, contrast = rng.uniform(-1, 1, 4)
        transforms: list[Transform] = []
        if chance_h < self.horizontal_flip:
            transforms.append(HFlipTransform(width))
        if chance_v < self.vertical_flip:
            transforms.append(VFlipTransform(height))
        if self.rotation > 0 or self.scale > 0:
            transforms.append(AffineTransform(height, width, turn * self.rotation, 1 + zoom * self.scale))
        if self.intensity > 0:
            gain = 1 + brightness * self.intensity
            transforms.append(BlendTransform(src_image=0.0, src_weight=1 - gain, dst_weight=gain))
            gain = 1 + contrast * self.intensity
            transforms.append(BlendTransform(src_image=float(image.mean()), src_weight=1 - gain, dst_weight=gain))
        return TransformList(transforms)
