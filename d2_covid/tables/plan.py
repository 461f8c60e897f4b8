"""What has to run for the tables, in order."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import get_config
from ..data.files import sha256_of
from ..engine.checkpoint import FINAL
from ..engine.weights import SCHEME
from ..errors import UserError
from ..zoo.grids import quoted
from .jobs import Preparation, Run, command_of
from .models import CLASSIFICATION, MODELS, SEGMENTATION, TableModel
from .options import IMAGENET, Options
from .settings import known_departures
from .sources import ClassSet, LesionSet

TABLE_OF = {SEGMENTATION: 2, CLASSIFICATION: 3}
LESION_SET, CLASS_SET = "cncb", "covidx_ct"


@dataclass(frozen=True)
class Plan:
    """All that is to be done, in order.

    Args:
        settings: of each kind of run, by name: what all runs in one output folder must share.
        given: what is known of Mask R-CNNs that classifiers start from and that are not trained here: in what their
            training was not the paper's, as sentences.
    """

    options: Options
    preparations: list[Preparation]
    runs: list[Run]
    lesions: LesionSet | None
    classes: ClassSet | None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    def departures(self, kind: str) -> list[str]:
        """In what a table will not be the paper's experiment, as sentences; a classifier's include those of its Mask
        R-CNN."""
        found = self.options.departures(kind)
        if kind == SEGMENTATION:
            return found + self.lesions.departures
        own = SEGMENTATION in self.settings and self.options.weights_dir is None
        of_detectors = self.departures(SEGMENTATION) if own else self.given
        return list(dict.fromkeys([*found, *of_detectors, *self.classes.departures]))


def make_plan(options: Options, tables: Sequence[int], lesions: LesionSet | None, classes: ClassSet | None) -> Plan:
    """Plan the runs of Table 2, of Table 3, or of both.

    Table 3 needs trained Mask R-CNNs: those of ``--weights-dir``, else those that Table 2's runs leave in the same
    output folder, which are planned too where there are lesions to train on.

    Raises:
        UserError: data or weights that a table needs are not there.
    """
    if 2 in tables and lesions is None:
        raise UserError("Table 2 trains on lesion masks: give --cncb the folder of CNCB's slices and masks.")
    if 3 in tables and classes is None:
        raise UserError("Table 3 trains on slices with a class: give --covidx the folder of COVIDx-CT.")
    runs, preparations, settings, given = [], [], {}, ()
    if lesions is not None and (2 in tables or options.weights_dir is None):
        preparations.append(_prepare_lesions(options, lesions))
        runs += [_segmentation_run(options, lesions, model, seed) for model in options.models for seed in options.seeds]
        settings[SEGMENTATION] = {
            "recipe": options.recipe,
            "epochs": options.epochs,
            "init": _spellings(options.init),
            "overrides": options.deciding_overrides,
            "split": [" ".join(lesions.split), lesions.fingerprint],  # typed another way it may be the same
            "lesion set": lesions.fingerprint,
        }
    if 3 in tables:
        preparations.append(_prepare_classes(options, classes))
        pairs = [(model, seed) for model in options.models for seed in options.seeds]
        detectors = {pair: _detector(options, *pair, trained_here=SEGMENTATION in settings) for pair in pairs}
        missing = [f"{model.name}, seed {seed}" for (model, seed), path in detectors.items() if path is None]
        if missing:
            place = options.weights_dir or options.output
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(
                f"{place} has no trained Mask R-CNN {missing[0]}{more}; give --cncb to train it, another "
                "--weights-dir, or other --models and --seeds."
            )
        runs += [_classification_run(options, classes, *pair, path) for pair, path in detectors.items()]
        given = _departures_of_given(options, detectors.values())
        settings[CLASSIFICATION] = {
            "recipe": options.recipe,
            "classifier epochs": options.classifier_epochs,
            "overrides": options.deciding_overrides,
            "weights": _spellings(options.weights_dir or ""),
            "subset": classes.subset,
            "lists": classes.fingerprint,
        }
    return Plan(options, preparations, runs, lesions, classes, settings, given)


def printed(plan: Plan, checkout: Path) -> list[str]:
    """The whole plan as lines for a shell in the checkout."""
    lines = [f"export DETECTRON2_DATASETS={shlex.quote(str(plan.options.data))}"]
    for job in [*plan.preparations, *plan.runs]:
        words = [word.removeprefix(f"{checkout}/") for word in command_of(job, checkout)]
        lines.append(f"python {' '.join(map(quoted, words))}")
    return lines


def _spellings(start: str | Path) -> str | list[str]:
    """A named start as it is; a file or folder as typed, by its whole path and, a file, by its content: typed another
    way, from another folder or where the project has moved to, it is the same. (Should two folders be typed alike, each
    run still knows its start by content.)"""
    if str(start) in ("", IMAGENET) or "://" in str(start):
        return str(start)
    content = [f"sha256 {sha256_of(start)}"] if Path(start).is_file() else []
    return list(dict.fromkeys([str(start), str(Path(start).resolve()), *content]))


def _prepare_lesions(options: Options, lesions: LesionSet) -> Preparation:
    folder = options.data / LESION_SET
    source = ("--source", str(lesions.folder), "--output", str(folder), "--mask-types", "merge", "both")
    names = (f"{mask_type}_{split}.json" for mask_type in ("merge", "both") for split in ("train", "val"))
    outputs = tuple(folder / "annotations" / name for name in names)
    inputs = [str(lesions.folder.resolve()), lesions.fingerprint]
    return Preparation("preparing the lesion set", "prepare_cncb.py", (*source, *lesions.split), inputs, outputs)


def _prepare_classes(options: Options, classes: ClassSet) -> Preparation:
    folder = options.data / CLASS_SET
    lists = ("--images", str(classes.images), "--train", str(classes.train), "--test", str(classes.test))
    arguments = (*lists, "--subset", str(classes.subset), "--output", str(folder))
    inputs = [str(classes.images.resolve()), classes.subset, classes.fingerprint]
    outputs = tuple(folder / f"{split}.csv" for split in ("train", "test"))
    return Preparation("preparing the slices with a class", "prepare_covidx_ct.py", arguments, inputs, outputs)


def _segmentation_run(options: Options, lesions: LesionSet, model: TableModel, seed: int) -> Run:
    overrides = _common(options, options.epochs, seed)
    config_file = model.config_file(SEGMENTATION, options.recipe)
    if options.init:
        depth = get_config(config_file).MODEL.RESNETS.DEPTH
        weights = f"{SCHEME}resnet{depth}" if options.init == IMAGENET else options.init
        overrides += ("MODEL.WEIGHTS", weights)
    return Run(
        SEGMENTATION,
        model,
        seed,
        config_file,
        overrides,
        options.output / SEGMENTATION / model.name / f"seed_{seed}",
        f"{LESION_SET}_{model.segmentation.mask_type}_val",
        lesions.slices["train"],
        lesions.slices["val"],
    )


def _classification_run(options: Options, classes: ClassSet, model: TableModel, seed: int, detector: Path) -> Run:
    dataset = f"{CLASS_SET}_test"
    # Nothing is chosen by the test slices: the model at the end is the one that counts.
    own = ("DATASETS.TEST", f"('{dataset}',)", "TEST.VALIDATION_LOSS", "False", "MODEL.WEIGHTS", str(detector))
    return Run(
        CLASSIFICATION,
        model,
        seed,
        model.config_file(CLASSIFICATION, options.recipe),
        _common(options, options.classifier_epochs, seed) + own,
        options.output / CLASSIFICATION / model.name / f"seed_{seed}",
        dataset,
        classes.training_slices,
        classes.test_slices,
        detector,
    )


def _common(options: Options, epochs: int | None, seed: int) -> tuple[str, ...]:
    overrides = options.overrides
    if epochs is not None:
        overrides += ("SOLVER.EPOCHS", str(epochs))
    if options.device is not None:
        overrides += ("MODEL.DEVICE", options.device)
    return (*overrides, "SEED", str(seed))


def _detector(options: Options, model: TableModel, seed: int, trained_here: bool) -> Path | None:
    """The checkpoint that a classifier starts from; None where there is none."""
    own = options.output / SEGMENTATION / model.name / f"seed_{seed}" / FINAL
    if options.weights_dir is None:
        return own if trained_here or own.is_file() else None
    names = (f"{SEGMENTATION}/{model.name}/seed_{seed}/{FINAL}", f"{model.name}/{FINAL}", f"{model.name}.pth")
    return next((path for name in names if (path := options.weights_dir / name).is_file()), None)


def _departures_of_given(options: Options, detectors: Iterable[Path]) -> tuple[str, ...]:
    folder = options.weights_dir or options.output
    of_tables = all(path.is_relative_to(folder / SEGMENTATION) for path in detectors)
    known = known_departures(folder, SEGMENTATION) if of_tables else None
    if known is None:
        return (f"how the Mask R-CNNs in {folder} were trained is not known here",)
    return tuple(f"the Mask R-CNNs of an earlier command: {line}" for line in known)


def earlier_runs(plan: Plan) -> list[Run]:
    """Runs of the same settings with models and results that the output folder holds beside those of the plan: other
    models or seeds of an earlier command."""
    options, planned = plan.options, {(run.kind, run.model, run.seed) for run in plan.runs}
    found = []
    for kind in plan.settings:
        for model in MODELS.values():
            for folder in (options.output / kind / model.name).glob("seed_*"):
                number = folder.name.removeprefix("seed_")
                if not number.isdecimal() or (kind, model, int(number)) in planned:
                    continue
                if kind == SEGMENTATION:
                    run = _segmentation_run(options, plan.lesions, model, int(number))
                else:
                    detector = _detector(options, model, int(number), trained_here=False)
                    if detector is None:
                        continue
                    run = _classification_run(options, plan.classes, model, int(number), detector)
                if run.results.is_file() and run.final.is_file():
                    found.append(run)
    return found
