"""One update: what it returns, refuses and leaves as it was."""

import math

from d2_covid.engine.optimizer import MixedPrecision
from d2_covid.engine.training_step import training_step
from d2_covid.modeling.scalars import collected_scalars, put_scalars

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class Toy(nn.Module):
    """Losses of one weight: its square times each number of the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        put_scalars({"toy/share": self.weight / 4})
        return {f"loss_{i}": value * self.weight**2 for i, value in enumerate(batch)}


def step(model, batch, device="cpu", optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return training_step(model, batch, MixedPrecision(enabled=False, dtype="bfloat16", device=device), optimizer)


@pytest.mark.parametrize("device", DEVICES)
def test_losses_come_back_and_the_weights_move(device):
    model = Toy().to(device)
    losses, others = step(model, [1.0, 0.5], device)
    assert losses == {"loss_0": 4.0, "loss_1": 2.0} and others == {"toy/share": 0.5}
    assert model.weight.item() == pytest.approx(2 - 0.1 * 2 * 2 * 1.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(device, value):
    model = Toy().to(device)
    with pytest.raises(FloatingPointError, match=f"loss_0 4, loss_1 {value:.4g}"):
        step(model, [1.0, value], device)
    assert model.weight.item() == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_the_numbers_of_a_gpu_that_is_not_the_current_one_are_waited_for():
    class Slow(Toy):
        def forward(self, batch):
            with torch.cuda.device(1):
                torch.cuda._sleep(10**8)
            return super().forward(batch)

    assert torch.cuda.current_device() == 0
    losses, others = step(Slow().to("cuda:1"), [1.0, 0.5], "cuda")
    assert losses == {"loss_0": 4.0, "loss_1": 2.0} and others == {"toy/share": 0.5}


def test_gradients_of_an_earlier_step_are_gone():
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        step(model, [1.0], optimizer=optimizer)
        assert model.weight.grad.item() == pytest.approx(4)


def test_scalars_are_collected_or_stored():
    with EventStorage() as storage:
        with collected_scalars() as outer:
            put_scalars({"a": torch.tensor(1.0)})
            with collected_scalars() as inner:
                put_scalars({"b": torch.tensor(2.0)})
        assert outer == {"a": 1} and inner == {"b": 2} and not storage.latest()
        put_scalars({"c": torch.tensor(3.0, requires_grad=True)})
        assert storage.latest() == {"c": (3.0, 0)}
