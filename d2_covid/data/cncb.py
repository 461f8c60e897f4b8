"""Turns slices with CNCB masks into the COCO jsons that training reads, and says what it made."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError
from .coco_json import patient_of, read_coco
from .datasets import prepared_json
from .files import write_json
from .lesion_masks import (
    CONSOLIDATION,
    GGO,
    MASK_TYPES,
    coco_annotation,
    lesion_components,
    read_mask,
    require_mask_type,
)
from .limits import counted
from .pairing import OUT_OF_PLACE, Pairing, SlicePair
from .preprocessing import read_slice
from .splits import Splits

VERSION = "1"
"""Version of the json's form, in its ``info``."""

SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""COCO's size classes by the area, in pixels, that a lesion is below."""


@dataclass
class SplitSummary:
    """What one json holds."""

    split: str
    mask_type: str
    json_file: Path
    patients: int
    slices: int
    slices_without_lesion: int
    instances: dict[str, dict[str, int]]  # class -> size -> count
    dropped: Counter[tuple[str, str]]  # (class, reason) -> count

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        lines = [
            f"{self.json_file}",
            f"  {counted(self.patients, 'patient')}, {counted(self.slices, 'slice')}, "
            f"{self.slices_without_lesion} of them without a lesion",
        ]
        for name, sizes in self.instances.items():
            by_size = ", ".join(f"{count} {size}" for size, count in sizes.items())
            lines.append(f"  {name}: {counted(sum(sizes.values()), 'instance')} ({by_size})")
        for (name, reason), count in sorted(self.dropped.items()):
            lines.append(f"  dropped: {counted(count, 'component')} of {name} ({reason})")
        return lines


@dataclass
class Preparation:
    """What :func:`prepare_lesions` made, and what it left out."""

    splits: list[SplitSummary] = field(default_factory=list)
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()
    out_of_place: tuple[Path, ...] = ()
    bad_slices: list[str] = field(default_factory=list)
    slices_in_no_split: int = 0
    lesions_seen: set[int] = field(default_factory=set)  # GGO, CONSOLIDATION
    of_another_split: tuple[Path, ...] = ()  # jsons of the set, of former runs

    def warnings(self) -> list[str]:
        """What a user may want to mend, one line each."""
        lines = [f"{path} has no mask of the same name; left out." for path in self.images_without_mask]
        lines += [f"{path} has no image of the same name; left out." for path in self.masks_without_image]
        lines += [f"{path} {OUT_OF_PLACE}; left out." for path in self.out_of_place]
        lines += [f"{message} Left out." for message in self.bad_slices]
        if self.slices_in_no_split:
            lines.append(f"{counted(self.slices_in_no_split, 'slice')} belong to no split; left out.")
        if self.of_another_split:
            names = ", ".join(path.name for path in self.of_another_split)
            folder = self.of_another_split[0].parent
            lines.append(
                f"{folder} keeps jsons of another split: {names}. Make them again with this one or remove them."
            )
        by_class = [s.mask_type for s in self.splits if s.mask_type != "merge"]
        if not self.lesions_seen:
            lines.append(
                "No mask holds a lesion (2 GGO, 3 consolidation), so every slice counts as healthy. Where the source "
                "marks lesions by another value, as binary masks do by 1, write them as 2."
            )
        elif by_class and CONSOLIDATION not in self.lesions_seen:
            lines.append(
                "No mask holds consolidation (value 3). If the source does not tell the two kinds of lesion apart, "
                "its ggo and both masks are wrong: use --mask-types merge."
            )
        return lines

    def text(self) -> str:
        """The whole summary, for people."""
        return "\n".join(line for split in self.splits for line in split.lines())


def check_pairing(pairing: Pairing) -> None:
    """Refuse images without a mask, masks without an image and what lies elsewhere, for those who want every file used.

    Raises:
        UserError: names the first file of a kind and counts the others.
    """
    for files, what in (
        (pairing.images_without_mask, "has no mask of the same name"),
        (pairing.masks_without_image, "has no image of the same name"),
        (pairing.out_of_place, OUT_OF_PLACE),
    ):
        if files:
            more = f" (and {len(files) - 1} more like it)" if len(files) > 1 else ""
            raise UserError(f"{files[0]} {what}{more}.")


