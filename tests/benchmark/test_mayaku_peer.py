"""mayaku's nearest model; without mayaku, that its absence is said."""

import importlib.util
import json
import sys
from collections import Counter

from d2_covid import get_config
from d2_covid.benchmark import mayaku_peer
from d2_covid.benchmark.context import records
from d2_covid.errors import UserError
from d2_covid.zoo.data import described

import pytest
import torch


def test_without_mayaku_there_is_no_version(monkeypatch):
    monkeypatch.setattr(mayaku_peer.importlib.util, "find_spec", lambda name: None)
    assert mayaku_peer.mayaku_version() is None
    assert "pip install mayaku" in mayaku_peer.NOT_INSTALLED


@pytest.fixture
def tool(repository, monkeypatch):
    """tools/train_mayaku.py."""
    spec = importlib.util.spec_from_file_location("train_mayaku", repository / "tools" / "train_mayaku.py")
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, tool)  # its dataclass asks for its module
    spec.loader.exec_module(tool)
    return tool


def test_start_up_is_told_from_what_a_slice_takes(tool):
    assert tool.slice_and_start((8, 10 + 8 * 2.0), (32, 10 + 32 * 2.0)) == (2.0, 10.0)
    assert tool.slice_and_start((8, 9.0), (8, 8.0)) == (1.0, 1.0)  # the set has no more slices
    assert tool.slice_and_start((8, 40.0), (32, 32.0)) == (1.0, 32.0)  # the first was slowed down


