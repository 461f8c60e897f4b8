"""From a training's checkpoint to a model that ships: weights in half precision, and their card.

What a person has to say (what the model is for, what its data's terms ask) comes as *facts*, a json of the card's
fields :data:`AUTHORED`; everything that can be counted or measured is. An earlier card serves as facts.
"""

import dataclasses
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from .. import __version__
from ..config import config_dir, get_config, merge_overrides
from ..data.files import atomic_write, sha256_of, write_json
from ..data.phantom import phantom_patient
from ..engine.carried_config import carried_facts, config_from_facts
from ..engine.checkpoint import model_facts, read_checkpoint, write_checkpoint
from ..engine.half import STORED, half_state, without_base
from ..engine.run_record import now, read_record
from ..engine.weights import load_state
from ..errors import UserError
from ..inference.agreement import agreement
from ..inference.batch import load_model, slice_record
from ..inference.card_reading import NAME, SCHEMA_VERSION, card_from_dict
from ..inference.model_card import Comparison, Evaluation, ModelCard
from ..inference.model_source import ModelSource, descriptive_name, find_config, model_names, resolve_model
from ..inference.shipped import MAX_BYTES, ShippedModel, find_shipped, shipped_models, verified
from .card_evaluations import read_object
from .records import parameters_in

AUTHORED = ("summary", "intended_use", "not_intended_use", "limits", "training", "licence")
"""Fields of a card that a person writes. Of ``training``, a run's own record goes before what they say. They may name
``architecture.config`` too."""

_OF_A_RECORD = ("slices", "seconds", "device", "seed")

_CLASSIFIER = "CovidCTMaskNet"
_PHANTOM_SLICES = 4


@dataclasses.dataclass(frozen=True)
class CompareOn:
    """Slices, (H, W) uint8 each, to compare the stored model with the trained one on, and what they are."""

    slices: Sequence[np.ndarray]
    words: str

    @classmethod
    def phantoms(cls) -> "CompareOn":
        """A few slices of a phantom with COVID-19."""
        return cls([one.image for one in phantom_patient(7, 2, _PHANTOM_SLICES)], "phantom CT")


def read_facts(path: str | Path) -> dict[str, Any]:
    """Read facts, or an earlier card.

    Raises:
        UserError: it can't be read, is no json object, or has a key that no card has.
    """
    facts = read_object(path)
    unknown = sorted(facts.keys() - {field.name for field in dataclasses.fields(ModelCard)})
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is no field of a card; a person writes {', '.join(AUTHORED)}.")
    if "sha256" in facts and isinstance(facts.get("training"), Mapping):  # an earlier card: another training's record
        facts["training"] = {key: value for key, value in facts["training"].items() if key not in _OF_A_RECORD}
    return {name: facts[name] for name in (*AUTHORED, "architecture") if name in facts}


