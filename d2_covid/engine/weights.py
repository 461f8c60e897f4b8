"""Starting weights: torchvision's ImageNet ResNets by name, and checkpoints, with an account of what was loaded."""

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping
from urllib.error import URLError

import torch
import torchvision
from detectron2.config import CfgNode

from ..data.files import sha256_of
from ..errors import UserError
from .checkpoint import FORMAT, check_facts, read_checkpoint

logger = logging.getLogger(__name__)

SCHEME = "torchvision://"
IMAGENET_MODELS = {"resnet18": 18, "resnet34": 34, "resnet50": 50}
"""Names after ``torchvision://``, and the depth of each."""

BACKBONE_PREFIX = "backbone.bottom_up."
_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
_BLOCK_PARTS = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}


def convert_torchvision_resnet(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a torchvision ResNet to those of Detectron2's, without prefix; ``fc`` is left out.

    torchvision's layer1..4 are Detectron2's res2..5; a BatchNorm belongs to its convolution there.

    Raises:
        UserError: a name that no torchvision ResNet has.
    """
    converted = {}
    for name, tensor in state.items():
        if name.startswith("fc."):
            continue
        stem = re.fullmatch(r"(conv1|bn1)\.(\w+)", name)
        block = re.fullmatch(r"(layer[1-4])\.(\d+)\.(conv\d|bn\d|downsample\.[01])\.(\w+)", name)
        if stem:
            part, leaf = stem.groups()
            converted[f"stem.{_block_part(part)}.{leaf}"] = tensor
        elif block:
            layer, index, part, leaf = block.groups()
            converted[f"{_STAGES[layer]}.{index}.{_block_part(part)}.{leaf}"] = tensor
        else:
            raise UserError(f"{name} is not a tensor of a torchvision ResNet; --input takes a state dict of one.")
    return converted


def stages_of(state: Mapping[str, Any]) -> tuple[str, ...]:
    """ResNet stages that a state dict has, such as ``("res2", "res3", "res4")``: res5 is truncated.

    Names may have any prefix, or be torchvision's.
    """
    found = set()
    for name in state:
        match = re.search(r"(?:^|\.)(res[2-5]|layer[1-4])\.\d+\.", name)
        if match:
            found.add(_STAGES.get(match[1], match[1]))
    return tuple(sorted(found))


def imagenet_checkpoint(name: str) -> dict[str, Any]:
    """torchvision's ImageNet weights of ``name`` as a checkpoint for the backbone; downloaded once, then cached.

    Raises:
        UserError: an unknown name; the file is not there and can't be downloaded; or its checksum is wrong.
    """
    if name not in IMAGENET_MODELS:
        raise UserError(f"There are no weights {SCHEME}{name}; there are {', '.join(IMAGENET_MODELS)}.")
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if cached.is_file():
        # torch checks what it downloads, and never again.
        verify_checksum(cached)
    try:
        state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"Cannot download {SCHEME}{name} ({reason}). Without a network, put {url} at {cached} by hand; "
            'to train from scratch, give MODEL.WEIGHTS "".'
        ) from error
    except RuntimeError as error:
        raise UserError(f"The download of {url} is damaged ({error}); try again.") from error
    return backbone_checkpoint(state, name, source=url)


def verify_checksum(path: Path) -> bool:
    """Compare a file with the start of its SHA-256 in its name (``resnet18-f37072fd.pth``), where it has one there.

    Returns:
        Whether there was one to compare with.

    Raises:
        UserError: they differ, or the file can't be read.
    """
    expected = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if not expected:
        return False
    actual = sha256_of(path)
    if not actual.startswith(expected[1]):
        raise UserError(
            f"{path} is damaged: its SHA-256 begins {actual[:8]}, not {expected[1]}; delete it and fetch it again."
        )
    return True


def backbone_checkpoint(state: Mapping[str, torch.Tensor], name: str, *, source: str) -> dict[str, Any]:
    """A checkpoint that holds a backbone alone, from the state dict of torchvision's ``name``.

    Raises:
        UserError: the tensors are not those of that ResNet; the message says what differs.
    """
    with torch.device("meta"):
        expected = torchvision.models.get_model(name).state_dict()
    for key, tensor in expected.items():
        if key.endswith(".num_batches_tracked") or key.startswith("fc."):
            continue
        if key not in state or state[key].shape != tensor.shape:
            found = f"{key} of shape {tuple(state[key].shape)}" if key in state else f"no {key}"
            raise UserError(f"{source} is not a torchvision {name}: it has {found}.")
    model = {BACKBONE_PREFIX + key: tensor for key, tensor in convert_torchvision_resnet(state).items()}
    facts = {"format": FORMAT, "kind": "backbone", "depth": IMAGENET_MODELS[name], "source": source}
    return {"model": model, "d2_covid": facts}


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint and of a model; names in alphabetical order."""

    source: str
    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """In the checkpoint, without a place in the model."""
    new: list[str] = field(default_factory=list)
    """In the model, not in the checkpoint: they keep their initial values."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint says of its model (:func:`.checkpoint.model_facts`); empty for a bare state dict."""

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.source}: loaded {len(self.loaded)} tensors"]
        for names, what in ((self.skipped, "not used"), (self.new, "new")):
            if names:
                parts.append(f"{what} {len(names)} ({_modules(names)})")
        return ", ".join(parts)


