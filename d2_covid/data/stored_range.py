"""What is said of image files that use little of their 16 or 32 bits, a few of them for a whole set."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from .intensity import sampled_slices
from .limits import one_line, reading
from .preprocessing import misread_16_bit

logger = logging.getLogger(__name__)


def misread_images(files: Sequence[str | Path]) -> tuple[str, ...]:
    """What to warn of where images are read as nearly black, or as nearly one gray; a few files stand for all.

    Returns:
        A line for each of the two: what is wrong with the first such file, and how many are like it.
    """
    looked_at = [files[index] for index in sampled_slices(len(files))]
    found: dict[str, list[str]] = {}
    for path in looked_at:
        with suppress(UserError), reading(path):  # one that can't be read is told when its turn comes
            misread = misread_16_bit(path)
            if misread is not None:
                found.setdefault(misread[0], []).append(misread[1])
    of_how_many = f" of the {len(looked_at)} images looked at."
    return tuple(
        one_line(alike[0], 600) + (f" So it is in {len(alike)}{of_how_many}" if len(looked_at) > 1 else "")
        for alike in found.values()
    )


def warn_of_misread_images(loaded: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Log :func:`misread_images` of datasets, given as name -> dataset dicts."""
    for name, dicts in loaded.items():
        # Datasets that other code registered may hold no files.
        for line in misread_images([d["file_name"] for d in dicts if "file_name" in d]):
            logger.warning("Dataset %s: %s", name, line)
