"""torchvision's ``MaskRCNN`` of the same shape as a segmentation model of ours, and our weights in its names.

Made of torchvision's public classes; where those differ from Detectron2 in more than a constant, a subclass says so.
With converted weights the peer finds the boxes, scores and 28x28 masks that the Detectron2 model finds.
:func:`convert_to_torchvision` says what is left: the pasting of masks, and parts of the training losses.
"""

import torch
import torchvision
from detectron2.config import CfgNode
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align

from ..errors import UserError

FEATURE = "0"
"""The peer's name of its one feature map."""

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class OneLevelBackbone(nn.Module):
    """A torchvision ResNet up to one of its stages, and one level of Feature Pyramid Network."""

    def __init__(self, depth: int, stage: int, out_channels: int):
        """
        Args:
            depth: 18 or 34.
            stage: the last stage kept, 1 to 4 (torchvision's ``layer1`` to ``layer4``).
            out_channels: of the one feature map.
        """
        super().__init__()
        resnet = torchvision.models.get_model(f"resnet{depth}", weights=None)
        self.body = IntermediateLayerGetter(resnet, {f"layer{stage}": FEATURE})
        self.fpn = FeaturePyramidNetwork([64 * 2 ** (stage - 1)], out_channels)
        self.out_channels = out_channels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(self.body(images))


class Detectron2Anchors(AnchorGenerator):
    """Anchors at Detectron2's sizes: not rounded to whole pixels, and all ratios of a size before the next size."""

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device=torch.device("cpu")):  # noqa: B008
        cells = []
        for size in scales:
            for ratio in aspect_ratios:
                width = (size**2.0 / ratio) ** 0.5
                height = ratio * width
                cells.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(cells, dtype=dtype, device=device)


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign of one feature map with the half-pixel shift (``ROIAlignV2``), which torchvision's class leaves out."""

    def __init__(self, output_size: int, sampling_ratio: int, stride: int):
        super().__init__([FEATURE], output_size, sampling_ratio)
        self.scale = 1 / stride

    def forward(self, x, boxes, image_shapes):
        return roi_align(x[FEATURE], boxes, self.output_size, self.scale, self.sampling_ratio, aligned=True)


class KeepSizeTransform(GeneralizedRCNNTransform):
    """Normalises and batches; the images come at the network's size already, as Detectron2's do."""

    def resize(self, image, target=None):
        return image, target


def check_convertible(cfg: CfgNode) -> None:
    """Refuse a config whose model torchvision's classes can't express (:class:`UserError`)."""
    model = cfg.MODEL
    wanted = {
        "MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, "build_truncated_resnet_fpn_backbone"),
        "MODEL.RESNETS.NORM": (model.RESNETS.NORM, "BN"),
        "MODEL.FPN.NORM": (model.FPN.NORM, ""),
        "MODEL.ROI_BOX_HEAD.SCORE_FUNCTION": (model.ROI_BOX_HEAD.SCORE_FUNCTION, "softmax"),
        "MODEL.ROI_BOX_HEAD.NUM_FC": (model.ROI_BOX_HEAD.NUM_FC, 2),
        "MODEL.ROI_BOX_HEAD.NUM_CONV": (model.ROI_BOX_HEAD.NUM_CONV, 0),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG, False),
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (model.ROI_BOX_HEAD.POOLER_TYPE, "ROIAlignV2"),
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (model.ROI_MASK_HEAD.POOLER_TYPE, "ROIAlignV2"),
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (model.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK, False),
    }
    for key, (value, needed) in wanted.items():
        if value != needed:
            raise UserError(f"The torchvision peer is made for {key} {needed!r}, and the config has {value!r}.")


