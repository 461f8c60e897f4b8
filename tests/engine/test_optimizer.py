"""Optimisers, learning rates, clipping and mixed precision."""

from d2_covid import get_config
from d2_covid.engine.optimizer import (
    MixedPrecision,
    build_lr_scheduler,
    build_optimizer,
    check_same_optimizer,
    clip_gradients,
)
from d2_covid.errors import UserError

import pytest
import torch
from torch import nn


def config(*opts):
    return get_config(None, [str(opt) for opt in opts])


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (scale * sum((p * p).sum() for p in model.parameters())).backward()
    optimizer.step()


PAPER = (
    "SOLVER.OPTIMIZER",
    "Adam",
    "SOLVER.BASE_LR",
    1e-5,
    "SOLVER.WEIGHT_DECAY",
    1e-3,
    "SOLVER.WEIGHT_DECAY_NORM",
    1e-3,
)


def test_paper_optimizer_is_plain_adam_with_decay_on_every_parameter():
    torch.manual_seed(0)
    model, twin = (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    ours = build_optimizer(config(*PAPER), model)
    plain = torch.optim.Adam(twin.parameters(), lr=1e-5, weight_decay=1e-3)
    for _ in range(3):
        one_step(model, ours)
        one_step(twin, plain)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kind"), [("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)]
)
def test_names(name, kind):
    optimizer = build_optimizer(config("SOLVER.OPTIMIZER", name, "SOLVER.BASE_LR", 0.5), nn.Linear(2, 2))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.5


def groups(*opts, frozen: bool = False):
    """Groups of the parameters of a layer with its norm, under a schedule, as a checkpoint has them."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].bias.requires_grad = not frozen
    cfg = config("SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY_NORM", 0.0, *opts)
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer)
    return optimizer.state_dict()["param_groups"]


SGD = ("SOLVER.OPTIMIZER", "SGD")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ((), ("SOLVER.OPTIMIZER", "AdamW"), "SOLVER.OPTIMIZER Adam, not AdamW"),
        ((), SGD, "SOLVER.OPTIMIZER Adam, not SGD"),
        ((), ("SOLVER.BASE_LR", 0.5), r"SOLVER.BASE_LR \(or BIAS_LR_FACTOR\) 0.01, not 0.5:"),
        ((), ("SOLVER.BIAS_LR_FACTOR", 2.0), r"BIAS_LR_FACTOR\) 0.01, not 0.01 and 0.02:"),
        ((), ("SOLVER.WEIGHT_DECAY", 0.5), "SOLVER.WEIGHT_DECAY .* 0.0001 and 0.0, not 0.5 and 0.0:"),
        ((), ("SOLVER.WEIGHT_DECAY_NORM", 0.0001), "SOLVER.WEIGHT_DECAY .* 0.0001 and 0.0, not 0.0001:"),
        (SGD, (*SGD, "SOLVER.MOMENTUM", 0.5), "SOLVER.MOMENTUM 0.9, not 0.5:"),
        (SGD, (*SGD, "SOLVER.NESTEROV", True), "SOLVER.NESTEROV False, not True:"),
        ((), ("SOLVER.BASE_LR", 0.5, "SOLVER.WEIGHT_DECAY", 0.5), "BASE_LR .* 0.01, not 0.5; SOLVER.WEIGHT_DECAY"),
    ],
)
def test_other_settings_than_the_checkpoints_are_named_with_both_values(before, now, message):
    with pytest.raises(UserError, match=f"The run began with .*{message}.* resume it .* MODEL.WEIGHTS") as error:
        check_same_optimizer(groups(*now), groups(*before))
    assert "\n" not in str(error.value)


def test_other_parameters_than_the_checkpoints_are_refused():
    with pytest.raises(UserError, match="trains other parameters"):
        check_same_optimizer(groups(), groups(frozen=True))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_checkpoint_of_an_older_pytorch_is_taken_up(name):
    """It doesn't say whether the decay is decoupled; nor do some have other keys that no config sets."""
    saved = [{k: v for k, v in g.items() if k != "decoupled_weight_decay"} for g in groups("SOLVER.OPTIMIZER", name)]
    own = groups("SOLVER.OPTIMIZER", name)
    check_same_optimizer(own, saved)
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER Adam or AdamW, not SGD"):
        check_same_optimizer(groups(*SGD), saved)
    with pytest.raises(UserError, match="SOLVER.BASE_LR"):
        check_same_optimizer(groups("SOLVER.BASE_LR", 0.5), saved)


def test_what_does_not_belong_to_the_optimiser_may_change():
    clip, longer = ("SOLVER.CLIP_GRADIENTS.ENABLED", True), ("SOLVER.MAX_ITER", 9, "SOLVER.GAMMA", 0.5)
    check_same_optimizer(groups(*clip, *longer), groups())


