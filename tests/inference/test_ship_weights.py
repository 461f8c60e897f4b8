"""``tools/ship_weights.py``: from a training's checkpoint to weights and card."""

import importlib.util
import json

from d2_covid.data.datasets import lesion_source, register_lesions
from d2_covid.data.files import sha256_of
from d2_covid.engine.checkpoint import read_checkpoint, write_checkpoint
from d2_covid.errors import UserError
from d2_covid.inference import shipped
from d2_covid.inference.shipped import find_shipped, shipped_names
from d2_covid.zoo import shipping
from d2_covid.zoo.card_evaluations import evaluation_of
from d2_covid.zoo.records import parameters_in
from d2_covid.zoo.shipping import add_evaluations, draft_of, left_behind, read_facts, ship

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image


@pytest.fixture
def run(repository, ships):
    """``run(*arguments, store=ships)`` runs the command."""
    spec = importlib.util.spec_from_file_location("tool_ship_weights", repository / "tools" / "ship_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments, store=ships: module.main([str(item) for item in ("--store", store, *arguments)])


@pytest.fixture
def facts(ships):
    """Facts: an earlier card, as a file."""
    path = ships.parent / "facts.json"
    path.write_bytes((ships / "tiny_lesion.json").read_bytes())
    return path


@pytest.fixture
def trained(tiny_store):
    """Folder of the checkpoints behind the models of ``ships``."""
    return tiny_store.parent


@pytest.fixture
def images(few_slices, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(few_slices.slices))]
    for path, gray in zip(paths, few_slices.slices):
        Image.fromarray(gray).save(path)
    return paths


# ---- weights and card ----


def test_the_command_ships_a_model(run, trained, facts, images, tmp_path, capsys):
    store = tmp_path / "new"
    options = ["--weights", trained / "lesion.pth", "--metadata", facts, "--compare", "noise", *images]
    assert run("--name", "mine", *options, store=store) == 0
    assert {path.name for path in store.iterdir()} == {"mine.pth", "mine.json"}
    model = shipped.verified(find_shipped("mine", store))
    card, checkpoint = model.card, torch.load(model.path, weights_only=True)
    assert card.default and card.kind == "lesion" and card.size_bytes == model.path.stat().st_size
    assert card.size_bytes < 0.51 * (trained / "lesion.pth").stat().st_size
    assert card.storage.trained_sha256 == sha256_of(trained / "lesion.pth")
    # Those of the trained model, not of the copy that predicts, which holds its convolutions in two forms.
    assert card.architecture.parameters == parameters_in(read_checkpoint(trained / "lesion.pth")["model"])
    found = card.storage.comparison
    assert (found.on, found.slices) == ("noise", 2) and found.detections > 0 and 0 < found.score_difference < 5e-3
    assert found.mask_dice > 0.9
    assert set(checkpoint) == {"model", "d2_covid"} and checkpoint["d2_covid"]["config"]["INPUT"]["MIN_SIZE_TEST"] == 64
    shown = capsys.readouterr().out
    assert "mine: lesion model, the default" in shown and "largest difference of a score" in shown


@pytest.mark.parametrize("option", ["--evaluate", "--evaluation"])
def test_what_fails_after_the_weights_changes_no_store(option, run, ships, trained, facts, images, tmp_path):
    before = {path.name: path.read_bytes() for path in ships.iterdir()}
    figures = {"weights_sha256": "0" * 64, "metrics": {"segm/AP": {"value": 1.0}}}
    (tmp_path / "other.json").write_text(json.dumps(figures))
    what = {"--evaluate": "no_such_set", "--evaluation": tmp_path / "other.json"}[option]
    options = ["--weights", trained / "lesion.pth", "--metadata", facts, "--compare", "noise", *images]
    with pytest.raises(UserError, match="no_such_set|other weights"):
        run("--name", "tiny_lesion", *options, option, "mistaken", what)
    assert {path.name: path.read_bytes() for path in ships.iterdir()} == before


def test_what_others_change_in_the_store_meanwhile_stays(ships):
    card = ships / "tiny_classifier.json"
    with draft_of(ships) as draft:
        card.write_text("changed meanwhile")
        (ships / "new.json").write_text("new")
        (draft / "tiny_lesion.json").write_text("mine")
    assert card.read_text() == "changed meanwhile" and (ships / "new.json").read_text() == "new"
    assert (ships / "tiny_lesion.json").read_text() == "mine"


def test_shipping_twice_gives_the_same_bytes(trained, facts, few_slices, tmp_path):
    shas = [
        ship("mine", trained / "lesion.pth", read_facts(facts), tmp_path / str(n), compare_on=few_slices).card.sha256
        for n in range(2)
    ]
    assert shas[0] == shas[1]


