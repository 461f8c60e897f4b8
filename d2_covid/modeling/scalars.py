"""Numbers that a model logs while it trains, left on its device until all of them are read at once.

Detectron2's ``EventStorage`` takes plain numbers, and to make one out of a tensor waits for the device.
"""

from contextlib import contextmanager
from typing import Iterator, Mapping

import torch
from detectron2.utils.events import get_event_storage

_open: list[dict[str, torch.Tensor]] = []


def put_scalars(scalars: Mapping[str, torch.Tensor]) -> None:
    """Log scalar tensors by name: into the block of :func:`collected_scalars` around, else into the current
    ``EventStorage``."""
    scalars = {name: value.detach() for name, value in scalars.items()}
    if _open:
        _open[-1].update(scalars)
    else:
        get_event_storage().put_scalars(**{name: value.item() for name, value in scalars.items()})


@contextmanager
def collected_scalars() -> Iterator[dict[str, torch.Tensor]]:
    """Keep what the block logs with :func:`put_scalars` as tensors, and hand them to the caller."""
    _open.append({})
    try:
        yield _open[-1]
    finally:
        _open.pop()
