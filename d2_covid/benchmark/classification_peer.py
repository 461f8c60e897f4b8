"""COVID-CT-Mask-Net on torchvision's detector: what its classification is measured against.

torchvision has no such model. The fair peer is its own detector without masks, and on it what the paper's text says,
written plainly: image by image, candidates by a threshold, suppression, a sort, repeats, module S.

Shape shorthand: N images, R RoIs of an image, K lesion classes, D ranked detections an image, C image classes.
"""

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image

from ..modeling.image_classifier import ImageClassifier, image_loss
from ..modeling.roi_heads import RankingOptions
from .torchvision_peer import as_peer_images, build_torchvision_peer, convert_to_torchvision


class TorchvisionClassifier(nn.Module):
    """torchvision's detector of the shape of ``cfg``, the ranking of its detections, and module S.

    Behind Detectron2's interface, as :class:`~d2_covid.modeling.CovidCTMaskNet`: dicts with ``image`` (and, in
    training, ``image_class``) in; out come ``image_logits`` (C,), or in training ``{"loss_image": scalar}``. Nothing
    else is computed: no instances, no masks.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        cfg = _without_masks(cfg)
        self.detector = build_torchvision_peer(cfg)
        self.image_classifier = ImageClassifier(cfg)
        self.ranking = RankingOptions.from_config(cfg)
        if self.ranking.padding != "even" or not self.ranking.drop_empty:
            raise ValueError("the peer repeats evenly and drops empty boxes, as the paper does")
        self.loss, self.class_weights = cfg.MODEL.CLASSIFIER.LOSS, tuple(cfg.MODEL.CLASSIFIER.CLASS_WEIGHTS)
        for parameter in self.detector.parameters():
            parameter.requires_grad_(False)
        for norm in self.detector.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.requires_grad_(cfg.MODEL.CLASSIFIER.TRAIN_NORM)

    def load_detectron2(self, state_dict: dict[str, torch.Tensor], cfg: CfgNode) -> None:
        """Take over the weights of a ``CovidCTMaskNet`` of ``cfg``."""
        self.detector.load_state_dict(convert_to_torchvision(state_dict, _without_masks(cfg)))
        prefix = "roi_heads.image_classifier."
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        self.image_classifier.load_state_dict(own)

    @property
    def device(self) -> torch.device:
        return self.image_classifier.fc1.weight.device

    def train(self, mode: bool = True) -> "TorchvisionClassifier":
        """Training mode is for module S alone, as in ``CovidCTMaskNet``."""
        super().train(False)
        self.training = mode
        self.image_classifier.train(mode)
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        logits = self.image_classifier(self.ranked_rows(batched_inputs))
        if not self.training:
            return [{"image_logits": one} for one in logits]
        image_classes = torch.tensor([x["image_class"] for x in batched_inputs], device=self.device)
        return {"loss_image": image_loss(logits, image_classes, self.loss, self.class_weights)}

    def ranked_rows(self, batched_inputs: list[dict]) -> torch.Tensor:
        """The ranked batch (N, D, 5): ``[score, 4 box numbers]`` a row."""
        detector = self.detector
        images, _ = detector.transform(as_peer_images([x["image"].to(self.device) for x in batched_inputs]))
        features = detector.backbone(images.tensors)
        with torch.no_grad():
            proposals, _ = detector.rpn(images, features)
        heads = detector.roi_heads
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        counts = [len(boxes) for boxes in proposals]
        decoded = heads.box_coder.decode(deltas, proposals)
        scores = F.softmax(logits, dim=-1)
        rows = [
            self._rank(*of_image)
            for of_image in zip(
                scores.split(counts), deltas.split(counts), decoded.split(counts), images.image_sizes, strict=True
            )
        ]
        return torch.stack(rows)

    def _rank(
        self, scores: torch.Tensor, deltas: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """(D, 5) of one image from scores (R, K + 1), deltas (R, (K + 1) * 4) and boxes (R, K + 1, 4); class 0 is the
        background."""
        count, options = self.ranking.num_rois, self.ranking
        deltas = deltas.reshape(len(deltas), -1, 4)[:, 1:].reshape(-1, 4)
        boxes = clip_boxes_to_image(boxes[:, 1:], size).reshape(-1, 4)
        labels = torch.arange(1, scores.shape[1], device=scores.device).repeat(len(scores))
        scores = scores[:, 1:].reshape(-1)
        with torch.no_grad():
            wanted = (scores > options.score_thresh) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            wanted = wanted.nonzero()[:, 0]
            kept = wanted[batched_nms(boxes[wanted], scores[wanted], labels[wanted], options.nms_thresh)[:count]]
            found = len(kept)
            if not found:
                return scores.new_zeros(count, 5)
            # Each detection as often as the others, repeats side by side.
            kept = kept[[(2 * row + 1) * found // (2 * count) for row in range(count)]]
        numbers = deltas[kept]
        if options.features == "boxes":
            numbers = boxes[kept] / boxes.new_tensor([size[1], size[0]] * 2)
        return torch.cat((scores[kept, None], numbers), dim=1)


def _without_masks(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = False
    return cfg
