"""Weights made small enough to travel: in half precision, and without what another checkpoint already holds.

Nothing has to be undone on loading: a model casts the tensors that it is given to its own number type, and
:func:`~d2_covid.engine.checkpoint.read_checkpoint` puts a checkpoint and its base together.
"""

from typing import Mapping

import torch

from ..errors import UserError

STORED = "weights of convolutions and linear layers in float16; biases and BatchNorm in float32"
"""What :func:`half_state` makes, in words."""


def half_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store tensors of two or more dimensions in float16.

    Vectors (biases, BatchNorm's weights and statistics) stay as they are: they are few, and a running variance may lie
    beyond what float16 reaches, 6e-8 to 65,504.

    Raises:
        UserError: a tensor has a value that float16 can't hold, or one that is no number.
    """
    stored = {}
    for name, tensor in state.items():
        wide = tensor.is_floating_point() and tensor.dim() >= 2
        new = tensor.detach().to("cpu", torch.float16 if wide else tensor.dtype, copy=True).contiguous()
        if new.is_floating_point() and not bool(torch.isfinite(new).all()):
            reach = f"reach {tensor.abs().max():g}, and float16 ends at 65504"
            why = reach if bool(torch.isfinite(tensor).all()) else "are not all numbers"
            raise UserError(f"{name} can't be stored: its values {why}.")
        stored[name] = new
    return stored


def without_base(state: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of ``state`` that ``base`` doesn't have, or has with other values."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in base or base[name].dtype != tensor.dtype or not torch.equal(base[name], tensor)
    }
