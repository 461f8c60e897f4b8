"""Keys of Detectron2 that would do nothing are refused where they ask for something, and only there."""

from d2_covid import get_config
from d2_covid.config import config_dir
from d2_covid.engine.trainer import Trainer
from d2_covid.engine.unused_keys import check_evaluation_keys, check_training_keys
from d2_covid.errors import UserError

import pytest
import torch

COSINE = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.RANDOM_FLIP", "horizontal"], "INPUT.RANDOM_FLIP horizontal does nothing .* HORIZONTAL_FLIP"),
        (["INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED True .* INPUT.AUGMENTATION"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "SAMPLER_TRAIN .*SLICE_SAMPLING balanced"),
        (["DATALOADER.REPEAT_THRESHOLD", "0.1"], "REPEAT_THRESHOLD 0.1 .*SLICE_SAMPLING balanced"),
        (["TEST.AUG.ENABLED", "True"], "TEST.AUG.ENABLED True .* INPUT.MIN_SIZE_TEST"),
        (["TEST.PRECISE_BN.ENABLED", "True"], "TEST.PRECISE_BN.ENABLED True .* running statistics"),
        (["VIS_PERIOD", "100"], "VIS_PERIOD 100 .* tools/visualize_data.py"),
        ([*COSINE, "SOLVER.STEP_FRACTIONS", "(0.6,)"], "STEP_FRACTIONS .* WarmupCosineLR: .* WarmupMultiStepLR"),
        ([*COSINE, "SOLVER.STEPS", "(100,)"], "SOLVER.STEPS .* WarmupCosineLR: .* WarmupMultiStepLR"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused_with_what_there_is_instead(opts, message):
    with pytest.raises(UserError, match=message) as error:
        check_training_keys(get_config(None, opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("INPUT.RANDOM_FLIP", "none"),
        ("TEST.AUG.MAX_SIZE", "100"),  # of what is off
        COSINE,
        (*COSINE, "SOLVER.STEPS", "()"),
        ("SOLVER.STEPS", "(100,)", "SOLVER.STEP_FRACTIONS", "(0.6,)"),
        ("CUDNN_BENCHMARK", "True"),
    ],
)
def test_keys_that_ask_for_nothing_or_are_acted_on_pass(opts):
    check_training_keys(get_config(None, list(opts)))


def test_every_shipped_config_passes():
    leaves = list(config_dir().glob("**/*.yaml"))
    assert len(leaves) > 30
    for leaf in leaves:
        check_training_keys(get_config(leaf))


def test_an_evaluation_minds_its_own_keys_alone():
    check_evaluation_keys(get_config(None, ["INPUT.RANDOM_FLIP", "horizontal", "VIS_PERIOD", "1"]))
    with pytest.raises(UserError, match="TEST.AUG.ENABLED"):
        check_evaluation_keys(get_config(None, ["TEST.AUG.ENABLED", "True"]))


def test_the_trainer_refuses_them_first(tiny):
    with pytest.raises(UserError, match="VIS_PERIOD"):
        Trainer(tiny("VIS_PERIOD", 1, "DATASETS.TRAIN", "()"))


@pytest.mark.parametrize("benchmark", [True, False])
def test_cudnn_measures_its_algorithms_where_the_config_says_so(benchmark, tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not benchmark)
    Trainer(tiny("CUDNN_BENCHMARK", benchmark, "DATASETS.TEST", "()"))
    assert torch.backends.cudnn.benchmark == benchmark
