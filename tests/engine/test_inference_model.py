"""Which copy of a model predicts and is evaluated, and what is refused."""

import logging

from d2_covid.engine import evaluation
from d2_covid.engine import inference_model as module
from d2_covid.engine.inference_model import check_inference, inference_dtype, inference_model
from d2_covid.engine.tasks import task_of
from d2_covid.errors import UserError
from d2_covid.modeling.fast import FastRCNN

import pytest
import torch
from detectron2.modeling import build_model

SLICE = ("TEST.NORM_STATISTICS", "slice")


def test_the_fast_copy_is_the_default(tiny):
    model = build_model(tiny())
    assert isinstance(inference_model(tiny(), model), FastRCNN)
    assert inference_model(tiny("TEST.FAST", False), model) is model


def test_what_is_no_detector_stays(tiny):
    model = torch.nn.Linear(2, 2)
    assert inference_model(tiny(), model) is model


def test_its_type(tiny, monkeypatch, caplog):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    cfg = tiny("TEST.DTYPE", "bfloat16")
    assert inference_dtype(cfg) == torch.bfloat16 and not caplog.text
    assert inference_model(cfg, build_model(cfg)).feature_dtype == torch.bfloat16
    assert inference_dtype(tiny()) == torch.float32


def test_a_processor_without_bfloat16_is_told_of(tiny, monkeypatch, caplog):
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert inference_dtype(tiny("TEST.DTYPE", "bfloat16")) == torch.bfloat16
    assert "slower" in caplog.text


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("", False),
    ],
)
def test_what_a_processor_says_of_itself(flags, expected, monkeypatch):
    text = f"processor\t: 0\nmodel name\t: bf16 fan club\n{flags}\n"
    monkeypatch.setattr(module.Path, "read_text", lambda self, **options: text)
    assert module.cpu_has_bfloat16() == expected


def test_a_system_that_says_nothing_of_its_processor(monkeypatch):
    def missing(self, **options):
        raise FileNotFoundError

    monkeypatch.setattr(module.Path, "read_text", missing)
    assert not module.cpu_has_bfloat16()


@pytest.mark.parametrize(
    "opts, message",
    [
        (("TEST.DTYPE", "float64"), "TEST.DTYPE must be one of float32, bfloat16, float16"),
        (("TEST.DTYPE", "float16"), "for a GPU"),
        (("TEST.DTYPE", "bfloat16", "TEST.FAST", False), "TEST.FAST True"),
        (("TEST.NORM_STATISTICS", "batch"), "TEST.NORM_STATISTICS must be one of running, slice"),
        ((*SLICE, "TEST.DTYPE", "bfloat16"), "computes in float32, and TEST.DTYPE is bfloat16"),
        ((*SLICE, "MODEL.META_ARCHITECTURE", "CovidCTMaskNet"), "a classifier learns with running statistics"),
    ],
)
def test_keys_that_are_refused(opts, message, tiny):
    with pytest.raises(UserError, match=message) as error:
        check_inference(tiny(*opts))
    assert "\n" not in str(error.value)


def test_evaluation_is_the_same_either_way_and_leaves_the_model_alone(tiny, reference_weights, monkeypatch):
    used = []
    plain = evaluation.inference_on_dataset
    monkeypatch.setattr(
        evaluation, "inference_on_dataset", lambda model, *args: used.append(type(model)) or plain(model, *args)
    )
    results = []
    for fast in (True, False):
        cfg = tiny("TEST.FAST", fast, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        model = build_model(cfg)
        model.load_state_dict(reference_weights)
        model.train()
        results.append(evaluation.flat_numbers(evaluation.evaluate(cfg, task_of(cfg), model, final=False)))
        assert model.training
        assert all(torch.equal(value, reference_weights[name]) for name, value in model.state_dict().items())
    assert used == [FastRCNN, type(model)]
    assert results[0] == pytest.approx(results[1], abs=1e-3, nan_ok=True)
    assert any(value > 0 for value in results[0].values())


@pytest.mark.parametrize("fast", [True, False])
def test_each_slice_by_its_own_statistics(tiny, reference_weights, fast):
    """Whatever the running ones are."""
    cfg = tiny(*SLICE, "TEST.FAST", fast, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    found = []
    for factor in (1.0, 9.0):
        model = build_model(cfg)
        state = {k: v * factor if k.endswith("running_var") else v for k, v in reference_weights.items()}
        model.load_state_dict(state)
        found.append(evaluation.flat_numbers(evaluation.evaluate(cfg, task_of(cfg), model, final=False)))
    assert found[0] == pytest.approx(found[1], nan_ok=True)
    assert any(value > 0 for value in found[0].values())