def test_norm_layers_and_biases_have_their_own_settings():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    cfg = config(
        "SOLVER.WEIGHT_DECAY_NORM",
        0.25,
        "SOLVER.WEIGHT_DECAY",
        0.5,
        "SOLVER.BIAS_LR_FACTOR",
        2.0,
        "SOLVER.BASE_LR",
        1.0,
    )
    groups = {id(p): g for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    assert groups[id(model[0].weight)]["weight_decay"] == 0.5
    assert groups[id(model[1].weight)]["weight_decay"] == 0.25
    assert groups[id(model[0].bias)]["lr"] == 2.0


def test_frozen_parameters_stay_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad = False
    params = [p for g in build_optimizer(config(), model).param_groups for p in g["params"]]
    assert len(params) == 1 and params[0] is model.weight
    model.weight.requires_grad = False
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(config(), model)


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clipping(kind):
    cfg = config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    one_step(model, build_optimizer(cfg, model), scale=1e6)
    assert abs(model.weight.item() - before) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf"), None])
def test_clipping_all_at_once_is_clipping_each(norm_type):
    gradients = [torch.randn(3, 4) * 5, torch.randn(2) * 0.01, torch.zeros(3), torch.tensor(-7.0)]
    expected = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(expected, gradients):
        parameter.grad = gradient.clone()
        if norm_type is None:
            nn.utils.clip_grad_value_(parameter, 0.5)
        else:
            nn.utils.clip_grad_norm_(parameter, 0.5, norm_type)
    clip_gradients(gradients, 0.5, norm_type)
    for ours, parameter in zip(gradients, expected):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-6, atol=0)
    clip_gradients([], 0.5, norm_type)


def test_unknown_clipping():
    with pytest.raises(UserError, match="CLIP_TYPE must be one of value, norm, not 'both'"):
        cfg = config("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "both")
        build_optimizer(cfg, nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_no_momentum_comes_of_gradients_that_overflowed(kind):
    """What GradScaler does with a fused optimiser: it has it step, and says that it is not to."""
    model = nn.Linear(3, 2)
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16")
    optimizer = build_optimizer(config("SOLVER.OPTIMIZER", kind, "SOLVER.MOMENTUM", 0.9, *amp), model)
    before = [p.detach().clone() for p in model.parameters()]
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
        one_step(model, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not any("momentum_buffer" in state for state in optimizer.state.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="loss scaling needs CUDA")
def test_scaled_gradients_are_clipped_at_their_own_size():
    cfg = config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(1, 1, bias=False).cuda()
    before = model.weight.item()
    precision = MixedPrecision(enabled=True, dtype="float16", device="cuda")
    precision.step(0.25 * model.weight.sum(), build_optimizer(cfg, model))
    assert before - model.weight.item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (("SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", "(4, 6)"), [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (("SOLVER.WARMUP_ITERS", 2, "SOLVER.WARMUP_FACTOR", 0.5, "SOLVER.STEPS", "()"), [0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        (
            ("SOLVER.WARMUP_ITERS", 0, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
            [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381],
        ),
    ],
)
def test_learning_rate(opts, expected):
    cfg = config("SOLVER.BASE_LR", 1.0, "SOLVER.MAX_ITER", 8, *opts)
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-4)


def test_unknown_names():
    with pytest.raises(UserError, match="one of Adam, AdamW, SGD, not 'Adagrad'"):
        build_optimizer(config("SOLVER.OPTIMIZER", "Adagrad"), nn.Linear(1, 1))
    cfg = config("SOLVER.LR_SCHEDULER_NAME", "Never")
    with pytest.raises(UserError, match="Never"):
        build_lr_scheduler(cfg, build_optimizer(cfg, nn.Linear(1, 1)))


def test_precision():
    with pytest.raises(UserError, match="float16 needs CUDA"):
        MixedPrecision(enabled=True, dtype="float16", device="cpu")
    with pytest.raises(UserError, match="not 'float8'"):
        MixedPrecision(enabled=False, dtype="float8", device="cpu")
    with MixedPrecision(enabled=True, dtype="bfloat16", device="cpu").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with MixedPrecision(enabled=False, dtype="float16", device="cpu").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="loss scaling needs CUDA")
def test_loss_scaling_survives_a_checkpoint():
    model = nn.Linear(2, 2).cuda()
    precision = MixedPrecision(enabled=True, dtype="float16", device="cuda")
    with precision.autocast():
        loss = model(torch.full((1, 2), 1e9, device="cuda")).sum()
    precision.step(loss, torch.optim.SGD(model.parameters(), lr=0.1))
    other = MixedPrecision(enabled=True, dtype="float16", device="cuda")
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict() and precision.state_dict()["scale"] > 0


def test_biases_have_a_decay_of_their_own():
    model = nn.Linear(2, 2)
    cfg = config("SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.WEIGHT_DECAY_BIAS", 0.125)
    groups = {id(p): g for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    assert groups[id(model.weight)]["weight_decay"] == 0.5 and groups[id(model.bias)]["weight_decay"] == 0.125
