"""The trainings of the model zoo: which model, by which recipe, from which start, with which seed.

A grid is a list of rows; a row is one training. Names of rows are names of folders and files, and the same on every
machine.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from detectron2.config import CfgNode

from ..config import config_dir, get_config
from ..errors import UserError

SEEDS = (1, 2, 3)
MODELS = {"R18-T1": "R_18_T1_FPN", "R18-T2": "R_18_T2_FPN", "R34-T1": "R_34_T1_FPN", "R34-T2": "R_34_T2_FPN"}
"""Models of the zoo, and how their configs' names end."""
FOLDER = "output/zoo"
"""Where the commands in records write to, wherever the runs were."""
PHANTOM_SEED = 17  # that of the quick config

_LESIONS = ("DATASETS.TRAIN", "('zoo_merge_train',)", "DATASETS.TEST", "('zoo_merge_val',)")
_CLASSES = ("DATASETS.TRAIN", "('covid_ct_train',)", "DATASETS.TEST", "('covid_ct_val',)")
_LONG = (
    *("INPUT.MIN_SIZE_TRAIN", "(512,)", "INPUT.MAX_SIZE_TRAIN", "1024"),
    *("INPUT.MIN_SIZE_TEST", "512", "INPUT.MAX_SIZE_TEST", "1024"),
    *("SOLVER.EPOCHS", "36", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.CHECKPOINT_EPOCHS", "6.0", "TEST.EVAL_EPOCHS", "0.0"),
)
_ON_AT_512 = (
    *("INPUT.MIN_SIZE_TRAIN", "(512,)", "INPUT.MAX_SIZE_TRAIN", "1024"),
    *("INPUT.MIN_SIZE_TEST", "512", "INPUT.MAX_SIZE_TEST", "1024"),
    *("SOLVER.EPOCHS", "8", "SOLVER.BASE_LR", "0.0004"),
)
_THREE_TIMES = ("SOLVER.EPOCHS", "27", "SOLVER.CHECKPOINT_EPOCHS", "3.0")
_FEWER_CHECKPOINTS = ("SOLVER.CHECKPOINT_EPOCHS", "5.0")
_BFLOAT16 = ("SOLVER.AMP.ENABLED", "True")
_AS_TUNED = ("SOLVER.EPOCHS", "9", "SOLVER.CHECKPOINT_EPOCHS", "1.0")
# The learning rate grows with the batch, as Detectron2 advises: 8 slices, 8 times the paper's.
_PAPER_BATCH_8 = ("SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.00008")
# A model of the paper's can't start from other anchors.
_PAPER_ANCHORS = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[2, 4, 8, 16, 32]]"),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.1, 0.25, 0.5, 1.0, 1.5, 2.0]]"),
)
_PHANTOM_RECIPES = {"phantom": (), "phantom_paper": _PAPER_ANCHORS}
_PAPER_CLASSIFIER = (
    *("MODEL.CLASSIFIER.TRAIN_NORM", "True", "SOLVER.OPTIMIZER", "Adam", "SOLVER.BASE_LR", "0.00001"),
    *("SOLVER.WEIGHT_DECAY", "0.001", "SOLVER.WEIGHT_DECAY_NORM", "0.001", "SOLVER.IMS_PER_BATCH", "8"),
    *("SOLVER.EPOCHS", "50", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
)


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        recipe: name of the way it trains; rows of one recipe, model and start differ by seed alone.
        model: key of :data:`MODELS`.
        start: ``scratch``, or what the training starts from.
        seed: of the run.
        kind: ``lesion`` or ``classifier``.
        config: config file, relative to a checkout.
        opts: overrides that make the recipe: ``KEY VALUE ...``.
        data: overrides that name the data sets.
        weights: checkpoint that it starts from, relative to the folder of the zoo or absolute; "" for none.
        needs: name of the row that makes these weights; None where no row does.
    """

    recipe: str
    model: str
    start: str
    seed: int
    kind: str
    config: str
    opts: tuple[str, ...] = ()
    data: tuple[str, ...] = _LESIONS
    weights: str = ""
    needs: str | None = None

    @property
    def name(self) -> str:
        """Such as ``tuned-R18-T1-phantoms-s1``."""
        return f"{self.recipe}-{self.model}-{self.start}-s{self.seed}"

    def arguments(self, folder: str = FOLDER) -> list[str]:
        """What follows ``tools/train_net.py``, with the zoo in ``folder``."""
        weights = str(PurePosixPath(folder) / self.weights) if self.weights else ""
        start = ("MODEL.WEIGHTS", weights) if weights else ()
        run = ("SEED", str(self.seed), "OUTPUT_DIR", str(PurePosixPath(folder) / run_folder(self.name)))
        return ["--config-file", self.config, *self.data, *start, *self.opts, *run]

    def cfg(self) -> CfgNode:
        """Its config, overrides merged in."""
        return get_config(config_dir().parent / self.config, self.arguments()[2:])

    def command(self) -> str:
        """The command as a user types it in a checkout, with everything in :data:`FOLDER`."""
        # What lies outside the zoo's folder is called by its name alone: its path is of another machine.
        path = PurePosixPath(self.weights)
        row = replace(self, weights=path.name) if path.is_absolute() else self
        typed = " ".join(quoted(argument) for argument in row.arguments())
        return f"DETECTRON2_DATASETS={FOLDER}/data python tools/train_net.py {typed}"


def run_folder(row_name: str) -> str:
    """Folder of a row's training, relative to the zoo's."""
    return f"runs/{row_name}"


def record_file(row_name: str) -> str:
    """File of a row's record, relative to the zoo's folder."""
    return f"records/{row_name}.json"


def final_weights(row_name: str) -> str:
    """Where a row leaves its model, relative to the zoo's folder."""
    return f"{run_folder(row_name)}/model_final.pth"


def quoted(word: str) -> str:
    """A word for a shell, readable where it has single quotes in it, as names of data sets do: ``"('x',)"``."""
    # What a shell reads within double quotes too; "!" where commands are typed into it.
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def phantom_row(model: str, recipe: str = "phantom") -> Row:
    """The training on phantoms that the other rows of this model may start from: the quick config's, in bfloat16.

    Args:
        recipe: ``phantom``, ``phantom_paper`` (with the paper's anchors), or the name of one that was made with
            overrides (:func:`changed`), which are not in the row.
    """
    config = f"configs/quick/mask_rcnn_{MODELS[model]}_phantom.yaml"
    opts = (*_BFLOAT16, *_PHANTOM_RECIPES.get(recipe, ()))
    return Row(recipe, model, "scratch", PHANTOM_SEED, "lesion", config, opts, data=())


def _lesion_rows(
    recipe: str, configs: str, starts: Sequence[str], opts: Sequence[str], phantoms: str = "phantom"
) -> list[Row]:
    rows = []
    for seed in SEEDS:  # a seed of every model first: where time is short, that says more than three of one
        for model, leaf in MODELS.items():
            for start in starts:
                needs = phantom_row(model, phantoms).name if start == "phantoms" else None
                weights = final_weights(needs) if needs else ""
                config = f"{configs}/mask_rcnn_{leaf}.yaml"
                rows.append(Row(recipe, model, start, seed, "lesion", config, tuple(opts), _LESIONS, weights, needs))
    return rows


def _paper_rows(recipe: str, opts: Sequence[str]) -> list[Row]:
    return _lesion_rows(recipe, "configs/segmentation", ("phantoms", "scratch"), opts, "phantom_paper")


def _rows_on_from_tuned() -> list[Row]:
    """The rows ``tuned`` from phantoms, each trained on as a recipe of its own, of the same seed."""
    made = []
    for row in _lesion_rows("tuned", "configs/segmentation/tuned", ("phantoms",), ()):
        weights = final_weights(row.name)
        made.append(replace(row, recipe="tuned_512", start="tuned", opts=_ON_AT_512, weights=weights, needs=row.name))
    return made


GRIDS: dict[str, Callable[[], list[Row]]] = {
    "phantom": lambda: [phantom_row(model) for model in MODELS],
    "phantom_paper": lambda: [phantom_row(model, "phantom_paper") for model in MODELS],
    "tuned": lambda: _lesion_rows("tuned", "configs/segmentation/tuned", ("phantoms", "scratch"), ()),
    "tuned_3x": lambda: _lesion_rows("tuned_3x", "configs/segmentation/tuned", ("phantoms",), _THREE_TIMES),
    "tuned_512": _rows_on_from_tuned,
    "tuned_long": lambda: _lesion_rows("tuned_long", "configs/segmentation/tuned", ("phantoms",), _LONG),
    "paper": lambda: _paper_rows("paper", _FEWER_CHECKPOINTS),
    "paper_bf16": lambda: _paper_rows("paper_bf16", (*_BFLOAT16, *_FEWER_CHECKPOINTS)),
    "paper_9": lambda: _paper_rows("paper_9", _AS_TUNED),
    "paper_batch8": lambda: _paper_rows("paper_batch8", (*_PAPER_BATCH_8, *_FEWER_CHECKPOINTS)),
}
"""Grids of lesion models by name; those of classifiers need detectors (:func:`classifier_rows`)."""

CLASSIFIER_GRIDS = ("classifier", "classifier_paper", "classifier_paper_bf16")


def classifier_rows(
    grid: str,
    model: str,
    detector: str,
    weights: str,
    size: Sequence[str] = (),
    configs: str = "configs/classification/tuned",
) -> list[Row]:
    """Trainings of a classifier on COVID-CT's figures, one a seed.

    Args:
        grid: ``classifier`` (the tuned config's way), ``classifier_paper`` (the paper's) or ``classifier_paper_bf16``.
        detector: what the lesion model is called in the rows' names.
        weights: the lesion model.
        size: overrides of the input's size, where the lesion model reads another one than the config.
        configs: folder of the config that the lesion model fits.
    """
    opts = ("MODEL.CLASSIFIER.NUM_CLASSES", "2", *size)
    if grid != "classifier" and configs.endswith("tuned"):
        opts += _PAPER_CLASSIFIER
    if grid == "classifier_paper_bf16":
        opts += _BFLOAT16
    config = f"{configs}/covid_ct_mask_net_{MODELS[model]}.yaml"
    return [Row(grid, model, detector, seed, "classifier", config, opts, _CLASSES, weights) for seed in SEEDS]


def lesion_grid(name: str) -> list[Row]:
    """The rows of a grid of lesion models.

    Raises:
        UserError: there is none of that name.
    """
    if name not in GRIDS:
        raise UserError(f"There is no grid {name!r}; there are {', '.join([*GRIDS, *CLASSIFIER_GRIDS])}.")
    return GRIDS[name]()


def changed(rows: Sequence[Row], opts: Sequence[str] = (), label: str | None = None, phantoms: str = "") -> list[Row]:
    """The rows with more overrides, their recipe under another name, or another training on phantoms to start from.

    Args:
        opts: ``KEY VALUE ...``, after the recipe's own.
        label: name of the recipe that this makes.
        phantoms: name of the recipe, made likewise of the grid ``phantom``, whose models those rows start from that
            would start from the grid's own; rows from another start stay as they are.

    Raises:
        UserError: overrides without a name of their own would stand in the table as the recipe that they depart from;
            or a name is not made of letters, digits and ``_ .``.
    """
    if (opts or phantoms) and not label:
        raise UserError("With --opts or --phantoms it is another recipe: name it, as --label tuned_lr1e3.")
    for name in filter(None, (label, phantoms)):
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise UserError(f"{name!r} is no name of a recipe: use letters, digits, '_' and '.'.")
    made = []
    for row in rows:
        needs, weights = row.needs, row.weights
        if phantoms and needs == phantom_row(row.model).name:
            needs = phantom_row(row.model, phantoms).name
            weights = final_weights(needs)
        recipe = label or row.recipe
        made.append(replace(row, recipe=recipe, opts=(*row.opts, *opts), needs=needs, weights=weights))
    return made
