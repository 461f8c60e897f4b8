"""Grids: every row is a training that its config and its overrides allow, and says how to repeat it."""

import shlex

from d2_covid import get_config
from d2_covid.errors import UserError
from d2_covid.zoo.grids import CLASSIFIER_GRIDS, GRIDS, MODELS, changed, classifier_rows, lesion_grid, quoted
from d2_covid.zoo.words import RECIPES

import pytest


def rows_of(grid):
    if grid in CLASSIFIER_GRIDS:
        return [row for model in MODELS for row in classifier_rows(grid, model, "best", "runs/x/model_final.pth")]
    return lesion_grid(grid)


@pytest.mark.parametrize("grid", [*GRIDS, *CLASSIFIER_GRIDS])
def test_every_row_is_a_config_that_loads_and_repeats_by_its_command(grid, repository):
    rows = rows_of(grid)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        environment, python, script, *typed = shlex.split(row.command())
        assert (environment, python, script) == ("DETECTRON2_DATASETS=output/zoo/data", "python", "tools/train_net.py")
        assert typed == row.arguments()
        config, opts = row.arguments()[1], row.arguments()[2:]
        if row.seed != rows[0].seed:
            continue  # differs from one before by its seed alone
        assert (repository / config).is_file()
        cfg = get_config(repository / config, opts)
        assert cfg.SEED == row.seed and cfg.OUTPUT_DIR == f"output/zoo/runs/{row.name}"
        assert row.model == f"R{cfg.MODEL.RESNETS.DEPTH}-T{ {'res4': 1, 'res3': 2}[cfg.MODEL.FPN.IN_FEATURES[0]] }"
        assert cfg.MODEL.RPN.IN_FEATURES == cfg.MODEL.ROI_HEADS.IN_FEATURES == ["p" + cfg.MODEL.FPN.IN_FEATURES[0][-1]]


@pytest.mark.parametrize(
    "recipe, number",
    [
        *(("phantom", 4), ("phantom_paper", 4), ("tuned", 24), ("tuned_3x", 12), ("tuned_long", 12)),
        *(("paper", 24), ("paper_bf16", 24), ("paper_9", 24)),
    ],
)
def test_rows_cover_models_starts_and_seeds(recipe, number):
    rows = lesion_grid(recipe)
    assert len(rows) == number
    first = [row for row in rows if row.seed == rows[0].seed]
    assert rows[: len(first)] == first and {row.model for row in first} == set(MODELS)  # seed after seed
    for row in rows:
        assert (row.start == "phantoms") == (row.needs is not None) == bool(row.weights)
    needed = {row.needs for row in rows} - {None}
    makers = [*lesion_grid("phantom"), *lesion_grid("phantom_paper")]
    assert needed <= {row.name for row in makers}
    for row in rows:
        for maker in makers:
            if row.needs == maker.name:  # the one can start from the other
                assert row.model == maker.model
                assert row.cfg().MODEL.ANCHOR_GENERATOR == maker.cfg().MODEL.ANCHOR_GENERATOR


def test_going_on_at_512_pixels_starts_from_the_same_model_and_seed():
    rows, before = lesion_grid("tuned_512"), {row.name: row for row in lesion_grid("tuned")}
    assert len(rows) == 12
    for row in rows:
        first = before[row.needs]
        assert (first.model, first.seed, first.start) == (row.model, row.seed, "phantoms")
        assert row.weights == f"runs/{first.name}/model_final.pth" and row.config == first.config
        cfg = get_config(row.config.removeprefix("configs/"), row.arguments()[2:])
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.SOLVER.EPOCHS) == ((512,), 512, 8)