def build_torchvision_peer(cfg: CfgNode) -> FasterRCNN:
    """torchvision's ``MaskRCNN`` (without ``MODEL.MASK_ON``: ``FasterRCNN``) of the shape of ``cfg``, on the CPU.

    It takes what torchvision's models take: a list of (3, h, w) float images, here of 0 to 255, at the network's size.
    Classes count from 1. Weights are random; :func:`convert_to_torchvision` gives it ours.

    Raises:
        UserError: the config's model has a part that torchvision's classes can't express.
    """
    check_convertible(cfg)
    model, classes = cfg.MODEL, cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
    (feature,) = model.FPN.IN_FEATURES
    stride, channels = _STRIDES[feature], model.FPN.OUT_CHANNELS
    anchors = Detectron2Anchors(tuple(map(tuple, model.ANCHOR_GENERATOR.SIZES)), _ratios(cfg))
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    heads = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, *anchors.num_anchors_per_location()),
        "box_roi_pool": AlignedRoIAlign(box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO, stride),
        "box_head": TwoMLPHead(channels * box.POOLER_RESOLUTION**2, box.FC_DIM),
        "box_predictor": FastRCNNPredictor(box.FC_DIM, classes),
    }
    if model.MASK_ON:
        heads |= {
            "mask_roi_pool": AlignedRoIAlign(mask.POOLER_RESOLUTION, mask.POOLER_SAMPLING_RATIO, stride),
            "mask_head": MaskRCNNHeads(channels, [mask.CONV_DIM] * mask.NUM_CONV, dilation=1),
            "mask_predictor": MaskRCNNPredictor(mask.CONV_DIM if mask.NUM_CONV else channels, mask.CONV_DIM, classes),
        }
    background, foreground = model.ROI_HEADS.IOU_THRESHOLDS[0], model.ROI_HEADS.IOU_THRESHOLDS[-1]
    peer = (MaskRCNN if model.MASK_ON else FasterRCNN)(
        OneLevelBackbone(model.RESNETS.DEPTH, int(feature[-1]) - 1, channels),
        image_mean=list(model.PIXEL_MEAN),
        image_std=list(model.PIXEL_STD),
        rpn_pre_nms_top_n_train=model.RPN.PRE_NMS_TOPK_TRAIN,
        rpn_pre_nms_top_n_test=model.RPN.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_train=model.RPN.POST_NMS_TOPK_TRAIN,
        rpn_post_nms_top_n_test=model.RPN.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=model.RPN.NMS_THRESH,
        rpn_bg_iou_thresh=model.RPN.IOU_THRESHOLDS[0],
        rpn_fg_iou_thresh=model.RPN.IOU_THRESHOLDS[-1],
        rpn_batch_size_per_image=model.RPN.BATCH_SIZE_PER_IMAGE,
        rpn_positive_fraction=model.RPN.POSITIVE_FRACTION,
        box_score_thresh=model.ROI_HEADS.SCORE_THRESH_TEST,
        box_nms_thresh=model.ROI_HEADS.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        box_bg_iou_thresh=background,
        box_fg_iou_thresh=foreground,
        box_batch_size_per_image=model.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        box_positive_fraction=model.ROI_HEADS.POSITIVE_FRACTION,
        bbox_reg_weights=tuple(box.BBOX_REG_WEIGHTS),
        **heads,
    )
    peer.transform = KeepSizeTransform(
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        list(model.PIXEL_MEAN),
        list(model.PIXEL_STD),
        size_divisible=stride,
    )
    # Detectron2 drops only boxes without area; torchvision's constant drops those below a thousandth of a pixel.
    peer.rpn.min_size = max(float(model.PROPOSAL_GENERATOR.MIN_SIZE), torch.finfo(torch.float32).tiny)
    return peer.eval()


