"""BatchNorm of batches of one, as it trains: each slice normalised by its own mean and variance."""

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError


def with_slice_statistics(model: nn.Module) -> nn.Module:
    """A copy of a detector whose backbone normalises by each slice's own statistics, rather than by running ones.

    In batches of one, a BatchNorm layer trains as an InstanceNorm with its weights: this copy predicts as such a model
    trained. A slice's results don't depend on the others of its batch, but on the padding that brings it to their size.

    Args:
        model: with a ``backbone``; it stays as it is.

    Raises:
        UserError: the backbone has no BatchNorm with running statistics.
    """
    model = copy.deepcopy(model)
    found = _batch_norms(model.backbone)
    if not found:
        raise UserError(
            "TEST.NORM_STATISTICS slice is for a backbone with BatchNorm that trains (MODEL.RESNETS.NORM BN), and this "
            "one has none; leave it running."
        )
    for parent, name, norm in found:
        setattr(parent, name, _instance_norm(norm))
    return model


def trains_batch_norm(model: nn.Module) -> bool:
    """Whether a detector's backbone now normalises by the statistics of each process's batch."""
    return any(type(norm) is nn.BatchNorm2d and norm.training for _, _, norm in _batch_norms(model.backbone))


def _batch_norms(backbone: nn.Module) -> list[tuple[nn.Module, str, _BatchNorm]]:
    """Each BatchNorm, with the module that holds it and its name there."""
    children = ((parent, *child) for parent in backbone.modules() for child in parent.named_children())
    return [(parent, name, module) for parent, name, module in children if isinstance(module, _BatchNorm)]


def _instance_norm(norm: _BatchNorm) -> nn.InstanceNorm2d:
    made = nn.InstanceNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
    return made.train(norm.training)
