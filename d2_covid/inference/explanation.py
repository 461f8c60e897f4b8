"""Why this class: how much each ranked detection of an image adds to the logit of its class.

Shape shorthand: D ranked rows an image, n different detections among them, C image classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from scipy.stats import spearmanr
from torch import nn

from .batch import slice_record


@dataclass(frozen=True)
class Explanation:
    """What one image's detections add to the logit of one image class; detections stand in their ranked order."""

    image_class: int
    image_logits: torch.Tensor
    """(C,)"""
    contributions: torch.Tensor
    """(n,): :func:`row_contributions` summed over the rows of each detection. Above 0 speaks for the class."""
    shares: torch.Tensor
    """(n,): contributions divided by the sum of their absolute values; -1 to 1, all 0 where nothing contributes."""
    removal: torch.Tensor
    """(n,): by how much the logit falls when all rows of a detection are set to zero."""
    instances: Instances
    """The n detections, once each: ``pred_boxes``, ``scores``, ``pred_classes``."""

    @property
    def agreement(self) -> float:
        """Spearman's rank correlation of contributions and removal; NaN below two detections, or where one of the two
        is the same for all."""
        if len(self.contributions) < 2 or self.contributions.unique().numel() < 2 or self.removal.unique().numel() < 2:
            return float("nan")
        return float(spearmanr(self.contributions.numpy(), self.removal.numpy()).statistic)


def row_contributions(classifier: nn.Module, rows: torch.Tensor, image_class: int) -> torch.Tensor:
    """Gradient of the class logit times input, summed over a row's five numbers: (D,), for rows (D, 5).

    Module S is piecewise linear, so that within one piece the logit is a bias plus the sum of these numbers; each is
    then exactly what the logit loses when its row is set to zero.
    """
    rows = rows.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logit = classifier(rows[None])[0, image_class]
        (gradient,) = torch.autograd.grad(logit, rows)
    return (gradient * rows.detach()).sum(dim=1)


@torch.no_grad()
def removal_effects(
    classifier: nn.Module, rows: torch.Tensor, detection: torch.Tensor, image_class: int
) -> torch.Tensor:
    """By how much the class logit falls without each detection: (n,), for rows (D, 5) of detections 0 to n - 1 (D,).

    A detection is removed by setting its rows, repeats included, to zero: the others stay where they are, which is what
    the gradient speaks of. (Closing the gap would move every lower row to another place of the classifier's input.)
    """
    count = int(detection.max()) + 1 if len(detection) else 0
    removed = detection == torch.arange(count, device=rows.device)[:, None]  # (n, D)
    without = rows * ~removed[..., None]
    return classifier(rows[None])[0, image_class] - classifier(without)[:, image_class]


def explain(model: nn.Module, output: dict, image_class: int | None = None) -> Explanation:
    """Explain one output of a :class:`~d2_covid.modeling.CovidCTMaskNet`.

    Args:
        output: has ``image_logits`` and ``ranked``.
        image_class: the class to explain; None: the predicted one.

    Returns:
        On the CPU. An image without any detection has no contributions: its class is the classifier's bias.
    """
    classifier, ranked = model.roi_heads.image_classifier, output["ranked"]
    logits = output["image_logits"].detach()
    image_class = int(logits.argmax()) if image_class is None else image_class
    rows, detection = ranked.rows.detach(), ranked.detection
    if not len(ranked):
        none = torch.zeros(0)
        return Explanation(image_class, logits.cpu(), none, none, none, ranked.to("cpu"))
    by_row = row_contributions(classifier, rows, image_class)
    contributions = by_row.new_zeros(int(detection.max()) + 1).index_add(0, detection, by_row)
    first = torch.ones_like(detection, dtype=torch.bool)
    first[1:] = detection[1:] != detection[:-1]
    return Explanation(
        image_class=image_class,
        image_logits=logits.cpu(),
        contributions=contributions.cpu(),
        shares=(contributions / contributions.abs().sum().clamp(min=torch.finfo(rows.dtype).tiny)).cpu(),
        removal=removal_effects(classifier, rows, detection, image_class).cpu(),
        instances=ranked[first].to("cpu"),
    )


def explain_slice(model: nn.Module, image: np.ndarray, cfg: CfgNode) -> Explanation:
    """Explain the predicted class of one slice; boxes are in the slice's own pixels.

    Args:
        model: a :class:`~d2_covid.modeling.CovidCTMaskNet` built from ``cfg``, in inference mode.
        image: (H, W) ``uint8``.
    """
    with torch.no_grad():
        (output,) = model([slice_record(image, cfg)])
    return explain(model, output)
