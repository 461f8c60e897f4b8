"""Keys of Detectron2 that would do nothing are refused where they ask for something, and only there."""

from d2_covid import get_config
from d2_covid.config import config_dir
from d2_covid.engine.schedule import resolve_schedule
from d2_covid.engine.trainer import Trainer
from d2_covid.engine.unused_keys import check_evaluation_keys, check_training_keys, check_typed_keys
from d2_covid.errors import UserError

import pytest
import torch

COSINE = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
PAPER, QUICK = "segmentation/mask_rcnn_R_18_T1_FPN.yaml", "quick/mask_rcnn_R_18_T1_FPN_phantom.yaml"


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


CLASSIFIER = "classification/covid_ct_mask_net_R_18_T1_FPN.yaml"
ONE, TWO = ("DATASETS.TEST", "('a',)"), ("DATASETS.TEST", "('a', 'b')")


@pytest.mark.parametrize(
    ("leaf", "test", "metric"),
    [
        (None, ONE, "seg/AP50"),
        (None, ONE, "image/accuracy"),
        (None, ONE, "a/segm/AP50"),  # of one set, figures stand without its name
        (None, TWO, "c/segm/AP50"),
        (None, TWO, "a/seg/AP50"),
        (None, ONE, "val/total_loss"),  # the best would be the worst
        (PAPER, ("MODEL.MASK_ON", "False", *ONE), "segm/AP50"),
        (CLASSIFIER, ONE, "segm/AP50"),
    ],
)
def test_a_best_metric_that_no_evaluation_gives_is_refused(leaf, test, metric):
    with pytest.raises(UserError, match=f"TEST.BEST_METRIC {metric} is no figure of .*; they are ") as error:
        check_training_keys(get_config(leaf, [*test, "TEST.BEST_METRIC", metric]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("test", "metric"), [(ONE, "image/ece"), (ONE, "image/brier"), (TWO, "image/ece"), (TWO, "b/image/brier")]
)
def test_an_error_is_no_best_metric(test, metric):
    """The model with the highest would be the worst."""
    with pytest.raises(UserError, match=f"TEST.BEST_METRIC {metric} is the better the lower, .*") as error:
        check_training_keys(get_config(CLASSIFIER, [*test, "TEST.BEST_METRIC", metric]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("leaf", "test", "metric"),
    [
        (None, ONE, "bbox/AP"),
        (PAPER, TWO, "union/dice"),
        (PAPER, TWO, "b/paper_ap/AP"),
        (CLASSIFIER, TWO, "patient/accuracy"),
        (None, ("DATASETS.TEST", "()"), "nothing"),
    ],
)
def test_a_best_metric_that_an_evaluation_may_give_passes(leaf, test, metric):
    check_training_keys(get_config(leaf, [*test, "TEST.BEST_METRIC", metric]))


@pytest.mark.parametrize(
    ("leaf", "opts", "counts"),
    [
        (PAPER, ["SOLVER.MAX_ITER", "100"], "SOLVER.EPOCHS 100: SOLVER.EPOCHS counts"),
        (PAPER, ["SOLVER.STEPS", "(60,)"], "SOLVER.STEP_FRACTIONS counts"),
        (PAPER, ["SOLVER.CHECKPOINT_PERIOD", "5"], "SOLVER.CHECKPOINT_EPOCHS counts"),
        (PAPER, ["TEST.EVAL_PERIOD", "50"], "TEST.EVAL_EPOCHS counts; set that instead .or SOLVER.EPOCHS 0"),
        (None, ["SOLVER.EPOCHS", "2", "SOLVER.MAX_ITER", "9"], "SOLVER.EPOCHS 2: SOLVER.EPOCHS counts"),
        (QUICK, ["TEST.EVAL_EPOCHS", "1.0"], "SOLVER.EPOCHS 0: TEST.EVAL_PERIOD counts; set that instead.$"),
        (QUICK, ["SOLVER.CHECKPOINT_EPOCHS", "0.5"], "SOLVER.CHECKPOINT_PERIOD counts"),
        (QUICK, ["SOLVER.STEP_FRACTIONS", "(0.5,)"], "SOLVER.STEPS counts"),
    ],
)
def test_a_typed_key_of_the_other_schedule_is_refused(leaf, opts, counts):
    with pytest.raises(UserError, match=f"{opts[-2]} .* does nothing with .*{counts}") as error:
        check_typed_keys(get_config(leaf, opts), opts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("leaf", "opts"),
    [
        (PAPER, ["SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "9", "SOLVER.STEPS", "(5,)", "TEST.EVAL_PERIOD", "3"]),
        (PAPER, ["SOLVER.EPOCHS", "3", "TEST.EVAL_EPOCHS", "1.0", "SOLVER.CHECKPOINT_EPOCHS", "1.0"]),
        (QUICK, ["SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "3"]),
        (QUICK, ["SOLVER.EPOCHS", "2", "TEST.EVAL_EPOCHS", "1.0"]),  # MAX_ITER is the file's
        (QUICK, ["TEST.EVAL_EPOCHS", "0.0"]),  # asks for nothing; the model zoo sets it for every row
        (PAPER, ["SOLVER.STEPS", "()"]),
        (PAPER, []),
    ],
)
def test_typed_keys_of_the_schedule_that_counts_pass(leaf, opts):
    check_typed_keys(get_config(leaf, opts), opts)


def own_file(folder, base, *lines):
    """A config of one's own."""
    path = folder / "own.yaml"
    path.write_text("\n".join([f"_BASE_: {config_dir() / base}" if base else "", *lines]))
    return path


@pytest.mark.parametrize(
    ("base", "lines", "message"),
    [
        (PAPER, ["SOLVER: {MAX_ITER: 5000}"], "SOLVER.MAX_ITER 5000 .* SOLVER.EPOCHS 100: .* .or SOLVER.EPOCHS 0"),
        (PAPER, ["SOLVER: {STEPS: [30, 40]}"], "SOLVER.STEPS .* SOLVER.STEP_FRACTIONS counts"),
        (PAPER, ["SOLVER: {EPOCHS: 9}", "TEST: {EVAL_PERIOD: 500}"], "TEST.EVAL_PERIOD 500 .* SOLVER.EPOCHS 9: "),
        (QUICK, ["SOLVER: {CHECKPOINT_EPOCHS: 2.0}"], "SOLVER.CHECKPOINT_EPOCHS 2.0 .* SOLVER.EPOCHS 0: "),
    ],
)
def test_a_files_own_key_is_as_a_typed_one_where_its_base_decides(base, lines, message, tmp_path):
    path = own_file(tmp_path, base, *lines)
    with pytest.raises(UserError, match=f"^{path}: {message}") as error:
        check_typed_keys(get_config(path), [], path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "lines", "opts"),
    [
        (PAPER, ["SOLVER: {MAX_ITER: 50, STEPS: [30], EPOCHS: 0}"], []),
        (PAPER, ["SOLVER: {MAX_ITER: 50, EPOCHS: 9}"], []),
        (PAPER, ["SOLVER: {MAX_ITER: 50, STEPS: [30]}"], ["SOLVER.EPOCHS", "3"]),
        (PAPER, ["TEST: {EVAL_PERIOD: 50}"], ["TEST.EVAL_EPOCHS", "2.0"]),
        (None, ["SOLVER: {MAX_ITER: 50}", "TEST: {EVAL_PERIOD: 5}"], []),
    ],
)
def test_a_files_own_key_passes_beside_the_one_that_counts(base, lines, opts, tmp_path):
    path = own_file(tmp_path, base, *lines)
    check_typed_keys(get_config(path, opts), opts, path)


def test_the_config_that_a_run_leaves_passes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(resolve_schedule(get_config(PAPER), 500).dump())
    check_typed_keys(get_config(path), [], path)


def test_every_shipped_config_passes():
    leaves = list(config_dir().glob("**/*.yaml"))
    assert len(leaves) > 30
    for leaf in leaves:
        check_training_keys(get_config(leaf))
        check_typed_keys(get_config(leaf), [], leaf)


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
