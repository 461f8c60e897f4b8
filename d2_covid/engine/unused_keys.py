"""Keys of Detectron2 that d2_covid does not act on: one that asks for something is refused, not passed over."""

from functools import reduce
from typing import Mapping

from detectron2.config import CfgNode

from ..config import get_config
from ..errors import UserError

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
    _check(cfg, _OF_TRAINING, "does nothing in d2_covid")
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR":
        _check(cfg, _OF_STEPS, "does nothing with SOLVER.LR_SCHEDULER_NAME WarmupCosineLR")


def _check(cfg: CfgNode, keys: Mapping[str, str], why: str) -> None:
    defaults = get_config()
    for key, instead in keys.items():
        value, default = (reduce(lambda node, part: node[part], key.split("."), c) for c in (cfg, defaults))
        if value not in (default, (), []):
            raise UserError(f"{key} {value} {why}: {instead}.")
