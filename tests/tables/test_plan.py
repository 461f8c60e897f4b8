"""Plans: which runs, with which commands; what can't be planned is refused in a sentence."""

import shlex
from dataclasses import replace
from pathlib import Path

from d2_covid.errors import UserError
from d2_covid.tables.models import CLASSIFICATION, MODELS, SEGMENTATION, choose_models
from d2_covid.tables.options import Options
from d2_covid.tables.plan import earlier_runs, make_plan, printed
from d2_covid.tables.settings import check_settings, note_settings
from d2_covid.tables.sources import ClassSet, LesionSet

import pytest

LESIONS = LesionSet(Path("ct/cncb"), ("--val-fraction", "0.2"), {"train": 8, "val": 2}, {"train": 4, "val": 1}, "aa")
SLICES = {"train": [4, 4, 4], "test": [1, 1, 1]}
CLASSES = ClassSet(Path("ct/x"), Path("ct/train.txt"), Path("ct/test.txt"), 6, SLICES, "bb")


def options(output, *names, **others) -> Options:
    return Options(Path(output), tuple(MODELS[name] for name in names or ("R18-T1",)), **others)


def test_all_models_of_the_paper_in_its_order():
    assert [model.name for model in choose_models(None, [SEGMENTATION, CLASSIFICATION], "paper")] == [
        *("R18", "R18-T1", "R18-T2", "R34", "R34-T1", "R34-T2", "R50", "R50-separate")
    ]
    assert [model.name for model in choose_models(["r50", "R18-T1"], [SEGMENTATION], "paper")] == ["R18-T1", "R50"]
    with pytest.raises(UserError, match="no such model; there are R18, R18-T1"):
        choose_models(["R101"], [SEGMENTATION], "paper")
    with pytest.raises(UserError, match="--models R50: the tuned recipe has no config for it; it has R18-T1"):
        choose_models(["R50"], [SEGMENTATION], "tuned")


def test_table_2_is_the_config_of_each_model_as_it_is(tmp_path):
    plan = make_plan(options(tmp_path, "R18-T1", "R50-separate", seeds=(0, 5)), [2], LESIONS, None)
    assert [(run.model.name, run.seed, run.dataset) for run in plan.runs] == [
        *(("R18-T1", 0, "cncb_merge_val"), ("R18-T1", 5, "cncb_merge_val")),
        *(("R50-separate", 0, "cncb_both_val"), ("R50-separate", 5, "cncb_both_val")),
    ]
    assert all(run.overrides == ("SEED", str(run.seed)) for run in plan.runs)
    cfg = plan.runs[0].config()
    assert cfg.SOLVER.EPOCHS == 100 and tuple(cfg.DATASETS.TEST) == ("cncb_merge_val",) and cfg.SEED == 0
    assert cfg.MODEL.WEIGHTS == "" and cfg.OUTPUT_DIR == str(tmp_path / "segmentation" / "R18-T1" / "seed_0")


def test_commands_are_those_a_user_would_type(repository):
    lines = printed(make_plan(options("out", epochs=2, device="cpu"), [2, 3], LESIONS, CLASSES), repository)
    assert lines == [
        "export DETECTRON2_DATASETS=out/data",
        "python datasets/prepare_cncb.py --source ct/cncb --output out/data/cncb --mask-types merge both "
        "--val-fraction 0.2",
        "python datasets/prepare_covidx_ct.py --images ct/x --train ct/train.txt --test ct/test.txt --subset 6 "
        "--output out/data/covidx_ct",
        "python tools/train_net.py --config-file configs/segmentation/mask_rcnn_R_18_T1_FPN.yaml --resume "
        "SOLVER.EPOCHS 2 MODEL.DEVICE cpu SEED 0 OUTPUT_DIR out/segmentation/R18-T1/seed_0",
        "python tools/train_net.py --config-file configs/classification/covid_ct_mask_net_R_18_T1_FPN.yaml --resume "
        "MODEL.DEVICE cpu SEED 0 DATASETS.TEST \"('covidx_ct_test',)\" TEST.VALIDATION_LOSS False "
        "MODEL.WEIGHTS out/segmentation/R18-T1/seed_0/model_final.pth OUTPUT_DIR out/classification/R18-T1/seed_0",
    ]
    assert "('covidx_ct_test',)" in shlex.split(lines[-1])


def test_starting_weights_fit_the_depth(tmp_path):
    plan = make_plan(options(tmp_path, "R18-T2", "R50", init="imagenet"), [2], LESIONS, None)
    assert [run.config().MODEL.WEIGHTS for run in plan.runs] == ["torchvision://resnet18", "torchvision://resnet50"]