@contextmanager
def draft_of(store: Path) -> Iterator[Path]:
    """A copy of a store to work in. What the body changes in it goes into the store at its end, weights before cards;
    a body that raises leaves the store as it was.

    Raises:
        UserError: the store can't be written to.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "models"
        draft.mkdir()
        before = {}
        for path in _model_files(store):
            before[path.name] = sha256_of(shutil.copy(path, draft))
        yield draft
        for path in _model_files(draft):
            if before.get(path.name) != sha256_of(path):
                with atomic_write(store / path.name, "wb") as file:
                    file.write(path.read_bytes())


def _model_files(folder: Path) -> list[Path]:
    return [path for pattern in ("*.pth", "*.json") for path in sorted(folder.glob(pattern))]


def ship(
    name: str,
    weights: str | Path,
    facts: Mapping[str, Any],
    store: Path,
    *,
    base: str | None = None,
    opts: Sequence[str] = (),
    default: bool = False,
    compare_on: CompareOn | None = None,
) -> ShippedModel:
    """Put the model of a checkpoint into ``store``, weights and card; it is not measured yet (:func:`add_evaluations`).

    Args:
        name: of the model; one of that name is replaced.
        weights: a checkpoint that carries its config, or has ``config.yaml`` beside it.
        facts: from :func:`read_facts`.
        base: for a classifier, the lesion model in ``store`` that it was trained on: what both have is stored once, and
            its mask head gives the classifier masks.
        opts: ``KEY VALUE ...``, changes to the config that the weights carry, such as a score threshold.
        default: make it the model that predicts when none is named; the first lesion model is that in any case.
        compare_on: slices to compare the stored model with the trained one on; None: phantoms.

    Raises:
        UserError: a name that can't be, a base that it was not trained on, facts that make no whole card, weights that
            are too large or can't be stored in half precision. Then the store is as it was.
    """
    if name in model_names() or not NAME.fullmatch(name):
        raise UserError(f"A model can't be named {name}: its name is of a to z, 0 to 9 and _, and no config's.")
    checkpoint = read_checkpoint(weights)
    source = resolve_model(weights=Path(weights), device="cpu")
    classifies = source.cfg.MODEL.META_ARCHITECTURE == _CLASSIFIER
    _check_default(default, classifies)
    shared = None if base is None else verified(find_shipped(base, store))
    cfg = _config(source, shared, opts)
    # The base has the mask head, which classifiers are trained without.
    trained = (read_checkpoint(shared.path)["model"] if shared else {}) | checkpoint["model"]

    path, new = store / f"{name}.pth", store / f".{name}.new.pth"
    try:
        write_checkpoint(new, _stored(trained, cfg, source, shared))
        cfg.MODEL.WEIGHTS = str(new)
        model = load_model(cfg)
        comparison = None
        if not any(tensor.dtype == torch.float16 for tensor in checkpoint["model"].values()):
            before = build_model(cfg).eval()
            load_state(before, trained, str(weights))
            comparison = _compare(before, model, cfg, compare_on or CompareOn.phantoms())
        earlier = checkpoint.get("d2_covid", {}).get("trained_sha256")
        card = {
            **_authored(facts, Path(weights).parent),
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "kind": "classifier" if classifies else "lesion",
            "default": not classifies and (default or _is_default(name, store)),
            "file": path.name,
            "size_bytes": new.stat().st_size,
            "sha256": sha256_of(new),
            "base": None if shared is None else {"name": shared.name, "sha256": shared.card.sha256},
            "date": now()[:10],
            "d2_covid": __version__,
            "architecture": {
                "config": _config_name(facts, source),
                "parameters": parameters_in(trained),
                "lesion_classes": list(source.lesion_classes),
                "image_classes": list(source.image_classes),
            },
            "storage": {
                "tensors": STORED,
                "trained_sha256": earlier or sha256_of(weights),
                "comparison": None if comparison is None else dataclasses.asdict(comparison),
            },
            "evaluation": [],
        }
        shipped = ShippedModel(card_from_dict(card, f"the card of {name}"), path)
        if (size := shipped.card.size_bytes) > MAX_BYTES:
            raise UserError(f"{name} takes {size:,} bytes; a model that ships has {MAX_BYTES:,} at most.")
        os.replace(new, path)
        _write_card(shipped)
    finally:
        new.unlink(missing_ok=True)
    return shipped


def add_evaluations(model: ShippedModel, evaluations: Sequence[Evaluation]) -> ShippedModel:
    """Put ``evaluations`` on the model's card, in the place of earlier ones of the same data and weights."""
    new = {(one.data, one.weights) for one in evaluations}
    kept = [one for one in model.card.evaluation if (one.data, one.weights) not in new]
    return _changed(model, evaluation=(*kept, *evaluations))


def revise(model: ShippedModel, facts: Mapping[str, Any], *, default: bool = False) -> ShippedModel:
    """Change what a person has written on the card; the weights stay as they are.

    Raises:
        UserError: the facts make no whole card.
    """
    values = model.card.as_dict()
    authored = {key: facts[key] for key in AUTHORED if key in facts}
    if isinstance(authored.get("training"), Mapping):
        authored["training"] = values["training"] | authored["training"]
    _check_default(default, model.card.kind == "classifier")
    card = card_from_dict(values | authored | {"default": default or model.card.default}, f"the card of {model.name}")
    revised = ShippedModel(card, model.path)
    _write_card(revised)
    return revised


def left_behind(model: ShippedModel) -> list[str]:
    """Names of the classifiers that share tensors with an earlier build of ``model``, and have to be shipped again."""
    cards = [one.card for one in shipped_models(model.path.parent)]
    sharing = [card for card in cards if card.base and card.base.name == model.name]
    return [card.name for card in sharing if card.base.sha256 != model.card.sha256]


