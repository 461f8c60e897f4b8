"""From passes over the data to iterations."""

from d2_covid import get_config
from d2_covid.engine.schedule import resolve_schedule, scale_to_processes
from d2_covid.errors import UserError

import pytest


def resolved(samples, *opts):
    return resolve_schedule(get_config(None, ["SOLVER.EPOCHS", "100", *map(str, opts)]), samples)


def test_paper_schedule_at_any_batch_size():
    """100 epochs of the paper's 500 training slices, batch 1; and the same passes in larger batches."""
    assert resolved(500, "SOLVER.IMS_PER_BATCH", 1).SOLVER.MAX_ITER == 50_000
    cfg = resolved(500, "SOLVER.IMS_PER_BATCH", 8, "TEST.EVAL_EPOCHS", 5.0)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (6250, 62, 312)


@pytest.mark.parametrize(
    ("samples", "batch", "expected"),
    [(3, 2, 150), (7, 8, 88), (1, 1, 100), (1, 64, 2), (5, 8, 63), (1, 81, 2)],
)
def test_last_partial_batch_counts(samples, batch, expected):
    cfg = resolved(samples, "SOLVER.IMS_PER_BATCH", batch)
    assert cfg.SOLVER.MAX_ITER == expected
    assert (expected - 1) * batch < 100 * samples <= expected * batch


def test_steps_are_shares_of_the_training():
    cfg = resolved(10, "SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEP_FRACTIONS", "(0.9, 0.75)")
    assert cfg.SOLVER.STEPS == (750, 900)
    assert resolved(10, "SOLVER.STEPS", "(30,)").SOLVER.STEPS == ()


def test_periods_are_never_zero_unless_asked():
    cfg = resolved(1, "SOLVER.IMS_PER_BATCH", 100, "SOLVER.CHECKPOINT_EPOCHS", 0.5, "TEST.EVAL_EPOCHS", 0.1)
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (1, 1)
    cfg = resolved(10, "SOLVER.IMS_PER_BATCH", 1, "SOLVER.CHECKPOINT_EPOCHS", 0.0, "TEST.EVAL_EPOCHS", 0.0)
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (1000, 0)


def test_without_epochs_the_iterations_of_the_config_hold():
    cfg = resolved(10, "SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 70, "SOLVER.STEPS", "(50, 80)", "TEST.EVAL_PERIOD", 7)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.TEST.EVAL_PERIOD) == (70, (50,), 7)


def test_result_is_frozen_the_argument_untouched_and_twice_is_once():
    cfg = get_config(None, ["SOLVER.EPOCHS", "3", "SOLVER.STEP_FRACTIONS", "(0.5,)"])
    before = cfg.dump()
    once = resolve_schedule(cfg, 100)
    assert once.is_frozen() and cfg.dump() == before
    assert resolve_schedule(once, 100).dump() == once.dump()


def test_a_reference_scales_batch_and_rate_to_the_processes():
    opts = ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.BASE_LR", "0.001"]
    cfg = get_config(None, opts)
    assert scale_to_processes(cfg, 1) is cfg
    solver = scale_to_processes(get_config(None, [*opts, "SOLVER.REFERENCE_WORLD_SIZE", "1"]), 4).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (4, 0.004, 10_000)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", "1"], "IMS_PER_BATCH 1 can't be shared evenly by 4 .* multiple of 4, .*BASE_LR"),
        (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.REFERENCE_WORLD_SIZE", "2"], "REFERENCE_WORLD_SIZE 2 .*BATCH 3 evenly"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "-1"], "REFERENCE_WORLD_SIZE -1"),
    ],
)
def test_batches_that_processes_cannot_share(opts, message):
    with pytest.raises(UserError, match=message):
        scale_to_processes(get_config(None, opts), 4)


@pytest.mark.parametrize(
    ("samples", "opts", "message"),
    [
        (0, (), "training set is empty"),
        (5, ("SOLVER.IMS_PER_BATCH", 0), "IMS_PER_BATCH must be 1 or more, not 0"),
        (5, ("SOLVER.EPOCHS", -1), "EPOCHS must be 0"),
        (5, ("SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", 0), "MAX_ITER must be 1 or more"),
        (5, ("SOLVER.EPOCHS", 0, "SOLVER.CHECKPOINT_PERIOD", 0), "CHECKPOINT_PERIOD must be 1 or more"),
        (5, ("SOLVER.STEP_FRACTIONS", "(0.5, 1.5)"), "between 0 and 1, not 1.5"),
    ],
)
def test_impossible_schedules(samples, opts, message):
    with pytest.raises(UserError, match=message):
        resolved(samples, *opts)
