"""One update of a model: forward, backward, and the optimiser, with one wait for the device."""

import math

import torch
from torch import nn

from ..modeling.scalars import collected_scalars
from .optimizer import MixedPrecision


def training_step(
    model: nn.Module, batch: list[dict], precision: MixedPrecision, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, float], dict[str, float]]:
    """Update ``model`` from one batch.

    All numbers come from the device together. On a GPU they travel while it computes the gradients, so that it always
    has work; the optimiser waits for them.

    Returns:
        The losses, and what the model's parts log (:func:`~d2_covid.modeling.scalars.put_scalars`), by name.

    Raises:
        FloatingPointError: a loss is not finite; the weights are as they were.
    """
    with collected_scalars() as logged:
        with precision.autocast():
            losses = model(batch)
            total = sum(losses.values())
    names = [*losses, *logged]
    values = torch.stack([value.detach().float() for value in (*losses.values(), *logged.values())])
    if values.device.type == "cuda":
        host = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values.device))  # by itself it takes the current device's
        precision.backward(total, optimizer)
        arrived.synchronize()
        numbers = dict(zip(names, host.tolist()))
        _check({name: numbers[name] for name in losses})
    else:
        numbers = dict(zip(names, values.tolist()))
        _check({name: numbers[name] for name in losses})
        precision.backward(total, optimizer)
    precision.update(optimizer)
    return {name: numbers[name] for name in losses}, {name: numbers[name] for name in logged}


def _check(losses: dict[str, float]) -> None:
    if not math.isfinite(sum(losses.values())):
        raise FloatingPointError(", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
