"""What the user chooses for the tables, beside the data."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .models import CLASSIFICATION, SEGMENTATION, TableModel

IMAGENET = "imagenet"
WORKERS = "DATALOADER.NUM_WORKERS"
"""The config key that changes no result."""

# Set by the options that say the same, or by the tables' own needs.
_RESERVED = ("SEED", "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATASETS.", "SOLVER.EPOCHS")


@dataclass(frozen=True)
class Options:
    """What the user chose, beside the data.

    Args:
        output: folder for everything.
        models, seeds: a training of each model with each seed.
        recipe: "paper" or "tuned".
        epochs, classifier_epochs: passes over the training slices; None as in the recipe.
        init: starting weights of each Mask R-CNN: "" for none, "imagenet", or a checkpoint.
        weights_dir: folder of trained Mask R-CNNs for the classifiers; None: those that are trained here.
        device: ``MODEL.DEVICE``; None for what there is.
        overrides: ``KEY VALUE ...`` for every training.
        phantoms: the data are phantoms.
    """

    output: Path
    models: tuple[TableModel, ...]
    seeds: tuple[int, ...] = (0,)
    recipe: str = "paper"
    epochs: int | None = None
    classifier_epochs: int | None = None
    init: str = ""
    weights_dir: Path | None = None
    device: str | None = None
    overrides: tuple[str, ...] = ()
    phantoms: bool = False

    def __post_init__(self) -> None:
        if len(self.overrides) % 2:
            raise UserError(f"Config overrides come as KEY VALUE ..., and {self.overrides[-1]!r} has no partner.")
        for key in self.overrides[::2]:
            if key.startswith(_RESERVED):
                raise UserError(
                    f"{key} is set by the tables themselves; see --seeds, --epochs, --classifier-epochs, --init, "
                    "--weights-dir, --device and --output."
                )
        for name, epochs in (("--epochs", self.epochs), ("--classifier-epochs", self.classifier_epochs)):
            if epochs is not None and epochs < 1:
                raise UserError(f"{name} is {epochs}; it takes 1 or more.")
        if any(seed < 0 for seed in self.seeds):
            raise UserError(f"--seeds {min(self.seeds)}: seeds are 0 or more, so that runs repeat.")

    @property
    def deciding_overrides(self) -> str:
        """The overrides that bear on results."""
        pairs = zip(self.overrides[::2], self.overrides[1::2], strict=True)
        return " ".join(f"{key} {value}" for key, value in pairs if key != WORKERS)

    @property
    def data(self) -> Path:
        """``$DETECTRON2_DATASETS`` of all runs."""
        return self.output / "data"

    def departures(self, kind: str) -> list[str]:
        """In what the choices for runs of a kind are not the paper's, as sentences."""
        found = []
        if self.phantoms:
            found.append("the data are phantoms, generated pictures: nothing here says how a model does on people")
        if self.recipe != "paper":
            found.append(f"the {self.recipe} recipe, not the paper's")
        if self.init and kind == SEGMENTATION:
            found.append(f"each Mask R-CNN starts from {self.init}, set by --init")
        if self.epochs is not None and kind == SEGMENTATION:
            found.append(f"epochs of each Mask R-CNN: {self.epochs}, set by --epochs")
        if self.classifier_epochs is not None and kind == CLASSIFICATION:
            found.append(f"epochs of each classifier: {self.classifier_epochs}, set by --classifier-epochs")
        if self.deciding_overrides:
            found.append(f"config overrides: {self.deciding_overrides}")
        return found
