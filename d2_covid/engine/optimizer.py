"""The optimiser, the schedule of its learning rate, and mixed precision."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params

from ..errors import UserError, check_choice

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# What a resumed run takes from the checkpoint's groups of parameters, and the keys that say it.
_OF_GROUPS = {
    "initial_lr": "SOLVER.BASE_LR (or BIAS_LR_FACTOR)",
    "weight_decay": "SOLVER.WEIGHT_DECAY (or _NORM, _BIAS)",
    "momentum": "SOLVER.MOMENTUM",
    "nesterov": "SOLVER.NESTEROV",
    "betas": "SOLVER.OPTIMIZER with betas",
}


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser that ``SOLVER.OPTIMIZER`` names, over the parameters of ``model`` that train.

    ``Adam`` adds the weight decay to the gradient, as the paper's own training does; ``AdamW`` decouples it.
    Normalisation layers take ``WEIGHT_DECAY_NORM``, biases ``WEIGHT_DECAY_BIAS`` and ``BIAS_LR_FACTOR``, as everywhere
    in Detectron2. ``SOLVER.CLIP_GRADIENTS`` clips before each step.

    Raises:
        UserError: an optimiser of another name, or a model with nothing to train.
    """
    solver = cfg.SOLVER
    options = {
        "Adam": (torch.optim.Adam, {}),
        "AdamW": (torch.optim.AdamW, {}),
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
    }
    check_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, tuple(options))
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if not params:
        raise UserError("Every parameter of the model is frozen: there is nothing to train.")
    optimizer, extra = options[solver.OPTIMIZER]
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, ("value", "norm"))
        norm_type = clip.NORM_TYPE if clip.CLIP_TYPE == "norm" else None
        optimizer = _clipping(optimizer, clip.CLIP_VALUE, norm_type)
    # With scaled losses, PyTorch's fused SGD fills its momentum with what memory holds where gradients overflow.
    scaled = solver.AMP.ENABLED and solver.AMP.DTYPE == "float16"
    fused = not (scaled and solver.OPTIMIZER == "SGD")
    return optimizer(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, fused=fused, **extra)


def _clipping(kind: type[torch.optim.Optimizer], limit: float, norm_type: float | None) -> type[torch.optim.Optimizer]:
    """The optimiser that clips gradients before each step: each tensor's norm, or, without a norm, each value."""

    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        clip_gradients(gradients, limit, norm_type)
        return kind.step(self, closure)

    return type(f"{kind.__name__}WithGradientClip", (kind,), {"step": step})


@torch.no_grad()
def clip_gradients(gradients: list[torch.Tensor], limit: float, norm_type: float | None) -> None:
    """Clip each tensor in place as ``torch.nn.utils.clip_grad_norm_`` and ``clip_grad_value_`` do, all of them at once.

    Args:
        limit: the most that a tensor's norm, or a value's size, may be.
        norm_type: of the norm; None: clip values.
    """
    if not gradients:
        return
    if norm_type is None:
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
        return
    norms = torch.stack(torch._foreach_norm(gradients, norm_type))
    shares = (limit / (norms + 1e-6)).clamp_(max=1)
    torch._foreach_mul_(gradients, list(shares.unbind()))


def check_same_optimizer(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Refuse to resume with another optimiser than the checkpoint's, which would replace the config's without a word.

    Args:
        own, saved: ``param_groups`` of the states of two optimisers, each under a schedule.

    Raises:
        UserError: another kind, rate, decay or momentum; it names the keys and both values. Or other parameters train.
    """
    sizes, saved_sizes = ([len(group["params"]) for group in groups] for groups in (own, saved))
    differing = _differences(own, saved) if sum(sizes) == sum(saved_sizes) else []
    if differing:
        raise UserError(
            f"The run began with {'; '.join(differing)}: resume it with the SOLVER settings that it began with (under "
            "REFERENCE_WORLD_SIZE, on as many processes), or start a new run, with another OUTPUT_DIR and its last "
            "checkpoint as MODEL.WEIGHTS."
        )
    if sizes != saved_sizes:
        raise UserError(
            "The checkpoint's optimiser trains other parameters than the config's; resume with the settings that the "
            "run began with."
        )


def _differences(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[str]:
    """Settings of two optimisers that differ, such as ``"SOLVER.MOMENTUM 0.9, not 0.8"``."""
    differing = []
    kinds, saved_kinds = _kinds(own[0]), _kinds(saved[0])
    if not set(kinds) & set(saved_kinds):
        differing.append(f"SOLVER.OPTIMIZER {' or '.join(saved_kinds)}, not {' or '.join(kinds)}")
    for name, keys in _OF_GROUPS.items():
        if name in own[0] and name in saved[0]:
            # By parameter: groups of equal settings are one.
            now, before = ([group[name] for group in groups for _ in group["params"]] for groups in (own, saved))
            if now != before:
                told = (" and ".join(map(str, dict.fromkeys(values))) for values in (before, now))
                differing.append(f"{keys} {', not '.join(told)}")
    return differing


def _kinds(group: dict[str, Any]) -> tuple[str, ...]:
    """The values of ``SOLVER.OPTIMIZER`` that a group of parameters can be of."""
    if "betas" not in group:
        return ("SGD",)
    if "decoupled_weight_decay" not in group:  # older versions of PyTorch don't tell
        return ("Adam", "AdamW")
    return ("AdamW",) if group["decoupled_weight_decay"] else ("Adam",)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the state of another optimiser, each tensor of a parameter's shape laid out in memory as the parameter.

    A checkpoint keeps the layout of the device that trained, channels last or not, and a fused kernel walks through a
    parameter and its state side by side: it refuses another layout, or reads the state in the wrong order.

    Args:
        saved: ``state_dict()`` of the other.
    """
    optimizer.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule that ``SOLVER.LR_SCHEDULER_NAME`` names, Detectron2's own: warm-up, then steps or a cosine.

    Raises:
        UserError: a schedule that Detectron2 doesn't know.
    """
    try:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME or SOLVER.WARMUP_METHOD: {error}.") from error


class MixedPrecision:
    """``SOLVER.AMP``: the number type of the forward pass, and the loss scaling that float16 needs.

    Args:
        enabled: off, both are no-ops.
        dtype: ``"float16"`` (CUDA only; the loss is scaled) or ``"bfloat16"``.
        device: type of the device that trains, ``"cuda"`` or ``"cpu"``.
    """

    def __init__(self, *, enabled: bool, dtype: str, device: str) -> None:
        check_choice("SOLVER.AMP.DTYPE", dtype, tuple(AMP_DTYPES))
        if enabled and dtype == "float16" and device != "cuda":
            raise UserError(f"SOLVER.AMP.DTYPE float16 needs CUDA, and this run trains on {device}: use bfloat16.")
        self._enabled, self._dtype, self._device = enabled, AMP_DTYPES[dtype], device
        self._scaler = torch.amp.GradScaler("cuda", enabled=enabled and dtype == "float16")

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(self._device, dtype=self._dtype, enabled=self._enabled)

    def step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One update from the gradients of ``loss`` alone."""
        self.backward(loss, optimizer)
        self.update(optimizer)

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of ``loss`` alone, scaled where that is needed."""
        optimizer.zero_grad()
        self._scaler.scale(loss).backward()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """One step along the gradients of :meth:`backward`."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)  # a fused optimiser would do so after its gradients are clipped
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict:
        """State of the loss scaling; empty without it."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take over :meth:`state_dict`; an empty one leaves things as they are."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
