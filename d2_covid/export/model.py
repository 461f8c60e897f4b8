"""From a checkpoint to the files of an exported model."""

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model

from ..data.files import atomic_write, write_json
from ..data.preprocessing import resize_transform
from ..engine.weights import load_weights
from ..errors import UserError
from ..inference.model_source import ModelSource
from . import runtime
from .check import BOX_TOLERANCE, MASK_TOLERANCE, PIXEL_TOLERANCE, SCORE_TOLERANCE, Difference, compare
from .dense import DensePart
from .detector import WholeModel
from .manifest import describe
from .operators import ONNX, PLAIN
from .outputs import outputs_of
from .runtime import Session
from .write import FORMATS, LARGEST_EDGE, SMALLEST_EDGE, require_format, to_bytes

MANIFEST, EXAMPLE = "model.json", "run.py"
PARTS = ("whole", "dense")


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        part: "whole", or "dense": backbone, FPN and the RPN's head.
        kind: of :data:`.write.FORMATS`.
        batch: images of a call; None: any number.
        slice_size: height and width of the slices; None: any.
    """

    part: str = "whole"
    kind: str = "onnx"
    batch: int | None = None
    slice_size: tuple[int, int] | None = None


def plain_model(cfg: CfgNode) -> GeneralizedRCNN:
    """The model of ``cfg`` with its weights on the CPU, in inference mode, computing as Detectron2 does: what an
    exported model is compared with takes no quicker way."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.FAST_POOLING = "cpu", False
    model = build_model(cfg)
    load_weights(model, cfg, complete=True)
    return model.eval()


@dataclass(frozen=True)
class ExportedModel:
    """An exported model in memory.

    Attributes:
        content: of its file.
        manifest: of ``model.json``.
    """

    content: bytes
    manifest: dict[str, Any]

    def check_slice(self, name: str, image: np.ndarray) -> None:
        """Make sure that a slice, (H, W), comes to a size that the graph takes.

        Raises:
            UserError: it does not; the message names it.
        """
        size = self.manifest["preprocessing"]["size"]
        got = runtime.network_size(*image.shape, size["shortest_edge"], size["longest_edge_at_most"])
        wanted = self.manifest["input"]["shape"]
        batch = wanted[0] if isinstance(wanted[0], int) else 1
        if not runtime.takes(self.manifest["input"], (batch, *got)):
            raise UserError(f"{name} comes to {got[0]} x {got[1]} pixels; the exported model takes {wanted[1:]}.")

    def write(self, folder: str | Path) -> None:
        """Write the model, its manifest and the example that runs it; each appears whole, the manifest last.

        Raises:
            UserError: the folder can't be written to.
        """
        folder = Path(folder)
        with atomic_write(folder / self.manifest["file"], "wb") as file:
            file.write(self.content)
        with atomic_write(folder / EXAMPLE) as file:
            file.write(Path(runtime.__file__).read_text(encoding="utf-8"))
        write_json(folder / MANIFEST, self.manifest)


def export_model(model: GeneralizedRCNN, source: ModelSource, options: ExportOptions) -> ExportedModel:
    """Export a model.

    Args:
        model: of ``source``, as :func:`plain_model` builds it.

    Raises:
        UserError: it has a part that can't be exported, a size it can't have, or a package is missing.
    """
    require_format(options.kind)
    size = _network_size(source.cfg, options.slice_size)
    if size is None and len(model.proposal_generator.in_features) > 1:
        raise UserError("A model with several FPN levels takes slices of one size only: give --height and --width.")
    operators = ONNX if options.kind == "onnx" else PLAIN
    module = DensePart(model) if options.part == "dense" else WholeModel(model, operators)
    outputs = outputs_of(module, options.batch)
    content = to_bytes(module, options.kind, outputs=outputs, batch=options.batch, size=size)
    manifest = describe(
        source,
        part=options.part,
        kind=options.kind,
        file=FORMATS[options.kind],
        sha256=hashlib.sha256(content).hexdigest(),
        outputs=outputs,
        batch=options.batch,
        size=size,
    )
    return ExportedModel(content, manifest)


def check_export(
    exported: ExportedModel, model: GeneralizedRCNN, cfg: CfgNode, slices: Iterable[tuple[str, np.ndarray]]
) -> tuple[ExportedModel, list[Difference]]:
    """Compare an exported model with the one that it was made from.

    Args:
        slices: names, and (H, W) ``uint8``.

    Returns:
        The exported model, what was found written into its manifest; and the differences, a slice each.
    """
    with tempfile.TemporaryDirectory() as folder:
        exported.write(folder)
        session = Session(folder)
        differences = [compare(model, cfg, session, image, name) for name, image in slices]
        del session
    return ExportedModel(exported.content, exported.manifest | {"check": _record(differences)}), differences


def _record(differences: Sequence[Difference]) -> dict[str, Any]:
    return {
        "meaning": "largest differences from the model in PyTorch and Detectron2",
        "passed": all(difference.within_tolerance for difference in differences),
        "tolerances": {
            "box": BOX_TOLERANCE,
            "score": SCORE_TOLERANCE,
            "mask": MASK_TOLERANCE,
            "pixels": PIXEL_TOLERANCE,
        },
        "slices": [asdict(difference) for difference in differences],
    }


def _network_size(cfg: CfgNode, slice_size: tuple[int, int] | None) -> tuple[int, int] | None:
    if slice_size is None:
        return None
    resize = resize_transform(*slice_size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    size = (resize.new_h, resize.new_w)
    if not SMALLEST_EDGE <= min(size) <= max(size) <= LARGEST_EDGE:
        raise UserError(
            f"Slices of {slice_size[0]} x {slice_size[1]} become {size[0]} x {size[1]} for this model; edges can be "
            f"from {SMALLEST_EDGE} to {LARGEST_EDGE} pixels."
        )
    return size
