"""What reading accepts at most, and how a reader's failure becomes one line.

The bounds hold before memory is taken: a header that claims more is refused, whatever the file holds. Readers keep
at most one volume of :data:`MAX_VOLUME_BYTES`, and copies of single slices.
"""

import logging
import os
import re
import stat
import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Iterator, Sequence

from ..errors import UserError

# 4096 x 4096: CT has 512 x 512, at most 2048 x 2048 in photon-counting scanners.
MAX_SLICE_PIXELS = 2**24
# 4096 slices of 512 x 512; at two bytes each, the bytes below.
MAX_VOLUME_VOXELS = 2**30
MAX_VOLUME_BYTES = 2**31
# Deflate packs at most 1032 bytes into one: a file that claims more than that does not hold it.
MAX_DEFLATE_RATIO = 1032
# A file's own header, inflated or not.
MAX_HEADER_BYTES = 2**26

_QUOTED = re.compile(r"""(?<!\w)b?(['"]).*?\1(?!\w)""")
_READERS = ("pydicom", "pydicom.pixels", "openjpeg", "openjpeg.decode", "libjpeg", "nibabel", "nibabel.global", "PIL")


def one_line(text: object, most: int = 300) -> str:
    """``text`` as one printable line of at most ``most`` characters: line breaks, control characters and bytes that
    are no UTF-8 are spelt out."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text).strip())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def counted(count: int, thing: str) -> str:
    """``"1 slice"``, ``"2 slices"``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _READERS}
    for name in _READERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever a reader raises on a damaged file into a :class:`UserError` of one line that names the file.

    The readers' own warnings about such a file are left out: they would be said for every slice. So is what they quote
    of it.
    """
    try:
        with warnings.catch_warnings(), _quiet_loggers():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{one_line(path)}: not enough memory to read it.") from error
    except FileNotFoundError as error:
        raise UserError(f"{one_line(path)}: no such file.") from error
    except PermissionError as error:
        raise UserError(f"{one_line(path)}: no permission to read it.") from error
    except Exception as error:  # pydicom, nibabel, SimpleITK and the decoders raise every kind on damaged files
        # Readers quote what they stumble over, and a header may hold a name where a number belongs.
        reason = _QUOTED.sub("'...'", " ".join(str(error).split()))
        reason = one_line(reason or type(error).__name__, 160)
        raise UserError(
            f"{one_line(path)} is damaged or unreadable ({reason.rstrip('.')}); replace or remove it."
        ) from error


def require(module: str, path: str | Path) -> ModuleType:
    """Import an optional reader.

    Raises:
        UserError: it is not installed, or does not import; the message gives the command.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{one_line(path)}: reading it needs {package}, which is not installed; pip install 'd2_covid[dicom]'."
        ) from error
    except Exception as error:  # as one that was made for another NumPy: no fault of the file
        raise UserError(
            f"{one_line(path)}: reading it needs {package}, which does not import here ({one_line(error, 160)}); "
            "pip install --upgrade 'd2_covid[dicom]'."
        ) from error


def file_size(path: str | Path) -> int:
    """Bytes of a regular file that is not empty.

    Raises:
        UserError: it is missing, empty, or something else, such as a pipe or a device.
    """
    with reading(path):
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{one_line(path)} is not a regular file.")
    if status.st_size == 0:
        raise UserError(f"{one_line(path)} is an empty file; replace it with the data it should hold.")
    return status.st_size


def check_shape(path: str | Path, shape: Sequence[int], bytes_per_voxel: int = 1) -> None:
    """Refuse a (slices, rows, columns) volume, or a (rows, columns) slice, that is empty or too large to read.

    Raises:
        UserError: the message names the file, its size and the bound.
    """
    size = " x ".join(str(int(n)) for n in reversed(shape))
    if min(shape) < 1:
        raise UserError(f"{one_line(path)} claims {size} voxels; replace or remove it.")
    pixels, voxels = int(shape[-1]) * int(shape[-2]), 1
    for n in shape:
        voxels *= int(n)
    if pixels > MAX_SLICE_PIXELS:
        raise UserError(f"{one_line(path)} claims {size} voxels; a slice may have {MAX_SLICE_PIXELS:,} pixels at most.")
    if voxels > MAX_VOLUME_VOXELS or voxels * bytes_per_voxel > MAX_VOLUME_BYTES:
        raise UserError(
            f"{one_line(path)} claims {size} voxels ({voxels * bytes_per_voxel:,} bytes); a volume may have "
            f"{MAX_VOLUME_VOXELS:,} voxels and {MAX_VOLUME_BYTES:,} bytes at most."
        )


def check_enough_data(path: str | Path, claimed_bytes: int, held_bytes: int, compressed: bool = False) -> None:
    """Refuse a file that can't hold the pixels its header claims.

    Raises:
        UserError: the message gives both numbers.
    """
    if claimed_bytes > held_bytes * (MAX_DEFLATE_RATIO if compressed else 1):
        raise UserError(
            f"{one_line(path)} is incomplete: its header claims {claimed_bytes:,} bytes of pixels, "
            f"the file holds {held_bytes:,} bytes; replace or remove it."
        )
