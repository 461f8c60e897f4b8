"""From a checkpoint to the files of an exported model."""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN

from ..data.files import atomic_write
from ..data.preprocessing import resize_transform
from ..engine.inference_model import by_slice_statistics
from ..engine.run_record import finite
from ..engine.setup import build_described
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
from .write import FORMATS, LARGEST_EDGE, SMALLEST_EDGE, ir_version, require_format, to_bytes

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
    model = build_described(cfg)
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
        batch, *wanted = self.manifest["input"]["shape"]
        if not runtime.takes(self.manifest["input"], (batch if isinstance(batch, int) else 1, *got)):
            fixed = isinstance(wanted[0], int)
            takes = f"{wanted[0]} x {wanted[1]}" if fixed else f"edges from {SMALLEST_EDGE} to {LARGEST_EDGE}"
            raise UserError(f"{name} comes to {got[0]} x {got[1]} pixels; the exported model takes {takes}.")

    def write(self, folder: str | Path) -> None:
        """Write the model, its manifest and the example that runs it: all appear or none, the manifest last.

        Raises:
            UserError: the folder can't be written to.
        """
        folder = Path(folder)
        with (  # each takes its name when it is left, the innermost first
            atomic_write(folder / MANIFEST) as manifest,
            atomic_write(folder / EXAMPLE) as example,
            atomic_write(folder / self.manifest["file"], "wb") as model,
        ):
            model.write(self.content)
            example.write(Path(runtime.__file__).read_text(encoding="utf-8"))
            manifest.write(json.dumps(self.manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
            for file in (model, example, manifest):
                file.flush()  # a disk that is full says so before the first has its name


def export_model(model: GeneralizedRCNN, source: ModelSource, options: ExportOptions) -> ExportedModel:
    """Export a model.

    Args:
        model: of ``source``, as :func:`plain_model` builds it.

    Raises:
        UserError: it predicts with each slice's own statistics, has weights that are not finite, a part that can't be
            exported, or a size it can't have; or a package is missing.
    """
    require_format(options.kind)
    if by_slice_statistics(source.cfg):
        raise UserError(
            f"{source.weights} predicts with each slice's own statistics (TEST.NORM_STATISTICS slice), and an exported "
            "model has BatchNorm's running ones in its convolutions: d2-covid predict runs it."
        )
    _require_finite(model, source.weights)
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
    if options.kind == "onnx":  # an older ONNX Runtime does not read it
        manifest["versions"]["ir_version"] = ir_version(content)
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
        "meaning": "largest differences from the model in PyTorch and Detectron2; null: not a finite number",
        "passed": all(difference.within_tolerance for difference in differences),
        "tolerances": {
            "box": BOX_TOLERANCE,
            "score": SCORE_TOLERANCE,
            "mask": MASK_TOLERANCE,
            "pixels": PIXEL_TOLERANCE,
        },
        "slices": [_as_json(difference) for difference in differences],
    }


def _as_json(difference: Difference) -> dict[str, Any]:
    numbers = asdict(difference)
    return {"name": numbers.pop("name")} | finite(numbers)


def _require_finite(model: GeneralizedRCNN, weights: Path) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{weights}: {name} has values that are not finite numbers; export a checkpoint from before its "
                "training went astray."
            )


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
