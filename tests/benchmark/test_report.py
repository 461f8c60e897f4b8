"""What the report says of times, work and aims."""

from types import SimpleNamespace

from d2_covid.benchmark import aims, context, inference_sections, report, run_sections, work
from d2_covid.benchmark.results import span, timed_section
from d2_covid.benchmark.timing import spread

import pytest
import torch


def test_timed_section_puts_ratios_first():
    section = timed_section("k", "t", {"peer": [2.0, 4.0], "ours": [1.0, 1.0]}, reference="peer", per_run=2)
    assert section.headers[0] == "times faster" and section.rows[1][:2] == ["3 (2 to 4)", "ours"]
    assert section.rows[0][2] == "1.5e+03 (1e+03 to 2e+03)" and section.rows[1][3] == "2"
    assert list(section.ratios) == ["ours"] and section.data["ours"]["seconds"] == [1.0, 1.0]
    alone = timed_section("k", "t", {"ours": [1.0]}, reference=None)
    assert alone.headers[0] == "candidate" and not alone.ratios


def test_span():
    assert span(spread([2.0]), 10) == "20" and span(spread([1.0, 2.0, 3.0, 4.0, 5.0])) == "3 (2 to 4)"


def test_share_of_the_matrix_rate_is_that_of_the_median(monkeypatch):
    monkeypatch.setattr(inference_sections, "count_multiply_adds", lambda model, size: {"box": 3})
    bench = SimpleNamespace(images=[torch.zeros(3, 8, 8)], rates={"fp32": 10.0})
    models, seconds = {context.PLAIN: None}, {context.PLAIN: [1.0, 2.0, 4.0, 9.0]}
    found = inference_sections._flops_columns(bench, models, seconds)
    assert found["of matmul rate"] == {context.PLAIN: "20.0%"}  # 6 FLOP in 3 s, not in 4


def test_work_is_that_of_the_plain_layers_whatever_a_candidate_does(monkeypatch):
    monkeypatch.setattr(inference_sections, "count_multiply_adds", lambda model, size: {"box": model})
    bench = SimpleNamespace(images=[torch.zeros(3, 8, 8)], rates={"fp32": 1e10, "bf16": 4e10})
    models = {"torchvision": 0, context.PLAIN: 5e9, "d2_covid bf16": 1, context.STOCK: 7e9, context.MAYAKU: 9}
    found = inference_sections._flops_columns(bench, models, {name: [0.2] for name in models})
    assert found["GFLOP, plain layers"] == {
        "torchvision": "10.0",
        context.PLAIN: "10.0",
        "d2_covid bf16": "10.0",
        context.STOCK: "14.0",
    }
    assert found["of matmul rate"]["d2_covid bf16"] == "125.0%"


def test_tf32_is_told_of_where_it_is():
    cpu, gpu = (" ".join(work.work_notes("all", "none", device)) for device in ("cpu", "cuda"))
    assert "work spared, not done" in cpu and "TF32" not in cpu and "TF32" in gpu


def test_flops_of_a_step_are_those_of_both_ways():
    layer, inputs = torch.nn.Linear(5, 7), torch.ones(3, 5, requires_grad=True)
    assert work.flops_of(lambda number: layer(inputs).sum().backward(), 2) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("device, aim", [("cpu", 3.0), ("cuda:1", None)])
def test_ratios_aims_are_for_cpus(device, aim):
    section = timed_section("segmentation", "t", {"peer": [2.0], "d2_covid fp32": [1.0]}, reference="peer")
    found = report.summary([section], device)
    assert found.data["segmentation: d2_covid fp32"]["aim"] == aim and found.rows[0][1] == ("3" if aim else "")


@pytest.mark.parametrize(
    "key, schedule, headers",
    [
        ("evaluation", False, ["slices a second (aim on an H200: 500 or more)", "how"]),
        (
            "training-run",
            True,
            [
                "slices a second (aim on an H200: 200 or more)",
                "how",
                "the paper's schedule, minutes (aim on an H200: 6 or less)",
            ],
        ),
        (
            "classifier-training-run",
            True,
            ["slices a second", "how", "the paper's schedule, minutes (aim on an H200: 5 or less)"],
        ),
    ],
)
def test_gpu_aims_stand_beside_the_rates_of_a_gpu(key, schedule, headers):
    gpu, cpu = (
        run_sections._rate_section(key, "t", SimpleNamespace(device=d), schedule=schedule) for d in ("cuda", "cpu")
    )
    assert gpu.headers == headers and gpu.data["aims"] == aims.GPU_AIMS[key]
    assert "aim" not in " ".join(cpu.headers) and not cpu.data


@pytest.mark.parametrize("quick", [False, True])
def test_aim_of_the_cached_classifier_is_for_its_whole_schedule(quick, small_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(run_sections, "write_weights", lambda cfg, state, path: path)
    monkeypatch.setattr(run_sections, "_slice_dataset", lambda bench, count: "none")
    monkeypatch.setattr(run_sections, "Trainer", lambda cfg, progress: SimpleNamespace(train=lambda: None))
    cfg = small_cfg("segmentation/mask_rcnn_R_18_T2_FPN")
    bench = SimpleNamespace(cfg=cfg, classifier_cfg=context.classifier_config(cfg), state={}, device="cuda")
    bench.settings = context.Settings(quick=quick, work=tmp_path)
    section = run_sections.cached_classifier(bench)
    assert section.headers[1] == ("seconds" if quick else "seconds (aim on an H200: 300 or less together)")
    assert ("aims" in section.data) is not quick
