"""What trains in the classifier, and what does not (paper, Table 1: 0.6 million trainable parameters)."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_for_classification(model: nn.Module, train_norm: bool = True) -> None:
    """Leave module S trainable and, with ``train_norm``, the weight and bias of BatchNorm; freeze all else.

    Only the BatchNorm layers on the way to the image loss count: those of the backbone and of the box head. Proposals
    are constants to the loss and the mask head is not on its way. Running statistics are not parameters: they stay
    because the meta architecture keeps the detector in inference mode.

    Args:
        model: a :class:`~d2_covid.modeling.meta_arch.CovidCTMaskNet`.
    """
    model.requires_grad_(False)
    model.roi_heads.image_classifier.requires_grad_(True)
    if train_norm:
        for part in (model.backbone, model.roi_heads.box_head):
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(True)
