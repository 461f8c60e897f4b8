"""Which model: a config by path or by name, or the one that the weights carry, and the names of its classes."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode

from ..config import config_dir, get_config, merge_overrides
from ..data.files import sha256_of
from ..data.lesion_masks import lesion_class_names
from ..data.slice_lists import remark_on_first
from ..engine import setup
from ..engine.carried_config import config_from_facts, image_class_names, silent_differences, without_machine
from ..engine.checkpoint import read_checkpoint
from ..errors import UserError
from ..modeling.backbone import truncation_of
from .model_card import ModelCard
from .shipped import ShippedModel, default_model, find_shipped, names_shipped, shipped_at, shipped_names, verified

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """A config that is ready to build, its weights named in it, and what is to be said about the two.

    Attributes:
        name: of the shipped model; else of the config: its file's, or the model's own where the weights carry it.
        image_classes: names of the C image classes; empty for a model that doesn't classify.
        card: what is said of a model that ships with d2_covid; None for others.
    """

    cfg: CfgNode
    name: str
    weights: Path
    weights_sha256: str
    lesion_classes: tuple[str, ...]
    image_classes: tuple[str, ...]
    warnings: tuple[str, ...]
    card: ModelCard | None = None


def model_names() -> list[str]:
    """Names of the models whose configs ship, such as ``mask_rcnn_R_18_T1_FPN``."""
    return sorted(path.stem for path in config_dir().glob("*/*.yaml"))


def find_config(model: str | Path) -> Path:
    """The yaml file of a model: a path, a path below the shipped configs, or a name out of :func:`model_names`.

    Raises:
        UserError: there is none; the message lists names that are alike.
    """
    for path in (Path(model), config_dir() / model, config_dir() / f"{model}.yaml"):
        if path.is_file():
            return path
    found = sorted(config_dir().glob(f"*/{Path(model).name}.yaml")) if Path(model).name == str(model) else []
    if found:
        return found[0]
    names = [*model_names(), *shipped_names()]
    near = difflib.get_close_matches(Path(model).stem, names, n=3) or names
    raise UserError(f"There is no model or config {model}; give the path of a yaml file, or a name: {', '.join(near)}.")


def resolve_model(
    config: str | Path | CfgNode | None = None, weights: str | Path | None = None, device: str = "auto"
) -> ModelSource:
    """Find the config and the weights of a model.

    With neither, it is the default of the models that ship (:mod:`.shipped`). Without a config it is the one that the
    weights carry, or else ``config.yaml`` beside them, which training leaves. Weights are read as tensors and plain
    values only.

    Args:
        config: a path or the name of a config; or of a shipped model, which brings its weights.
        weights: a path, or the name of a shipped model; None: the config's ``MODEL.WEIGHTS``.
        device: "auto": a CUDA device if there is one, else the CPU; or what PyTorch calls a device.

    Raises:
        UserError: no such config or weights, a config without weights, a damaged or foreign file, more or fewer lesion
            classes than ``DATASETS.MASK_TYPE`` has names for, or a device that is not there.
    """
    device = choose_device(device)
    config, weights, shipped = _choose_shipped(config, weights)
    cfg, name = _given_config(config)
    if weights is None and cfg is not None and cfg.MODEL.WEIGHTS:
        weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError("A model that predicts needs its weights: give --weights (weights=) the path of a checkpoint.")
    path = Path(weights)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give --weights a checkpoint in it, such as {path / 'model_best.pth'}.")
    facts = read_checkpoint(path).get("d2_covid", {})
    facts = facts if isinstance(facts, dict) else {}
    warnings: tuple[str, ...] = ()
    if cfg is None:
        cfg, name = _own_config(path, facts)
        name = shipped.name if shipped else name
    else:
        differences = silent_differences(cfg, facts)
        warnings = tuple(f"The config differs from the weights' own: {what}." for what in differences)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = str(path), device
    lesion_classes, image_classes = _lesion_classes(cfg, path), image_class_names(cfg, facts)
    if remark := remark_on_first(image_classes):
        warnings += (f"{remark}.",)
    return ModelSource(
        cfg=cfg,
        name=name,
        weights=path,
        weights_sha256=sha256_of(path),
        lesion_classes=lesion_classes,
        image_classes=image_classes,
        warnings=warnings,
        card=shipped.card if shipped else None,
    )


def model_config(config: str | Path | None, weights: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a model for a tool that takes overrides, with its weights and a device that is there.

    Args:
        config: a path or the name of one; None: the weights' own.
        weights: a path, or the name of a shipped model.
        opts: ``KEY VALUE ...``, which go before what config or weights say.

    Raises:
        UserError: as :func:`resolve_model`, or an override that can't be set.
    """
    source = resolve_model(None if config is None else get_config(find_config(config), opts), weights)
    for warning in source.warnings:
        logger.warning("%s", warning)
    merge_overrides(source.cfg, opts)
    setup.choose_device(source.cfg, opts)
    return source.cfg


