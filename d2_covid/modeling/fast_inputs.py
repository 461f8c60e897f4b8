"""From the images of a batch to the one tensor that :class:`.fast_backbone.FastStem` reads."""

import torch
from torch.nn import functional as F


def is_gray(image: torch.Tensor) -> bool:
    """Whether all channels of an image (C, h, w) are equal."""
    first = image[0]
    return all(torch.equal(first, other) for other in image[1:])


def network_batch(
    images: list[torch.Tensor],
    pixel_mean: torch.Tensor,
    pixel_std: torch.Tensor,
    divisibility: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """N images, of any sizes, as one tensor on the model's device.

    Args:
        images: (3, h, w) or (1, h, w), not normalised; gray ones are told by their values.
        pixel_mean, pixel_std: (3, 1, 1).
        divisibility: the tensor's height and width become multiples of it.
        dtype: of the result.

    Returns:
        (N, 1, H, W) gray values if every image is gray and fills the tensor; (N, 2, H, W) gray values, and 1 where the
        image is, if every image is gray; else (N, 3, H, W) normalised colour, padded with zeros.
    """
    device = pixel_mean.device
    heights, widths = zip(*(image.shape[-2:] for image in images))
    step = max(divisibility, 1)
    height, width = (-(-max(lengths) // step) * step for lengths in (heights, widths))
    if not all(is_gray(image) for image in images):
        normal = [(image.to(device) - pixel_mean) / pixel_std for image in images]
        batch = torch.stack([_padded(image, height, width) for image in normal])
    else:
        planes = [image[:1] for image in images]
        if min(heights) == height and min(widths) == width:
            batch = torch.stack(planes).to(device)
        else:
            planes = [torch.cat((plane, torch.ones_like(plane))) for plane in planes]
            batch = torch.stack([_padded(plane, height, width) for plane in planes]).to(device)
    return batch.to(dtype=dtype, memory_format=torch.channels_last)


def _padded(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
