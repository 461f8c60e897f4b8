"""Module S: the class of an image from its ranked detections (paper, Figure 1b).

Shape shorthand: N images, D ranked detections an image, C image classes.
"""

from typing import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn import functional as F

LOSSES = ("bce", "ce")


class ImageClassifier(nn.Module):
    """The ranked batch as one vector of D x 5 numbers, two hidden layers, C logits.

    128 RoIs, 512 wide: 592,387 parameters. 256 RoIs, 1024 wide: 2,364,419.
    """

    @configurable
    def __init__(self, *, num_rois: int, hidden_dim: int, num_classes: int):
        """
        Args:
            num_rois: D.
            hidden_dim: width of both hidden layers.
            num_classes: C.
        """
        super().__init__()
        self.num_rois = num_rois
        self.num_classes = num_classes
        self.fc1 = nn.Linear(num_rois * 5, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.logits = nn.Linear(hidden_dim, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        classifier = cfg.MODEL.CLASSIFIER
        return {
            "num_rois": classifier.NUM_ROIS,
            "hidden_dim": classifier.HIDDEN_DIM,
            "num_classes": classifier.NUM_CLASSES,
        }

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Ranked batch (N, D, 5) to image logits (N, C)."""
        x = F.relu(self.fc1(rows.flatten(start_dim=1)))
        return self.logits(F.relu(self.fc2(x)))


def image_loss(
    image_logits: torch.Tensor,
    image_classes: torch.Tensor,
    loss: str = "bce",
    class_weights: Sequence[float] = (),
) -> torch.Tensor:
    """Mean classification loss of a batch of images, a scalar.

    ``bce`` is binary cross-entropy with logits on the one-hot class, averaged over the C classes (the paper's program);
    ``ce`` is cross-entropy. With class weights, each image counts by the weight of its true class as a share of their
    mean: equal weights change nothing, and a batch's images count alike however processes share them.

    Args:
        image_logits: (N, C).
        image_classes: (N,) int64, 0 to C - 1.
        loss: one of :data:`LOSSES`.
        class_weights: C numbers from 0 on, not all 0, or empty.
    """
    if loss == "bce":
        one_hot = F.one_hot(image_classes, image_logits.shape[1]).to(image_logits.dtype)
        per_image = F.binary_cross_entropy_with_logits(image_logits, one_hot, reduction="none").mean(dim=1)
    elif loss == "ce":
        per_image = F.cross_entropy(image_logits, image_classes, reduction="none")
    else:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    if not class_weights:
        return per_image.mean()
    weights = image_logits.new_tensor(class_weights)
    return (per_image * weights[image_classes]).mean() / weights.mean()


def image_scores(image_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Probabilities (..., C) of the image classes: softmax of the logits over ``temperature``. The best class is the
    same at any temperature; one fitted on validation data makes the probabilities honest."""
    return F.softmax(image_logits / temperature, dim=-1)