def keep_scores_from(cfg: CfgNode, score: float) -> None:
    """Have the model of ``cfg`` give every detection that scores at least so much."""
    # Detectron2 keeps what scores more than its threshold; as much counts too.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(np.nextafter(np.float32(score), np.float32(-1)))


def choose_device(device: str) -> str:
    """``device``, or for "auto" the best there is.

    Raises:
        UserError: PyTorch knows or finds no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    setup.check_device(device, "--device auto or cpu")
    return device


def _choose_shipped(
    config: str | Path | CfgNode | None, weights: str | Path | None
) -> tuple[str | Path | CfgNode | None, str | Path | None, ShippedModel | None]:
    """Config, weights and shipped model that a choice comes to; the last is None where the weights are others."""
    if weights is None:
        if config is None or names_shipped(config):
            model = verified(default_model() if config is None else find_shipped(str(config)))
            return None, model.path, model
        return config, None, None
    if names_shipped(config):
        raise UserError(f"{config} is a shipped model, which brings its weights: leave out --weights, or --model.")
    if names_shipped(weights):
        model = verified(find_shipped(str(weights)))
        return config, model.path, model
    path = Path(weights)
    if str(weights) == path.stem and not path.exists():
        raise UserError(f"There is no file {weights}, and no shipped model of that name{_listed(shipped_names())}.")
    model = shipped_at(path)
    return config, weights, verified(model) if model else None


def _listed(names: list[str]) -> str:
    return f"; there are {', '.join(names)}" if names else ": this copy of d2_covid ships none"


def _given_config(config: str | Path | CfgNode | None) -> tuple[CfgNode | None, str]:
    if config is None:
        return None, ""
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        return cfg, descriptive_name(cfg)
    path = find_config(config)
    return get_config(path), path.stem


def _lesion_classes(cfg: CfgNode, weights: Path) -> tuple[str, ...]:
    try:
        return lesion_class_names(cfg.DATASETS.MASK_TYPE, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    except UserError as error:
        raise UserError(f"{weights}: {error.args[0].removesuffix('.')} in a config given by --model.") from error


def _own_config(weights: Path, facts: dict[str, Any]) -> tuple[CfgNode, str]:
    cfg = config_from_facts(facts, weights)
    beside = weights.parent / "config.yaml"
    if cfg is None and beside.is_file():
        cfg = without_machine(get_config(beside))
    if cfg is None:
        raise UserError(
            f"{weights} does not say which model it holds, and no config.yaml lies beside it; give the model's config "
            f"with --model, a yaml file or a name such as {model_names()[0]}."
        )
    return cfg, descriptive_name(cfg)


def descriptive_name(cfg: CfgNode) -> str:
    """A name for a config without a file, as the shipped ones are named."""
    kind = "covid_ct_mask_net" if cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet" else "mask_rcnn"
    return f"{kind}_R_{cfg.MODEL.RESNETS.DEPTH}_{truncation_of(cfg)}_{cfg.DATASETS.MASK_TYPE}"
