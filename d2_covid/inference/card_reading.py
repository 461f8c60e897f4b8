"""Read the card of a shipped model; one that is not whole and consistent is refused, its field named."""

import dataclasses
import math
import re
import types
import typing
from datetime import date
from pathlib import Path
from typing import Any, Mapping

from ..data.files import read_json
from ..errors import UserError
from .model_card import ModelCard

SCHEMA_VERSION = 1
KINDS = ("lesion", "classifier")
MEASURED = ("stored", "trained")
LIMITS_LINE = 200
"""Most characters of the line of limits that every prediction carries."""

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
"""What a model's name looks like."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MACHINE_PATH = re.compile(r"(?<![\w./:~$}])/(?:home|root|tmp|work|mnt|media|Users|var|scratch|workspace)/\S*")


def read_card(path: str | Path) -> ModelCard:
    """Read and check a card.

    Raises:
        UserError: it can't be read, or is no whole card; the message names file and field.
    """
    return card_from_dict(read_json(path), path)


def card_from_dict(value: Any, source: str | Path) -> ModelCard:
    """A card from plain values.

    Args:
        source: named in errors.

    Raises:
        UserError: a field is missing, unknown, of another kind, or at odds with another; the message names it.
    """
    if isinstance(value, Mapping) and value.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{source}: schema_version is {value.get('schema_version')!r}; this d2_covid reads {SCHEMA_VERSION}."
        )
    try:
        card = _read(ModelCard, value, "")
        _check(card)
    except _Wrong as wrong:
        raise UserError(f"{source}: {wrong}.") from None
    return card


class _Wrong(Exception):
    """What is wrong with a field; the message begins with its name."""


def _check(card: ModelCard) -> None:
    lesion = card.kind == "lesion"
    shas = [("sha256", card.sha256), ("storage.trained_sha256", card.storage.trained_sha256)]
    shas += [("base.sha256", card.base.sha256)] if card.base else []
    rules = [
        (NAME.fullmatch(card.name), f"name {card.name!r} must be of a to z, 0 to 9 and _"),
        (card.kind in KINDS, f"kind must be one of {', '.join(KINDS)}, not {card.kind!r}"),
        (card.file == f"{card.name}.pth", f"file must be {card.name}.pth, not {card.file!r}"),
        (card.size_bytes > 0, "size_bytes must be above 0"),
        *((_SHA256.fullmatch(sha), f"{field} must be 64 hexadecimal digits") for field, sha in shas),
        (lesion or not card.default, "default: only a lesion model can be the default"),
        (not lesion or card.base is None, "base: a lesion model has none"),
        (lesion != bool(card.architecture.image_classes), f"architecture.image_classes do not fit kind {card.kind}"),
        (card.architecture.lesion_classes, "architecture.lesion_classes is empty"),
        (_is_date(card.date), f"date must be as 2020-12-31, not {card.date!r}"),
        (card.limits, "limits is empty"),
        (all(len(line) <= LIMITS_LINE for line in card.limits[:1]), f"limits[0] is over {LIMITS_LINE} characters"),
        (card.training.data, "training.data is empty"),
    ]
    for holds, message in rules:
        if not holds:
            raise _Wrong(message)
    for number, evaluation in enumerate(card.evaluation):
        if evaluation.weights not in MEASURED:
            raise _Wrong(f"evaluation[{number}].weights must be one of {', '.join(MEASURED)}")
        if not evaluation.metrics:
            raise _Wrong(f"evaluation[{number}].metrics is empty")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _read(kind: Any, value: Any, field: str) -> Any:
    """``value`` as ``kind``, a type as the fields above have it."""
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, field)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, field)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), field, "a list", value)
        return tuple(_read(arguments[0], item, f"{field}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, Mapping), field, "an object", value)
        return {name: _read(arguments[1], item, f"{field}.{name}") for name, item in value.items()}
    if kind is str:
        _require(isinstance(value, str) and value.strip() == value != "", field, "text, without space around", value)
        _require("\n" not in value, field, "a single line", value)
        if found := _MACHINE_PATH.search(value):
            raise _Wrong(f"{field} names a path of one machine, {found[0]}")
        return value
    if kind is bool:
        _require(isinstance(value, bool), field, "true or false", value)
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    whole = kind is int
    _require(number and (not whole or isinstance(value, int)), field, "a whole number" if whole else "a number", value)
    return kind(value)


def _read_fields(kind: Any, value: Any, field: str) -> Any:
    name = field or "the card"
    _require(isinstance(value, Mapping), name, "an object", value)
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    prefix = f"{field}." if field else ""
    unknown = sorted(value.keys() - hints.keys())
    if unknown:
        raise _Wrong(f"{prefix}{unknown[0]} is no field of a card")
    for one in fields:
        if one.name not in value and one.default is dataclasses.MISSING:
            raise _Wrong(f"{prefix}{one.name} is missing")
    return kind(**{key: _read(hints[key], item, prefix + key) for key, item in value.items()})


def _require(holds: bool, field: str, what: str, value: Any) -> None:
    if not holds:
        shown = repr(value) if len(repr(value)) <= 40 else type(value).__name__
        raise _Wrong(f"{field} must be {what}, not {shown}")
