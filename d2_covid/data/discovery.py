"""Files, folders and globs -> series, one at a time; what can't be read becomes a line, and stops nothing else."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Literal, Sequence

from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from .dicom_headers import DicomFrame, LeftOut, read_frames
from .dicom_series import assemble, series_key
from .globs import expand
from .intensity import Unit
from .limits import check_shape, file_size, one_line, reading
from .pairing import IMAGE_SUFFIXES, natural_key
from .preprocessing import read_slice
from .stored_range import misread_images
from .volume_files import VOLUME_SUFFIXES, VolumeFormat, inflated_start, is_nifti_header, read_volume
from .volumes import Problem, Series, renamed

Content = Literal["dicom", "image", "NIfTI", "MetaImage", "NRRD"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
# "BM" may begin a text, too: in a BMP the size of its second header follows.
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_MAX_NAME = 100
_MET_BEFORE = "another name of a file that was met before; each file is read once"


@dataclass
class _Found:
    """What the inputs hold: paths and headers, no pixels.

    Attributes:
        seen: the files taken, left out, or found to be damaged, by device and inode, each with the names met.
        met: how often one of these was come upon, the first time and later.
    """

    frames: list[DicomFrame] = field(default_factory=list)
    volumes: list[tuple[Path, VolumeFormat]] = field(default_factory=list)
    images: dict[Path, list[Path]] = field(default_factory=dict)
    left_out: dict[tuple[Path, str], list[Path]] = field(default_factory=dict)
    seen: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    met: int = 0

    def remember(self, path: Path, identity: tuple[int, int] | None) -> None:
        """Note that a file was met, so that it is read once."""
        if identity is not None:
            self.seen[identity] = {path.name}


def discover(
    inputs: Sequence[str | Path], assume_window: bool = False, on_found: Callable[[int], None] | None = None
) -> Iterator[Series | Problem]:
    """Find all series in ``inputs``, and read them one after the other.

    An input is an image, a DICOM file, a NIfTI, MetaImage or NRRD volume, a folder of any of these at any depth, or a
    glob (``**`` for any depth). Files are told by their content. DICOM files become series by their SeriesInstanceUID,
    whatever folder or input they come from; images of one folder become one series of loose slices in natural order;
    a volume is a series. A file that several inputs name is read once; so is one that has several names, with a word.
    Symlinks are followed, loops of them end. What is no CT is passed over in folders and globs, DICOM with a word; a
    file that is named must be one.

    All headers are read before the first series comes. Let go of a series before taking the next, and no more than one
    is ever held.

    Args:
        assume_window: take volumes that can't be in Hounsfield units as gray of a window already applied.
        on_found: called once, before the first series, with the number of series that the headers speak of.

    Yields:
        A :class:`.volumes.Series`, or a :class:`.volumes.Problem` for each thing that can't be read or is left out.
    """
    found = _Found()
    for item in inputs:
        try:
            yield from _take(item, found)
        except UserError as error:
            yield Problem(one_line(item), str(error))
    for (folder, reason), paths in found.left_out.items():
        files = f"{paths[0].name}" if len(paths) == 1 else f"{len(paths)} files, the first {paths[0].name}"
        yield Problem(one_line(folder), f"{one_line(folder)}: left out: {reason} ({one_line(files)}).", failed=False)
    if on_found is not None:
        on_found(len({series_key(frame) for frame in found.frames}) + len(found.volumes) + len(found.images))
    used: set[str] = set()
    for result in _read(found, assume_window):
        if isinstance(result, Series):
            result = renamed(result, _unique(result.identifier, used))
        yield result
        del result


def _take(item: str | Path, found: _Found) -> Iterator[Problem]:
    """Add one input's files to ``found``. What a glob matches is looked at as what a folder holds: nobody named it."""
    path, paths = Path(item), expand(item)
    named = paths == [path] and not os.path.isdir(path)
    before, failed = found.met, False
    for top in paths:
        for entry in _walk(top) if os.path.isdir(top) else [top]:
            problems = [entry] if isinstance(entry, Problem) else list(_take_file(entry, found, named))
            failed = failed or any(problem.failed for problem in problems)
            yield from problems
    if not failed and found.met == before:
        yield Problem(one_line(path), f"{one_line(path)} holds no CT that can be read: no image, DICOM file or volume.")


def _walk(top: Path) -> Iterator[Path | Problem]:
    """Files below a folder in natural order; each folder once, however many links lead to it."""
    pending, visited = [top], set()
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(folder), key=natural_key)
        except OSError as error:
            yield Problem(one_line(folder), f"Cannot read {one_line(folder)}: {error.strerror or error}.")
            continue
        paths = [folder / name for name in names if not name.startswith(".")]
        folders = dict.fromkeys(path for path in paths if os.path.isdir(path))
        yield from (path for path in paths if path not in folders)
        pending += reversed(folders)


