"""MODEL_ZOO.md: figures, spread, what is missing, and the paper's figures apart."""

import math

from d2_covid.errors import UserError
from d2_covid.zoo.grids import MODELS
from d2_covid.zoo.summary import groups_of, phantom_groups, spread
from d2_covid.zoo.table import zoo_page

import pytest


def cells(page, *words):
    """The cells of the one table row that has all ``words`` as cells of its own."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    found = [row for row in rows if all(word in row for word in words)]
    assert len(found) == 1, found
    return found[0]


def lesion_part(page):
    return page.partition("95 % intervals")[0]


def test_spread_is_of_seeds_alone():
    assert spread([1.0, 2.0, 4.0]).mean == pytest.approx(7 / 3)
    assert spread([1.0, 2.0, 4.0]).deviation == pytest.approx(math.sqrt(7 / 3))
    assert (spread([3.0]).text(1), spread([]).text(1), spread([1.0, None]).text(1)) == ("3.0", "–", "–")
    assert spread([1.0, 2.0]).text(2) == "1.50 ± 0.71"


def test_a_row_has_the_mean_of_its_seeds_and_says_how_many(record):
    page = zoo_page([record(seed=1, ap50=28.0), record(seed=2, ap50=31.0), record(seed=3, status="not finished: x")])
    row = cells(lesion_part(page), "`tuned`", "scratch", "R18-T1")
    assert row[4:9] == ["6.05 M", "2", "496 × 9", "80 (100)", "NVIDIA X, 6 at a time"]
    assert row[9:14] == ["9.8 ± 0.7", "29.5 ± 2.1", "1.0 ± 0.0", "9.0 ± 0.0", "20.0 ± 0.0"]
    assert row[14:] == ["0.500 ± 0.000", "0.600 ± 0.000"]
    interval = cells(page.partition("95 % intervals over")[2].partition("commands")[0], "`tuned`", "scratch", "R18-T1")
    assert interval[5] == "14.0 to 46.5"  # the lowest and the highest end
    assert "seed 3: not finished after 500 of 1,116 iterations" in page
    assert "validated on 125 slices (4 patients, 316 lesions)" in page
    assert page.count("python tools/train_net.py tuned-R18-T1-scratch-s1") == 1
    assert "Computed with torch 2.0." in page


def test_without_records_the_page_says_what_to_look_for():
    page = zoo_page([])
    for model in MODELS:
        assert cells(lesion_part(page), "`tuned`", "phantoms", model)[5] == "0"
    assert f"- `paper`, scratch, {', '.join(MODELS)}, seeds 1, 2, 3: not run." in page
    assert "`phantom`, scratch" in page and "Not run: `python tools/model_zoo.py run --grid classifier" in page


def test_variants_stand_behind_their_recipe_with_their_values(record):
    variant = record("tuned_lr1e3", start="phantoms", opts=["SOLVER.BASE_LR", "0.001"])
    groups = groups_of([record(), variant, record("mine")], "lesion")
    assert list(dict.fromkeys(group.recipe for group in groups)) == ["tuned", "tuned_lr1e3", "paper", "mine"]
    page = zoo_page([variant, record("mine")])
    assert "- `tuned_lr1e3`: `tuned` with other values. Overrides: `SOLVER.BASE_LR 0.001`." in page
    assert "seeds 2, 3: not run" in page


def test_an_empty_row_leads_to_the_same_training_in_bfloat16(record):
    page = lesion_part(zoo_page([record("paper_bf16", opts=["SOLVER.AMP.ENABLED", "True"])]))
    there = cells(page, "`paper_bf16`", "R18-T1")
    assert cells(page, "`paper`", "scratch", "R18-T1")[5] == f"0; in bfloat16: row {there[0]}"
    assert cells(page, "`paper`", "scratch", "R34-T2")[5] == "0"
    assert cells(page, "`paper`", "phantoms", "R18-T1")[5] == "0"
    unfinished = record("paper_bf16", opts=["SOLVER.AMP.ENABLED", "True"], status="not finished: x")
    assert cells(lesion_part(zoo_page([unfinished])), "`paper`", "scratch", "R18-T1")[5] == "0"
    both = lesion_part(zoo_page([record("paper"), record("paper_bf16", opts=["SOLVER.AMP.ENABLED", "True"])]))
    assert cells(both, "`paper`", "scratch", "R18-T1")[5] == "1"


def test_one_recipe_is_one_way_to_train(record):
    with pytest.raises(UserError, match="s1, .*s2 are said to be of one recipe, tuned, and differ"):
        zoo_page([record(), record(seed=2, opts=["SOLVER.EPOCHS", "3"])])


def test_seeds_on_other_data_are_no_spread(record):
    first, second = record(), record(seed=2)
    for one, sha256 in ((first, "1" * 64), (second, "2" * 64)):
        one["data"]["train"][0]["sha256"] = sha256
    with pytest.raises(UserError, match=r"s1, .*s2 were run on other data than each other \(train\)"):
        zoo_page([first, second])
    zoo_page([first, {**second, "status": "not finished: x"}])
    second["data"]["train"][0]["sha256"] = None  # not known
    zoo_page([first, second])


@pytest.mark.parametrize("recipe, kind", [("tuned", "lesion"), ("tuned_lr1e3", "lesion"), ("classifier", "classifier")])
def test_seeds_from_other_weights_are_no_spread(record, recipe, kind):
    first, second = (record(recipe, start="phantoms", seed=n, kind=kind, start_sha256=str(n) * 64) for n in (1, 2))
    with pytest.raises(UserError, match="s1, .*s2 started from other weights than each other"):
        zoo_page([first, second])
    zoo_page([first, {**second, "start_sha256": "1" * 64}])
    zoo_page([first, {**second, "status": "not finished: x"}])


def test_seeds_that_go_on_from_their_own_models_differ_in_their_start(record):
    zoo_page([record("tuned_512", start="tuned", seed=n, start_sha256=str(n) * 64) for n in (1, 2)])


def test_a_start_that_was_trained_again_is_told(record):
    phantom = record("phantom", seed=17, config="configs/quick/mask_rcnn_R_18_T1_FPN_phantom.yaml")
    same = record(start="phantoms", start_sha256=phantom["weights_sha256"])
    other = record(start="phantoms", seed=2, start_sha256="1" * 64)
    title, line = "Started from an earlier training", f"  - `{other['name']}`, from `{phantom['name']}`.\n"
    assert title not in zoo_page([phantom, same])
    page = zoo_page([phantom, same, other])
    assert page.count(title) == 1 and line in page and same["name"] not in page.partition(title)[2].partition("\n\n")[0]
    running = {**other, "status": "not finished: x"}
    assert title not in zoo_page([phantom, running])


def test_how_many_run_at_a_time_is_said_as_it_is(record):
    assert "runs all rows of a recipe, with `--jobs N` several at a time" in zoo_page([record()])


def test_trainings_on_phantoms_stand_apart(record):
    config = "configs/quick/mask_rcnn_R_18_T1_FPN_phantom.yaml"
    phantom = record("phantom", seed=17, config=config, ap50=77.0)
    assert not [group for group in groups_of([phantom], "lesion") if group.records]
    assert [group.model for group in phantom_groups([phantom]) if group.records] == ["R18-T1"]
    page = zoo_page([phantom])
    assert cells(page.partition("### Trainings on phantoms")[2].partition("##")[0], "R18-T1")[-1] == "77.0"


def test_classifiers_have_a_table_of_their_own(record):
    names = ("accuracy", "balanced_accuracy", "sensitivity-COVID-19", "specificity-COVID-19", "auc-COVID-19")
    figures = {f"image/{name}": {"value": 0.75, "low": 0.6, "high": 0.8} for name in names}
    figures["image/ece"] = {"value": 0.1, "low": None, "high": None}
    page = zoo_page([record("classifier", start="tuned.phantoms.s1", kind="classifier", metrics=figures)])
    row = cells(page, "`classifier`", "tuned.phantoms.s1")
    assert row[9:] == ["0.750"] * 5 + ["0.100", "0.600 to 0.800"]
    assert "- `classifier`, tuned.phantoms.s1, R18-T1, seeds 2, 3: not run." in page


@pytest.mark.parametrize("lows, said", [((0.4, 0.51), "above it: 1 of 2."), ((0.4, 0.5), "above it: none of 2.")])
def test_classifiers_are_held_against_guessing(record, lows, said):
    made = []
    for seed, low in enumerate(lows, 1):
        figures = {"image/auc-COVID-19": {"value": 0.6, "low": low, "high": 0.7}}
        made.append(record("classifier", seed=seed, start="x", kind="classifier", metrics=figures))
    assert said in zoo_page(made)
    made[0]["metrics"] = made[1]["metrics"] = {}
    assert "guessing" not in zoo_page(made)


@pytest.mark.parametrize("other, said", [(0.6, False), (0.605, True)])
def test_areas_from_rounded_scores_are_said_to_be(record, other, said):
    areas = {"image/auc-COVID-19": 0.6, "image/auc-not_COVID-19": other}
    figures = {name: {"value": value, "low": 0.5, "high": 0.7} for name, value in areas.items()}
    page = zoo_page([record("classifier", start="x", kind="classifier", metrics=figures)])
    assert ("In 1 of 1 trainings the areas" in page and "differ by up to 0.005" in page) == said


def test_what_a_finished_row_does_not_know_is_a_dash(record):
    one = record(seconds=None)
    one["metrics"]["segm/AP50"] = {"value": None, "low": None, "high": None}
    del one["metrics"]["union/dice"]
    page = zoo_page([one])
    row = cells(lesion_part(page), "`tuned`", "scratch", "R18-T1")
    assert row[7] == "80" and row[10] == "–" and row[14] == "–"


def test_the_papers_figures_are_its_own_and_said_so():
    ours, _, papers = zoo_page([]).partition("## The paper's own figures, on its own data")
    assert "Nothing here was measured by d2_covid" in papers and "59.88" not in ours
    assert cells(papers, "ResNet34-T1+FPN", "134.01")[1:] == ["11.45 M", "59.88", "45.06", "44.76", "134.01"]
    assert cells(papers, "ResNet18-T1+FPN", "106.6")[2:] == ["91.35", "91.63", "96.98", "93.95", "106.6"]