def prepare_lesions(
    pairing: Pairing,
    splits: Splits,
    output: str | Path,
    *,
    mask_types: Sequence[str] = tuple(MASK_TYPES),
    min_area: int = 100,
    description: str = "",
    source: str = "",
    skip_bad: bool = False,
    progress: bool = True,
) -> Preparation:
    """Write ``<output>/annotations/<mask type>_<split>.json`` for every mask type and split.

    Reads each slice and mask once, checks that both can be read and fit, and keeps slices without lesions. The images
    stay where they are: ``info.image_root`` leads to them, relative to the json's folder where they lie under the
    folder that holds ``output``, absolute elsewhere. Nothing is written unless everything can be read; the same files
    give the same bytes. Jsons of the set that former runs left stay; those of another split are warned of.

    Args:
        pairing, splits: from :mod:`.pairing` and :mod:`.splits`.
        output: folder of the set; its last part is the set's name.
        min_area: components of this many pixels or fewer become background.
        description, source: for the json's ``info``.
        skip_bad: leave out slices that can't be read or don't fit their mask, rather than refuse them.
        progress: show a bar on stderr.

    Raises:
        UserError: bad slices (the first, and the number of others), no slice left, or no permission to write.
    """
    for mask_type in mask_types:
        require_mask_type(mask_type)
    if min_area < 0:
        raise UserError(f"--min-area is {min_area}; it takes 0 or more pixels.")
    output = Path(output)
    in_splits = sum(len(pairs) for pairs in splits.values())
    done = Preparation(
        images_without_mask=pairing.images_without_mask,
        masks_without_image=pairing.masks_without_image,
        out_of_place=pairing.out_of_place,
        slices_in_no_split=len(pairing.pairs) - in_splits,
    )
    jsons: list[tuple[Path, dict]] = []
    with tqdm(total=in_splits, desc="Reading slices", unit="slice", disable=not progress) as bar:
        for split, pairs in splits.items():
            builders = [_JsonBuilder(output, mask_type, split, min_area) for mask_type in mask_types]
            for pair in pairs:
                try:
                    _add_slice(pair, pairing.image_root, builders, done)
                except UserError as error:
                    done.bad_slices.append(str(error))
                bar.update()
            for builder in builders:
                if not builder.images and not done.bad_slices:
                    raise UserError(f"The split {split} has no slices.")
                done.splits.append(builder.summary())
                jsons.append((builder.path, builder.content(description, source, pairing.image_root)))
    if done.bad_slices and not skip_bad:
        more = f" ({len(done.bad_slices) - 1} more bad slices; --skip-bad lists and leaves them out.)"
        raise UserError(done.bad_slices[0] + more * (len(done.bad_slices) > 1))
    empty = [path for path, content in jsons if not content["images"]]
    if empty:
        raise UserError(f"No slice is left for {empty[0]}; of {len(done.bad_slices)} bad ones: {done.bad_slices[0]}")
    for path, content in jsons:
        write_json(path, content)
    done.of_another_split = _of_another_split(dict(jsons))
    return done


def _of_another_split(written: Mapping[Path, dict]) -> tuple[Path, ...]:
    """Jsons beside those written whose patients are now others, or, of a split not written, in one that was."""
    now = {path.stem.partition("_")[2]: _patients(content) for path, content in written.items()}
    everyone = set().union(*now.values())
    found = []
    for path in sorted({other for one in written for other in one.parent.glob("*.json")} - written.keys()):
        mask_type, _, split = path.stem.partition("_")
        if mask_type not in MASK_TYPES or not split or "_" in split:
            continue  # no dataset has its name
        with suppress(UserError):  # nothing can be trained on what can't be read
            patients = _patients(read_coco(path))
            if patients != now.get(split, patients - everyone):
                found.append(path)
    return tuple(found)


def _patients(content: dict) -> set[str]:
    return {patient_of(image)[0] for image in content["images"] if "file_name" in image}


def _add_slice(pair: SlicePair, image_root: Path, builders: Iterable["_JsonBuilder"], done: Preparation) -> None:
    image, mask = read_slice(pair.image), read_mask(pair.mask)
    if image.shape != mask.shape:
        raise UserError(
            f"{pair.image} is {image.shape[1]}x{image.shape[0]}, but its mask {pair.mask} is "
            f"{mask.shape[1]}x{mask.shape[0]}; they must be of one size."
        )
    done.lesions_seen.update(kind for kind in (GGO, CONSOLIDATION) if (mask == kind).any())
    for builder in builders:
        builder.add(pair, image_root, mask)


class _JsonBuilder:
    """Collects the json of one mask type and split."""

    def __init__(self, output: Path, mask_type: str, split: str, min_area: int):
        self.mask_type, self.split, self.min_area = mask_type, split, min_area
        self.path = prepared_json(output.name, mask_type, split, root=output.parent)
        self.classes = MASK_TYPES[mask_type]
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.dropped: Counter[tuple[str, str]] = Counter()

    def add(self, pair: SlicePair, image_root: Path, mask) -> None:
        kept, dropped = lesion_components(mask, self.mask_type, self.min_area, source=pair.mask)
        image_id = len(self.images) + 1
        self.images.append(
            {
                "id": image_id,
                "file_name": pair.image.relative_to(image_root).as_posix(),
                "height": mask.shape[0],
                "width": mask.shape[1],
                "patient_id": pair.patient_id,
            }
        )
        for lesion in kept:
            self.annotations.append(coco_annotation(lesion, len(self.annotations) + 1, image_id))
        self.dropped.update((self.classes[component.category], component.reason) for component in dropped)

    def content(self, description: str, source: str, image_root: Path) -> dict:
        return {
            "info": {
                "description": description,
                "mask_type": self.mask_type,
                "min_area": self.min_area,
                "image_root": _reachable(image_root, self.path),
                "source": source,
                "version": VERSION,
            },
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes, start=1)],
        }

    def summary(self) -> SplitSummary:
        instances = {name: dict.fromkeys(SIZES, 0) for name in self.classes}
        for annotation in self.annotations:
            size = next(size for size, limit in SIZES.items() if annotation["area"] < limit)
            instances[self.classes[annotation["category_id"] - 1]][size] += 1
        return SplitSummary(
            split=self.split,
            mask_type=self.mask_type,
            json_file=self.path,
            patients=len({image["patient_id"] for image in self.images}),
            slices=len(self.images),
            slices_without_lesion=len(self.images) - len({a["image_id"] for a in self.annotations}),
            instances=instances,
            dropped=self.dropped,
        )


def _reachable(image_root: Path, json_file: Path) -> str:
    """``image_root`` relative to the json's folder when both lie under the folder of the sets, else absolute."""
    image_root, folder = image_root.absolute(), json_file.absolute().parent
    sets = folder.parent.parent
    if image_root.is_relative_to(sets):
        return Path(os.path.relpath(image_root, folder)).as_posix()
    return image_root.as_posix()
