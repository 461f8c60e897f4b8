"""COVID-CT-Mask-Net: Mask R-CNN, frozen, with module S on its ranked detections (paper, Figure 1b).

Shape shorthand: N images, D ranked detections an image, C image classes.
"""

import logging
import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances

from ..errors import UserError
from .complexity import count_parameters
from .freezing import freeze_for_classification
from .image_classifier import image_scores

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class CovidCTMaskNet(GeneralizedRCNN):
    """A detector whose ranked detections give the class of the image.

    The detector stays in inference mode while S trains, so that BatchNorm statistics never move, and its proposals are
    constants. Gradients flow through RoIAlign to the backbone's BatchNorm weights.
    """

    @configurable
    def __init__(self, *, train_norm: bool = True, temperature: float = 1.0, **kwargs):
        """
        Args:
            train_norm: whether BatchNorm's weight and bias train along with S.
            temperature: image scores are softmax(logits / temperature).
            kwargs: as for ``GeneralizedRCNN``; ``roi_heads`` must be a ``CovidROIHeads``.
        """
        super().__init__(**kwargs)
        if not hasattr(self.roi_heads, "image_classifier"):
            raise UserError(
                f"CovidCTMaskNet needs MODEL.ROI_HEADS.NAME CovidROIHeads, not {type(self.roi_heads).__name__}."
            )
        self.temperature = temperature
        freeze_for_classification(self, train_norm)
        total, trainable = count_parameters(self)
        logger.info("COVID-CT-Mask-Net: %s parameters, %s of them trainable", f"{total:,}", f"{trainable:,}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        temperature = cfg.MODEL.CLASSIFIER.TEMPERATURE
        if not 0 < temperature < math.inf:
            raise UserError(f"MODEL.CLASSIFIER.TEMPERATURE must be a number above 0, not {temperature}.")
        ret = super().from_config(cfg)
        ret["train_norm"] = cfg.MODEL.CLASSIFIER.TRAIN_NORM
        ret["temperature"] = temperature
        return ret

    def train(self, mode: bool = True) -> "CovidCTMaskNet":
        """Training mode is for module S alone; the detector stays in inference mode."""
        super().train(False)
        self.training = mode
        self.roi_heads.train(mode)
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict an image: ``image`` (3, h, w); in training also ``image_class`` (int); in inference
                optionally ``height`` and ``width`` of the output. Instead of ``image`` it may carry ``ranked_rows``
                (D, 5), kept from an earlier pass of the detector; then module S alone runs.

        Returns:
            In training ``{"loss_image": scalar}``. In inference as :meth:`inference`; from ``ranked_rows`` only the
            logits and scores.
        """
        from_rows = "ranked_rows" in batched_inputs[0]
        if not self.training:
            return self._classify_rows(batched_inputs) if from_rows else self.inference(batched_inputs)
        image_classes = torch.tensor([x["image_class"] for x in batched_inputs], device=self.device)
        if from_rows:
            return self.roi_heads.image_losses(self._stack_rows(batched_inputs), image_classes)
        images, features, proposals = self._propose(batched_inputs)
        _, losses = self.roi_heads(images, features, proposals, image_classes)
        return losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict]:
        """Class, boxes and (with ``MODEL.MASK_ON``) masks of each image in one pass.

        Args:
            detected_instances: known boxes and classes; then only their masks are predicted, as Detectron2 does.
            do_postprocess: scale boxes to each input's ``height`` and ``width``, and paste masks.

        Returns:
            One dict an image:

            - ``instances``: what the segmentation model detects.
            - ``image_logits`` (C,) and ``image_scores`` (C,), which are softmax(logits / temperature).
            - ``ranked``: ``Instances`` of the D rows that module S saw, or of none where the detector found nothing:
              ``pred_boxes``, ``scores``, ``pred_classes``, ``rows`` (D, 5), ``roi`` and ``detection`` (equal for
              repeats of one detection; see :class:`~d2_covid.modeling.ranking.RankedBatch`).
        """
        if detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images, features, proposals = self._propose(batched_inputs)
        instances, results = self.roi_heads(images, features, proposals)
        logits, ranked = results["image_logits"], results["ranked"]
        scores = image_scores(logits, self.temperature)
        if do_postprocess:
            outputs = self._postprocess(instances, batched_inputs, images.image_sizes)
        else:
            outputs = [{"instances": x} for x in instances]
        for i, (output, size) in enumerate(zip(outputs, images.image_sizes)):
            height, width = size
            if do_postprocess:
                height, width = batched_inputs[i].get("height", height), batched_inputs[i].get("width", width)
            rows = ranked.detection[i] >= 0
            boxes = Boxes(ranked.boxes[i][rows].detach().clone())
            boxes.scale(width / size[1], height / size[0])
            output["image_logits"] = logits[i]
            output["image_scores"] = scores[i]
            output["ranked"] = Instances(
                (height, width),
                pred_boxes=boxes,
                scores=ranked.rows[i][rows][:, 0],
                pred_classes=ranked.classes[i][rows],
                rows=ranked.rows[i][rows],
                roi=ranked.roi[i][rows],
                detection=ranked.detection[i][rows],
            )
        return outputs

    def ranked_rows(self, batched_inputs: list[dict]) -> torch.Tensor:
        """The ranked batch (N, D, 5) of N images: what module S sees of them."""
        _, features, proposals = self._propose(batched_inputs)
        return self.roi_heads.rank(self.roi_heads.predict(features, proposals), proposals).rows

    def _stack_rows(self, batched_inputs: list[dict]) -> torch.Tensor:
        return torch.stack([x["ranked_rows"] for x in batched_inputs]).to(self.device)

    def _classify_rows(self, batched_inputs: list[dict]) -> list[dict]:
        logits = self.roi_heads.image_classifier(self._stack_rows(batched_inputs))
        scores = image_scores(logits, self.temperature)
        return [{"image_logits": x, "image_scores": y} for x, y in zip(logits, scores)]

    def _propose(self, batched_inputs: list[dict]) -> tuple[ImageList, dict[str, torch.Tensor], list[Instances]]:
        """The batch of images, its features (with their gradients) and its proposals (constants)."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        with torch.no_grad():
            proposals, _ = self.proposal_generator(images, features, None)
        return images, features, proposals
