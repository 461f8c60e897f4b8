"""One interface for every detector that is measured: Detectron2's, from a list of dicts to a list of dicts."""

from typing import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models.detection import FasterRCNN

from ..config import get_config
from .torchvision_peer import as_peer_images


class TorchvisionDetector(nn.Module):
    """A torchvision detector behind Detectron2's interface: slices in, ``{"instances": Instances}`` out.

    It does what torchvision's own ``forward`` does, but for the resize: slices come at the network's size, as they do
    to our models, and results leave at each record's ``height`` and ``width``. Masks are torchvision's, pasted by it
    and cut at 0.5.
    """

    def __init__(self, peer: FasterRCNN):
        super().__init__()
        self.peer = peer

    @property
    def device(self) -> torch.device:
        return next(self.peer.parameters()).device

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        peer = self.peer
        images, _ = peer.transform(as_peer_images([x["image"].to(self.device) for x in batched_inputs]))
        features = peer.backbone(images.tensors)
        proposals, _ = peer.rpn(images, features)
        found, _ = peer.roi_heads(features, proposals, images.image_sizes)
        sizes = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        found = peer.transform.postprocess(found, images.image_sizes, sizes)
        return [{"instances": _instances(one, size)} for one, size in zip(found, sizes, strict=True)]


def _instances(found: dict[str, torch.Tensor], size: tuple[int, int]) -> Instances:
    instances = Instances(size, pred_boxes=Boxes(found["boxes"]), scores=found["scores"])
    instances.pred_classes = found["labels"] - 1
    if "masks" in found:
        instances.pred_masks = found["masks"][:, 0] >= 0.5
    return instances


@torch.no_grad()
def with_soft_masks(model: nn.Module, image: torch.Tensor) -> Instances:
    """Detections of one slice with their probabilities before pasting, ``soft_masks`` (R, M, M), and after it,
    ``pred_masks``; of a Detectron2 model or a :class:`TorchvisionDetector`.

    Args:
        image: (3, h, w) ``uint8``.
    """
    height, width = image.shape[1:]
    if not isinstance(model, TorchvisionDetector):
        (raw,) = model.inference([{"image": image}], do_postprocess=False)
        raw = raw["instances"] if isinstance(raw, dict) else raw
        kept = raw[raw.pred_boxes.nonempty()]
        done = detector_postprocess(raw, height, width)
        if kept.has("pred_masks"):
            done.soft_masks = kept.pred_masks[:, 0]
        return done
    seen: list[torch.Tensor] = []
    # The transform replaces each result's masks by pasted ones, in place; the tensors themselves stay.
    hook = model.peer.roi_heads.register_forward_hook(lambda module, inputs, output: seen.append(output[0][0]["masks"]))
    try:
        (output,) = model([{"image": image}])
    finally:
        hook.remove()
    output["instances"].soft_masks = seen[0][:, 0]
    return output["instances"]


def stock_r50_config(opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's stock R50-FPN Mask R-CNN (``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN``) for lesions.

    Its own anchors, heads and RoIs; one class, our input, and as many detections as ours, so that it does the same job.
    """
    cfg = get_config()
    levels = ["p2", "p3", "p4", "p5"]
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True, "MODEL.WEIGHTS", ""),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 50),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
            *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0, 2.0]]),
            *("MODEL.RPN.IN_FEATURES", [*levels, "p6"]),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2000, "MODEL.RPN.PRE_NMS_TOPK_TEST", 1000),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 1000, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", levels),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 1),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 4),
            *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14),
            *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
            *("INPUT.FORMAT", "RGB", "INPUT.MASK_FORMAT", "bitmask"),
            *("INPUT.MIN_SIZE_TEST", 512, "INPUT.MAX_SIZE_TEST", 1024),
            *("TEST.DETECTIONS_PER_IMAGE", 128, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *opts,
        ]
    )
    return cfg
