"""From a slice dataset dict to what the image classifier takes."""

import copy
from typing import Any

from .mappers import LesionDatasetMapper
from .preprocessing import network_input, read_slice


class SliceMapper(LesionDatasetMapper):
    """Reads a slice, augments it in training, and resizes it to the network's input, as :class:`LesionDatasetMapper`
    does with the same arguments and ``INPUT`` keys.

    Takes a slice dataset dict and gives a copy of it with ``image``, a (3, h, w) ``uint8`` tensor, and ``height`` and
    ``width``, those of the file.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            UserError: the file can't be read.
            ValueError: the sample is to be augmented and has no ``sample_seed``.
        """
        dataset_dict = copy.copy(dataset_dict)
        image = read_slice(dataset_dict["file_name"])
        dataset_dict["height"], dataset_dict["width"] = image.shape
        image, _, min_size = self._drawn(dataset_dict, image)
        dataset_dict["image"] = network_input(image, min_size, self.max_size)
        return dataset_dict