def _take_file(path: Path, found: _Found, named: bool) -> Iterator[Problem]:
    """Add one file. In a folder, files that are none of ours are passed over; one that the user names is a problem."""
    expected, identity = _has_known_suffix(path), _identity(path)
    if identity in found.seen:
        found.met += 1
        if path.name not in found.seen[identity]:  # a copy to the eye: as hard links, or links into a store
            found.seen[identity].add(path.name)
            found.left_out.setdefault((path.parent, _MET_BEFORE), []).append(path)
        return
    try:
        if not (named or expected) and not (os.path.isfile(path) and path.stat().st_size):
            return
        file_size(path)
        with reading(path):
            content = sniff(path)
        if content is None and path.name.lower().endswith(IMAGE_SUFFIXES):
            content = "image"  # Pillow says what is wrong with it
        if content is None:
            if named or expected:
                raise UserError(
                    f"{one_line(path)} is no image, DICOM file, NIfTI, MetaImage or NRRD volume"
                    f"{', whatever its name says' if expected else ''}; replace or remove it."
                )
            return
        _add(path, content, found, named)
        found.remember(path, identity)
        found.met += 1
    except (UserError, OSError) as error:
        found.remember(path, identity)  # told of once, however many inputs name it
        unread = f"Cannot read {one_line(path)}: {getattr(error, 'strerror', None) or error}."
        yield Problem(one_line(path), str(error) if isinstance(error, UserError) else unread)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where it can't be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _add(path: Path, content: Content, found: _Found, named: bool) -> None:
    if content == "dicom":
        frames = read_frames(path)
        if not isinstance(frames, LeftOut):
            found.frames += frames
        elif named:
            raise UserError(f"{one_line(path)} is no slice of a CT: {frames.reason}.")
        else:
            found.left_out.setdefault((path.parent, frames.reason), []).append(path)
    elif content == "image":
        _check_image(path)
        found.images.setdefault(path.parent, []).append(path)
    else:
        found.volumes.append((path, content))


def _has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith((*_DICOM_SUFFIXES, *VOLUME_SUFFIXES, *IMAGE_SUFFIXES))


def sniff(path: str | Path) -> Content | None:
    """What a file is by its first bytes, whatever its name; None if it is nothing that can be read."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if start[128:132] == b"DICM":
        return "dicom"
    if start.startswith(b"\x1f\x8b"):
        try:
            start = inflated_start(path)
        except (OSError, EOFError, ValueError) as error:
            reason = one_line(error, 100)
            raise UserError(f"{one_line(path)} is damaged or unreadable ({reason}); replace or remove it.") from error
        return "NIfTI" if is_nifti_header(start) else None
    if is_nifti_header(start):
        return "NIfTI"
    if start.startswith(b"NRRD000"):
        return "NRRD"
    if re.search(rb"^\s*NDims\s*=", start, re.MULTILINE):
        return "MetaImage"
    is_bmp = start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in _BMP_HEADER_BYTES
    if is_bmp or start.startswith(_IMAGE_STARTS):
        return "image"
    # DICOM without its preamble opens with an element of group 2 or 8, little endian.
    if start[:2] in (b"\x08\0", b"\x02\0") and len(start) > 132 and start[3:4] == b"\0":
        return "dicom"
    return None


def _check_image(path: Path) -> None:
    """Refuse, from its header, an image that is none, is too large, or holds several."""
    with reading(path):
        try:
            with Image.open(path) as image:
                check_shape(path, image.size[::-1])
                frames = getattr(image, "n_frames", 1)
        except UnidentifiedImageError as error:
            raise UserError(f"{one_line(path)} is not an image that Pillow can read; replace or remove it.") from error
    if frames > 1:
        raise UserError(f"{one_line(path)} holds {frames} frames; save each slice as an image file of its own.")


def _read(found: _Found, assume_window: bool) -> Iterator[Series | Problem]:
    yield from assemble(found.frames, assume_window)
    for path, form in found.volumes:
        try:
            yield read_volume(path, form, _stem(path), assume_window)
        except UserError as error:
            yield Problem(one_line(path), str(error))
    for folder, paths in found.images.items():
        yield _loose_images(folder, paths)


def _loose_images(folder: Path, paths: Sequence[Path]) -> Series:
    files = tuple(sorted(paths, key=lambda path: natural_key(path.name)))

    def read_plane(axis: int, index: int):
        with reading(files[index]):
            return read_slice(files[index])

    identifier = _stem(files[0]) if len(files) == 1 else (folder.resolve().name or "images")
    names = tuple(path.name for path in files)
    return Series(identifier, "images", files, names, None, Unit("byte"), read_plane, warnings=misread_images(files))


def _stem(path: Path) -> str:
    name = path.name
    suffix = next((suffix for suffix in sorted(VOLUME_SUFFIXES, key=len, reverse=True)
                   if name.lower().endswith(suffix)), path.suffix)  # fmt: skip
    return name[: len(name) - len(suffix)] or name


def _unique(identifier: str, used: set[str]) -> str:
    """``identifier`` as a file name that no other series has, in letters, digits, dots, dashes and underscores."""
    name = re.sub(r"[^\w.-]+", "_", identifier.encode("utf-8", "replace").decode("utf-8")).strip("._")
    name = name[:_MAX_NAME] or "series"
    number, unique = 1, name
    while unique.lower() in used:
        number += 1
        unique = f"{name}-{number}"
    used.add(unique.lower())
    return unique