def convert_to_torchvision(state_dict: dict[str, torch.Tensor], cfg: CfgNode) -> dict[str, torch.Tensor]:
    """The weights of a Detectron2 model of ``cfg`` in the names and the order of its torchvision peer.

    What stays different with these weights:

    - torchvision pastes masks at boxes rounded to whole pixels, so outlines differ by up to a pixel, and it gives soft
      masks, to be cut at 0.5;
    - its box losses are smooth L1 with beta 1/9 whatever the config says (``RPN.SMOOTH_L1_BETA`` and
      ``ROI_BOX_HEAD.SMOOTH_L1_BETA`` 1/9 make Detectron2's the same), and its mask targets are not cut at 0.5.

    Args:
        state_dict: of a segmentation model, or of a classifier, whose module S is left out. Without
            ``MODEL.MASK_ON`` so is the mask head.

    Returns:
        All tensors that the peer's ``load_state_dict`` asks for.
    """
    check_convertible(cfg)
    masks = cfg.MODEL.MASK_ON
    state = {k: v for k, v in state_dict.items() if masks or not k.startswith("roi_heads.mask_head.")}
    converted = {new: state[old] for old, new in _same_tensors(state)}
    # Detectron2 puts the background last and gives it no box and no mask; torchvision puts it first.
    for part in ("weight", "bias"):
        scores = state[f"roi_heads.box_predictor.cls_score.{part}"]
        deltas = state[f"roi_heads.box_predictor.bbox_pred.{part}"]
        converted[f"roi_heads.box_predictor.cls_score.{part}"] = scores.roll(1, 0)
        converted[f"roi_heads.box_predictor.bbox_pred.{part}"] = torch.cat((torch.zeros_like(deltas[:4]), deltas))
        if masks:
            logits = state[f"roi_heads.mask_head.predictor.{part}"]
            name = f"roi_heads.mask_predictor.mask_fcn_logits.{part}"
            converted[name] = torch.cat((torch.zeros_like(logits[:1]), logits))
    return converted


def as_peer_images(images: list[torch.Tensor]) -> list[torch.Tensor]:
    """(3, h, w) ``uint8`` network inputs as the peer takes them."""
    return [image.float() for image in images]


def as_peer_targets(batch: list[dict]) -> list[dict[str, torch.Tensor]]:
    """Ground truth of mapped samples as torchvision's models take it: ``boxes``, ``labels`` from 1, ``masks``."""
    targets = []
    for sample in batch:
        instances = sample["instances"]
        targets.append(
            {
                "boxes": instances.gt_boxes.tensor,
                "labels": instances.gt_classes + 1,
                "masks": instances.gt_masks.tensor.to(torch.uint8),
            }
        )
    return targets


def _ratios(cfg: CfgNode) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS))


def _same_tensors(state: dict[str, torch.Tensor]):
    """Pairs of names, ours and torchvision's, of the tensors that are equal in both."""
    heads = {
        "proposal_generator.rpn_head.conv.": "rpn.head.conv.0.0.",
        "proposal_generator.rpn_head.objectness_logits.": "rpn.head.cls_logits.",
        "proposal_generator.rpn_head.anchor_deltas.": "rpn.head.bbox_pred.",
        "roi_heads.box_head.fc1.": "roi_heads.box_head.fc6.",
        "roi_heads.box_head.fc2.": "roi_heads.box_head.fc7.",
        "roi_heads.mask_head.deconv.": "roi_heads.mask_predictor.conv5_mask.",
    }
    for name in state:
        if name.startswith("backbone.bottom_up."):
            yield name, "backbone.body." + _resnet_name(name.removeprefix("backbone.bottom_up."))
        elif name.startswith("backbone.fpn_"):
            block = "inner_blocks" if name.startswith("backbone.fpn_lateral") else "layer_blocks"
            yield name, f"backbone.fpn.{block}.0.0.{name.rsplit('.', 1)[1]}"
        elif name.startswith("roi_heads.mask_head.mask_fcn"):
            number, part = name.removeprefix("roi_heads.mask_head.mask_fcn").split(".")
            yield name, f"roi_heads.mask_head.{int(number) - 1}.0.{part}"
        else:
            for ours, theirs in heads.items():
                if name.startswith(ours):
                    yield name, theirs + name.removeprefix(ours)


def _resnet_name(name: str) -> str:
    """``res4.0.conv1.norm.weight`` to ``layer3.0.bn1.weight``, and so on."""
    stage, *rest = name.split(".")
    if stage == "stem":
        block, rest = [], rest
    else:
        block, rest = [f"layer{int(stage.removeprefix('res')) - 1}", rest[0]], rest[1:]
    convolution, norm = rest[0], rest[1] == "norm"
    if convolution == "shortcut":
        layer = ["downsample", "1" if norm else "0"]
    else:
        layer = [convolution.replace("conv", "bn") if norm else convolution]
    return ".".join([*block, *layer, rest[-1]])