def test_phantoms_are_what_is_compared_on_unasked(trained, facts, tmp_path):
    found = ship("mine", trained / "lesion.pth", read_facts(facts), tmp_path / "new").card.storage.comparison
    assert (found.on, found.slices) == ("phantom CT", 4)


def test_a_trained_batchnorm_travels_with_the_classifier(ships, trained, make_classifier, facts, few_slices):
    name = "backbone.bottom_up.stem.conv1.norm.weight"

    def change(state):
        state[name] += 0.5

    weights = make_classifier(trained / "lesion.pth", change)
    model = ship("normed", weights, read_facts(facts), ships, base="tiny_lesion", compare_on=few_slices)
    own, whole = torch.load(model.path)["model"], read_checkpoint(model.path)["model"]
    assert name in own and "backbone.bottom_up.stem.conv1.weight" not in own
    assert torch.equal(whole[name], read_checkpoint(weights)["model"][name])
    assert model.card.storage.comparison.image_score_difference < 5e-3


def test_a_classifier_can_ship_alone(ships, trained, facts, few_slices):
    model = ship("alone", trained / "classifier.pth", read_facts(facts), ships, compare_on=few_slices)
    assert model.card.base is None and not model.card.default
    assert "backbone.bottom_up.stem.conv1.weight" in torch.load(model.path)["model"]


def test_changes_to_the_config_travel(run, ships, trained, facts, images):
    arguments = ["--name", "mine", "--weights", trained / "lesion.pth", "--metadata", facts, "--compare", "x", *images]
    assert run(*arguments, "--opts", "TEST.UNION_SCORE_THRESH", "0.25") == 0
    facts = torch.load(ships / "mine.pth")["d2_covid"]
    assert facts["config"]["TEST"]["UNION_SCORE_THRESH"] == 0.25


def test_what_came_in_half_precision_is_not_compared(ships, facts, tmp_path, few_slices):
    checkpoint = read_checkpoint(ships / "tiny_lesion.pth")
    checkpoint["d2_covid"]["trained_sha256"] = "0" * 64
    write_checkpoint(tmp_path / "packed.pth", checkpoint)
    model = ship("packed", tmp_path / "packed.pth", read_facts(facts), ships, compare_on=few_slices)
    assert model.card.storage.comparison is None and model.card.storage.trained_sha256 == "0" * 64
    again, first = (torch.load(path)["model"] for path in (model.path, ships / "tiny_lesion.pth"))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)


def test_the_record_of_the_run_goes_before_what_was_written(trained, facts, few_slices, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_best.pth").write_bytes((trained / "lesion.pth").read_bytes())
    record = {
        "seed": 7,
        "config": {},
        "device": "cpu: test",
        "data": {"train": [{"slices": 5}, {"slices": 6}]},
        "sessions": [{"seconds": 1.5}, {"seconds": 2.0}, {}],
    }
    (run / "run.json").write_text(json.dumps(record))
    training = ship("m", run / "model_best.pth", read_facts(facts), tmp_path / "s", compare_on=few_slices).card.training
    assert (training.slices, training.seconds, training.seed, training.device) == (11, 3.5, 7, "cpu: test")
    assert training.recipe == "none"


def test_an_earlier_card_lends_its_words_and_not_its_training(trained, facts, few_slices, tmp_path):
    said = read_facts(facts)
    said["training"] |= {"slices": 11, "seconds": 3.5, "device": "cpu: test", "seed": 7, "patients": 2}
    card = ship("first", trained / "lesion.pth", said, tmp_path / "s", compare_on=few_slices).card
    assert card.training.seed == 7
    (tmp_path / "card.json").write_text(json.dumps(card.as_dict()))
    again = read_facts(tmp_path / "card.json")
    training = ship("again", trained / "lesion.pth", again, tmp_path / "t", compare_on=few_slices).card.training
    assert (training.slices, training.seconds, training.device, training.seed) == (None, None, None, None)
    assert training.recipe == card.training.recipe and training.patients == 2


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("mask_rcnn_R_18_T2_FPN", "mask_rcnn_R_18_T2_FPN"),
        ("segmentation/tuned/mask_rcnn_R_18_T2_FPN", "segmentation/tuned/mask_rcnn_R_18_T2_FPN"),
        ("mask_rcnn_R_34_T2_FPN", "mask_rcnn_R_18_T2_merge"),
        ("nothing", "mask_rcnn_R_18_T2_merge"),
    ],
)
def test_the_name_of_the_config_is_one_of_such_a_model(config, name, ships, trained, facts, few_slices):
    said = read_facts(facts) | {"architecture": {"config": config}}
    card = ship("mine", trained / "lesion.pth", said, ships, compare_on=few_slices).card
    assert card.architecture.config == name


# ---- one default ----