def test_recipes_say_what_they_are():
    def cfg(row):
        return get_config(row.config.removeprefix("configs/"), row.arguments()[2:])

    paper, batch8 = cfg(lesion_grid("paper")[0]), cfg(lesion_grid("paper_batch8")[0])
    assert (paper.SOLVER.IMS_PER_BATCH, paper.SOLVER.EPOCHS, paper.SOLVER.BASE_LR) == (1, 100, 1e-5)
    assert (batch8.SOLVER.IMS_PER_BATCH, batch8.SOLVER.EPOCHS) == (8, 100)
    assert batch8.SOLVER.BASE_LR == pytest.approx(8 * paper.SOLVER.BASE_LR)
    half = cfg(lesion_grid("paper_bf16")[0])
    assert half.SOLVER.AMP == {"ENABLED": True, "DTYPE": "bfloat16"} and not paper.SOLVER.AMP.ENABLED
    assert {**half.SOLVER, "AMP": None} == {**paper.SOLVER, "AMP": None}
    assert (half.INPUT, half.MODEL, half.DATASETS) == (paper.INPUT, paper.MODEL, paper.DATASETS)
    begun, tuned = cfg(lesion_grid("paper_9")[0]), cfg(lesion_grid("tuned")[0])
    assert begun.SOLVER.EPOCHS == tuned.SOLVER.EPOCHS and begun.INPUT == paper.INPUT and begun.MODEL == paper.MODEL
    same = {"EPOCHS": 0, "CHECKPOINT_EPOCHS": 0}
    assert {**begun.SOLVER, **same} == {**paper.SOLVER, **same}
    assert not paper.SOLVER.STEP_FRACTIONS and paper.SOLVER.WARMUP_ITERS == 0  # one rate: the beginning is the same
    long = cfg(lesion_grid("tuned_long")[0])
    assert (long.INPUT.MIN_SIZE_TRAIN, long.INPUT.MIN_SIZE_TEST, long.SOLVER.EPOCHS) == ((512,), 512, 36)
    assert long.SOLVER.IMS_PER_BATCH == 8 and long.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
    thrice = cfg(lesion_grid("tuned_3x")[0])
    assert thrice.SOLVER.EPOCHS == 3 * cfg(lesion_grid("tuned")[0]).SOLVER.EPOCHS
    assert thrice.INPUT == cfg(lesion_grid("tuned")[0]).INPUT
    ours, papers, half = (cfg(classifier_rows(grid, "R18-T1", "x", "w")[0]) for grid in CLASSIFIER_GRIDS)
    published = get_config("classification/covid_ct_mask_net_R_18_T1_FPN.yaml")
    assert not ours.MODEL.CLASSIFIER.TRAIN_NORM and papers.MODEL.CLASSIFIER.TRAIN_NORM
    for key in ("OPTIMIZER", "BASE_LR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "IMS_PER_BATCH", "EPOCHS", "WARMUP_ITERS"):
        assert papers.SOLVER[key] == published.SOLVER[key], key
    for key in ("LR_SCHEDULER_NAME", "STEP_FRACTIONS"):
        assert papers.SOLVER[key] == published.SOLVER[key], key
    assert not any(cfg.SOLVER[key].ENABLED for cfg in (papers, published) for key in ("CLIP_GRADIENTS", "AMP"))
    assert {**papers.MODEL.CLASSIFIER, "NUM_CLASSES": 3} == dict(published.MODEL.CLASSIFIER)
    assert half.SOLVER.AMP == {"ENABLED": True, "DTYPE": "bfloat16"}
    assert {**half.SOLVER, "AMP": None} == {**papers.SOLVER, "AMP": None}
    assert (half.INPUT, half.MODEL, half.DATASETS) == (papers.INPUT, papers.MODEL, papers.DATASETS)


@pytest.mark.parametrize("grid", [grid for grid in [*GRIDS, *CLASSIFIER_GRIDS] if grid in RECIPES])
def test_only_what_trains_as_the_papers_config_is_called_its_whole_recipe(grid):
    """A classifier of the zoo reads the detections of a tuned model: other pixels, anchors, thresholds."""
    row = rows_of(grid)[0]
    cfg = get_config(row.config.removeprefix("configs/"), row.arguments()[2:])
    published = get_config(row.config.removeprefix("configs/").replace("tuned/", ""))
    if "whole recipe" in RECIPES[grid]:
        assert {**cfg.MODEL, "WEIGHTS": ""} == dict(published.MODEL) and cfg.INPUT == published.INPUT
    if grid.startswith("classifier_paper"):
        assert cfg.INPUT != published.INPUT and "lesion model, whose pixels, anchors" in RECIPES[grid]


def test_another_recipe_needs_a_name():
    rows = lesion_grid("tuned_long")
    with pytest.raises(UserError, match="--label"):
        changed(rows, ["SOLVER.BASE_LR", "0.001"])
    with pytest.raises(UserError, match="--label"):
        changed(rows, phantoms="longer")
    with pytest.raises(UserError, match="'a b' is no name"):
        changed(rows, label="a b")
    fast = changed(rows, ["SOLVER.BASE_LR", "0.001"], "fast", "longer")
    assert fast[0].name == "fast-R18-T1-phantoms-s1" and fast[0].opts[-2:] == ("SOLVER.BASE_LR", "0.001")
    assert fast[0].weights == "runs/longer-R18-T1-scratch-s17/model_final.pth"
    assert changed(rows) == rows


def test_another_phantom_model_replaces_no_other_start():
    rows = lesion_grid("tuned_512")
    made = changed(rows, (), "mine", "longer")
    assert [(row.needs, row.weights) for row in made] == [(row.needs, row.weights) for row in rows]
    scratch, phantoms = (next(row for row in lesion_grid("tuned") if row.start == s) for s in ("scratch", "phantoms"))
    found = changed([scratch, phantoms], (), "mine", "longer")
    assert [row.needs for row in found] == [None, "longer-R18-T1-scratch-s17"]


def test_weights_from_elsewhere_stand_in_the_command_by_name_alone(tmp_path):
    row = classifier_rows("classifier", "R18-T1", "mine", str(tmp_path / "mine.pth"))[0]
    assert str(tmp_path) not in row.command() and "MODEL.WEIGHTS output/zoo/mine.pth" in row.command()
    assert str(tmp_path / "mine.pth") in row.arguments("elsewhere")


def test_an_unknown_grid_is_named():
    with pytest.raises(UserError, match="no grid 'tunned'; there are phantom, phantom_paper, tuned"):
        lesion_grid("tunned")


def test_words_are_quoted_as_people_write_them():
    word = "('x',)"
    assert quoted(word) == f'"{word}"' and quoted("plain") == "plain"
    for hard in ("it's!", "a 'b' $c"):  # a shell would change them within double quotes
        assert quoted(hard) == shlex.quote(hard)
