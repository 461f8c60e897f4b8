"""tools/benchmark.py from its arguments to its reports, on tiny models and phantoms."""

import importlib.util
import json
from dataclasses import replace

from d2_covid.benchmark import sections
from d2_covid.benchmark.results import Section
from d2_covid.benchmark.timing import spread
from d2_covid.errors import UserError

import pytest
import torch

TINY = """MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.PRE_NMS_TOPK_TEST 120 MODEL.RPN.POST_NMS_TOPK_TEST 60 MODEL.RPN.PRE_NMS_TOPK_TRAIN 120
MODEL.RPN.POST_NMS_TOPK_TRAIN 60 TEST.DETECTIONS_PER_IMAGE 12 INPUT.MIN_SIZE_TEST 128 INPUT.MIN_SIZE_TRAIN [128]
MODEL.CLASSIFIER.NUM_ROIS 16 MODEL.CLASSIFIER.HIDDEN_DIM 8""".split()
CHEAP = "agreement,segmentation,classification,batches,training,classifier-training,loading,series"
RUNS = "evaluation,training-run,cached-classifier"


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("d2_covid_benchmark_tool", repository / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _arguments(output, only, *more):
    common = ["--quick", "--phantoms", "--model", "R_18_T2", "--weights", "seeded", "--repeats", "1"]
    device = [] if "--device" in more else ["--device", "cpu"]
    return [*common, *device, "--only", only, "--output", str(output), *more, *TINY]


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_reports_ratios_first_and_keeps_every_time(tool, tmp_path, capsys):
    assert tool.main(_arguments(tmp_path, CHEAP, "--threads", "1")) == 0
    text, markdown = capsys.readouterr().out, (tmp_path / "benchmark.md").read_text()
    found = json.loads((tmp_path / "benchmark.json").read_text())
    for report in (text, markdown):
        assert report.index("Ratios") < report.index("ms a slice")
        assert "phantoms (no scan of a person)" in report and "1 threads" in report
    assert found["machine"]["threads"] == 1 and found["machine"]["versions"]["torch"] == torch.__version__
    assert found["matmul_flops_per_second"]["fp32"] > 1e8
    assert [name for name in found["sections"] if not name.startswith("batches")][1:] == [
        name for name in CHEAP.split(",") if name != "batches"
    ]

    agreement = found["sections"]["agreement"]["d2_covid plain"]
    assert agreement["detections"] > 0 and agreement["unmatched"] == 0 and agreement["mask_pixels"] == 0
    segmentation = found["sections"]["segmentation"]
    for name in ("torchvision", "d2_covid plain", "d2_covid fp32", "d2_covid bf16"):
        assert len(segmentation[name]["seconds"]) == 1 and min(segmentation[name]["seconds"]) > 0
    ratio = segmentation["torchvision"]["seconds"][0] / segmentation["d2_covid fp32"]["seconds"][0]
    assert segmentation["d2_covid fp32"]["times_faster"]["median"] == pytest.approx(ratio)
    assert found["sections"]["summary"]["segmentation: d2_covid fp32"]["aim"] == 3.0
    assert segmentation["d2_covid plain"]["masks"] == "12"
    for name in ("segmentation", "classification", "training"):
        section = found["sections"][name]
        counts = {one["GFLOP, plain layers"] for one in section.values() if isinstance(one, dict)}
        assert len(counts) == 1 and float(counts.pop()) > 0
        assert any("plain layers" in note for note in section["notes"])
        assert any("work spared, not done" in note for note in section["notes"])
    assert found["sections"]["training"]["d2_covid"]["unit"] == "step"


def test_whole_runs(tool, tmp_path, capsys):
    """What a GPU runs by default, scaled down."""
    assert tool.main(_arguments(tmp_path, RUNS, "--dtype", "fp32")) == 0
    found = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    for name in ("evaluation", "training-run", "classifier-training-run"):
        rates = [one["slices_per_second"] for one in found[name].values() if isinstance(one, dict)]
        assert rates and min(rates) > 0
    assert found["cached-classifier"]["training"]["slices"] == 16
    out = capsys.readouterr().out
    assert "its ResNet18-T2+FPN took 126.9 minutes" in out and "took 113.66 minutes" in out
    assert "Model: R_18_T2;" in out and "108.8" not in out


def test_a_section_that_fails_costs_no_other(tool, tmp_path, monkeypatch, capsys):
    def fails(bench):
        raise RuntimeError("no such thing\nhere")

    def works(bench):
        return Section("loading", "worked", headers=["number"], rows=[["42"]])

    monkeypatch.setitem(sections.PARTS, "segmentation", sections.Part(fails))
    monkeypatch.setitem(sections.PARTS, "loading", sections.Part(works))
    assert tool.main(_arguments(tmp_path, "segmentation,loading")) == 1
    out = capsys.readouterr().out
    assert "failed: no such thing here" in out and "42" in out
    assert "42" in (tmp_path / "benchmark.md").read_text()


@pytest.fixture
def measured(tool, monkeypatch):
    """The devices that ran, with a GPU that isn't there: whole runs and their machine are made up."""
    devices = []

    def fake(name):
        def run(bench):
            devices.append((name, bench.device, bench.settings.work.is_dir()))
            ratios = {"d2_covid fp32": spread([4.0])}
            return Section(name, f"{name} on {bench.device}", rows=[["42"]], reference="torchvision", ratios=ratios)

        return run

    for name in ("segmentation", "export", "evaluation"):
        part = sections.PARTS[name]
        monkeypatch.setitem(sections.PARTS, name, replace(part, function=fake(name)))
    machine = tool.describe_machine("cpu")
    monkeypatch.setattr(tool, "describe_machine", lambda device: machine | {"device": device})
    monkeypatch.setattr(tool, "matmul_rate", lambda dtype, device: 1e9)
    return devices


def test_cpu_always_and_gpu_when_there_is_one(tool, tmp_path, monkeypatch, capsys, measured):
    assert tool.build_parser().parse_args([]).device == "auto"
    arguments = _arguments(tmp_path, "segmentation,export", "--device", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tool.main(arguments) == 0
    assert measured == [("segmentation", "cpu", True), ("export", "cpu", True)]
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.md", "benchmark.json"}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capsys.readouterr()
    assert tool.main(arguments) == 0
    assert measured[2:] == [*measured[:2], ("segmentation", "cuda", True)]
    out = capsys.readouterr().out
    for device, page, aim in (("cpu", "benchmark", 3.0), ("cuda", "benchmark-cuda", None)):
        markdown, found = (tmp_path / f"{page}{end}" for end in (".md", ".json"))
        assert markdown.read_text().startswith(f"# Benchmark on {device}\n")
        found = json.loads(found.read_text())
        assert found["machine"]["device"] == found["settings"]["device"] == device
        assert found["sections"]["summary"]["segmentation: d2_covid fp32"]["aim"] == aim
        assert f"device {device}." in out and str(markdown) in out


def test_a_gpu_that_fails_is_told_by_the_status(tool, tmp_path, monkeypatch, measured):
    works = sections.PARTS["segmentation"].function

    def fails_there(bench):
        return works(bench) if bench.device == "cpu" else 1 / 0

    monkeypatch.setitem(sections.PARTS, "segmentation", sections.Part(fails_there))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tool.main(_arguments(tmp_path, "segmentation", "--device", "auto")) == 1
    assert "42" in (tmp_path / "benchmark.md").read_text()
    assert "failed: division by zero" in (tmp_path / "benchmark-cuda.md").read_text()


def test_what_measures_cpus_alone_is_refused_on_a_gpu(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "choose_device", lambda device: device)
    with pytest.raises(UserError, match="--only export measures what runs on CPUs; leave out --device cuda"):
        tool.main(["--only", "export", "--device", "cuda", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "segmentaton"], "no section segmentaton; there are agreement"),
        (["--dtype", "fp16"], "--dtype must be one of fp32, bf16, not 'fp16'"),
        (["--repeats", "0"], "--repeats takes 1 or more"),
        (["--weights", "nowhere.pth", "--phantoms", "--quick", "--only", "loading"], "nowhere.pth"),
    ],
)
def test_bad_arguments_are_one_line(tool, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        tool.main(["--output", str(tmp_path), *arguments])
    assert "\n" not in str(error.value)


def test_a_model_that_was_not_typed_contradicts_no_weights(tool):
    assert tool.build_parser().parse_args([]).model is None


def test_what_runs_when_nothing_is_named():
    quick = sections.choose_parts([], quick=True, gpu=False)
    cpu = sections.choose_parts([], quick=False, gpu=False)
    gpu = sections.choose_parts([], quick=False, gpu=True)
    assert set(quick) < set(cpu) and "segmentation" in quick and "memory" not in quick
    assert {"growth-slices", "growth-lesions", "export"} < set(cpu) and not {"evaluation", "training-run"} & set(cpu)
    assert {"evaluation", "training-run", "cached-classifier"} < set(gpu) and "export" not in gpu
    assert sections.choose_parts(["memory", "agreement"], quick=True, gpu=False) == ["agreement", "memory"]
    assert sections.choose_parts(["memory", "export"], quick=True, gpu=True) == ["memory"]
