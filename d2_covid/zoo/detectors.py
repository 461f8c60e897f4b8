"""The lesion models that the zoo's classifiers build on, and the configs that they fit."""

from collections.abc import Sequence
from pathlib import Path

from ..config import config_dir, get_config
from ..data.files import sha256_of
from ..engine.carried_config import silent_differences
from ..engine.checkpoint import read_checkpoint
from ..errors import UserError
from .grids import MODELS, Row, classifier_rows, final_weights
from .pack import best_record, judged_on_ct
from .records import FINISHED, read_records

_CONFIGS = ("classification/tuned", "classification")
_SIZES = ("MIN_SIZE_TEST", "MAX_SIZE_TEST")


def detector_rows(grid: str, folder: Path, given: Sequence[str]) -> list[Row]:
    """The rows of a grid of classifiers.

    Args:
        grid: one of :data:`.grids.CLASSIFIER_GRIDS`.
        folder: of the zoo; without ``given``, the lesion model of each model with the highest AP50 there is taken.
        given: ``MODEL=FILE``, a lesion model each.

    Raises:
        UserError: there is no lesion model, one that fits no config, or one twice.
    """
    rows: list[Row] = []
    for model, name, weights in _given(given) if given else _best(folder):
        path = folder / weights
        configs, size = fitting_config(model, path)
        rows += classifier_rows(grid, model, name, weights, size, configs)
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise UserError("--detector names one lesion model twice.")
    # A seed of every model first.
    return sorted(rows, key=lambda row: row.seed)


def fitting_config(model: str, weights: Path) -> tuple[str, list[str]]:
    """The folder of the classifier's config that a lesion model fits, and the overrides for its input's size.

    Raises:
        UserError: the file is no such model, or fits none of the configs; the message says in what it differs.
    """
    facts = read_checkpoint(weights).get("d2_covid", {})
    sizes = {key: facts.get("config", {}).get("INPUT", {}).get(key) for key in _SIZES}
    differing: list[str] = []
    for folder in _CONFIGS:
        leaf = f"{folder}/covid_ct_mask_net_{MODELS[model]}.yaml"
        opts = [item for key, size in sizes.items() if size for item in (f"INPUT.{key}", str(size))]
        cfg = get_config(config_dir() / leaf, opts)
        differing = silent_differences(cfg, facts)
        if not differing:
            return f"configs/{folder}", _size_options(leaf, sizes)
    raise UserError(f"{weights} fits no config of a classifier: {'; '.join(differing)}.")


def _size_options(leaf: str, sizes: dict[str, int | None]) -> list[str]:
    plain = get_config(config_dir() / leaf).INPUT
    if not all(sizes.values()) or all(plain[key] == size for key, size in sizes.items()):
        return []
    smaller, larger = (str(sizes[key]) for key in _SIZES)
    train = ["INPUT.MIN_SIZE_TRAIN", f"({smaller},)", "INPUT.MAX_SIZE_TRAIN", larger]
    return [*train, "INPUT.MIN_SIZE_TEST", smaller, "INPUT.MAX_SIZE_TEST", larger]


def _given(given: Sequence[str]) -> list[tuple[str, str, str]]:
    found = []
    for text in given:
        model, equals, file = text.partition("=")
        if not equals or model not in MODELS:
            raise UserError(f"--detector {text}: it takes MODEL=FILE, and MODEL is one of {', '.join(MODELS)}.")
        # All trainings call their model alike: what it holds tells it from others.
        found.append((model, f"{Path(file).stem}.{sha256_of(file)[:8]}", str(Path(file).resolve())))
    return found


def _best(folder: Path) -> list[tuple[str, str, str]]:
    lesions = [record for record in read_records([folder / "records"]) if record["kind"] == "lesion"]
    records = [record for record in lesions if record["status"] == FINISHED and judged_on_ct(record)]
    found = []
    for model in MODELS:
        if any(record["model"] == model for record in records):
            best = best_record(records, "segm/AP50", model=model)
            start = f"{best['recipe']}.{best['start']}.s{best['seed']}"
            found.append((model, start, final_weights(best["name"])))
    if not found:
        raise UserError(f"{folder} has no finished lesion model for a classifier; give one with --detector MODEL=FILE.")
    return found