def test_where_weights_lie_is_the_same_however_it_is_typed(tmp_path, monkeypatch):
    def settings(init, weights_dir):
        chosen = options(tmp_path / "out", init=str(init), weights_dir=Path(weights_dir))
        return make_plan(chosen, [2, 3], LESIONS, CLASSES).settings

    def check(init, weights_dir):
        check_settings(tmp_path / "out", settings(init, weights_dir))

    zoo, other = tmp_path / "a" / "zoo", tmp_path / "b"
    for folder, content in ((zoo, "x"), (other, "y")):
        folder.mkdir(parents=True)
        (folder / "R18-T1.pth").write_text(content)
    monkeypatch.chdir(tmp_path / "a")
    begun = settings("zoo/R18-T1.pth", "zoo")
    note_settings(tmp_path / "out", begun, {})
    check(zoo / "R18-T1.pth", zoo)
    check("./zoo/R18-T1.pth", "zoo/.")
    monkeypatch.chdir(zoo)
    check("R18-T1.pth", ".")
    with pytest.raises(UserError, match="have init 'zoo/R18-T1.pth', and now it is '../../b/R18-T1.pth'"):
        check("../../b/R18-T1.pth", ".")
    with pytest.raises(UserError, match="have weights 'zoo', and now it is '../../b'"):
        check("R18-T1.pth", "../../b")
    named = ("", "imagenet", "https://x/y.pth")
    assert [settings(start, ".")[SEGMENTATION]["init"] for start in named] == [*named]

    # The project moves; and an earlier version noted paths as typed, or whole.
    (tmp_path / "a").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    check("zoo/R18-T1.pth", "zoo")
    check(tmp_path / "moved" / "zoo" / "R18-T1.pth", "zoo")
    for paths in (("zoo/R18-T1.pth", "zoo"), map(str, (tmp_path / "moved" / "zoo/R18-T1.pth", tmp_path / "moved/zoo"))):
        for kind, name, path in zip((SEGMENTATION, CLASSIFICATION), ("init", "weights"), paths, strict=True):
            note_settings(tmp_path / "out", {kind: begun[kind] | {name: path}}, {})
        check("zoo/R18-T1.pth", "zoo")


def test_a_split_is_the_same_however_it_is_typed(tmp_path):
    first, second, other = (
        make_plan(options(tmp_path), [2], replace(LESIONS, split=("--val-patients", *names), fingerprint=content), None)
        for names, content in (("ab", "aa"), ("ba", "aa"), ("ba", "cc"))
    )
    note_settings(tmp_path, first.settings, {})
    check_settings(tmp_path, second.settings)
    assert first.preparations[0].inputs == second.preparations[0].inputs != other.preparations[0].inputs
    with pytest.raises(UserError, match="have split '--val-patients a b', and now it is '--val-patients b a'"):
        check_settings(tmp_path, other.settings)
    # An earlier version noted the words alone.
    note_settings(tmp_path, {SEGMENTATION: first.settings[SEGMENTATION] | {"split": "--val-patients a b"}}, {})
    check_settings(tmp_path, first.settings)


def test_classifiers_start_from_given_weights_or_from_table_2s(tmp_path):
    with pytest.raises(UserError, match="has no trained Mask R-CNN R18-T1, seed 0; give --cncb to train it"):
        make_plan(options(tmp_path), [3], None, CLASSES)
    own = tmp_path / "segmentation" / "R18-T1" / "seed_0" / "model_final.pth"
    own.parent.mkdir(parents=True)
    own.touch()
    (run,) = make_plan(options(tmp_path), [3], None, CLASSES).runs
    assert run.detector == own
    given = tmp_path / "zoo"
    given.mkdir()
    (given / "R18-T1.pth").touch()
    plan = make_plan(options(tmp_path / "new", weights_dir=given, seeds=(0, 1)), [3], LESIONS, CLASSES)
    assert [(run.kind, run.detector) for run in plan.runs] == [(CLASSIFICATION, given / "R18-T1.pth")] * 2
    with pytest.raises(UserError, match=r"no trained Mask R-CNN R34, seed 0 \(and 1 more\)"):
        make_plan(options(tmp_path, "R34", weights_dir=given, seeds=(0, 1)), [3], None, CLASSES)


