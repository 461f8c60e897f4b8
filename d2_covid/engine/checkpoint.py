"""Checkpoints: tensors and plain values, whole or absent, with the facts that a model must share with its weights."""

import io
import logging
import re
from pathlib import Path
from typing import Any, Mapping

import torch
from detectron2.config import CfgNode

from .. import __version__
from ..config import config_value
from ..data.files import atomic_write, sha256_of
from ..data.lesion_masks import MASK_TYPES
from ..errors import UserError
from ..modeling.backbone import truncation_of

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout of a checkpoint: raised when an older d2_covid could no longer read it."""

LAST_CHECKPOINT = "last_checkpoint"
FINAL, BEST = "model_final.pth", "model_best.pth"
_PERIODIC = re.compile(r"model_\d{7,}\.pth")

# Facts that weights and config must agree on, and the keys that say them; a fact that only one of the two has is no
# conflict.
_MUST_MATCH = {
    "mask_type": "DATASETS.MASK_TYPE",
    "lesion_classes": "DATASETS.MASK_TYPE",
    "num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
    "depth": "MODEL.RESNETS.DEPTH",
    "truncation": "MODEL.FPN.IN_FEATURES",
}
# Facts of the image classifier: the number of ranked detections, what a row holds, and the image classes.
_CLASSIFIER_FACTS = {
    "num_rois": "MODEL.CLASSIFIER.NUM_ROIS",
    "features": "MODEL.CLASSIFIER.FEATURES",
    "hidden_dim": "MODEL.CLASSIFIER.HIDDEN_DIM",
    "num_image_classes": "MODEL.CLASSIFIER.NUM_CLASSES",
}


def model_facts(cfg: CfgNode, *, classifier: bool = False) -> dict[str, Any]:
    """What a checkpoint of the model in ``cfg`` carries besides its tensors.

    Args:
        classifier: whether the model classifies images, and so has those facts as well.
    """
    facts = {
        "format": FORMAT,
        "kind": "model",
        "d2_covid": __version__,
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "mask_type": cfg.DATASETS.MASK_TYPE,
        "lesion_classes": list(MASK_TYPES.get(cfg.DATASETS.MASK_TYPE, ())),
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "depth": cfg.MODEL.RESNETS.DEPTH,
        "truncation": truncation_of(cfg),
    }
    if classifier:
        facts |= {name: config_value(cfg, key) for name, key in _CLASSIFIER_FACTS.items()}
    return facts


def check_facts(saved: Mapping[str, Any], cfg: CfgNode, source: str | Path) -> None:
    """Refuse weights of another model than the one in ``cfg``, in one sentence that names both values.

    Raises:
        UserError: they differ in a fact that must match, or a newer d2_covid wrote the checkpoint.
    """
    if saved.get("format", FORMAT) > FORMAT:
        raise UserError(f"{source} was written by d2_covid {saved.get('d2_covid')}, which is newer; update d2_covid.")
    wanted = model_facts(cfg, classifier=True)
    for name, key in (_MUST_MATCH | _CLASSIFIER_FACTS).items():
        if name in saved and saved[name] != wanted[name]:
            raise UserError(
                f"{source} holds a model with {key} {_described(name, saved)}, the config says "
                f"{_described(name, wanted)}: use the config that it was trained with, or other weights."
            )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values, on the CPU; nothing else in it is ever executed.

    A checkpoint may hold only what differs from another one, its ``base``, which lies beside it
    (:mod:`d2_covid.engine.half`): it comes back whole.

    Returns:
        The checkpoint: ``model`` (name -> tensor), and whatever else it carries. A bare state dict is wrapped.

    Raises:
        UserError: there is no such file, or it is damaged, or it is a pickle of Python objects, or its base is not the
            one that it was stored with.
    """
    checkpoint = _read_file(Path(path))
    facts = checkpoint.get("d2_covid")
    if isinstance(facts, dict) and facts.get("base"):
        base = _base_path(Path(path), facts["base"])
        checkpoint["model"] = _read_file(base)["model"] | checkpoint["model"]
    return checkpoint


