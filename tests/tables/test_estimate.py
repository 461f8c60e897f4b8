"""Times and sizes that are said before the runs start."""

import dataclasses
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from d2_covid.engine.steps import about
from d2_covid.tables import estimate
from d2_covid.tables.estimate import Speed, cost_of, costs, paper_minutes, total_words
from d2_covid.tables.jobs import Run
from d2_covid.tables.models import CLASSIFICATION, MODELS, SEGMENTATION

import pytest
import torch

SPEED = Speed(step=2.0, slice=0.5, weights=100, checkpoint=300)


def run_of(kind=SEGMENTATION, recipe="paper", seed=0, overrides=()) -> Run:
    model = MODELS["R18-T2"]
    opts = ("MODEL.DEVICE", "cpu", *overrides)
    return Run(kind, model, seed, model.config_file(kind, recipe), opts, Path("out"), "cncb_merge_val", 650, 100)


def test_the_papers_recipe_is_counted():
    run = run_of()
    cost = cost_of(run, run.config(), SPEED)
    assert cost.iterations == 65_000
    assert cost.seconds == 65_000 * 2.0 + 2 * 100 * 0.5  # evaluation and validation loss at the end
    assert cost.disk == (3 + 1) * 300 + 100  # three checkpoints, the last, and the best one's weights


def test_evaluations_on_the_way_and_few_checkpoints_are_counted():
    run = run_of(overrides=("SOLVER.EPOCHS", "2", "TEST.EVAL_EPOCHS", "1.0", "SOLVER.CHECKPOINT_EPOCHS", "2.0"))
    cost = cost_of(run, run.config(), SPEED)
    assert cost.seconds == 1300 * 2.0 + 2 * 2 * 100 * 0.5
    assert cost.disk == (1 + 1) * 300 + 100


def test_a_classifier_with_frozen_batchnorm_ranks_once():
    run = run_of(CLASSIFICATION, "tuned")
    assert cost_of(run, run.config(), SPEED).seconds == (650 + 100) * 0.5


def test_a_run_is_timed_once_for_all_seeds_and_one_that_can_not_be_costs_no_other(monkeypatch, caplog):
    timed = []

    def measure(cfg):
        timed.append(cfg.MODEL.META_ARCHITECTURE)
        if cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet":
            raise RuntimeError("out of memory\nand more")
        return SPEED

    monkeypatch.setattr(estimate, "measure_speed", measure)
    runs = [run_of(seed=0), run_of(seed=1), run_of(CLASSIFICATION)]
    found = costs(runs, on_gpu=False)
    assert timed == ["GeneralizedRCNN", "CovidCTMaskNet"]
    assert found[runs[0]] == found[runs[1]] and found[runs[2]].seconds is None
    assert "could not be timed: out of memory" in caplog.text and "and more" not in caplog.text
    assert "unknown" in total_words(found)[2] and "65000 iterations  about 1.5 days" in total_words(found)[0]
    assert paper_minutes(runs) == 2 * 126.9 + 113.66


def test_on_a_gpu_another_process_takes_the_memory(monkeypatch):
    calls, ended = [], []

    class Pool:
        def __init__(self, workers, mp_context):
            assert workers == 1 and mp_context.get_start_method() == "spawn"

        def shutdown(self, wait=True):
            ended.append(True)

        def submit(self, function, *arguments):
            calls.append(function)
            answer = Future()
            answer.set_result(SPEED if function is estimate.measure_speed else function(*arguments))
            return answer

    monkeypatch.setattr(estimate, "ProcessPoolExecutor", Pool)
    run = run_of()
    assert costs([run], on_gpu=True)[run].seconds == 65_100 * 2.0 - 200 + 2 * 100 * 0.5
    assert calls == [Run.config, estimate.measure_speed] and ended == [True]
    assert costs([], on_gpu=True) == {} and ended == [True]  # nothing to time starts nothing


def test_a_model_whose_timing_ends_the_process_costs_no_other_its_estimate(monkeypatch):
    pools = []

    class Pool:
        def __init__(self, *_, **__):
            pools.append(self)
            self.broken = False

        def shutdown(self, wait=True):
            pass

        def submit(self, function, *arguments):
            answer = Future()
            self.broken |= function is estimate.measure_speed and len(pools) == 1
            if self.broken:
                answer.set_exception(BrokenProcessPool("killed"))
            else:
                answer.set_result(SPEED if function is estimate.measure_speed else function(*arguments))
            return answer

    monkeypatch.setattr(estimate, "ProcessPoolExecutor", Pool)
    runs = [run_of(), run_of(CLASSIFICATION)]
    found = costs(runs, on_gpu=True)
    assert found[runs[0]].seconds is None and found[runs[1]].seconds > 0 and len(pools) == 2


def test_the_fastest_of_a_few_calls_counts(monkeypatch):
    lasts = iter([3.0, 0.2, 0.4, 0.1, 9.0, 6.0, 1.0])
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(lasts)

    assert estimate._timed(work, torch.device("cpu")) == pytest.approx(0.1)  # four calls
    assert estimate._timed(work, torch.device("cpu")) == pytest.approx(9.0)  # one is enough


def test_steps_and_slices_are_timed():
    small = ("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "SOLVER.IMS_PER_BATCH", "2")
    run = run_of(overrides=(*small, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"))
    speed = estimate.measure_speed(run.config())
    assert speed.step > 0 and speed.slice > 0
    assert 3.9e6 * 4 < speed.weights < 4.0e6 * 4 and 2.9 < speed.checkpoint / speed.weights < 3.0
    both = dataclasses.replace(run, kind=CLASSIFICATION, config_file=run.model.config_file(CLASSIFICATION, "paper"))
    assert estimate.measure_speed(both.config()).checkpoint < 2 * speed.weights  # the detector does not train


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5300, "about 88 min"), (5400, "about 1.5 hours"), (40000, "about 11 hours"), (1e6, "about 12 days")],
)
def test_long_durations_in_words(seconds, words):
    assert about(seconds) == words
