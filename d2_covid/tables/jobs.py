"""A training or a preparation of data for the tables, as the command that a user would type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import get_config
from ..data.files import sha256_of
from ..engine.checkpoint import FINAL
from ..engine.setup import choose_device
from .models import SEGMENTATION, TableModel
from .options import WORKERS


@dataclass(frozen=True)
class Run:
    """A training and the evaluation at its end: one command.

    Args:
        kind: "segmentation" or "classification".
        overrides: ``KEY VALUE ...`` of its config, output folder apart.
        folder: its ``OUTPUT_DIR``.
        dataset: that it is evaluated on.
        detector: of a classifier, the checkpoint that it starts from.
    """

    kind: str
    model: TableModel
    seed: int
    config_file: Path
    overrides: tuple[str, ...]
    folder: Path
    dataset: str
    training_slices: int
    test_slices: int
    detector: Path | None = None

    @property
    def name(self) -> str:
        """In words; unique."""
        what = "Mask R-CNN" if self.kind == SEGMENTATION else "COVID-CT-Mask-Net"
        return f"{what} {self.model.name}, seed {self.seed}"

    @property
    def final(self) -> Path:
        """The checkpoint at the end, which is the one that is evaluated."""
        return self.folder / FINAL

    @property
    def outputs(self) -> tuple[Path, Path]:
        """Files that are there when it is done."""
        return self.final, self.results

    @property
    def results(self) -> Path:
        """``results.json`` of the evaluation."""
        return self.folder / "inference" / self.dataset / "results.json"

    def config(self) -> CfgNode:
        """Its config, on the device that there is."""
        opts = [*self.overrides, "OUTPUT_DIR", str(self.folder)]
        cfg = get_config(self.config_file, opts)
        choose_device(cfg, opts)
        return cfg

    def inputs(self) -> list[Any]:
        """Plain values that decide what comes out, wherever the files lie. A config key that a new version adds is none
        of them: it is neutral, or else :data:`.run.EDITION` is raised."""
        recipe = CfgNode.load_yaml_with_base(str(self.config_file))
        overrides = dict(zip(self.overrides[::2], self.overrides[1::2], strict=True))
        start = overrides.pop("MODEL.WEIGHTS", "")
        if Path(start).is_file():
            start = sha256_of(start)  # a classifier is trained anew when its Mask R-CNN changes
        decisive = {key: value for key, value in overrides.items() if key not in ("MODEL.DEVICE", WORKERS)}
        return [self.kind, self.model.name, self.seed, recipe, decisive, start]


@dataclass(frozen=True)
class Preparation:
    """A data set to prepare: arguments of a script in ``datasets/``.

    Args:
        inputs: plain values that decide what comes out.
        outputs: files that are there when it is done.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    inputs: list[Any]
    outputs: tuple[Path, ...]


def command_of(job: Preparation | Run, checkout: Path, progress: bool = False) -> list[str]:
    """The script and its arguments."""
    if isinstance(job, Preparation):
        return [str(checkout / "datasets" / job.script), *job.arguments]
    command = [str(checkout / "tools" / "train_net.py"), "--config-file", str(job.config_file), "--resume"]
    return [*command, *["--progress"] * progress, *job.overrides, "OUTPUT_DIR", str(job.folder)]
