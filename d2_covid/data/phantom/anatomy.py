"""The phantom's soft anatomy: what one level of one patient's chest is made of, in Hounsfield units."""

from dataclasses import dataclass

import cv2
import numpy as np

from . import atlas
from .atlas import BLOOD, FAT, LIVER, MUSCLE
from .build import Build
from .canvas import Canvas, closed_curve, ellipse, interpolate_keys, outward
from .skeleton import draw_shoulders, draw_skeleton


@dataclass
class Section:
    """One level of a patient before the lungs get their contents."""

    hounsfield: np.ndarray  # (H, W) float32, right within the body but for its lungs
    body: np.ndarray  # (H, W) float32, the share of each pixel that is body
    lung: np.ndarray  # (H, W) float32, the share of each pixel that is lung


class Anatomy:
    """A patient's chest, drawn level by level on a canvas."""

    def __init__(self, build: Build, canvas: Canvas):
        self.build, self.canvas = build, canvas
        self.x, self.y = canvas.grid()

    def cage(self, level: float) -> np.ndarray:
        """(P, 2) inner chest wall, clockwise from the sternum."""
        width, depth = interpolate_keys(level, atlas.CAGE_SCALE)
        half = atlas.CAGE * (width * self.build.width, depth * self.build.depth)
        return closed_curve(np.concatenate([half, half[:0:-1] * (-1, 1)]))

    def spine(self, level: float) -> tuple[float, float, float]:
        """y and half-axes of the vertebral body."""
        y, a, b = interpolate_keys(level, atlas.SPINE)
        return y * self.build.depth, a * self.build.width, b * self.build.width

    def lung(self, level: float) -> np.ndarray:
        """(H, W) float32 share of each pixel that is lung."""
        return self._lung(level, self.cage(level), self._domes(level))

    def bottom(self, level: float) -> float:
        """y in millimetres of the lowest point of the body."""
        return float(self._body(level, self.cage(level))[0][:, 1].max())

    def _lung(self, level: float, cage: np.ndarray, domes: list[np.ndarray]) -> np.ndarray:
        canvas = self.canvas
        inside = canvas.layer()
        canvas.fill(inside, cage - 2.0 * outward(cage))
        if level < atlas.APEX[-1, 0]:
            ovals = canvas.layer()
            x, y, a, b = self._fit(interpolate_keys(level, atlas.APEX))
            for side in (-1, 1):
                canvas.fill(ovals, ellipse(side * x, y, a, b, side * 8))
            inside = np.minimum(inside, ovals)
        middle = canvas.layer()
        for contour in self._middle(level, cage):
            canvas.fill(middle, contour)
        share = np.minimum(inside, 255 - middle).astype(np.float32) * np.float32(1 / 255)
        for dome in domes:
            share *= 1 - dome
        return _without_slivers(share, int(60 / canvas.spacing**2))

    def section(self, level: float, motion: float = 0.0) -> Section:
        """Draw a level; ``motion`` is how much the beating heart's border is doubled, a share of its size."""
        canvas, build = self.canvas, self.build
        image = np.full((canvas.size, canvas.size), FAT, np.float32)
        cage = self.cage(level)
        skin, muscle = self._body(level, cage)
        self._breast(image, level, cage, skin)
        canvas.paint(image, muscle, MUSCLE)
        self._between_muscles(image, level, cage, muscle)
        draw_shoulders(canvas, image, level, cage, build)
        canvas.paint(image, cage, FAT + 110 * max(0.0, 1 - level / 0.2))
        for contour in self._organs(level, {k: v for k, v in atlas.SOFT.items() if k != "visceral space"}):
            canvas.paint(image, contour, MUSCLE - 8)
        self._vessels_and_heart(image, level, motion)
        domes = self._domes(level)
        self._abdomen(image, level, domes)
        draw_skeleton(canvas, image, level, cage, self.spine(level), build)
        body, under = canvas.layer(), canvas.layer()
        canvas.fill(body, skin)
        canvas.fill(under, skin - 1.8 * outward(skin))
        image += (255 - under).astype(np.float32) * np.float32(1 / 255) * (10 - image)
        return Section(image, body.astype(np.float32) * np.float32(1 / 255), self._lung(level, cage, domes))

    def _fit(self, values: np.ndarray) -> np.ndarray:
        """Keyframe values [x, y, a, b, ...] of an average chest, scaled to this one."""
        scale = np.ones(len(values))
        scale[[0, 2]], scale[[1, 3]] = self.build.width, self.build.depth
        return values * scale

    def _organs(self, level: float, table: dict[str, list]) -> list[np.ndarray]:
        contours = []
        for name, keys in table.items():
            if keys[0][0] <= level <= keys[-1][0]:
                x, y, a, b, turn = self._fit(interpolate_keys(level, np.array(keys, float)))
                size = self.build.heart if name in ("heart", "left atrium", "right atrium") else 1.0
                contours.append(ellipse(x, y, a * size, b * size, turn))
        return contours

    def _middle(self, level: float, cage: np.ndarray) -> list[np.ndarray]:
        """Contours of what lies between the lungs: organs and their fat, the spine's wedge, the junction in front."""
        contours = [c + 2.5 * outward(c) for t in (atlas.SOFT, atlas.BLOOD_FILLED) for c in self._organs(level, t)]
        y, a, b = self.spine(level)
        wedge = [(0, y - b - 3), (a + 2, y - 2), (a + 3, y + 12), (a + 9, y + 26), (a + 22, y + 60)]
        contours.append(np.array(wedge + [(-x, v) for x, v in wedge[:0:-1]]))
        contours.append(ellipse(0, y, a + 3, b + 3))
        front, half = cage[:, 1].min(), self.build.junction
        strip = [(half + 16, front - 6), (half + 3, front + 10), (half, front + 22), (half, 0)]
        contours.append(np.array(strip + [(-x, v) for x, v in strip[::-1]]))
        contours.append(np.array([(-10, 0), (10, 0), (14, y), (-14, y)]))
        return contours

    def _domes(self, level: float) -> list[np.ndarray]:
        """(H, W) float32 shares of the right and the left upper abdomen, blurred where a dome is cut flat."""
        shares = []
        for (x, y, a, b), top in zip(atlas.DOMES, self.build.dome_tops, strict=True):
            if level < top - 0.02:
                continue
            x, y, a, b = self._fit(np.array([x, y, a, b]))
            reach = ((self.x - np.float32(x)) / np.float32(a)) ** 2 + ((self.y - np.float32(y)) / np.float32(b)) ** 2
            surface = np.float32(top) + np.float32(1.02 - top) * (1 - np.sqrt(np.maximum(1 - reach, 0)))
            surface += np.maximum(reach - 1, 0)
            shares.append(np.clip((level - surface) / 0.014 + 0.5, 0, 1).astype(np.float32))
        return shares

    def _body(self, level: float, cage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Skin and the outer surface of the muscles, two (P, 2) contours."""
        build, normal = self.build, outward(cage)
        side, front, back = np.abs(normal[:, 0]), np.maximum(-normal[:, 1], 0), np.maximum(normal[:, 1], 0)
        shoulder = max(0.0, 1 - level / 0.38)
        muscle = 11 + build.muscle * (0.5 * side + 0.9 * front * max(0.0, 0.9 - level) + 0.9 * back)
        muscle = muscle + shoulder * (12 + (34 + 44 * build.arms_up) * side**2)
        fat = build.fat * (0.75 + 0.4 * side + 0.25 * back - 0.15 * front)
        skin = cage + normal * (muscle + fat)[:, None]
        near = np.exp(-(((np.abs(cage[:, 0]) - 62 * build.width) / 30) ** 2)) * (cage[:, 1] < 0)
        swell = build.breast * np.exp(-(((level - 0.55) / 0.17) ** 2)) * near
        skin = skin + swell[:, None] * np.stack([0.25 * np.sign(cage[:, 0]), -np.ones(len(cage))], 1)
        bottom = skin[:, 1].max()  # the back lies flat on the table
        skin[:, 1] = np.where(skin[:, 1] > bottom - 12, bottom - 12 + 0.35 * (skin[:, 1] - bottom + 12), skin[:, 1])
        return skin, cage + normal * muscle[:, None]

    def _breast(self, image: np.ndarray, level: float, cage: np.ndarray, skin: np.ndarray) -> None:
        """Glandular tissue, a patch on each side."""
        swell = self.build.breast * np.exp(-(((level - 0.55) / 0.12) ** 2))
        for side in (-1, 1) if swell > 6 else ():
            tip = skin[np.argmin(np.abs(skin[:, 0] - side * 70 * self.build.width) + 9 * (skin[:, 1] > 0))]
            patch = ellipse(tip[0], tip[1] + 0.45 * swell + 3, 0.8 * swell, 0.36 * swell, side * 12)
            self.canvas.paint(image, patch, 20, 0.7)

    def _between_muscles(self, image: np.ndarray, level: float, cage: np.ndarray, muscle: np.ndarray) -> None:
        """Sheets of fat that part the muscles of the chest wall, and the hollow of the armpits."""
        canvas, normal, count = self.canvas, outward(cage), len(cage)
        depth = np.linalg.norm(muscle - cage, axis=1)
        for start, stop, share, thick in ((0.06, 0.20, 0.62, 1.3), (0.22, 0.36, 0.7, 1.6), (0.34, 0.46, 0.55, 1.2)):
            for part in (np.arange(int(start * count), int(stop * count)),
                         np.arange(int((1 - stop) * count), int((1 - start) * count))):  # fmt: skip
                swell = np.sin(np.linspace(0.05, np.pi - 0.05, len(part)))[:, None] * thick
                middle = cage[part] + normal[part] * np.maximum(depth[part] * share, 10)[:, None]
                band = np.concatenate([middle + normal[part] * swell, (middle - normal[part] * swell)[::-1]])
                canvas.paint(image, band, FAT, 0.85)
        if 0.05 < level < 0.42:
            size = np.sin((level - 0.05) / 0.37 * np.pi)
            for at in (0.26, 0.74):
                place = cage[int(at * count)] + normal[int(at * count)] * (depth[int(at * count)] * 0.6 + 4)
                canvas.paint(image, ellipse(*place, 9 * size + 1, 17 * size + 1), FAT, 0.9)
                canvas.paint(image, ellipse(place[0], place[1] - 5, 2.6, 2.6), BLOOD + self.build.contrast, size)

    def _vessels_and_heart(self, image: np.ndarray, level: float, motion: float) -> None:
        """Great vessels and heart; a heart in motion is the average of two of its sizes."""
        canvas, blood = self.canvas, BLOOD + self.build.contrast
        for name, keys in atlas.BLOOD_FILLED.items():
            for contour in self._organs(level, {name: keys}):
                if name != "heart":
                    canvas.paint(image, contour, blood)
                    continue
                centre = contour.mean(0)
                canvas.paint(image, centre + (contour - centre) * (1 + motion), MUSCLE, 0.5 if motion else 1.0)
                canvas.paint(image, contour, MUSCLE)
                for shift, scale in ((-0.36, 0.46), (0.4, 0.4)):
                    axis = contour[0] - centre
                    canvas.paint(image, centre + shift * axis + scale * (contour - centre) * (0.9, 1.25), blood)

    def _abdomen(self, image: np.ndarray, level: float, domes: list[np.ndarray]) -> None:
        """Liver under the right dome; stomach, spleen and fat under the left."""
        build, canvas = self.build, self.canvas
        if domes:
            image += domes[0] * (LIVER + 0.3 * build.contrast - image)
        if len(domes) < 2:
            return
        left = np.full_like(image, -20.0)
        x, y, a, b = self._fit(np.array(atlas.DOMES[1]))
        grow = np.sqrt(np.clip((level - build.dome_tops[1]) / 0.25, 0, 1.3))
        spleen = ellipse(x + 0.18 * a, y + 0.5 * b, 0.72 * a * grow, 0.44 * b * grow, -25)
        canvas.paint(left, spleen, 55 + 0.4 * build.contrast)
        canvas.paint(left, ellipse(x - 0.1 * a, y - 0.2 * b, 0.66 * a * grow, 0.5 * b * grow, 15), 35)
        canvas.paint(left, ellipse(x - 0.1 * a, y - 0.2 * b, 0.6 * a * grow, 0.43 * b * grow, 15), 15)
        if build.stomach < 0:
            bubble = ellipse(x - 0.1 * a, y - 0.2 * b, 0.58 * a * grow, 0.41 * b * grow, 15)
            bubble[:, 1] = np.minimum(bubble[:, 1], y - 0.16 * b)  # gas rises in a patient on the back
            canvas.paint(left, bubble, build.stomach)
        image += domes[1] * (left - image)


def _without_slivers(share: np.ndarray, least: int) -> np.ndarray:
    """Remove the scraps of lung, smaller than ``least`` pixels, that lie cut off between organs."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((share > 0.5).astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    if keep[1:].all():
        return share
    kept = cv2.dilate(keep[labels].astype(np.uint8), np.ones((3, 3), np.uint8))
    return share * kept
