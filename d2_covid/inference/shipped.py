"""The models that come with d2_covid: which there are, the one by a name, and whether its files are whole.

A model is two files in the package's ``models`` folder: weights, ``<name>.pth``, and what is said of them,
``<name>.json`` (:mod:`.model_card`).
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from ..data.files import sha256_of
from ..errors import UserError
from .card_reading import read_card
from .model_card import ModelCard

MAX_BYTES = 16_000_000
"""Most that the weights of a model may take."""

_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ShippedModel:
    """A model's card, and where its weights lie."""

    card: ModelCard
    path: Path

    @property
    def name(self) -> str:
        return self.card.name


def store_dir() -> Path:
    """Folder of the models that come with this copy of d2_covid."""
    return Path(__file__).parent.parent / "models"


def shipped_names(store: str | Path | None = None) -> list[str]:
    """Names of all models that ship.

    Args:
        store: folder to look in; None: :func:`store_dir`.
    """
    return sorted(path.stem for path in _folder(store).glob("*.json"))


def shipped_models(store: str | Path | None = None) -> list[ShippedModel]:
    """All models that ship: the default first, then by kind and name.

    Raises:
        UserError: a card is damaged.
    """
    models = [find_shipped(name, store) for name in shipped_names(store)]
    return sorted(models, key=lambda one: (not one.card.default, one.card.kind != "lesion", one.name))


def find_shipped(name: str, store: str | Path | None = None) -> ShippedModel:
    """The model of that name.

    Raises:
        UserError: there is none, and the message lists names; or its card is damaged.
    """
    names = shipped_names(store)
    if not names:
        raise UserError(f"There is no shipped model {name}: this copy of d2_covid ships none.")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or names
        raise UserError(f"There is no shipped model {name}; there are {', '.join(near)} (d2-covid models lists all).")
    path = _folder(store) / f"{name}.json"
    card = read_card(path)
    if card.name != name:
        raise UserError(f"{path}: name is {card.name}, and must be the file's.")
    return ShippedModel(card, path.with_name(card.file))


def names_shipped(value: object, store: str | Path | None = None) -> bool:
    """Whether ``value``, a name or a path, is the name of a model that ships. A file of that name goes first."""
    return isinstance(value, (str, Path)) and str(value) in shipped_names(store) and not Path(value).is_file()


def shipped_at(path: Path, store: str | Path | None = None) -> ShippedModel | None:
    """The model whose weights are the file ``path`` itself; None for a file elsewhere."""
    if path.resolve().parent != _folder(store).resolve() or path.stem not in shipped_names(store):
        return None
    return find_shipped(path.stem, store)


def default_model(store: str | Path | None = None) -> ShippedModel:
    """The model that predicts when none is named.

    Raises:
        UserError: this copy of d2_covid ships none.
    """
    for model in shipped_models(store):
        if model.card.default:
            return model
    raise UserError(
        "This copy of d2_covid ships no weights: give --weights (weights=) the path of a checkpoint, such as "
        "output/model_best.pth."
    )


def verified(model: ShippedModel) -> ShippedModel:
    """``model``, once its weights, and those that they share tensors with, are found to be whole.

    Raises:
        UserError: a file is missing, cut short, a git-lfs pointer, or another than its card says.
    """
    _verify(model)
    base = model.card.base
    if base is not None:
        found = find_shipped(base.name, model.path.parent)
        if found.card.sha256 != base.sha256:
            raise UserError(
                f"{model.path} belongs to another {found.path.name} than the one that ships; install d2_covid again."
            )
        _verify(found)
    return model


def _folder(store: str | Path | None) -> Path:
    return store_dir() if store is None else Path(store)


def _verify(model: ShippedModel) -> None:
    card, path = model.card, model.path
    if not path.is_file():
        raise UserError(f"{path} is missing; install d2_covid again.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if start == _POINTER:
        raise UserError(f"{path} is a git-lfs pointer, not the weights: run git lfs pull, or install a release.")
    if size != card.size_bytes:
        raise UserError(f"{path} has {size:,} of {card.size_bytes:,} bytes: it is damaged; install d2_covid again.")
    found = sha256_of(path)
    if found != card.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 begins {found[:8]}, not {card.sha256[:8]}; install d2_covid again."
        )