def test_one_lesion_model_is_the_default(ships, trained, facts, few_slices):
    options = {"facts": read_facts(facts), "store": ships, "compare_on": few_slices}
    assert not ship("second", trained / "lesion.pth", **options).card.default
    assert ship("third", trained / "lesion.pth", default=True, **options).card.default
    assert [name for name in shipped_names() if find_shipped(name).card.default] == ["third"]
    assert ship("third", trained / "lesion.pth", **options).card.default, "shipped again, it stays the default"
    with pytest.raises(UserError, match="A classifier can't be the default"):
        ship("alone", trained / "classifier.pth", default=True, **options)


def test_the_command_changes_the_card_alone(run, ships, capsys):
    words = ships.parent / "words.json"
    words.write_text(json.dumps({"limits": ["Knows discs."], "training": {"recipe": "another"}}))
    before = find_shipped("tiny_lesion").card
    assert run("--name", "tiny_lesion", "--metadata", words) == 0
    after = find_shipped("tiny_lesion").card
    assert after.limits == ("Knows discs.",) and after.training.recipe == "another"
    assert (after.sha256, after.training.data, after.summary) == (before.sha256, before.training.data, before.summary)
    with pytest.raises(UserError, match="--base goes with --weights"):
        run("--name", "tiny_lesion", "--base", "x")


# ---- refusals leave the store as it was ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mask_rcnn_R_18_T1_FPN"}, "can't be named mask_rcnn_R_18_T1_FPN"),
        ({"name": "../x"}, "can't be named ../x"),
        ({"weights": "classifier.pth", "base": "nobody"}, "no shipped model nobody"),
        ({"base": "tiny_lesion"}, "is a lesion model: it has no base"),
        ({"facts": {}}, "the card of mine: summary is missing"),
        ({"opts": ["TEST.NOTHING", "1"]}, "Config override TEST.NOTHING 1: Non-existent key"),
        ({"opts": ["INPUT.MIN_SIZE_TEST"]}, "Override list has odd length"),
        ({"limit": 1000}, "a model that ships has 1,000 at most"),
    ],
)
def test_what_can_not_ship(changes, message, ships, trained, facts, few_slices, monkeypatch):
    options = {"name": "mine", "weights": "lesion.pth", "facts": read_facts(facts)} | changes
    monkeypatch.setattr(shipping, "MAX_BYTES", options.pop("limit", 10**9))
    options["weights"] = trained / options["weights"]
    before = sorted(ships.iterdir())
    with pytest.raises(UserError, match=message):
        ship(store=ships, compare_on=few_slices, **options)
    assert sorted(ships.iterdir()) == before


def test_a_classifier_of_another_detector(ships, trained, make_weights, make_classifier, facts, few_slices):
    other = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml")
    state = read_checkpoint(other)
    for tensor in state["model"].values():
        if tensor.is_floating_point():
            tensor *= 1.1
    write_checkpoint(other, state)
    with pytest.raises(UserError, match="other tensors than tiny_lesion: it was not trained on this model"):
        ship("mine", make_classifier(other), read_facts(facts), ships, base="tiny_lesion", compare_on=few_slices)


def test_a_new_base_leaves_its_classifiers_behind(run, ships, make_weights, facts, images, capsys):
    weights = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml")
    checkpoint = read_checkpoint(weights)
    checkpoint["model"]["roi_heads.box_head.fc1.bias"] += 1
    write_checkpoint(weights, checkpoint)
    assert left_behind(find_shipped("tiny_lesion")) == []
    arguments = ["--name", "tiny_lesion", "--weights", weights, "--metadata", facts, "--compare", "x", images[0]]
    assert run(*arguments) == 0
    assert "tiny_classifier was built on another tiny_lesion: ship it again." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "must hold an object"), ('{"limit": 1}', "limit is no field"), ("x", "not json")]
)
def test_facts_that_are_none(text, message, tmp_path):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_facts(tmp_path / "facts.json")


