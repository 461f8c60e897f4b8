"""Sections that work in processes of their own, and what the others are made of."""

import json
import mmap
import platform
import subprocess
import sys
from types import SimpleNamespace

from d2_covid import get_config
from d2_covid.benchmark import (
    child,
    context,
    growth_sections,
    inputs,
    memory,
    run_sections,
    series_sections,
    training_sections,
)
from d2_covid.benchmark.series_sections import write_weights
from d2_covid.engine.ranked_cache import can_cache
from d2_covid.engine.tasks import task_of
from d2_covid.errors import UserError
from d2_covid.paper_tables import classification_row, segmentation_row

import numpy as np
import pytest
import torch
from scipy import ndimage

CONFIG = "segmentation/mask_rcnn_R_18_T2_FPN"
TRAIN = ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 120, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60, "INPUT.MIN_SIZE_TEST", 128]


@pytest.fixture
def small(small_cfg, spread_model):
    """A config with the weights of its model."""
    cfg = small_cfg(CONFIG, *TRAIN, "INPUT.MIN_SIZE_TRAIN", [128])
    return cfg, spread_model(cfg).state_dict()


@pytest.mark.parametrize("name", ["torchvision", "d2_covid plain", "d2_covid fp32", "d2_covid bf16"])
@pytest.mark.parametrize("classifies", [False, True])
def test_candidates_by_name(name, classifies, small, slices):
    cfg, state = small
    cfg = context.classifier_config(cfg) if classifies else cfg
    model = context.build_candidate(name, cfg, state, slices)
    with torch.inference_mode():
        outputs = model(context.records(slices))
    assert not model.training
    if classifies:
        assert [tuple(one["image_logits"].shape) for one in outputs] == [(3,)] * 3
    else:
        assert all(one["instances"].pred_masks.shape[1:] == (128, 128) for one in outputs)
        assert all(len(one["instances"]) for one in outputs)


def test_no_such_candidate(small, slices):
    with pytest.raises(ValueError, match="no candidate"):
        context.build_candidate("d2_covid fp8", *small, slices)


def test_stock_detectron2_does_the_same_job(small, slices):
    model = context.build_candidate(context.STOCK, *small, slices)
    with torch.inference_mode():
        (output,) = model(context.records(slices[:1]))
    assert 20 < len(output["instances"]) <= 128 and output["instances"].pred_classes.max() == 0
    assert model.roi_heads.box_head.fc1.out_features == 1024 and len(model.roi_heads.mask_head.conv_norm_relus) == 4


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells the peak of a part of a process")
def test_peak_is_that_of_the_work():
    def takes_40_mb():
        with mmap.mmap(-1, 40 * 2**20) as memory:  # what malloc gives may have been this process's already
            memory.write(b"1" * (40 * 2**20))

    found = child.peak_of(takes_40_mb, "cpu")
    again = child.peak_of(lambda: None, "cpu")
    assert 35 * 2**20 < found["process"] - found["before"] < 100 * 2**20
    assert again["process"] - again["before"] < 10 * 2**20


@pytest.mark.parametrize(
    "found, cells",
    [
        ({"before": 1, "process": 3}, ["2", "3"]),
        ({"process": 3}, ["–", "3"]),  # a system that doesn't tell what a process has now
        ({"before": 1, "process": 3, "gpu_before": 4, "gpu": 9}, ["5", "9"]),
    ],
)
def test_memory_on_top_is_without_the_model_that_was_there(small, slices, monkeypatch, found, cells):
    monkeypatch.setattr(memory, "run_job", lambda *_, **__: {name: size * 2**20 for name, size in found.items()})
    cfg, state = small
    bench = SimpleNamespace(cfg=cfg, state=state, images=slices, settings=context.Settings(quick=True))
    bench.classifier_cfg = context.classifier_config(cfg)
    assert {tuple(row[2:]) for row in memory.memory(bench).rows} == {tuple(cells)}


def test_memory_that_the_system_does_not_tell_is_an_error(monkeypatch):
    monkeypatch.setattr(child, "_status", lambda name: 0)
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(RuntimeError, match="does not tell"):
        child.peak_bytes()