@pytest.mark.parametrize(
    "tables, lesions, classes, said", [([2], None, None, "give --cncb"), ([3], LESIONS, None, "give --covidx")]
)
def test_a_table_without_its_data(tmp_path, tables, lesions, classes, said):
    with pytest.raises(UserError, match=said):
        make_plan(options(tmp_path), tables, lesions, classes)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"overrides": ("SEED", "3")}, "SEED is set by the tables themselves"),
        ({"overrides": ("DATASETS.TRAIN", "('x',)")}, "DATASETS.TRAIN is set"),
        ({"overrides": ("SOLVER.BASE_LR",)}, "'SOLVER.BASE_LR' has no partner"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"seeds": (-1,)}, "seeds are 0 or more"),
    ],
)
def test_options_that_make_no_table(tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        options(tmp_path, **wrong)


def test_a_start_is_a_departure_of_the_mask_r_cnns(tmp_path):
    plan = make_plan(options(tmp_path, init="imagenet"), [2, 3], LESIONS, CLASSES)
    assert "each Mask R-CNN starts from imagenet, set by --init" in plan.departures(SEGMENTATION)
    assert not any(
        "--init" in line for line in make_plan(options(tmp_path), [2], LESIONS, None).departures(SEGMENTATION)
    )


def test_departures_from_the_paper_are_told(tmp_path):
    overrides = ("SOLVER.BASE_LR", "0.1", "DATALOADER.NUM_WORKERS", "1")
    chosen = options(tmp_path, epochs=3, classifier_epochs=4, overrides=overrides)
    plan = make_plan(chosen, [2, 3], LESIONS, CLASSES)
    segmentation, classification = plan.departures(SEGMENTATION), plan.departures(CLASSIFICATION)
    assert segmentation[:2] == ["epochs of each Mask R-CNN: 3, set by --epochs", "config overrides: SOLVER.BASE_LR 0.1"]
    assert any("8 training and 2 validation slices" in line for line in segmentation)
    assert "epochs of each classifier: 4, set by --classifier-epochs" in classification
    assert any("6 training slices with a class, not 3000" in line for line in classification)
    assert any(line.startswith("1 control, 1 common pneumonia, 1 COVID-19 test slices") for line in classification)


def test_a_classifiers_table_tells_how_its_mask_r_cnns_were_trained(tmp_path):
    def finished(output, chosen):
        plan = make_plan(chosen, [2], LESIONS, None)
        note_settings(output, plan.settings, {SEGMENTATION: plan.departures(SEGMENTATION)})
        (run,) = plan.runs
        run.final.parent.mkdir(parents=True)
        run.final.touch()

    finished(tmp_path, options(tmp_path, epochs=3, phantoms=True))
    earlier = make_plan(options(tmp_path), [3], None, CLASSES)
    assert "the Mask R-CNNs of an earlier command: epochs of each Mask R-CNN: 3, set by --epochs" in earlier.departures(
        CLASSIFICATION
    )
    given = make_plan(options(tmp_path / "new", weights_dir=tmp_path), [3], None, CLASSES)
    assert any("earlier command: the data are phantoms" in line for line in given.departures(CLASSIFICATION))
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "R18-T1.pth").touch()
    chosen = options(tmp_path / "other", weights_dir=tmp_path / "zoo", epochs=4)
    unknown = make_plan(chosen, [2, 3], LESIONS, CLASSES)
    said = unknown.departures(CLASSIFICATION)
    assert f"how the Mask R-CNNs in {tmp_path / 'zoo'} were trained is not known here" in said
    assert not any("epochs of each Mask R-CNN" in line or "with masks" in line for line in said)
    assert any("epochs of each Mask R-CNN: 4" in line for line in unknown.departures(SEGMENTATION))


def test_what_decides_a_run_is_what_its_config_says_and_no_path(tmp_path):
    def inputs(text, base="SOLVER:\n  BASE_LR: 0.1\n", overrides=("SEED", "0"), folder="x"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "base.yaml").write_text(base)
        (tmp_path / folder / "leaf.yaml").write_text(f"_BASE_: base.yaml\n{text}")
        (run,) = make_plan(options(tmp_path), [2], LESIONS, None).runs
        return replace(run, config_file=tmp_path / folder / "leaf.yaml", overrides=overrides).inputs()

    plain = inputs("VERSION: 2\n")
    assert plain == inputs("# a word\nVERSION: 2\n", folder="y")
    free = ("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "3")
    assert plain == inputs("VERSION: 2\n", overrides=("SEED", "0", *free))
    assert plain != inputs("VERSION: 2\n", base="SOLVER:\n  BASE_LR: 0.2\n")
    assert plain != inputs("VERSION: 2\n", overrides=("SEED", "0", "SOLVER.EPOCHS", "2"))
    start = [tmp_path / name for name in ("a.pth", "b.pth", "c.pth")]
    for path, content in zip(start, "xxy", strict=True):
        path.write_text(content)
    one, same, other = (inputs("VERSION: 2\n", overrides=("MODEL.WEIGHTS", str(path))) for path in start)
    assert one == same != other


def test_runs_of_an_earlier_command_keep_their_rows(tmp_path):
    plan = make_plan(options(tmp_path), [2], LESIONS, None)
    other = make_plan(options(tmp_path, "R34", seeds=(2,)), [2], LESIONS, None).runs[0]
    for path in (other.final, other.results):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "segmentation" / "R18" / "seed_0.before_1").mkdir(parents=True)
    assert earlier_runs(plan) == [other]
