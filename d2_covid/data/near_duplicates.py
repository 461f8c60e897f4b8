"""Near-duplicate images by perceptual hash: signs of the lowest DCT coefficients, compared by Hamming distance.

The hash is that of pHash with 16 x 16 coefficients instead of 8 x 8: at 64 bits, slices of two patients at the same
height come as near as two reconstructions of one scan. Brightness and contrast do not change it; size, JPEG quality
and slice thickness hardly do.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE = 16
BITS = SIDE * SIDE - 1
MAX_DISTANCE = 32
"""Bits of 255 by which near duplicates may differ. Measured on public lung CT of 13 patients: slices of a thick
and the nearest of a thin reconstruction of one scan differ by 1 to 11, the nearest slices of any two patients by 62 or
more. Of neighbouring slices as these sets store them, half differ by 5 to 68, by patient."""

_REDUCED = 64
_ROWS, _COLUMNS = 1024, 8192  # a block of distances is 32 MB


def perceptual_hash(image: np.ndarray) -> np.ndarray | None:
    """Hash of an (H, W) ``uint8`` image: (32,) ``uint8``, 255 bits packed. None: it shows nothing to compare by."""
    small = np.asarray(Image.fromarray(image).resize((_REDUCED, _REDUCED), Image.Resampling.BOX), np.float32)
    if np.ptp(small) < 16:
        return None
    # Without the first, the mean, whose sign says nothing.
    return np.packbits(dctn(small, norm="ortho")[:SIDE, :SIDE].ravel()[1:] > 0)


def near_duplicates(
    hashes: np.ndarray, groups: Sequence[int], patients: Sequence[int], max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[int, int, int]]:
    """For each image, the nearest before it of another group and patient, if that is near.

    Args:
        hashes: (N, 32) ``uint8``, from :func:`perceptual_hash`.
        groups: N numbers, the split of each image.
        patients: N numbers, the patient of each image.
        max_distance: most bits that may differ.

    Yields:
        (index, index of the nearest, bits that differ), in the order of the first; of equally near ones the earliest.
        Distances are worked out in blocks, so memory does not grow with the square of N.
    """
    groups, patients = np.asarray(groups), np.asarray(patients)
    for top in range(0, len(hashes), _ROWS):
        rows = slice(top, min(top + _ROWS, len(hashes)))
        row_signs = _signs(hashes[rows])
        nearest = np.full(row_signs.shape[0], BITS + 1, np.float32)
        which = np.zeros(row_signs.shape[0], np.int64)
        for left in range(0, rows.stop, _COLUMNS):
            columns = slice(left, min(left + _COLUMNS, rows.stop))
            distances = (BITS - row_signs @ _signs(hashes[columns]).T) / 2
            same = groups[rows, None] == groups[None, columns]
            same |= patients[rows, None] == patients[None, columns]
            same |= np.arange(rows.start, rows.stop)[:, None] <= np.arange(columns.start, columns.stop)[None]
            distances[same] = BITS + 1
            best = distances.argmin(axis=1)
            value = np.take_along_axis(distances, best[:, None], axis=1)[:, 0]
            better = value < nearest
            nearest[better], which[better] = value[better], best[better] + left
        for row in np.flatnonzero(nearest <= max_distance):
            yield top + int(row), int(which[row]), int(nearest[row])


def _signs(hashes: np.ndarray) -> np.ndarray:
    return np.unpackbits(hashes, axis=1, count=BITS).astype(np.float32) * 2 - 1