# ---- figures ----


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Name of a data set of two slices of two patients with a bright disc each."""
    folder = tmp_path_factory.mktemp("discs")
    rows, columns = np.mgrid[:48, :56]
    disc = np.asfortranarray(((rows - 24) ** 2 + (columns - 24) ** 2 <= 100).astype(np.uint8))
    rle = mask_util.encode(disc)
    images, annotations = [], []
    for number in (1, 2):
        Image.fromarray(disc * 200).save(folder / f"{number}.png")
        name = f"{number}.png"
        images.append({"id": number, "file_name": name, "patient_id": str(number), "height": 48, "width": 56})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(disc.sum()),
                "bbox": mask_util.toBbox(rle).tolist(),
                "segmentation": {"size": [48, 56], "counts": rle["counts"].decode()},
            }
        )
    content = {
        "info": {"mask_type": "merge", "image_root": "."},
        "categories": [{"id": 1, "name": "lesion"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / "discs.json").write_text(json.dumps(content))
    register_lesions("shipped_discs", folder / "discs.json")
    return "shipped_discs"


def test_the_stored_weights_are_measured(run, ships, discs, capsys):
    assert run("--name", "tiny_lesion", "--evaluate", "two discs", discs, "--device", "cpu") == 0
    (found,) = find_shipped("tiny_lesion").card.evaluation
    assert (found.data, found.weights, found.slices, found.patients, found.lesions) == ("two discs", "stored", 2, 2, 2)
    assert {"segm/AP50", "bbox/AP", "union/dice", "paper_ap/AP"} <= set(found.metrics)
    assert found.metrics["segm/AP50"].low is not None and "bootstrap over 2 patients" in found.interval
    assert any(note.startswith("bbox, segm") and "Resampled from only 2" in note for note in found.notes)
    assert "mask AP50" in capsys.readouterr().out
    assert run("--name", "tiny_lesion", "--evaluate", "two discs", discs, "--device", "cpu") == 0
    assert len(find_shipped("tiny_lesion").card.evaluation) == 1, "the same data once more take the old figures' place"


def test_data_of_ones_own_get_a_name_to_be_measured_on(run, ships, discs):
    own = lesion_source(discs).json_file
    register = ("--register-lesions", "my_discs", own, own.parent)
    assert run("--name", "tiny_lesion", *register, "--evaluate", "mine", "my_discs", "--device", "cpu") == 0
    (found,) = find_shipped("tiny_lesion").card.evaluation
    assert (found.data, found.slices, found.lesions) == ("mine", 2, 2)
    with pytest.raises(UserError, match="--register-slices my_list: it takes NAME LIST"):
        run("--name", "tiny_lesion", "--register-slices", "my_list")


def _record(sha256, **changes):
    return {
        "name": "row",
        "weights_sha256": sha256,
        "data": {"test": [{"name": "a", "slices": 3, "patients": 2, "lesions": 4}, {"name": "b", "slices": 1}]},
        "metrics": {"segm/AP50": {"value": 30.0, "low": 20.0, "high": 40.0}},
    } | changes


def test_figures_of_a_record_of_the_zoo(ships, tmp_path):
    model = find_shipped("tiny_lesion")
    path = tmp_path / "record.json"
    path.write_text(json.dumps(_record(model.card.storage.trained_sha256)))
    (found,) = evaluation_of("val", path, model)
    assert (found.weights, found.slices, found.patients, found.lesions) == ("trained", 4, None, None)
    assert found.interval == "95 %, bootstrap over slices"
    add_evaluations(model, [found])
    assert find_shipped("tiny_lesion").card.evaluation == (found,)


@pytest.mark.parametrize(
    ("kind", "patients", "words"),
    [
        ("lesion", 4, "95 %, bootstrap over patients"),
        ("classifier", 4, "95 %, bootstrap over patients"),
        ("classifier", None, "95 %, Wilson for proportions, else bootstrap over slices"),
    ],
)
def test_how_a_record_came_to_its_intervals_is_said(kind, patients, words, ships, tmp_path):
    model = find_shipped("tiny_lesion")
    sets = {"test": [{"name": "a", "slices": 3} | ({"patients": patients} if patients else {})]}
    record = _record(model.card.storage.trained_sha256, kind=kind, data=sets)
    (tmp_path / "record.json").write_text(json.dumps(record))
    (found,) = evaluation_of("val", tmp_path / "record.json", model)
    assert found.interval == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_record("0" * 64), "an evaluation of other weights than tiny_lesion's"),
        (_record("0" * 64, metrics={}), "holds no figures"),
        ([], "must hold an object"),
    ],
)
def test_figures_of_other_weights_are_refused(content, message, ships, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        evaluation_of("val", tmp_path / "record.json", find_shipped("tiny_lesion"))


def test_figures_of_a_classifier(ships, tmp_path):
    model = find_shipped("tiny_classifier")
    interval = {"low": 0.5, "high": 0.75, "method": "Wilson"}
    results = {
        "dataset": "a",
        "classes": ["x", "y"],
        "slices": 8,
        "patients": None,
        "intervals": {"resamples": 100, "unit": "slice", "note": "No patients."},
        "measures": {"accuracy": {"value": 0.625, "interval": interval}},
        "calibration": {name: {"value": 0.1} for name in ("ece", "brier")},
    }
    folder = tmp_path / "eval" / "inference" / "a"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    record = {"weights_sha256": model.card.sha256, "data": [{"name": "a"}]}
    (tmp_path / "eval" / "evaluation.json").write_text(json.dumps(record))
    (found,) = evaluation_of("figures", tmp_path / "eval", model)
    assert found.metrics["image/accuracy"].low == 0.5 and found.metrics["image/ece"].low is None
    assert (found.data, found.weights, found.notes, found.lesions) == ("figures", "stored", ("No patients.",), None)
    assert "Wilson" in found.interval
