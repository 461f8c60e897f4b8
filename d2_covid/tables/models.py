"""The models of the paper's Tables 2 and 3, and the configs that train them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import config_dir
from ..errors import UserError
from ..paper_tables import TABLE_3, ClassificationRow, SegmentationRow, segmentation_row

RECIPES = ("paper", "tuned")
SEGMENTATION, CLASSIFICATION = "segmentation", "classification"


@dataclass(frozen=True)
class TableModel:
    """A row of both tables: a Mask R-CNN, and the COVID-CT-Mask-Net that starts from it.

    Args:
        name: short name, such as ``R18-T1``.
        segmentation: what the paper says of the Mask R-CNN; names its config.
        classification: likewise of the classifier.
    """

    name: str
    segmentation: SegmentationRow
    classification: ClassificationRow

    @property
    def words(self) -> str:
        """The model as the paper calls it."""
        return self.segmentation.words

    def config_name(self, kind: str) -> str:
        """Name of the config of ``kind``, "segmentation" or "classification", without folder and suffix."""
        return (self.segmentation if kind == SEGMENTATION else self.classification).name

    def config_file(self, kind: str, recipe: str) -> Path:
        """Its file, which a recipe other than the paper's may lack."""
        folder = config_dir() / kind
        return (folder if recipe == "paper" else folder / recipe) / f"{self.config_name(kind)}.yaml"


def _short(detector: str) -> str:
    """``R18-T1`` of ``mask_rcnn_R_18_T1_FPN``."""
    parts = detector.removeprefix("mask_rcnn_R_").replace("_full", "").replace("_FPN", "").split("_")
    return "R" + "-".join("separate" if part == "both" else part for part in parts)


MODELS = {
    _short(row.detector): TableModel(_short(row.detector), segmentation_row(row.detector), row) for row in TABLE_3
}
"""By short name, in the paper's order."""


def choose_models(names: Sequence[str] | None, kinds: Sequence[str], recipe: str) -> list[TableModel]:
    """The named models, in the paper's order; None takes all that the recipe has.

    Args:
        kinds: of the configs that each must have: "segmentation", "classification".

    Raises:
        UserError: an unknown name, or a model for which the recipe has no config.
    """
    known = {name.casefold(): name for name in MODELS}
    having = [name for name, model in MODELS.items() if all(model.config_file(k, recipe).is_file() for k in kinds)]
    if names is None:
        return [MODELS[name] for name in having]
    for name in names:
        if name.casefold() not in known:
            raise UserError(f"--models {name}: there is no such model; there are {', '.join(MODELS)}.")
        if known[name.casefold()] not in having:
            raise UserError(f"--models {name}: the {recipe} recipe has no config for it; it has {', '.join(having)}.")
    chosen = {known[name.casefold()] for name in names}
    return [model for name, model in MODELS.items() if name in chosen]
