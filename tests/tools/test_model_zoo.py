"""tools/model_zoo.py from end to end, small: data, a true training, its record, its weights, the pages."""

import importlib.util
import json
import shutil

from d2_covid.data.cncb import prepare_lesions
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.files import sha256_of
from d2_covid.data.pairing import pair_cncb
from d2_covid.data.splits import split_by_patients
from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.errors import UserError
from d2_covid.zoo import data as zoo_data

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = 64
TINY = (
    *("MODEL.FPN.OUT_CHANNELS", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.RPN.CONV_DIMS", "[8]"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "INPUT.MIN_SIZE_TRAIN", f"({SIZE},)", "INPUT.MIN_SIZE_TEST", str(SIZE)),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "SOLVER.EPOCHS", "0"),
    *("SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "2", "TEST.BOOTSTRAP", "10", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("SOLVER.AMP.ENABLED", "False", "TEST.VALIDATION_LOSS", "False"),
)


@pytest.fixture(scope="session")
def tool(repository):
    spec = importlib.util.spec_from_file_location("model_zoo_under_test", repository / "tools" / "model_zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Two sources in the layout of the real ones: six patients of two slices, a disc on the first of each."""
    folder = tmp_path_factory.mktemp("ct")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for name, patients in (("radiopaedia", "1234"), ("coronacases", "167")):
        for patient in patients:
            for number in range(2):
                disc = ((rows - 30) ** 2 + (columns - 25) ** 2 < 100) & (number == 0)
                mask = np.where(disc, 2, 1)
                image = rng.integers(0, 90, mask.shape) + 100 * (mask == 2)
                for kind, array, suffix in (("image", image, "png"), ("mask", mask, "png")):
                    path = folder / name / "ct_lesion_seg" / kind / patient / f"{number}.{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array.astype(np.uint8)).save(path)
    (folder / "covid_ct").mkdir()
    (folder / "covid_ct" / "split.csv").write_text("file,label,split\n")
    return folder


@pytest.fixture(scope="session")
def zoo(source, tmp_path_factory):
    """A zoo's folder with its data."""
    folder = tmp_path_factory.mktemp("zoo")
    phantoms = {"patients_per_class": 2, "slices_per_patient": 2, "size": 128, "seed": 1, "val_fraction": 0.5}
    zoo_data.prepare_data(source, folder / "data", phantoms=phantoms)
    return folder


@pytest.fixture(scope="session")
def trained(tool, zoo):
    """The same folder after a training of three iterations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        machine = ["--output", str(zoo), "--jobs", "64", "--workers", "0", "--device", "cpu"]  # one thread
        assert tool.main(["run", *ROW, *machine, "--opts", *TINY]) == 0
    return zoo


ROW = ("--grid", "tuned", "--label", "tuned_tiny", "--only", "*R18-T2-scratch-s2")
NAME = "tuned_tiny-R18-T2-scratch-s2"


def test_the_two_sources_become_one_set_split_by_patient(zoo):
    facts = json.loads((zoo / "data" / "zoo.json").read_text())["datasets"]
    train, val = facts["zoo_merge_train"], facts["zoo_merge_val"]
    assert val["patients"] == ["coronacases/6", "coronacases/7", "radiopaedia/1", "radiopaedia/4"]
    assert train["patients"] == ["coronacases/1", "radiopaedia/2", "radiopaedia/3"]
    assert (train["slices"], train["lesions"], train["slices_without_lesion"], val["slices"]) == (6, 3, 3, 8)
    loaded = load_lesion_json(zoo / "data" / "zoo" / "annotations" / "merge_val.json")  # and every image is there
    assert loaded.mask_type == "merge" and {d["patient_id"] for d in loaded.dicts} == set(val["patients"])
    assert (zoo / "data" / "covid_ct" / "split.csv").is_file()


def test_data_goes_with_its_images_to_another_place(zoo, source, tmp_path):
    shutil.copytree(source, tmp_path / source.name)
    shutil.copytree(zoo / "data", tmp_path / zoo.name / "data", symlinks=True)
    shutil.rmtree(tmp_path / zoo.name / "data" / "phantom")
    loaded = load_lesion_json(tmp_path / zoo.name / "data" / "zoo" / "annotations" / "merge_train.json")
    assert all(d["file_name"].startswith(str(tmp_path)) for d in loaded.dicts)
    content = json.loads((zoo / "data" / "zoo" / "annotations" / "merge_train.json").read_text())
    elsewhere = zoo_data.merge_sets(
        {name: zoo / "data" / name / "annotations" / "merge_train.json" for name in zoo_data.VALIDATION},
        tmp_path / "deep" / "er" / "data",
        "train",
    )
    assert elsewhere["info"]["image_root"] != content["info"]["image_root"]
    assert zoo_data.described(elsewhere) == zoo_data.described(content)  # its hash is that of what it holds


SMALL = {"patients_per_class": 2, "slices_per_patient": 1, "size": 64, "seed": 1, "val_fraction": 0.5}


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_data_made_beside_its_source_leaves_the_source_alone(source, tmp_path):
    folder = tmp_path / "ct"
    shutil.copytree(source, folder)
    before = files_below(folder)
    for _ in range(2):
        zoo_data.prepare_data(folder, folder, phantoms=SMALL)
    after = files_below(folder)
    assert {path: after.get(path) for path in before} == before
    assert not (folder / "covid_ct").is_symlink()


def test_folders_that_it_has_not_made_are_not_replaced(source, tmp_path):
    own = tmp_path / "covid_ct" / "own.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(UserError, match="covid_ct is there and holds something else"):
        zoo_data.prepare_data(source, tmp_path, phantoms=SMALL)
    shutil.copytree(source / "covid_ct", tmp_path / "covid_ct", dirs_exist_ok=True)  # as where links can't be made
    phantom = tmp_path / "phantom" / "mine.txt"
    phantom.parent.mkdir()
    phantom.write_text("mine")
    with pytest.raises(UserError, match="phantom is there and holds other phantoms"):
        zoo_data.prepare_data(source, tmp_path, phantoms=SMALL)
    assert own.read_text() == phantom.read_text() == "mine"


@pytest.mark.parametrize("name", ["radiopaedia", "coronacases", "zoo"])
@pytest.mark.parametrize("mask_type", ["merge", "ggo"])
def test_sets_that_it_has_not_made_are_not_replaced(source, tmp_path, name, mask_type):
    pairing = pair_cncb(source / "radiopaedia")
    splits = split_by_patients(pairing.pairs, ("3",))
    words = {"description": f"Lesions in chest CT: {name}", "source": "ct"}  # as datasets/prepare_cncb.py has it
    prepare_lesions(pairing, splits, tmp_path / name, mask_types=[mask_type], progress=False, **words)
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=f"{name} is there and holds another set; move it, or give another --output"):
        zoo_data.prepare_data(source, tmp_path, phantoms=SMALL)
    assert files_below(tmp_path) == before


def test_the_figures_of_covid_ct_count_as_data(zoo, source):
    facts = json.loads((zoo / "data" / "zoo.json").read_text())["datasets"]
    hashes = {facts[f"covid_ct_{split}"]["sha256"] for split in ("train", "val")}
    assert hashes == {sha256_of(source / "covid_ct" / "split.csv")}


@pytest.mark.parametrize("content", ["{", "[]", '{"phantoms": null}'])
def test_after_a_damaged_list_of_facts_the_data_is_made_anew(source, tmp_path, content):
    (tmp_path / "zoo.json").write_text(content)
    with pytest.raises(UserError, match="make the data anew"):
        zoo_data.read_facts(tmp_path)
    for _ in range(2):
        zoo_data.prepare_data(source, tmp_path, phantoms=SMALL)
        assert zoo_data.read_facts(tmp_path)["phantoms"] == SMALL
        (tmp_path / "zoo.json").write_text(content)


def test_phantoms_that_were_interrupted_are_made_anew(source, tmp_path, monkeypatch):
    zoo_data.prepare_data(source, tmp_path, phantoms=SMALL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zoo_data, "write_phantoms", _interrupted)
        zoo_data.prepare_data(source, tmp_path, phantoms=SMALL | {"seed": 2})
    zoo_data.prepare_data(source, tmp_path, phantoms=SMALL | {"seed": 2})
    marks = json.loads((tmp_path / "phantom" / "annotations" / "merge_val.json").read_text())["info"]["source"]
    assert marks == "phantoms of seed 2"


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_source_that_is_not_there_is_named(tool, tmp_path):
    with pytest.raises(UserError, match="has no folder radiopaedia"):
        tool.main(["data", "--source", str(tmp_path), "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="model_zoo.py data"):
        tool.main(["run", "--grid", "tuned", "--only", "*scratch*", "--output", str(tmp_path / "out")])


def test_a_training_leaves_a_whole_record(trained):
    record = json.loads((trained / "records" / f"{NAME}.json").read_text())
    assert record["status"] == "finished" and record["iterations"] == 3 and record["batch"] == 2
    assert record["training_slices"] == 6 and record["seed"] == 2 and record["opts"] == list(TINY)
    assert {"segm/AP", "segm/AP50", "segm/AP75", "bbox/AP", "bbox/AP50", "paper_ap/AP", "union/dice"} <= set(
        record["metrics"]
    )
    assert record["metrics"]["segm/AP50"].keys() == {"value", "low", "high"}
    assert record["weights_sha256"] == sha256_of(trained / "runs" / NAME / "model_final.pth")
    assert record["data"]["test"][0]["patients"] == 4 and record["device"].startswith("cpu")
    assert 0 < record["step_seconds"] < record["seconds"] and record["versions"]["torch"] == torch.__version__
    assert str(trained) not in json.dumps(record)


def test_started_again_it_passes_over_what_is_done(tool, trained, capsys):
    assert tool.main(["run", *ROW, "--output", str(trained), "--device", "cpu", "--opts", *TINY]) == 0
    assert "[1/1] tuned_tiny-R18-T2-scratch-s2: done before" in capsys.readouterr().out


def test_the_best_model_is_packed_in_half_precision(tool, trained, tmp_path, capsys):
    arguments = ["pack", "--zoo", str(trained), "--best", "paper_ap/AP", "--model", "R18-T2"]
    assert tool.main([*arguments, "-o", str(tmp_path / "small.pth")]) == 0
    assert NAME in capsys.readouterr().out
    whole = trained / "runs" / NAME / "model_final.pth"
    before, after = read_checkpoint(whole), read_checkpoint(tmp_path / "small.pth")
    assert after["d2_covid"]["trained_sha256"] == sha256_of(whole) and set(after) == {"model", "d2_covid"}
    assert after["model"].keys() == before["model"].keys()
    assert (tmp_path / "small.pth").stat().st_size < 0.25 * whole.stat().st_size
    with pytest.raises(UserError, match="No finished record of R34-T1 has a figure segm/AP50"):
        tool.main(["pack", "--zoo", str(trained), "--model", "R34-T1", "-o", str(tmp_path / "x.pth")])
    record = trained / "records" / f"{NAME}.json"
    told = record.read_text()
    record.write_text(told.replace(sha256_of(whole), "0" * 64))
    try:
        with pytest.raises(UserError, match="is not the model that the record"):
            tool.main([*arguments, "-o", str(tmp_path / "x.pth")])
    finally:
        record.write_text(told)


def test_weights_in_half_precision_load_as_float32(trained, tmp_path):
    from d2_covid import get_config
    from d2_covid.engine.weights import load_weights
    from d2_covid.zoo.pack import pack

    from detectron2.modeling import build_model

    pack(trained / "runs" / NAME / "model_final.pth", tmp_path / "small.pth")
    opts = [*TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "small.pth")]
    cfg = get_config("segmentation/tuned/mask_rcnn_R_18_T2_FPN.yaml", opts)
    model = build_model(cfg)
    load_weights(model, cfg, complete=True)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    whole = read_checkpoint(trained / "runs" / NAME / "model_final.pth")["model"]
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor.double(), whole[name].double(), rtol=1e-3, atol=1e-6), name


def test_classifiers_build_on_the_best_lesion_model(tool, trained, capsys):
    only = ["--only", "*-s1", "--output", str(trained), "--list"]
    assert tool.main(["run", "--grid", "classifier", "classifier_paper", *only]) == 0
    said = capsys.readouterr().out
    assert said.count("# ") == 2 and "# classifier-R18-T2-tuned_tiny.scratch.s2-s1\n" in said
    assert f"MODEL.WEIGHTS output/zoo/runs/{NAME}/model_final.pth" in said
    assert f"INPUT.MIN_SIZE_TEST {SIZE}" in said  # as the lesion model was trained
    weights = trained / "runs" / NAME / "model_final.pth"
    given = ["--detector", f"R18-T2={weights}"]
    assert tool.main(["run", "--grid", "classifier", *given, *only]) == 0
    assert f"# classifier-R18-T2-model_final.{sha256_of(weights)[:8]}-s1\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="one lesion model twice"):
        tool.main(["run", "--grid", "classifier", *given, *given, *only])
    with pytest.raises(UserError, match="MODEL=FILE"):
        tool.main(["run", "--grid", "classifier", "--detector", "R50=x.pth", *only])


def test_a_lesion_model_that_fits_no_classifier_is_refused(trained, tmp_path):
    from d2_covid.zoo.detectors import fitting_config

    weights = trained / "runs" / NAME / "model_final.pth"
    assert fitting_config("R18-T2", weights)[0] == "configs/classification/tuned"
    checkpoint = read_checkpoint(weights)
    checkpoint["d2_covid"]["config"]["MODEL"]["ANCHOR_GENERATOR"]["SIZES"] = [[2, 4, 8, 16, 32]]
    checkpoint["d2_covid"]["config"]["MODEL"]["ANCHOR_GENERATOR"]["ASPECT_RATIOS"] = [[7.0]]
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(UserError, match="fits no config of a classifier: .*ASPECT_RATIOS"):
        fitting_config("R18-T2", tmp_path / "other.pth")


def test_without_a_lesion_model_there_is_no_classifier(tool, tmp_path):
    (tmp_path / "records").mkdir()
    with pytest.raises(UserError, match="no finished lesion model"):
        tool.main(["run", "--grid", "classifier", "--output", str(tmp_path), "--list"])


def test_the_table_is_written_from_the_records(tool, trained, tmp_path, capsys):
    page = tmp_path / "zoo.md"
    assert tool.main(["table", "--records", str(trained / "records"), "-o", str(page)]) == 0
    assert "1 of 1 trainings finished" in capsys.readouterr().out
    assert "| `tuned_tiny` | scratch | R18-T2 |" in page.read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--grid", "tunned"], "no grid 'tunned'"),
        (["--grid", "tuned", "--only", "*R50*"], "No row is called"),
        (["--grid", "tuned", "paper", "--label", "x"], "--label names one recipe"),
        (["--grid", "tuned", "--jobs", "0"], "--jobs is 0"),
        (["--grid", "tuned", "--opts", "SOLVER.BASE_LR", "1"], "--label"),
        (["--grid", "tuned", "--label", "x", "--opts", "TEST.EVAL_PERIOD", "5"], "TEST.EVAL_PERIOD 5 does nothing"),
        (["--list", "--grid", "tuned", "--label", "x", "--opts", "SOLVER.MAX_ITER", "9"], "SOLVER.EPOCHS counts"),
        (["--grid", "tuned_512", "--list", "--label", "x", "--phantoms", "y"], "y: none of these rows starts"),
        (["--list", "--grid", "tuned", "--only", "*scratch*", "--label", "x", "--phantoms", "y"], "y: none of these"),
    ],
)
def test_what_can_not_be_run_is_said(tool, zoo, arguments, words):
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        tool.main(["run", *arguments, "--output", str(zoo)])


def test_a_folder_of_cards_that_is_not_there_is_refused(tool, tmp_path):
    with pytest.raises(UserError, match="--models .*typo: there is no such folder"):
        tool.main(["card", "--models", str(tmp_path / "typo"), "-o", str(tmp_path / "card.md")])
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(
    "command, page, records", [("table", "MODEL_ZOO.md", "docs/zoo"), ("card", "MODEL_CARD.md", "d2_covid/models")]
)
def test_the_pages_of_the_repository_are_what_their_command_writes(tool, repository, tmp_path, command, page, records):
    there = any((repository / records).glob("*.json"))
    assert (repository / page).is_file() == there, f"{page} and {records}, which it is written from, come together"
    if there:
        assert tool.main([command, "-o", str(tmp_path / page)]) == 0
        written = (tmp_path / page).read_text(encoding="utf-8")
        assert written == (repository / page).read_text(encoding="utf-8"), f"run: python tools/model_zoo.py {command}"
