"""Weights in half precision, and checkpoints that hold only what differs from another one."""

import json

from d2_covid.data.files import sha256_of
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.engine.half import half_state, without_base
from d2_covid.errors import UserError

import pytest
import torch


def test_matrices_are_halved_and_vectors_kept():
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "norm.running_var": torch.tensor([1e-9, 1e6]),
        "norm.num_batches_tracked": torch.tensor(7),
    }
    stored = half_state(state)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "conv.weight": torch.float16,
        "conv.bias": torch.float32,
        "norm.running_var": torch.float32,
        "norm.num_batches_tracked": torch.int64,
    }
    assert torch.equal(stored["norm.running_var"], state["norm.running_var"])
    # float16 has eleven significant bits
    error = (stored["conv.weight"].float() - state["conv.weight"]).abs()
    assert 0 < float((error / state["conv.weight"].abs()).max()) <= 2**-11
    assert all(torch.equal(tensor, half_state(stored)[name]) for name, tensor in stored.items())


def test_a_view_is_stored_alone(tmp_path):
    wide = torch.zeros(1000, 1000)
    write_checkpoint(tmp_path / "m.pth", {"model": half_state({"a": wide[:2, :2], "b": wide[0, :3]})})
    assert (tmp_path / "m.pth").stat().st_size < 5000


@pytest.mark.parametrize("value", [7e4, float("nan"), float("-inf")])
@pytest.mark.parametrize("shape", [(1, 1), (1,)])
def test_what_float16_can_not_hold_is_refused(value, shape):
    tensor = torch.full(shape, value)
    if shape == (1,) and value == 7e4:
        assert torch.equal(half_state({"x": tensor})["x"], tensor)
    else:
        with pytest.raises(UserError, match="x can't be stored"):
            half_state({"x": tensor})


def test_what_a_base_has_is_left_out():
    base = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "only": torch.ones(1)}
    state = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(2).half(), "d": torch.ones(3)}
    assert set(without_base(state, base)) == {"b", "c", "d"}


# ---- reading them back ----


@pytest.fixture
def pair(tmp_path):
    """Paths of a base and of a checkpoint that holds what differs from it."""
    base, rest = tmp_path / "base.pth", tmp_path / "rest.pth"
    write_checkpoint(base, {"model": {"a": torch.ones(2), "b": torch.ones(2)}})
    facts = {"base": {"file": "base.pth", "sha256": sha256_of(base)}}
    write_checkpoint(rest, {"model": {"b": torch.zeros(2), "c": torch.zeros(1)}, "d2_covid": facts})
    return base, rest


def test_a_checkpoint_and_its_base_come_back_as_one(pair):
    _, rest = pair
    checkpoint = read_checkpoint(rest)
    assert {name: tensor.tolist() for name, tensor in checkpoint["model"].items()} == {
        "a": [1, 1],
        "b": [0, 0],
        "c": [0],
    }
    assert json.dumps(checkpoint["d2_covid"])


def test_a_base_that_is_not_beside_it(pair):
    base, rest = pair
    base.unlink()
    with pytest.raises(UserError, match=r"rest.pth holds only what differs from base.pth, which is not beside it"):
        read_checkpoint(rest)


def test_another_base_of_that_name(pair):
    base, rest = pair
    write_checkpoint(base, {"model": {"a": torch.zeros(2)}})
    with pytest.raises(UserError, match="another base.pth than the one beside it"):
        read_checkpoint(rest)


@pytest.mark.parametrize("name", ["../base.pth", "/etc/passwd", "", 7])
def test_a_base_can_only_lie_beside(name, tmp_path):
    facts = {"base": {"file": name, "sha256": "0" * 64}}
    write_checkpoint(tmp_path / "sub" / "rest.pth", {"model": {"c": torch.zeros(1)}, "d2_covid": facts})
    write_checkpoint(tmp_path / "base.pth", {"model": {"a": torch.zeros(1)}})
    with pytest.raises(UserError, match="rest.pth"):
        read_checkpoint(tmp_path / "sub" / "rest.pth")