@pytest.mark.parametrize("slices", [1, 4, 9, 13, 27])
def test_slices_are_drawn_evenly_and_with_their_lesions(tool, tmp_path, slices):
    images = [{"id": 100 + i, "file_name": f"{i}.png"} for i in range(9)]
    annotations = [{"id": i, "image_id": 100 + i % 7, "area": i} for i in range(40)]
    (tmp_path / "all.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": [7]}))
    data = tool.LesionSet(tmp_path / "all.json", tmp_path, 9)
    drawn = [tool._drawn(data, slices, seed, tmp_path / f"{n}.json") for n, seed in enumerate((1, 1, 2))]
    content, same, differs = (json.loads(part.annotations.read_text()) for part in drawn)
    assert content == same != differs and content["categories"] == [7]
    assert len(content["images"]) == drawn[0].slices == slices
    times = Counter(image["file_name"] for image in content["images"])
    assert set(times.values()) <= {slices // 9, slices // 9 + 1} and sum(times.values()) == slices
    for part in (content["images"], content["annotations"]):
        assert [one["id"] for one in part] == list(range(1, len(part) + 1))
    for image in content["images"]:
        here = sorted(one["area"] for one in content["annotations"] if one["image_id"] == image["id"])
        number = int(image["file_name"].split(".")[0])
        assert here == [i for i in range(40) if i % 7 == number]


def asked(tool, *options):
    return tool.task_of(tool.build_parser().parse_args([*options, "--output", "x"]))


def test_the_config_says_how_it_trains_and_options_change_it(tool):
    task = asked(tool, "--name", "mine", "--minutes", "2")
    ours = get_config(tool.CONFIG)
    assert (task.name, task.seconds, task.epochs) == ("mine", 120.0, None) and task.cfg == ours
    assert task.record is None
    task = asked(tool, "--name", "mine", "--epochs", "3", "--size", "64", "--batch", "2", "--lr", "0.1")
    assert (task.seconds, task.epochs, task.cfg.SOLVER.IMS_PER_BATCH, task.cfg.SOLVER.BASE_LR) == (None, 3, 2, 0.1)
    assert (task.cfg.INPUT.MIN_SIZE_TEST, task.cfg.INPUT.MAX_SIZE_TEST) == (64, 128)
    with pytest.raises(UserError, match="--name"):
        asked(tool, "--minutes", "2")


def test_trained_like_a_row_of_the_zoo(tool, repository, tmp_path):
    path = repository / "docs" / "zoo" / "tuned-R18-T1-scratch-s1.json"
    record = json.loads(path.read_text())
    task = asked(tool, "--like", str(path))
    assert (task.record, task.name, task.seconds) == (record, "zoo", record["step_seconds"])
    assert task.cfg == get_config(tool.CONFIG)
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps({**record, "opts": ["SOLVER.IMS_PER_BATCH", "2"]}))
    assert asked(tool, "--like", str(longer)).cfg.SOLVER.IMS_PER_BATCH == 2
    for option, value in (("--name", "zoo"), ("--config-file", "x.yaml"), ("--batch", "2"), ("--lr", "0.1")):
        with pytest.raises(UserError, match=f"leave out {option}"):
            asked(tool, "--like", str(path), option, value)
    with pytest.raises(UserError, match="no record"):
        asked(tool, "--like", str(tmp_path / "none.json"))
    (tmp_path / "running.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(UserError, match="no finished training"):
        asked(tool, "--like", str(tmp_path / "running.json"))


def test_a_row_of_another_optimiser_is_refused(tool, repository, tmp_path):
    record = json.loads((repository / "docs" / "zoo" / "tuned-R18-T1-scratch-s1.json").read_text())
    path = tmp_path / "paper.json"
    path.write_text(json.dumps({**record, "config": "configs/segmentation/mask_rcnn_R_18_T1_FPN.yaml"}))
    with pytest.raises(UserError, match="paper.json was trained with Adam, and mayaku"):
        asked(tool, "--like", str(path))


@pytest.mark.parametrize("option", ["--minutes", "--epochs"])
def test_no_time_to_train_in_is_refused(tool, option):
    with pytest.raises(UserError, match=f"{option} is 0; it takes more than 0"):
        asked(tool, "--name", "mine", option, "0")


@pytest.fixture
def device_of(tool, monkeypatch):
    """``device_of(record, *options)``: the device, and the threads that were set."""
    monkeypatch.setattr(tool, "choose_device", lambda device: "cuda:0" if device == "auto" else device)

    def call(record, *options):
        threads = []
        monkeypatch.setattr(torch, "set_num_threads", threads.append)
        args = tool.build_parser().parse_args(["--like", "a.json", "--output", "x", *options])
        return tool.device_of(args, record), threads

    return call


def test_device_and_threads_are_those_of_the_row(device_of, monkeypatch):
    record = {"device": "cpu: x86_64 (AVX2)", "threads": 3}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert device_of(None) == ("cuda", []) and device_of(record) == ("cpu", [3])
    assert device_of(record, "--device", "cpu") == ("cpu", [3])
    assert device_of({"device": "NVIDIA X"}, "--device", "cuda:1") == ("cuda", [])
    with pytest.raises(UserError, match="a.json was trained on cpu: .*; leave out --device cuda"):
        device_of(record, "--device", "cuda")
    with pytest.raises(UserError, match="trained on NVIDIA X; leave out --device cpu"):
        device_of({"device": "NVIDIA X"}, "--device", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(UserError, match="with OMP_NUM_THREADS 3, and it is 2"):
        device_of(record)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device_of(record) == ("cpu", [3])


def test_other_slices_than_the_row_had_are_refused(tool, tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.png", "patient_id": "p"}], "annotations": [], "categories": []}
    (tmp_path / "merge.json").write_text(json.dumps(content))
    noted = described(content)["sha256"]  # as records have it: files lie elsewhere on every machine
    sets = {split: tool.LesionSet(tmp_path / "merge.json", tmp_path, 3) for split in ("train", "test")}
    record = {"name": "a-s1", "data": {split: [{"sha256": noted}] for split in sets}}
    tool._check_same_slices(record, sets)
    (tmp_path / "merge.json").write_text(json.dumps({"info": {"image_root": "elsewhere"}, **content}))
    tool._check_same_slices(record, sets)
    record["data"]["test"] = [{"sha256": "0"}]
    with pytest.raises(UserError, match="a-s1 is of other slices"):
        tool._check_same_slices(record, sets)


def test_its_command_is_one_to_type(tool, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = tool.build_parser().parse_args(["--like", "/far/away/a-s1.json", "--lr", "0.1", "--output", "/tmp/x"])
    settings = "OMP_NUM_THREADS=1 DETECTRON2_DATASETS=output/zoo/data"
    options = "--seed 1 --lr 0.1 --like docs/zoo/a-s1.json --output output/mayaku"
    assert tool._typed(args) == f"{settings} python tools/train_mayaku.py {options}"
    monkeypatch.delenv("OMP_NUM_THREADS")
    args = tool.build_parser().parse_args(["--name", "mine", "--minutes", "2", "--output", "/tmp/x"])
    assert tool._typed(args) == "python tools/train_mayaku.py --name mine --seed 1 --minutes 2.0 --output output/mayaku"


def test_its_figures_are_in_percent_as_ours(tool):
    """mayaku 2.0.1 gives COCOeval's own fractions, and nothing of a model without a detection."""
    found = tool.in_percent({"bbox": {"AP": 0.25, "APl": -1.0}, "segm": {"AP50": 0.003}})
    assert found == {"bbox": {"AP": 25.0}, "segm": {"AP50": pytest.approx(0.3)}}
    assert tool.in_percent({})["segm"] == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}


def test_training_without_mayaku_is_one_line(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "mayaku_version", lambda: None)
    with pytest.raises(UserError, match="pip install mayaku"):
        tool.main(["--name", "none", "--epochs", "1", "--output", str(tmp_path)])


def test_nearest_model_has_our_shape(small_cfg, slices):
    pytest.importorskip("mayaku", reason="mayaku, an optional peer of the benchmark, is not installed")
    cfg = small_cfg("segmentation/mask_rcnn_R_18_T1_FPN")
    model = mayaku_peer.MayakuDetector(cfg, slices[:1]).eval()
    with torch.inference_mode():
        (output,) = model(records(slices[:1]))
    assert 0 < len(output["instances"]) <= 20 and output["instances"].pred_masks.shape[1:] == (128, 128)
    assert model.model.rpn.head.objectness_logits.out_channels == 30
    counted = sum(x.numel() for x in model.model.parameters())
    assert counted < mayaku_peer.count_mayaku_parameters(cfg) < 1.02 * counted  # and BatchNorm's statistics