def test_rate_of_a_training_leaves_out_its_start_and_its_last_checkpoint():
    assert run_sections.steps_a_second([9.0, 10.0, 12.0, 14.0, 16.0, 50.0]) == 0.5
    assert run_sections.steps_a_second([9.0, 11.0, 50.0]) == 0.5


def test_samples_that_are_cached_are_drawn_once(small):
    cfg = context.classifier_config(get_config("segmentation/tuned/mask_rcnn_R_18_T1_FPN.yaml"))
    cfg.MODEL.CLASSIFIER.TRAIN_NORM = False
    assert not can_cache(cfg, task_of(cfg)) and can_cache(context.without_draws(cfg), task_of(cfg))


def test_a_job_in_a_child(small, slices):
    cfg, state = small
    found = child.run_job("predict", cfg, name="d2_covid plain", images=torch.stack(slices[:1]), state=state)
    assert 10**8 < found["before"] <= found["process"]


def test_a_job_that_fails_says_why(small, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nValueError: no candidate 'nobody'\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="child .predict. failed: ValueError: no candidate 'nobody'"):
        child.run_job("predict", small[0], name="nobody")


def test_every_kind_of_job_has_its_function():
    for kind, module in child.JOBS.items():
        assert callable(getattr({"memory": memory, "growth_sections": growth_sections}[module], f"job_{kind}"))


def test_job_train(small, slices):
    cfg, state = small
    found = memory.job_train(cfg, {"name": "torchvision", "images": torch.stack(slices[:1]), "state": state})
    assert found["process"] >= found["before"] > 0


def test_job_train_classifier(small, slices):
    cfg, state = small
    job = {"name": "d2_covid", "images": torch.stack(slices[:2]), "state": state}
    found = memory.job_train_classifier(context.classifier_config(cfg), job)
    assert found["process"] >= found["before"] > 0


def test_memory_is_that_of_segmentation_and_of_classification(small, slices, monkeypatch):
    jobs = []

    def fake_job(kind, cfg, *, name, images, state, count):
        jobs.append((kind, cfg.MODEL.META_ARCHITECTURE, name, len(images)))
        return {"before": 2**20, "process": 3 * 2**20}

    monkeypatch.setattr(memory, "run_job", fake_job)
    cfg, state = small
    settings = context.Settings()
    bench = SimpleNamespace(cfg=cfg, state=state, images=slices * 3, settings=settings)
    bench.classifier_cfg = context.classifier_config(cfg)
    section = memory.memory(bench)
    assert {kind for kind, *_ in jobs} <= set(child.JOBS)
    plain_and_fast = ("d2_covid plain", "d2_covid fp32", "d2_covid bf16")
    assert [job for job in jobs if job[1] == "CovidCTMaskNet"] == [
        *(("predict", "CovidCTMaskNet", name, 1) for name in plain_and_fast),
        ("train_classifier", "CovidCTMaskNet", "d2_covid", 8),
    ]
    assert ["classification, batch 1", "d2_covid fp32", "2", "3"] in section.rows
    assert ["classifier training, batch 8", "d2_covid", "2", "3"] in section.rows


def test_classifier_steps_train(small, slices):
    cfg = context.classifier_config(small[0])
    steps = training_sections.classifier_steps(cfg, small[1], slices, 2)
    assert list(steps) == ["torchvision", "d2_covid plain", "d2_covid"]
    losses = [make()(0) for make in steps.values()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3) and all(0 < loss < 100 for loss in losses)


def test_job_slices_tells_when_counts_are_reached(small, slices, tmp_path):
    cfg, state = small
    job = {"images": torch.stack([one[0] for one in slices]), "counts": [1, 3, 5]}
    job["weights"] = str(write_weights(cfg, state, tmp_path / "model.pth"))
    found = growth_sections.job_slices(cfg, job)
    assert len(found["seconds"]) == 3 and found["seconds"] == sorted(found["seconds"])
    assert len(found["peak"]) == 3 and min(found["peak"]) > 10**8
    json.dumps(found)


