"""Weights to measure with: seeded, and spread so that an untrained model finds many different things.

A freshly built detector gives every box nearly the same score, and its BatchNorm has seen no image. Neither stresses a
detector as a trained one does. Here BatchNorm takes the statistics of the images at hand, and each head's output gets
a set spread: what a layer computes costs the same, and what follows it (sorting, suppression, masks) gets real work.
"""

from typing import Callable, Mapping, Sequence

import torch
from torch import nn

Spreads = Mapping[str, tuple[Sequence[float], float]]

SPREAD: Spreads = {
    "proposal_generator.rpn_head.objectness_logits": ([0.0], 2.0),
    "proposal_generator.rpn_head.anchor_deltas": ([0.0, 0.0, 1.0, 1.0], 0.4),
    "roi_heads.box_predictor.cls_score": ([0.0], 2.0),
    "roi_heads.box_predictor.bbox_pred": ([0.0, 0.0, 1.0, 1.0], 1.0),
    "roi_heads.mask_head.predictor": ([2.0], 2.0),
}
"""Mean (by output channel, repeated) and standard deviation that each layer's output gets, in the order in which the
layers feed each other. Boxes grow from our small anchors to the size of lesions; masks fill most of their box."""

STOCK_SPREAD: Spreads = SPREAD | {
    "proposal_generator.rpn_head.anchor_deltas": ([0.0], 0.4),
    "roi_heads.box_predictor.bbox_pred": ([0.0], 1.0),
}
"""For Detectron2's own anchors of 32 to 512 pixels, which need not grow."""


@torch.no_grad()
def spread_weights(
    model: nn.Module, images: Sequence[torch.Tensor], seed: int = 0, spread: Spreads | None = None
) -> nn.Module:
    """Give ``model`` seeded weights under which it finds boxes of many scores, sizes and masks.

    Args:
        model: of Detectron2's own parts, a segmentation model or a classifier.
        images: (3, h, w) ``uint8`` network inputs that BatchNorm and the spreads are fitted to, of one size.
        seed: of all weights.
        spread: None: :data:`SPREAD`.

    Returns:
        ``model``, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in = module.weight[0].numel() if not isinstance(module, nn.ConvTranspose2d) else module.in_channels
            values = torch.randn(module.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            module.weight.copy_(values)
            if module.bias is not None:
                module.bias.zero_()
    batch = [{"image": image} for image in images]

    def run() -> object:
        return model.inference(batch, do_postprocess=False)

    fit_batch_norm(model, run)
    spread_outputs(model, SPREAD if spread is None else spread, run)
    return model.eval()


@torch.no_grad()
def spread_outputs(model: nn.Module, spread: Spreads, run: Callable[[], object]) -> None:
    """Give the outputs of some layers of ``model`` a mean and a deviation, layer by layer.

    Args:
        spread: as :data:`SPREAD`; layers that the model lacks are passed over.
        run: makes the model compute.
    """
    layers = dict(model.named_modules())
    for name, (mean, deviation) in spread.items():
        if name in layers:
            _set_spread(layers[name], mean, deviation, run)


@torch.no_grad()
def fit_batch_norm(model: nn.Module, run: Callable[[], object]) -> None:
    """Set the statistics of every BatchNorm to those of what it sees in ``run``; leaves ``model`` in eval mode.

    A model without trained BatchNorm (``FrozenBN``) stays as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    if norms:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
    model.eval()


def _set_spread(layer: nn.Module, mean: Sequence[float], deviation: float, run: Callable[[], object]) -> None:
    """Scale ``layer`` so that what it gives during ``run`` has this mean, and this standard deviation over all."""
    seen = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.float().flatten()))
    try:
        run()
    finally:
        hook.remove()
    values = torch.cat(seen)
    factor = deviation / values.std().clamp(min=1e-12)
    layer.weight.mul_(factor)
    means = torch.tensor(mean).repeat(len(layer.bias) // len(mean))
    layer.bias.copy_(means - values.mean().cpu() * factor.cpu())
