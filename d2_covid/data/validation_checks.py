"""What is looked at in the files of one slice: whether they can be read, agree, and look like CT."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from .lesion_masks import CONSOLIDATION, GGO, lesion_components, read_mask
from .preprocessing import misread_16_bit, open_image, read_slice
from .validation_findings import Findings
from .validation_sources import TINY_AREA, CheckedSlice, Split

# Slices of lung CT, measured on 13 patients in two windows: at most 22% black, 12% white, and 129 grays or more between
# the first and the last percentile; figures from papers: 62%, 57% and 142.
_BLACK, _WHITE, _NEARLY_ALL = 8, 247, 0.9
_FEW_GRAYS = 64
_COLOUR_DIFFERENCE, _COLOURED_SHARE = 32, 0.001


def check_slice(entry: CheckedSlice, findings: Findings) -> np.ndarray | None:
    """Read an image, note what is wrong with it, and give its (H, W) ``uint8`` pixels; None if it can't be read."""
    try:
        image = read_slice(entry.image)
    except UserError as error:
        findings.add("unreadable_file", entry.image, error, (entry.image,))
        return None
    if entry.size is not None and image.shape != entry.size:
        size, said = ("x".join(str(n) for n in shape[::-1]) for shape in (image.shape, entry.size))
        message = f"{entry.image} is {size} (width x height), and its json says {said}."
        findings.add("size_differs", entry.image, message, (entry.image,))
    _check_stored(entry.image, findings)
    _check_grays(entry.image, image, findings)
    return image


def _check_stored(path: str, findings: Findings) -> None:
    misread = misread_16_bit(path)
    if misread is not None:
        kind, message = misread
        findings.add(kind, path, message, (path,))
    with Image.open(path) as file:  # its header only
        mode = file.mode
    if mode in ("RGB", "RGBA", "P"):
        colours = np.asarray(open_image(path).convert("RGB"), np.int16)
        share = float((np.ptp(colours, axis=2) > _COLOUR_DIFFERENCE).mean())
        if share > _COLOURED_SHARE:
            message = f"{path} has colours in {share:.1%} of its pixels; marks drawn on a slice are learnt too."
            findings.add("coloured", path, message, (path,))


def _check_grays(path: str, image: np.ndarray, findings: Findings) -> None:
    counts = np.bincount(image.ravel(), minlength=256)
    shares = counts.cumsum() / image.size
    black, white = float(shares[_BLACK]), float(1 - shares[_WHITE - 1])
    low, high = (int(np.searchsorted(shares, share)) for share in (0.01, 0.99))
    if counts.max() == image.size:
        findings.add("constant", path, f"{path}: all its pixels are {int(image.flat[0])}.", (path,))
    elif black > _NEARLY_ALL:
        message = f"{path}: {black:.0%} of it is black ({_BLACK} or less of 255)."
        findings.add("nearly_black", path, message, (path,))
    elif white > _NEARLY_ALL:
        message = f"{path}: {white:.0%} of it is white ({_WHITE} or more of 255)."
        findings.add("nearly_white", path, message, (path,))
    elif high - low < _FEW_GRAYS:
        message = f"{path}: 98% of it lies between the grays {low} and {high}; a windowed CT has air and tissue."
        findings.add("low_contrast", path, message, (path,))


class MaskChecks:
    """Looks at the masks of a folder, one after the other, in natural order of their names.

    Blank masks lie above and below the lungs; one between masks of its scan with lung marked was not drawn.
    """

    def __init__(self, split: Split, findings: Findings) -> None:
        self._split, self._findings = split, findings
        # Blank masks of a patient's scan since its last one with lung; no entry before its first.
        self._blank: dict[tuple[str, str], list[CheckedSlice]] = {}

    def check(self, entry: CheckedSlice, image_shape: tuple[int, ...] | None) -> None:
        """Read a mask, and compare it with its image, of (H, W) ``image_shape``; None if that can't be read."""
        try:
            mask = read_mask(entry.mask)
        except UserError as error:
            self._findings.add(_mask_error_kind(entry.mask), entry.mask, error, (entry.image, entry.mask))
            return
        if image_shape is not None and mask.shape != image_shape:
            mask_size, size = ("x".join(str(n) for n in shape[::-1]) for shape in (mask.shape, image_shape))
            message = f"{entry.mask} is {mask_size} (width x height), and its image is {size}."
            self._findings.add("size_differs", entry.mask, message, (entry.image, entry.mask))
        occurs = np.bincount(mask.ravel(), minlength=CONSOLIDATION + 1) > 0
        self._split.class_counts["GGO"] += int(occurs[GGO])
        self._split.class_counts["consolidation"] += int(occurs[CONSOLIDATION])
        if occurs[GGO] or occurs[CONSOLIDATION]:
            _, tiny = lesion_components(mask, "merge", TINY_AREA)
            if tiny:
                areas = ", ".join(str(one.area) for one in tiny)
                message = f"{entry.mask}: {len(tiny)} of its lesions of {TINY_AREA} pixels or fewer ({areas})."
                shown, boxes = (entry.image, entry.mask), tuple(one.bbox for one in tiny)
                self._findings.add("tiny_lesion", entry.mask, message, shown, boxes)
        else:
            self._split.without_lesion += 1
        self._look_between(entry, blank=not occurs[1:].any(), lung=bool(occurs[1]))

    def _look_between(self, entry: CheckedSlice, blank: bool, lung: bool) -> None:
        scan = (entry.patient_id, Path(entry.mask).stem.rpartition("_")[0])  # a patient of a flat folder may have two
        if lung:
            for one in self._blank.get(scan, ()):
                message = f"{one.mask} is empty, neither lung nor lesion, but lies between masks with lung marked."
                self._findings.add("empty_mask", one.mask, message, (one.image, one.mask))
            self._blank[scan] = []
        elif blank and scan in self._blank:
            self._blank[scan].append(entry)


def _mask_error_kind(path: str | Path) -> str:
    try:
        open_image(path)
    except UserError:
        return "unreadable_file"
    return "label_out_of_range"