def test_a_section_says_between_which_sizes_one_item_more_cost_that(small, slices, monkeypatch, tmp_path):
    """A further lesion costs a training step less and less here: one number without its sizes would mislead."""
    lesions = {
        "seconds": {"training step": [0.3147, 0.3104, 0.4118, 0.7009, 0.8331]},
        "memory": [size * 2**20 for size in (1277, 1418, 1524, 1856, 2035)],
    }
    series = {"seconds": [0.28, 1.17, 9.98, 104.65], "peak": [1145e6, 1146e6, 1155e6, 1244e6]}
    monkeypatch.setattr(growth_sections, "write_weights", lambda *_: "")
    monkeypatch.setattr(growth_sections, "run_job", lambda kind, *_, **__: {"lesions": lesions, "slices": series}[kind])
    cfg, state = small
    settings = SimpleNamespace(quick=False, work=tmp_path)
    bench = SimpleNamespace(cfg=cfg, state=state, images=slices, settings=settings)
    step, memory_of_step, *_ = growth_sections.lesions(bench).notes
    assert step == "training step: linear (2.65x from 1 to 512), 0.52 ms a lesion more from 256 to 512."
    assert memory_of_step.endswith("716 kB a lesion more from 256 to 512.")
    section = growth_sections.slices(bench)
    time, peak = section.notes
    assert "(64x64, " in section.title  # half of each side of those that are measured
    assert time == "Time: linear, 105.2 ms a slice more from 100 to 1000."
    assert "kB a slice more from 100 to 1000, which are its results" in peak


def test_no_candidate_of_a_series_is_timed_cold(small, slices, monkeypatch, tmp_path):
    run, before = [], []

    class FakePredictor:
        score_threshold = 0.5

        def __init__(self, cfg, *_):
            self.cfg, self.model = cfg, lambda records: run.append(series_sections.PREDICTOR)

        def series(self, source):
            run.append(source)
            return SimpleNamespace(slices=[SimpleNamespace(instances=())], seconds={"model": 1.0})

    def interleave(candidates, **_):
        before.extend(run)
        return {name: [1.0] for name in candidates}

    monkeypatch.setattr(series_sections, "write_weights", lambda *_: "")
    monkeypatch.setattr(series_sections, "Predictor", FakePredictor)
    monkeypatch.setattr(series_sections, "build_candidate", lambda name, *_: lambda records: run.append(name))
    monkeypatch.setattr(series_sections, "interleave", interleave)
    settings = context.Settings(work=tmp_path)
    inputs_of_series = SimpleNamespace(series="the series")
    bench = SimpleNamespace(
        cfg=small[0], state=small[1], images=slices, device="cpu", settings=settings, inputs=inputs_of_series
    )
    section = series_sections.series(bench)
    assert sorted(before) == sorted(["the series", *section.data])


def test_job_lesions_measures_reading_training_and_evaluation(small, tmp_path):
    cfg, state = small
    job = {"counts": [1, 4], "state": state, "work": str(tmp_path), "repeats": 1, "side": 128}
    found = growth_sections.job_lesions(cfg, job)
    assert {what: len(values) for what, values in found["seconds"].items()} == {
        "reading": 2,
        "training step": 2,
        "evaluation": 2,
    }
    assert min(map(min, found["seconds"].values())) > 0 and len(found["memory"]) == 2