def _config(source: ModelSource, shared: ShippedModel | None, opts: Sequence[str]) -> CfgNode:
    """The config to ship: the weights' own, with the mask head of the base, and changed by ``opts``."""
    cfg = source.cfg
    if shared is not None:
        if cfg.MODEL.META_ARCHITECTURE != _CLASSIFIER:
            raise UserError(f"{source.weights} is a lesion model: it has no base.")
        own = config_from_facts(read_checkpoint(shared.path).get("d2_covid", {}), shared.path)
        cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD = own.MODEL.MASK_ON, own.MODEL.ROI_MASK_HEAD
    merge_overrides(cfg, opts)
    return cfg


def _config_name(facts: Mapping[str, Any], source: ModelSource) -> str:
    """The config that the facts name, if it is one of such a model; else the model's own description."""
    architecture = facts.get("architecture")
    named = architecture.get("config") if isinstance(architecture, Mapping) else None
    shipped = named in model_names() or bool(named) and (config_dir() / f"{named}.yaml").is_file()
    fits = shipped and descriptive_name(get_config(find_config(named))) == source.name
    return named if fits else source.name


def _stored(
    trained: Mapping[str, torch.Tensor], cfg: CfgNode, source: ModelSource, shared: ShippedModel | None
) -> dict[str, Any]:
    """The checkpoint to ship: weights, and the facts without which they can't be used."""
    classifies = cfg.MODEL.META_ARCHITECTURE == _CLASSIFIER
    facts = model_facts(cfg, classifier=classifies) | carried_facts(cfg)
    if classifies:
        facts |= {"image_classes": list(source.image_classes)}
    state = half_state(trained)
    if shared is not None:
        facts |= {"base": {"file": shared.path.name, "sha256": shared.card.sha256}}
        base = read_checkpoint(shared.path)["model"]
        state = without_base(state, base)
        common = sum(tensor.nbytes for name, tensor in base.items() if name not in state)
        if common < sum(tensor.nbytes for tensor in base.values()) / 2:
            raise UserError(f"{source.weights} has other tensors than {shared.name}: it was not trained on this model.")
    return {"model": state, "d2_covid": facts}


@torch.inference_mode()
def _compare(trained: torch.nn.Module, stored: torch.nn.Module, cfg: CfgNode, on: CompareOn) -> Comparison:
    records = [slice_record(gray, cfg) for gray in on.slices]
    outputs = [[model([record])[0] for record in records] for model in (trained, stored)]
    found = dataclasses.asdict(agreement(*outputs, cfg.TEST.UNION_SCORE_THRESH))
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}
    return Comparison(on=on.words, **rounded)


def _authored(facts: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """What a person wrote, with what the record in the folder of a training says of it."""
    authored = {key: facts[key] for key in AUTHORED if key in facts}
    record = read_record(run)
    if record and isinstance(authored.get("training"), Mapping):
        seconds = [session["seconds"] for session in record.get("sessions", []) if "seconds" in session]
        authored["training"] = authored["training"] | {
            "slices": sum(dataset["slices"] for dataset in record["data"]["train"]),
            "seconds": float(sum(seconds)) if seconds else None,
            "device": record.get("device"),
            "seed": record["seed"],
        }
    return authored


def _check_default(default: bool, classifies: bool) -> None:
    if default and classifies:
        raise UserError("A classifier can't be the default: what predicts unasked finds lesions, and names no disease.")


def _is_default(name: str, store: Path) -> bool:
    """Whether a lesion model ``name`` is the default unasked: it was, or there is no other."""
    return not any(one.card.default and one.name != name for one in shipped_models(store))


def _changed(model: ShippedModel, **fields: Any) -> ShippedModel:
    changed = ShippedModel(dataclasses.replace(model.card, **fields), model.path)
    _write_card(changed)
    return changed


def _write_card(model: ShippedModel) -> None:
    """Write a card; where it is the default's, others are it no longer."""
    folder = model.path.parent
    for other in shipped_models(folder) if model.card.default else ():
        if other.card.default and other.name != model.name:
            _write_card(ShippedModel(dataclasses.replace(other.card, default=False), other.path))
    write_json(folder / f"{model.name}.json", model.card.as_dict())
