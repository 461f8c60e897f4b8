"""The same model, faster: a copy for inference whose results are those of the model it was made from.

:func:`for_inference` is the way in. What it changes, and how exact that is, stands in the modules it puts together:
:mod:`.fast_backbone`, :mod:`.fast_winograd`, :mod:`.fast_proposals`, :mod:`.fast_nms`, :mod:`.fast_heads`,
:mod:`.fast_boxes`, :mod:`.fast_mask_head`, :mod:`.fast_masks`.
"""

import copy
import logging
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import nn

from .fast_backbone import fast_backbone
from .fast_convs import FastConv, fold_norms
from .fast_graph import GraphedDense
from .fast_heads import FastROIHeads, fast_heads
from .fast_inputs import network_batch
from .fast_masks import paste_masks
from .fast_proposals import FastRPN, can_be_fast_rpn
from .meta_arch import CovidCTMaskNet

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 4
"""Images that a CPU takes through the backbone: more of them take new memory, and that more than it saves."""


class _FastInference:
    """What the fast models share; mixed into a ``GeneralizedRCNN``."""

    graphed: GraphedDense | None = None

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            raise RuntimeError("this copy of the model predicts only; train the model that it was made from")
        return super().train(False)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """One tensor of N images, of one channel where they are gray; see :class:`.fast_backbone.FastStem`."""
        images = [x["image"] for x in batched_inputs]
        tensor = network_batch(
            images, self.pixel_mean, self.pixel_std, self.backbone.size_divisibility, self.feature_dtype
        )
        return ImageList(tensor, [tuple(image.shape[-2:]) for image in images])

    def _postprocess(self, instances: list[Instances], batched_inputs: list[dict], image_sizes: list) -> list[dict]:
        """Boxes and masks in the pixels of each input's ``height`` and ``width``."""
        return [
            {"instances": in_pixels(found, record.get("height", size[0]), record.get("width", size[1]))}
            for found, record, size in zip(instances, batched_inputs, image_sizes)
        ]

    def dense(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """All that is computed alike for every image: features, and the RPN head's predictions."""
        if images.device.type == "cpu" and len(images) > IMAGES_AT_ONCE:
            parts = [self.dense(part) for part in images.split(IMAGES_AT_ONCE)]
            features = {name: torch.cat([maps[name] for maps, _ in parts]) for name in parts[0][0]}
            return features, [torch.cat(level) for level in zip(*(predictions for _, predictions in parts))]
        features = self.backbone(images)
        return features, self.proposal_generator.predict(features)

    def _propose(self, batched_inputs: list[dict]) -> tuple[ImageList, dict[str, torch.Tensor], list[Instances]]:
        images = self.preprocess_image(batched_inputs)
        features, predictions = self.graphed(images.tensor) if self.graphed else self.dense(images.tensor)
        return images, features, self.proposal_generator.propose(predictions, images.image_sizes)


class FastRCNN(_FastInference, GeneralizedRCNN):
    """A segmentation model that predicts only."""

    def __init__(self, *, feature_dtype: torch.dtype, **parts: Any):
        super().__init__(**parts)
        self.feature_dtype = feature_dtype

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self.inference(batched_inputs)

    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        if detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images, features, proposals = self._propose(batched_inputs)
        instances, _ = self.roi_heads(images, features, proposals, None)
        return self._postprocess(instances, batched_inputs, images.image_sizes) if do_postprocess else instances


class FastCovidCTMaskNet(_FastInference, CovidCTMaskNet):
    """A classifier that predicts only."""

    def __init__(self, *, feature_dtype: torch.dtype, temperature: float, **parts: Any):
        GeneralizedRCNN.__init__(self, **parts)
        self.feature_dtype = feature_dtype
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return super().forward(batched_inputs)

    @torch.no_grad()
    def inference(self, *args: Any, **kwargs: Any) -> list[dict]:
        return super().inference(*args, **kwargs)

    @torch.no_grad()
    def ranked_rows(self, batched_inputs: list[dict]) -> torch.Tensor:
        return super().ranked_rows(batched_inputs)


def in_pixels(found: Instances, height: int, width: int) -> Instances:
    """Detectron2's ``detector_postprocess``, masks pasted in one go."""
    scaled = Instances((height, width), **found.get_fields())
    scaled.pred_boxes.scale(width / found.image_size[1], height / found.image_size[0])
    scaled.pred_boxes.clip((height, width))
    kept = scaled.pred_boxes.nonempty()
    if not kept.all():
        scaled = scaled[kept]
    if scaled.has("pred_masks"):
        scaled.pred_masks = paste_masks(scaled.pred_masks[:, 0], scaled.pred_boxes.tensor, height, width)
    return scaled


def for_inference(model: nn.Module, *, dtype: torch.dtype = torch.float32, cuda_graph: bool = False) -> nn.Module:
    """A copy of a model that predicts the same, faster; ``model`` itself stays as it is.

    It takes and gives what the model does in inference mode, and keeps the names of its parts: ``backbone``,
    ``proposal_generator``, ``roi_heads`` with ``image_classifier`` and mask head, ``preprocess_image``,
    ``ranked_rows``. In single precision scores, logits and boxes are the model's to 1e-4 relative; where PyTorch lets a
    GPU convolve in TF32 (``torch.backends.cudnn.allow_tf32``, its default, from Ampere on), the model and the copy each
    round to that, and differ by as much. A part that is none of those that this package builds stays as it is, without
    its BatchNorm.

    Args:
        model: a ``GeneralizedRCNN`` or :class:`~d2_covid.modeling.CovidCTMaskNet` on its device, trained or not.
        dtype: type of the features, and of the weights that make them. Box decoding, scores, suppression and ranking
            are always in single precision. Where a part stays as it is, so is everything.
        cuda_graph: on a CUDA device, capture backbone, FPN and RPN head once for each shape of a batch.

    Returns:
        The copy, in inference mode. It refuses to train.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(fast)
    kinds = {GeneralizedRCNN: FastRCNN, CovidCTMaskNet: FastCovidCTMaskNet}
    parts = _fast_parts(fast) if type(fast) in kinds else None
    if parts is None:
        logger.info("%s: only BatchNorm is folded; its other parts are not known", type(model).__name__)
        return fast
    backbone, rpn, heads = parts
    masks = [heads.mask_head.convs, heads.mask_head.upsample, heads.mask_head.predictor] if heads.mask_on else []
    for module in (backbone, rpn.rpn_head.hidden, heads.box_head, *masks):
        module.to(dtype=dtype, memory_format=torch.channels_last)
    kwargs = {"temperature": model.temperature} if type(model) is CovidCTMaskNet else {}
    made = kinds[type(model)](
        feature_dtype=dtype,
        backbone=backbone,
        proposal_generator=rpn,
        roi_heads=heads,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
        input_format=model.input_format,
        vis_period=0,
        **kwargs,
    )
    made.to(model.pixel_mean.device)
    for module in (backbone, rpn):
        for conv in module.modules():
            if isinstance(conv, FastConv):
                conv.use_winograd()
    if cuda_graph:
        made.graphed = GraphedDense(made.dense, made)
    return made.eval()


def _fast_parts(model: nn.Module) -> tuple[nn.Module, FastRPN, FastROIHeads] | None:
    """Backbone, proposals and heads of a copied model, made fast; None where one of them is not known."""
    heads = fast_heads(model.roi_heads) if can_be_fast_rpn(model.proposal_generator) else None
    backbone = None if heads is None else fast_backbone(model.backbone, model.pixel_mean, model.pixel_std)
    return None if backbone is None else (backbone, FastRPN(model.proposal_generator), heads)