@pytest.mark.parametrize("count", [1, 7, 64, 512])
def test_many_lesions_are_as_many_of_one_size(count):
    gray, mask = inputs.many_lesions(count, 512)
    labels, found = ndimage.label(mask == 2, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    assert found == count and areas.min() > 180 and areas.max() / areas.min() < 1.2
    assert gray[mask == 2].mean() > gray[mask == 1].mean() + 80


@pytest.mark.parametrize("count, size", [(0, 512), (513, 512), (1, 64)])
def test_many_lesions_out_of_range(count, size):
    with pytest.raises(ValueError):
        inputs.many_lesions(count, size)


def test_crowded_samples_train(small):
    cfg, state = small
    sample = training_sections.crowded_sample(cfg, 9, 128)
    assert len(sample["instances"]) == 9 and sample["image"].shape == (3, 128, 128)
    steps = training_sections.training_steps(cfg, state, [sample])
    assert list(steps) == ["torchvision", "d2_covid plain", "d2_covid"]
    losses = {name: make()(0) for name, make in steps.items()}
    assert all(0 < loss < 100 for loss in losses.values())


def test_real_slices_are_those_that_the_variable_names(tmp_path, monkeypatch):
    monkeypatch.delenv(inputs.REAL_DATA, raising=False)
    assert inputs.real_data_folder() is None
    monkeypatch.setenv(inputs.REAL_DATA, str(tmp_path))
    for part in ("radiopaedia", "ct_md/normal001"):
        with pytest.raises(UserError, match=f"{part}: no such folder; .*; or give --phantoms"):
            inputs.real_data_folder()
        (tmp_path / part).mkdir(parents=True)
    assert inputs.real_data_folder() == tmp_path.resolve()


def test_phantom_inputs(tmp_path):
    found = inputs.load_inputs(tmp_path, real=None, slices=4, phantom_size=128)
    assert "phantoms" in found.origin and len(found.dicts) == 4 and len(found.pairs) == 12
    images = found.network_inputs(6, 128, 256)
    assert len(images) == 6 and all(image.shape == (3, 128, 128) for image in images)
    assert any(not torch.equal(images[0], other) for other in images[1:])


def test_weights_of_a_classifier_are_refused(small, tmp_path):
    cfg = context.classifier_config(small[0])
    state = context.build_with(cfg, small[1]).state_dict()
    path = write_weights(cfg, state, tmp_path / "classifier.pth")
    with pytest.raises(UserError, match="no segmentation model"):
        context.choose_weights(context.Settings(weights=str(path)))


def test_given_weights_bring_their_config(small, tmp_path):
    path = write_weights(*small, tmp_path / "model.pth")
    cfg, said = context.choose_weights(context.Settings(weights=str(path)))
    assert cfg.MODEL.FPN.OUT_CHANNELS == 32 and "sha256" in said
    cfg, _ = context.choose_weights(context.Settings(model="R_18_T2", weights=str(path)))
    assert cfg.MODEL.FPN.OUT_CHANNELS == 32


def test_overrides_go_before_what_given_weights_say(small, tmp_path):
    path = write_weights(*small, tmp_path / "model.pth")
    opts = ("INPUT.MIN_SIZE_TEST", "96", "MODEL.WEIGHTS", "other.pth")
    cfg, said = context.choose_weights(context.Settings(weights=str(path), opts=opts))
    assert cfg.INPUT.MIN_SIZE_TEST == 96 and cfg.MODEL.FPN.OUT_CHANNELS == 32
    assert cfg.MODEL.WEIGHTS == str(path) and "sha256" in said
    with pytest.raises(UserError, match="INPUT.NOTHING"):
        context.choose_weights(context.Settings(weights=str(path), opts=("INPUT.NOTHING", "1")))


def test_a_model_that_the_weights_are_not_of_is_refused(small, tmp_path):
    path = write_weights(*small, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth is a model R_18_T2, not --model R_34_T2") as error:
        context.choose_weights(context.Settings(model="R_34_T2", weights=str(path)))
    assert "\n" not in str(error.value)


def test_the_report_names_the_model_that_is_measured(small, tmp_path):
    path = write_weights(*small, tmp_path / "model.pth")
    for model, weights, measured in (
        (None, str(path), "R_18_T2"),
        (None, "seeded", "R_18_T1"),
        ("R_34_full", "seeded", "R_34_full"),
    ):
        settings = context.Settings(model=model, weights=weights)
        assert context.Bench(settings, inputs=None, machine={}, rates={}).model == measured


def test_minutes_of_the_paper_are_those_of_the_model():
    note = run_sections._schedule_note("100 epochs", segmentation_row("mask_rcnn_R_34_T2_FPN"))
    assert note == "The paper's schedule: 100 epochs; its ResNet34-T2+FPN took 129.2 minutes."
    assert run_sections._schedule_note("9 epochs", classification_row("nothing")) == "The paper's schedule: 9 epochs."
