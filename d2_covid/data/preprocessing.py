"""The one path from a CT slice to the network's input, for training, evaluation and prediction alike.

A slice is an (H, W) ``uint8`` array, black to white. :func:`read_slice` makes it from an image file,
:func:`window_to_uint8` from Hounsfield units, and :func:`network_input` turns it into what a model is fed.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from PIL import Image

from ..errors import UserError

# 16-bit gray whose highest value is below this holds 12 bits or fewer.
_TWELVE_BITS = 4096
# Windowed gray of a slice reaches from black far further than this; CT values with an offset, as HU + 32768, don't.
_NARROW = 8192
# What Pillow raises on a damaged file, by format and by how far it gets.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def open_image(path: str | Path) -> Image.Image:
    """Read an image file whole; the pixels as stored, whatever an EXIF orientation says about showing them.

    Raises:
        UserError: no such file, or an empty, truncated or multi-frame one, or one that is no image.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is an empty file; replace it with the image it should hold.")
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{path} holds {image.n_frames} frames; save each slice as an image file of its own.")
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that Pillow can read; replace or remove it.") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged or unreadable ({reason}); replace or remove it.") from error


def read_slice(path: str | Path) -> np.ndarray:
    """Read a slice from an image file.

    Colour becomes luminance (gray stays exactly as it is), transparency is ignored, palettes are looked up, and 16-bit
    files are scaled from their full range, 0..65535, to 0..255.

    Returns:
        (H, W) ``uint8`` array, writable and contiguous.

    Raises:
        UserError: the file can't be read as a slice; the message names it.
    """
    image = open_image(path)
    if image.mode == "L":
        return np.array(image)
    if image.mode.startswith("I"):  # "I;16" and its byte orders; older Pillow reads a 16-bit PNG as "I"
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path} holds values outside 0..65535; save slices as 8-bit or unsigned 16-bit images.")
        return ((values + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point values; save slices as 8-bit or unsigned 16-bit images.")
    return np.array(image.convert("RGB").convert("L"))


def turns_nearly_black(highest: float) -> bool:
    """Whether 16-bit gray up to ``highest`` is nearly black once it is scaled from the full range, 0..65535."""
    return 0 < highest < _TWELVE_BITS


def misread_16_bit(path: str | Path) -> tuple[str, str] | None:
    """What to say of a 16- or 32-bit image file that :func:`read_slice` makes nearly black, or nearly one gray.

    The pixels are read only where the header says more than 8 bits. A slice of one value alone is not called narrow.

    Returns:
        "dark_16_bit" or "narrow_16_bit", and a line that names the file; None: it is no such file.
    """
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            return None
    pixels = np.asarray(open_image(path))
    lowest, highest = int(pixels.min()), int(pixels.max())
    if turns_nearly_black(highest):
        kind, values, becomes = "dark_16_bit", f"no value above {highest}", "nearly black"
    elif 0 <= lowest < highest <= 65535 and highest - lowest < _NARROW:
        grays = " to ".join(str((value + 128) // 257) for value in (lowest, highest))
        kind, values, becomes = "narrow_16_bit", f"only values from {lowest} to {highest}", f"gray {grays} of 255"
    else:
        return None
    return kind, (
        f"{path} has more than 8 bits a pixel and {values}; such slices are read as 0 to 65535, so this one is "
        f"{becomes}. Save it as 8-bit after windowing, or scaled to the full range."
    )


def window_to_uint8(hounsfield: np.ndarray, level: float, width: float) -> np.ndarray:
    """Map Hounsfield units to gray: ``level - width / 2`` and less is 0, ``level + width / 2`` and more is 255.

    Between them the map is linear, and halves round up. Pixels without a value (NaN) become 0, as air.

    Args:
        hounsfield: array of any shape.
        level, width: centre and width of the window, in Hounsfield units.

    Returns:
        ``uint8`` array of the same shape.

    Raises:
        UserError: the width is not above 0.
    """
    if not width > 0:
        raise UserError(f"A Hounsfield window needs a width above 0, not {width} (INPUT.WINDOW.WIDTH).")
    gray = (np.asarray(hounsfield, dtype=np.float64) - (level - width / 2)) * (255 / width)
    return np.floor(np.clip(np.nan_to_num(gray, nan=0.0), 0, 255) + 0.5).astype(np.uint8)


def resize_transform(height: int, width: int, min_size: int, max_size: int) -> ResizeTransform:
    """Detectron2's resize of an (height, width) slice, as its ``ResizeShortestEdge`` would make it.

    Args:
        min_size: length of the shorter edge afterwards, in pixels (0: the slice keeps its size).
        max_size: most that the longer edge may have; where it would be more, the shorter one gets less.
    """
    size = (height, width)
    if min_size > 0:
        size = ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    return ResizeTransform(height, width, *size)


def network_input(slice_u8: np.ndarray, min_size: int, max_size: int) -> torch.Tensor:
    """Resize a slice and repeat it over three channels; mean and deviation are the model's own business.

    Args:
        slice_u8: (H, W) ``uint8``.
        min_size, max_size: as in :func:`resize_transform`; from ``INPUT.MIN_SIZE_*`` and ``INPUT.MAX_SIZE_*``.

    Returns:
        (3, h, w) ``uint8`` tensor, the same bytes as Detectron2's mapper gives.
    """
    if slice_u8.ndim != 2 or slice_u8.dtype != np.uint8:
        raise ValueError(f"a slice is an (H, W) uint8 array, not {slice_u8.shape} {slice_u8.dtype}")
    resize = resize_transform(*slice_u8.shape, min_size, max_size)
    resized = slice_u8 if slice_u8.shape == (resize.new_h, resize.new_w) else resize.apply_image(slice_u8)
    return torch.from_numpy(np.repeat(resized[None], 3, axis=0))
