"""Batches on their way from a loader's worker to a GPU: in one piece, small, and without anybody waiting.

A worker packs the tensors of a batch into one buffer: a gray image as one channel, masks as bits. The buffer is pinned
and copied once, and comes apart on the GPU, where a batch is again what the mapper made: a list of dicts, with tensors
of the same values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

_ALIGNMENT = 16

Layout = tuple[torch.dtype, tuple[int, ...], int]
"""Type and shape of a tensor in the buffer, and the byte that it begins at."""


@dataclass(frozen=True)
class PackedBatch:
    """A batch in one buffer.

    Attributes:
        buffer: (bytes,) uint8.
        layouts: where each tensor lies.
        samples: the samples, an index into ``layouts`` (:class:`_Packed`) for each tensor.
        mask_bits: the masks of all samples, bits in a row, first bit highest; None without masks.
    """

    buffer: torch.Tensor
    layouts: list[Layout]
    samples: list[dict[str, Any]]
    mask_bits: "_Packed | None"

    def pin_memory(self, device: Any = None) -> "PackedBatch":
        """The same in page-locked memory; ``DataLoader`` calls it."""
        return PackedBatch(self.buffer.pin_memory(), self.layouts, self.samples, self.mask_bits)

    def unpack(self, device: torch.device) -> list[dict[str, Any]]:
        """The samples, their tensors on ``device``; does not wait for the copy if the buffer is pinned."""
        buffer = self.buffer.to(device, non_blocking=True)
        tensors = [
            buffer[start : start + dtype.itemsize * _count(shape)].view(dtype).view(shape)
            for dtype, shape, start in self.layouts
        ]
        bits = unpack_bits(tensors[self.mask_bits.index]) if self.mask_bits else None
        return [{key: _unpacked(value, tensors, bits) for key, value in sample.items()} for sample in self.samples]


@dataclass(frozen=True)
class _Packed:
    """In place of a tensor. ``channels``: how often its one channel is repeated."""

    index: int
    channels: int = 1


@dataclass(frozen=True)
class _PackedInstances:
    """In place of an ``Instances``: boxes, classes, and which of the batch's mask bits are its."""

    image_size: tuple[int, int]
    boxes: _Packed
    classes: _Packed
    first_bit: int


def pack(samples: list) -> PackedBatch | list:
    """A loader's ``collate_fn``. A batch that holds anything but dicts comes back as it is.

    Of each sample ``image``, ``ranked_rows`` and ``instances`` with the mapper's fields are packed; other values stay.
    """
    if not all(isinstance(sample, dict) for sample in samples):
        return samples
    tensors: list[torch.Tensor] = []
    masks: list[np.ndarray] = []
    num_bits = 0

    def packed(tensor: torch.Tensor) -> _Packed:
        gray = tensor.dim() == 3 and len(tensor) > 1 and all(torch.equal(tensor[0], other) for other in tensor[1:])
        channels = len(tensor) if gray else 1
        tensors.append(tensor[:1] if gray else tensor)
        return _Packed(len(tensors) - 1, channels)

    results = []
    for sample in samples:
        result = dict(sample)
        for key, value in sample.items():
            if isinstance(value, torch.Tensor):
                result[key] = packed(value)
            elif isinstance(value, Instances) and set(value.get_fields()) == {"gt_boxes", "gt_classes", "gt_masks"}:
                result[key] = _PackedInstances(
                    value.image_size, packed(value.gt_boxes.tensor), packed(value.gt_classes), num_bits
                )
                masks.append(value.gt_masks.tensor.numpy().reshape(-1))
                num_bits += masks[-1].size
        results.append(result)
    mask_bits = packed(torch.from_numpy(np.packbits(np.concatenate(masks)))) if masks else None

    layouts, end = [], 0
    for tensor in tensors:
        layouts.append((tensor.dtype, tuple(tensor.shape), end))
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8)
    for tensor, (dtype, shape, start) in zip(tensors, layouts):
        buffer[start : start + dtype.itemsize * _count(shape)].view(dtype).view(shape).copy_(tensor)
    return PackedBatch(buffer, layouts, results, mask_bits)


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """``numpy.unpackbits`` on any device: (bytes,) uint8 to (8 * bytes,) bool."""
    weights = 2 ** torch.arange(7, -1, -1, device=packed.device)
    return (packed[:, None] & weights.to(torch.uint8)).bool().flatten()


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _unpacked(value: Any, tensors: list[torch.Tensor], bits: torch.Tensor | None) -> Any:
    if isinstance(value, _Packed):
        tensor = tensors[value.index]
        return tensor.expand(value.channels, -1, -1) if value.channels > 1 else tensor
    if isinstance(value, _PackedInstances):
        boxes, classes = tensors[value.boxes.index], tensors[value.classes.index]
        shape = (len(classes), *value.image_size)
        masks = bits[value.first_bit : value.first_bit + _count(shape)].view(shape)
        return Instances(value.image_size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=BitMasks(masks))
    return value