def _base_path(path: Path, base: Mapping[str, str]) -> Path:
    """The file that ``path`` names as its base, if it is there and is the one.

    Args:
        base: ``{"file": name, "sha256": of that file}``.
    """
    name = str(base.get("file", "")) if isinstance(base, Mapping) else ""
    if not name or name != Path(name).name:
        raise UserError(f"{path} names no file beside it as its base, but {name!r}: it is damaged.")
    found = path.with_name(name)
    if not found.is_file():
        raise UserError(f"{path} holds only what differs from {name}, which is not beside it; put the two together.")
    if sha256_of(found) != base.get("sha256"):
        raise UserError(f"{path} holds only what differs from another {name} than the one beside it; get both anew.")
    return found


def _read_file(path: Path) -> dict[str, Any]:
    """:func:`read_checkpoint` without the base."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; look at MODEL.WEIGHTS.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # torch.load raises a dozen kinds, by where in the file it stumbles
        raise UserError(
            f"{path} is not a checkpoint of tensors and plain values: it is cut short, or holds Python objects, which "
            f"d2_covid does not load, since that runs code.{_other_checkpoints(path)}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a model's weights.")
    if "model" not in checkpoint:
        checkpoint = {"model": checkpoint}
    model = checkpoint["model"]
    if not isinstance(model, dict) or not all(isinstance(value, torch.Tensor) for value in model.values()):
        raise UserError(f"{path} holds no weights: its entries are not tensors.")
    return checkpoint


def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values, whole or not at all; an earlier file stays until then.

    Raises:
        UserError: the file can't be written, such as on a full disk; the message names it.
    """
    # Through memory: torch reports a failed write as an internal error without its cause.
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


class CheckpointFolder:
    """The checkpoints of one run: which is the last, and which are kept."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def all(self) -> list[Path]:
        """Every checkpoint of the folder, by name."""
        return sorted(self.folder.glob("model_*.pth"))

    def last(self) -> Path | None:
        """The checkpoint to resume from; None where the run has saved none.

        Raises:
            UserError: ``last_checkpoint`` names a file that is not there.
        """
        marker = self.folder / LAST_CHECKPOINT
        if not marker.is_file():
            return None
        path = self.folder / marker.read_text(encoding="utf-8").strip()
        if not path.is_file():
            raise UserError(f"{marker} names {path.name}, which is not there.{_other_checkpoints(path)}")
        return path

    def save(self, name: str, checkpoint: Mapping[str, Any], *, keep: int) -> Path:
        """Save a checkpoint, make it the last, then remove all but the newest ``keep`` periodic ones (0: keep all)."""
        path = self.folder / name
        write_checkpoint(path, checkpoint)
        with atomic_write(self.folder / LAST_CHECKPOINT) as file:
            file.write(name)
        periodic = [p for p in self.all() if _PERIODIC.fullmatch(p.name)]
        for old in periodic[:-keep] if keep > 0 else []:
            if old != path:
                old.unlink()
        logger.info("saved %s", path)
        return path

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written."""
        for part in self.folder.glob(".*.part"):
            part.unlink()


def periodic_name(iteration: int) -> str:
    """File name of the checkpoint after ``iteration``, which is the last one it has seen."""
    return f"model_{iteration:07d}.pth"


def _described(name: str, facts: Mapping[str, Any]) -> str:
    value = facts[name]
    if name == "mask_type":
        count = len(facts.get("lesion_classes", ()))
        return f"{value!r} ({count} class{'' if count == 1 else 'es'})"
    if name == "truncation":
        return f"of truncation {value}"
    return str(value)


def _other_checkpoints(path: Path) -> str:
    others = [p.name for p in sorted(path.parent.glob("model_*.pth")) if p != path]
    if not others or not (path.parent / LAST_CHECKPOINT).is_file():
        return ""
    return (
        f" To go on from another, write its name into {path.parent / LAST_CHECKPOINT}; there are {', '.join(others)}."
    )
