"""Keys that d2_covid does not act on, most of them Detectron2's: one that asks for something is refused."""

from pathlib import Path
from typing import Mapping, Sequence

from detectron2.config import CfgNode

from ..config import config_value, get_config, own_keys
from ..errors import UserError
from .hooks import best_metric

# Each with what there is instead. A key at its default asks for nothing.
_OF_EVALUATION = {
    "TEST.AUG.ENABLED": "each slice is predicted once, at INPUT.MIN_SIZE_TEST; leave it False",
    "TEST.EXPECTED_RESULTS": "results.json has the figures to compare with; leave it empty",
    "MODEL.LOAD_PROPOSALS": "proposals come from the model's own RPN; leave it False",
}
_AUGMENTATION = "slices are augmented by the keys of INPUT.AUGMENTATION"
_SAMPLING = "each slice comes once in an epoch; DATALOADER.SLICE_SAMPLING balanced evens out a classifier's classes"
_OF_TRAINING = {
    "INPUT.RANDOM_FLIP": f"{_AUGMENTATION}; set it to none, and HORIZONTAL_FLIP or VERTICAL_FLIP there to 0.5",
    "INPUT.CROP.ENABLED": f"{_AUGMENTATION}; leave it False, and set SCALE there",
    "DATALOADER.SAMPLER_TRAIN": f"{_SAMPLING}; leave it TrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": f"{_SAMPLING}; leave it 0.0",
    "TEST.PRECISE_BN.ENABLED": "BatchNorm keeps the running statistics of training; leave it False",
    "VIS_PERIOD": "tools/visualize_data.py draws annotations, and what a checkpoint predicts; leave it 0",
}
_OF_STEPS = {
    "SOLVER.STEP_FRACTIONS": "its rate falls along a cosine; leave it empty, or take WarmupMultiStepLR",
    "SOLVER.STEPS": "its rate falls along a cosine; leave it empty, or take WarmupMultiStepLR",
}

# What counts in place of a key: with SOLVER.EPOCHS above 0, and with 0.
_WITH_EPOCHS = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.STEPS": "SOLVER.STEP_FRACTIONS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
}
_WITHOUT_EPOCHS = {instead: key for key, instead in _WITH_EPOCHS.items() if key != "SOLVER.MAX_ITER"}


def check_evaluation_keys(cfg: CfgNode) -> None:
    """Refuse a config that asks for what no evaluation does.

    Raises:
        UserError: names the key, and what there is instead.
    """
    _check(cfg, _OF_EVALUATION, "does nothing in d2_covid")


def check_training_keys(cfg: CfgNode) -> None:
    """Refuse a config that asks for what no training, or not the evaluation in it, does.

    Raises:
        UserError: names the key, and what there is instead.
    """
    check_evaluation_keys(cfg)
    if cfg.DATASETS.TEST:
        best_metric(cfg)  # refuses one that no evaluation of the model gives
    _check(cfg, _OF_TRAINING, "does nothing in d2_covid")
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR":
        _check(cfg, _OF_STEPS, "does nothing with SOLVER.LR_SCHEDULER_NAME WarmupCosineLR")


def check_typed_keys(cfg: CfgNode, opts: Sequence[str], config_file: str | Path | None = None) -> None:
    """Refuse overrides of a schedule in iterations where it counts epochs, and the other way round; in a config file
    too, where the key that counts comes from its ``_BASE_``, or from nowhere.

    Beside the key that counts, in one file, or with ``SOLVER.EPOCHS`` typed, those of a file are the other schedule's,
    there to be taken up. One of 0, or none, asks for nothing.

    Args:
        opts: ``KEY VALUE ...`` as typed, which ``cfg`` has taken over.
        config_file: what ``cfg`` was read from.

    Raises:
        UserError: names the key, and the one that counts.
    """
    epochs = cfg.SOLVER.EPOCHS
    counting = _WITH_EPOCHS if epochs > 0 else _WITHOUT_EPOCHS
    typed = set(opts[::2])
    own = own_keys(config_file) if config_file and "SOLVER.EPOCHS" not in typed else set()
    for key, instead in counting.items():
        in_file = key in own and instead not in own | typed
        if (key in typed or in_file) and config_value(cfg, key):
            where = "" if key in typed else f"{config_file}: "
            way_out = " (or SOLVER.EPOCHS 0)" if epochs > 0 else ""
            raise UserError(
                f"{where}{key} {config_value(cfg, key)} does nothing with SOLVER.EPOCHS {epochs}: {instead} counts; "
                f"set that instead{way_out}."
            )


def _check(cfg: CfgNode, keys: Mapping[str, str], why: str) -> None:
    defaults = get_config()
    for key, instead in keys.items():
        value = config_value(cfg, key)
        if value not in (config_value(defaults, key), (), []):
            raise UserError(f"{key} {value} {why}: {instead}.")