def load_weights(
    model: torch.nn.Module,
    cfg: CfgNode,
    *,
    complete: bool = False,
    whole: bool = False,
    may_be_new: tuple[str, ...] = (),
) -> LoadReport | None:
    """Load ``MODEL.WEIGHTS`` into ``model``: a checkpoint, or ``torchvision://resnet18``; ``""`` loads nothing.

    Args:
        complete: every tensor of the model must be in the checkpoint, as an evaluation needs.
        whole: every tensor but those of ``may_be_new`` must be there, even if the checkpoint does not say that it holds
            a whole model.
        may_be_new: prefixes of tensors that a checkpoint of a whole model may lack.

    Returns:
        What was loaded; None for ``""``.

    Raises:
        UserError: the file can't be read; it belongs to another model (see :func:`.checkpoint.check_facts`), or tensors
            differ in shape, or are missing; the message lists them.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        return None
    if source.startswith(SCHEME):
        checkpoint = imagenet_checkpoint(source[len(SCHEME) :])
    else:
        checkpoint = read_checkpoint(source)
    facts = checkpoint.get("d2_covid", {})
    check_facts(facts, cfg, source)
    report = replace(load_state(model, checkpoint["model"], source), facts=facts)
    if facts.get("kind") == "model" or complete or whole:
        missing = report.new if complete else [n for n in report.new if not n.startswith(may_be_new or ("\0",))]
        if missing:
            raise UserError(f"{source} lacks {len(missing)} tensors of the model: {_modules(missing)}.")
    logger.info(report.summary())
    new = [name for name in report.new if name.startswith("backbone.")]
    if new and not all(name.startswith("backbone.") for name in report.loaded):
        logger.warning(
            "%s has other parts of the model, but not these of its backbone, which start anew: %s; use the config that "
            "the weights were trained with, or weights of this one",
            *(source, _modules(new)),
        )
    return report


def load_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> LoadReport:
    """Copy the tensors of ``state`` into ``model`` by name.

    Raises:
        UserError: shapes differ, or not one name is the same.
    """
    own = model.state_dict()
    shared = sorted(own.keys() & state.keys())
    wrong = [
        f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}"
        for n in shared
        if state[n].shape != own[n].shape
    ]
    if wrong:
        told = f"{_first(wrong)}{_anchors(own, state)}"
        raise UserError(f"{source} holds another model; tensors of another shape: {told}.")
    if not shared:
        raise UserError(f"{source} holds no tensor of this model; it has {_modules(sorted(state))}.")
    model.load_state_dict({name: state[name] for name in shared}, strict=False)
    # How many batches a BatchNorm has seen matters to none of its outputs, and older files lack it.
    new = sorted(n for n in own.keys() - state.keys() if not n.endswith(".num_batches_tracked"))
    return LoadReport(str(source), shared, sorted(state.keys() - own.keys()), new)


def _anchors(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """Which configs have as many anchors a place as ``state``, where the model has others."""
    name = "proposal_generator.rpn_head.objectness_logits.bias"
    if name not in own or name not in state or len(own[name]) == len(state[name]):
        return ""
    return (
        f"; it has {len(state[name])} anchors a place, and the config {len(own[name])}: the paper's configs have 30, "
        "those in tuned/ 15, as have models that ship and those of phantoms"
    )


def _block_part(part: str) -> str:
    if part.startswith("bn"):
        return f"conv{part[2:]}.norm"
    return _BLOCK_PARTS.get(part, part)


def _modules(names: list[str], limit: int = 8) -> str:
    """Tensor names by the first three parts of their path, so that a stage or a head is one entry."""
    groups: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[:3])
        groups[group] = groups.get(group, 0) + 1
    return _first([f"{group} ({count})" for group, count in groups.items()], limit)


def _first(items: list[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
