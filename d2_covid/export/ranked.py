"""The ranked batch and module S of an exported classifier.

Shape shorthand: N images, R RoIs in all of them, P of an image at most, K lesion classes, D ranked detections an
image, C image classes.
"""

import copy

import torch
from torch import nn

from ..modeling.image_classifier import image_scores
from ..modeling.ranking import padding_draws, repeat_in_place
from ..modeling.roi_heads import CovidROIHeads
from .boxes import larger_than
from .operators import Operators, suppress_classes


class RankedPart(nn.Module):
    """:func:`~d2_covid.modeling.ranking.rank_detections` on a table of what was found, and the image's scores.

    Args:
        heads: they stay as they are.
        temperature: image scores are softmax(logits / temperature).
        operators: see :mod:`.operators`.
    """

    def __init__(self, heads: CovidROIHeads, temperature: float, operators: Operators):
        super().__init__()
        self.options = heads.ranking
        self.temperature = temperature
        self.operators = operators
        # A graph has no generator to draw with.
        self.register_buffer("draws", padding_draws(self.options.num_rois, self.options.padding_seed))
        self.classifier = copy.deepcopy(heads.image_classifier).float().eval().requires_grad_(False)

    def wanted(
        self, scores: torch.Tensor, deltas: torch.Tensor, boxes: torch.Tensor, clipped: torch.Tensor
    ) -> torch.Tensor:
        """Which of R x K candidates take part: (R, K) bool."""
        finite = torch.isfinite(scores) & torch.isfinite(deltas).all(-1) & torch.isfinite(boxes).all(-1)
        wanted = finite & (scores > self.options.score_thresh)
        return wanted & larger_than(clipped, 0) if self.options.drop_empty else wanted

    def forward(self, table: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """
        Args:
            table: (N, P, K, 11): score, 4 box numbers, whether it is a detection, 4 deltas, :meth:`wanted`.
            height, width: of the image.

        Returns:
            Image logits and scores (N, C), and of the D ranked detections rows (N, D, 5), boxes (N, D, 4) XYXY, and
            (N, D) int64 which detection a row repeats, -1 for none.
        """
        num_rois = self.options.num_rois
        kept = suppress_classes(self.operators, table, table[..., 10] > 0, self.options.nms_thresh).flatten(1)
        scores = torch.where(kept, table[..., 0].flatten(1), float("-inf"))
        _, order = self.operators.largest(scores, num_rois)
        count = kept.sum(1).clamp(max=num_rois)
        detection = repeat_in_place(count, num_rois, self.options.padding, draws=self.draws)
        place = order.gather(1, detection.clamp(min=0))
        chosen = table.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, table.shape[-1]))
        chosen = torch.where((detection >= 0)[..., None], chosen, 0.0)
        boxes = chosen[..., 1:5]
        numbers = chosen[..., 6:10]
        if self.options.features == "boxes":
            x0, y0, x1, y1 = boxes.unbind(-1)
            numbers = torch.stack((x0 / width, y0 / height, x1 / width, y1 / height), dim=-1)
        rows = torch.cat((chosen[..., :1], numbers), dim=-1)
        logits = self.classifier(rows)
        return logits, image_scores(logits, self.temperature), rows, boxes, detection
