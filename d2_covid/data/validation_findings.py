"""What a check of a data set finds: kinds of errors and warnings, counted, with the first few of each kept."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding: how bad it is, and what it means in words."""

    severity: Severity
    text: str


KINDS: dict[str, Kind] = {
    "missing_file": Kind("error", "file missing"),
    "unreadable_file": Kind("error", "file damaged or unreadable"),
    "size_differs": Kind("error", "sizes differ"),
    "label_out_of_range": Kind("error", "label out of range"),
    "category_ids": Kind("error", "categories malformed, or their ids not 1 to K"),
    "mask_type": Kind("error", "mask type that does not fit the json"),
    "box_outside": Kind("error", "box empty, malformed or outside its image"),
    "box_differs": Kind("error", "box that does not fit its mask"),
    "no_segmentation": Kind("error", "annotation without segmentation"),
    "bad_segmentation": Kind("error", "segmentation empty, malformed or of another size"),
    "all_crowd": Kind("error", "every annotation is a crowd region, no lesion"),
    "empty_mask": Kind("error", "mask is empty between others with lung"),
    "mask_without_image": Kind("error", "mask without its image"),
    "bad_entry": Kind("error", "malformed entry"),
    "patient_in_two_splits": Kind("error", "patient in two splits"),
    "image_in_two_splits": Kind("error", "image in two splits"),
    "image_without_mask": Kind("warning", "image without a mask, not used"),
    "file_out_of_place": Kind("warning", "slice or mask in another folder than the layout's, not used"),
    "no_patient": Kind("warning", "patient unknown"),
    "crowd": Kind("warning", "crowd regions, which are no lesions"),
    "class_missing": Kind("warning", "class that never occurs"),
    "tiny_lesion": Kind("warning", "tiny lesion, background to the paper's preparation"),
    "constant": Kind("warning", "all pixels equal"),
    "nearly_black": Kind("warning", "nearly all black"),
    "nearly_white": Kind("warning", "nearly all white"),
    "low_contrast": Kind("warning", "few grays, unlike a CT window"),
    "dark_16_bit": Kind("warning", "12-bit values in 16 or 32 bits: reads as nearly black"),
    "narrow_16_bit": Kind("warning", "few of the values of 16 or 32 bits, as with an offset: reads as nearly one gray"),
    "coloured": Kind("warning", "colours in it"),
    "near_duplicate": Kind("warning", "near-duplicate images"),
    "no_lesion": Kind("info", "slices without lesions"),
}
"""Every kind of finding, in the order in which they are told."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: key of :data:`KINDS`.
        file: the file, patient or class that it is about.
        message: one line.
        pictures: image files that show it, the slice itself first.
        boxes: places on the first picture, [x, y, width, height] in its pixels.
    """

    kind: str
    file: str
    message: str
    pictures: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()


class Findings:
    """Counts every finding, and keeps the first ``max_shown`` of each kind: memory stays flat however bad a set is."""

    def __init__(self, max_shown: int = 10) -> None:
        self.max_shown = max_shown
        self.counts: Counter[str] = Counter()
        self._kept: dict[str, list[Finding]] = {kind: [] for kind in KINDS}

    def add(
        self,
        kind: str,
        file: object,
        message: object,
        pictures: tuple[str, ...] = (),
        boxes: tuple[tuple[float, ...], ...] = (),
        count: int = 1,
    ) -> None:
        """Note a finding, which stands for ``count``."""
        self.counts[kind] += count
        if len(self._kept[kind]) < self.max_shown:
            self._kept[kind].append(Finding(kind, str(file), str(message), pictures, boxes))

    @contextmanager
    def collecting(self, kind: str, file: object, pictures: tuple[str, ...] = ()) -> Iterator[None]:
        """Note a :class:`UserError` of the block as a finding; the block ends there."""
        try:
            yield
        except UserError as error:
            self.add(kind, file, error, pictures)

    def kept(self, kind: str) -> list[Finding]:
        """The first findings of a kind."""
        return self._kept[kind]

    def found(self) -> list[str]:
        """Kinds that occurred, in the order of :data:`KINDS`."""
        return [kind for kind in KINDS if self.counts[kind]]

    def total(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(self.counts[kind] for kind in self.found() if KINDS[kind].severity == severity)
