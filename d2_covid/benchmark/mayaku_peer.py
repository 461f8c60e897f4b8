"""The nearest model of mayaku (PyPI), a library like Detectron2; an optional peer, measured where it is installed.

Its smallest ResNet is ResNet50, which it never truncates; everything after that can be given our shape: one FPN level
at the config's stride, and our anchors, RoIs and heads.
"""

import importlib.metadata
import importlib.util
from typing import Any, Sequence

import torch
from detectron2.config import CfgNode
from torch import nn

from ..modeling import count_parameters
from .weights import SPREAD, fit_batch_norm, spread_outputs

NOT_INSTALLED = "mayaku is not installed (pip install mayaku); its rows are left out"


def mayaku_version() -> str | None:
    """Version of the mayaku that is installed, or None."""
    if importlib.util.find_spec("mayaku") is None:
        return None
    return importlib.metadata.version("mayaku")


def mayaku_config(cfg: CfgNode) -> Any:
    """A ``MayakuConfig`` of its Mask R-CNN nearest to the segmentation model of ``cfg``.

    Raises:
        ImportError: mayaku is not installed.
    """
    from mayaku.config import MayakuConfig

    model = cfg.MODEL
    (level,), (stage,) = model.RPN.IN_FEATURES, model.FPN.IN_FEATURES
    return MayakuConfig.model_validate(
        {
            "model": {
                "meta_architecture": "mask_rcnn",
                "mask_on": True,
                "pixel_mean": tuple(model.PIXEL_MEAN),
                "pixel_std": tuple(model.PIXEL_STD),
                "backbone": {"name": "resnet50", "norm": "BN", "freeze_at": 0},
                "fpn": {"in_features": (stage,), "out_channels": model.FPN.OUT_CHANNELS},
                "anchor_generator": {
                    "sizes": tuple(map(tuple, model.ANCHOR_GENERATOR.SIZES)),
                    "aspect_ratios": tuple(map(tuple, model.ANCHOR_GENERATOR.ASPECT_RATIOS)),
                },
                "rpn": {
                    "in_features": (level,),
                    "pre_nms_topk_train": model.RPN.PRE_NMS_TOPK_TRAIN,
                    "pre_nms_topk_test": model.RPN.PRE_NMS_TOPK_TEST,
                    "post_nms_topk_train": model.RPN.POST_NMS_TOPK_TRAIN,
                    "post_nms_topk_test": model.RPN.POST_NMS_TOPK_TEST,
                    "nms_thresh": model.RPN.NMS_THRESH,
                    "iou_thresholds": tuple(model.RPN.IOU_THRESHOLDS),
                    "batch_size_per_image": model.RPN.BATCH_SIZE_PER_IMAGE,
                    "positive_fraction": model.RPN.POSITIVE_FRACTION,
                },
                "roi_heads": {
                    "in_features": (level,),
                    "num_classes": model.ROI_HEADS.NUM_CLASSES,
                    "batch_size_per_image": model.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
                    "positive_fraction": model.ROI_HEADS.POSITIVE_FRACTION,
                    "iou_thresholds": tuple(model.ROI_HEADS.IOU_THRESHOLDS),
                    "iou_labels": tuple(model.ROI_HEADS.IOU_LABELS),
                    "score_thresh_test": model.ROI_HEADS.SCORE_THRESH_TEST,
                    "nms_thresh_test": model.ROI_HEADS.NMS_THRESH_TEST,
                },
                "roi_box_head": {
                    "pooler_resolution": model.ROI_BOX_HEAD.POOLER_RESOLUTION,
                    "pooler_sampling_ratio": model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                    "num_fc": model.ROI_BOX_HEAD.NUM_FC,
                    "fc_dim": model.ROI_BOX_HEAD.FC_DIM,
                },
                "roi_mask_head": {
                    "pooler_resolution": model.ROI_MASK_HEAD.POOLER_RESOLUTION,
                    "pooler_sampling_ratio": model.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO,
                    "num_conv": model.ROI_MASK_HEAD.NUM_CONV,
                    "conv_dim": model.ROI_MASK_HEAD.CONV_DIM,
                },
            },
            "input": {
                "min_size_train": (cfg.INPUT.MIN_SIZE_TEST,),
                "max_size_train": cfg.INPUT.MAX_SIZE_TEST,
                "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
                "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
            },
            "test": {"detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE},
        }
    )


def count_mayaku_parameters(cfg: CfgNode) -> int:
    """Weights and BatchNorm statistics of that model, counted as ours are.

    Raises:
        ImportError: mayaku is not installed.
    """
    from mayaku.models.detectors.mask_rcnn import build_mask_rcnn

    return count_parameters(build_mask_rcnn(mayaku_config(cfg)))[0]


class MayakuDetector(nn.Module):
    """mayaku's Mask R-CNN nearest to that of ``cfg``, with random weights spread as ours: dicts with ``image`` in,
    dicts with its ``instances`` out, masks pasted by mayaku to the size of the input.

    Args:
        images: (3, h, w) ``uint8`` slices that the weights are fitted to.

    Raises:
        ImportError: mayaku is not installed.
    """

    def __init__(self, cfg: CfgNode, images: Sequence[torch.Tensor]):
        super().__init__()
        from mayaku.inference.postprocess import detector_postprocess
        from mayaku.models.detectors.mask_rcnn import build_mask_rcnn

        self.model = build_mask_rcnn(mayaku_config(cfg)).eval()
        self._postprocess = detector_postprocess
        batch = [{"image": image.float()} for image in images]

        def run() -> object:
            return self.model(batch)

        fit_batch_norm(self.model, run)
        names = {name: name.replace("proposal_generator.rpn_head", "rpn.head") for name in SPREAD}
        spread_outputs(self.model, {names[name]: value for name, value in SPREAD.items()}, run)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        device = self.model.pixel_mean.device
        batch = [{"image": x["image"].to(device, torch.float32)} for x in batched_inputs]
        sizes = [x["image"].shape[1:] for x in batched_inputs]
        return [
            {"instances": self._postprocess(output["instances"], *size)}
            for output, size in zip(self.model(batch), sizes, strict=True)
        ]
