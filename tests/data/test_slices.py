"""Slice data sets: images, splits, names, sampling, subset, mapper."""

from pathlib import Path

from d2_covid.config import get_config
from d2_covid.data import slice_datasets
from d2_covid.data.slice_datasets import check_slice_datasets, register_slices, register_slices_option, train_slices
from d2_covid.data.slice_lists import ListedSlice
from d2_covid.data.slice_mapper import SliceMapper
from d2_covid.data.slices import balanced_indices, balanced_subset, check_patients_apart, load_slices, patient_overlap
from d2_covid.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


def make(folder, lines, files=None, name="list.csv"):
    """A list and empty files for its images; returns list and image folder."""
    images = folder / "image"
    for line in lines[1:] if files is None else files:
        path = images / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name, images


@pytest.fixture
def catalog():
    """Forgets the data sets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        slice_datasets._sources.pop(name, None)


SPLIT = ["file,label,patient_id,scan_id,split", "a.png,0,p1,s1,train", "b.png,2,p2,s1,train", "c.png,1,p3,s2,val"]


def test_dicts_of_a_split(tmp_path):
    list_file, images = make(tmp_path, SPLIT)
    dicts = load_slices(list_file, images, split="train")
    assert dicts[1] == {
        "file_name": str(images / "b.png"),
        "image_id": 1,
        "image_class": 2,
        "patient_id": "p2",
        "scan_id": "s1",
    }
    assert [d["image_class"] for d in load_slices(list_file, images, split="val")] == [1]


def test_slices_of_no_split_are_counted(tmp_path, caplog):
    load_slices(*make(tmp_path, [*SPLIT, "d.png,0,p4,s1,"]), split="train")
    assert "list.csv: 1 of 4 slices are in no split; left out." in caplog.text
    caplog.clear()
    load_slices(*make(tmp_path, SPLIT), split="train")
    assert not caplog.text


@pytest.mark.parametrize("split, said", [(None, "has the splits train, val: say which"), ("test", "no slice of split")])
def test_a_split_must_be_named_and_exist(tmp_path, split, said):
    with pytest.raises(UserError, match=said):
        load_slices(*make(tmp_path, SPLIT), split=split)


def test_missing_images_are_counted_and_named(tmp_path):
    lines = ["file,label", *(f"sub/{i}.png,0" for i in range(6))]
    list_file, images = make(tmp_path, lines, files=["sub/0.png"])
    with pytest.raises(UserError, match=r"5 of 6 images .* sub/1.png \(line 3\), .* and 2 more"):
        load_slices(list_file, images)
    with pytest.raises(UserError, match="no such folder"):
        load_slices(list_file, tmp_path / "elsewhere")


def test_the_papers_names_find_covidx_files(tmp_path):
    list_file, images = make(tmp_path, ["0_1_2_0003.png", "2_4_5_0006.png"], ["Normal_1_2_0003.png", "2_4_5_0006.png"])
    assert [d["file_name"].rsplit("/", 1)[1] for d in load_slices(list_file, images)] == [
        "Normal_1_2_0003.png",
        "2_4_5_0006.png",
    ]


def test_no_patient_in_two_splits(tmp_path):
    list_file, images = make(tmp_path, [*SPLIT, "d.png,2,p2,s9,val"])
    with pytest.raises(UserError, match="1 patients are in two splits: p2 in train and val"):
        load_slices(list_file, images, split="train")
    assert patient_overlap({"a": ["1", "2", ""], "b": ["2", ""], "c": ["2", "3"]}) == {"2": ("a", "b", "c")}
    check_patients_apart({"a": ["", "1"], "b": ["", "2"]})  # unknown patients are no overlap


def test_registration(tmp_path, catalog):
    list_file, images = make(tmp_path, SPLIT)
    register_slices("mine_train", f"{list_file}:train", images)
    register_slices("mine_train", list_file, images, split="train")  # the same again
    assert len(DatasetCatalog.get("mine_train")) == 2
    metadata = MetadataCatalog.get("mine_train")
    assert metadata.evaluator_type == "image_class"
    assert metadata.image_classes == ["control", "common pneumonia", "COVID-19"]
    with pytest.raises(UserError, match="mine_train is taken"):
        register_slices("mine_train", list_file, images, split="val")


def test_registration_from_the_command_line(tmp_path, catalog):
    list_file, images = make(tmp_path, ["file,label", "a.png,ill", "b.png,0"])
    register_slices_option(["mine", str(list_file), str(images), "well", "ill"])
    assert [d["image_class"] for d in DatasetCatalog.get("mine")] == [1, 0]
    for values in (["mine2", "x"], ["mine2", "x", "y", "one"]):
        with pytest.raises(UserError, match="takes NAME LIST"):
            register_slices_option(values)


@pytest.mark.parametrize(
    "name, file, command",
    [
        ("covidx_ct_test", "covidx_ct/test.csv", "prepare_covidx_ct.py"),
        ("phantom_classes_val", "phantom/classes.csv", "prepare_phantoms.py"),
        ("covid_ct_train", "covid_ct/split.csv", "datasets/README.md"),
    ],
)
def test_a_builtin_that_is_not_there_says_what_to_do(tmp_path, monkeypatch, name, file, command):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=file) as error:
        DatasetCatalog.get(name)
    assert command in str(error.value) and "\n" not in str(error.value)


def test_builtin_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    make(tmp_path / "phantom", SPLIT, name="classes.csv")
    assert len(DatasetCatalog.get("phantom_classes_train")) == 2
    assert MetadataCatalog.get("covid_ct_val").image_classes == ["not COVID-19", "COVID-19"]


def test_covid_ct(real_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    counts = {
        split: np.bincount([d["image_class"] for d in DatasetCatalog.get(f"covid_ct_{split}")]).tolist()
        for split in ("train", "val")
    }
    assert counts == {"train": [234, 191], "val": [58, 60]}


def config(train, test, classes=3):
    return get_config(
        opts=["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "MODEL.CLASSIFIER.NUM_CLASSES", classes]
    )


def test_checks_across_sets(tmp_path, catalog):
    lines = ["file,label,patient_id", "a.png,0,p1", "b.png,1,p2", "c.png,2,p3"]
    list_file, images = make(tmp_path, lines)
    other, _ = make(tmp_path, ["file,label,patient_id", "d.png,2,p3"], name="other.csv")
    few, _ = make(tmp_path, ["file,label,patient_id", "e.png,0,p5"], name="few.csv")
    register_slices("all", list_file, images)
    register_slices("other", other, images)
    register_slices("few", few, images)
    register_slices("two", few, images, ("no", "yes"))
    check_slice_datasets(config("all", "few"))
    for cfg, said in (
        (config("all", "other"), r"Patient p3 in both DATASETS.TRAIN \(all\) and DATASETS.TEST \(other\)"),
        (config("few", "other"), "is of class common pneumonia, COVID-19"),
        (config("all", "few", 2), "has 3 image classes .* and the model has 2"),
        (config("all", "two"), "two has 2 image classes"),
    ):
        with pytest.raises(UserError, match=said):
            check_slice_datasets(cfg)
    cfg = get_config(opts=["DATASETS.TRAIN", ("all", "few")])
    assert [(d["image_id"], d["patient_id"]) for d in train_slices(cfg)] == [(0, "p1"), (1, "p2"), (2, "p3"), (3, "p5")]


def test_no_patient_in_two_lists_that_write_its_number_in_two_ways(tmp_path, catalog):
    """pandas writes 12.0 where another patient of the column is missing; those that are make none together."""
    lines = ["file,label,patient_id", "a.png,0,12", "b.png,1,13", "c.png,2,NA"]
    register_slices("whole_numbers", *make(tmp_path, lines))
    register_slices("floats", *make(tmp_path, ["file,label,patient_id", "d.png,0,12.0", "e.png,0,"], name="floats.csv"))
    register_slices("missing", *make(tmp_path, ["file,label,patient_id", "f.png,0,NA"], name="missing.csv"))
    with pytest.raises(UserError, match=r"Patient 12 in both DATASETS.TRAIN \(whole_numbers\) and"):
        check_slice_datasets(config("whole_numbers", "floats"))
    check_slice_datasets(config("whole_numbers", "missing"))


@pytest.mark.parametrize("lists, refused", [(".", True), ("lists/{}", False)])
def test_patients_of_lists_with_image_folders_of_their_own(tmp_path, catalog, monkeypatch, caplog, lists, refused):
    monkeypatch.chdir(tmp_path)
    for name, patients in (("train", "123"), ("seen", "345"), ("new", "678")):
        lines = ["file,label,patient_id", *(f"{name}{p}.png,{i},{p}" for i, p in enumerate(patients)), f"{name}.png,0,"]
        list_file, images = make(tmp_path / name, lines)
        there = Path(lists.format(name))
        there.mkdir(parents=True, exist_ok=True)
        register_slices(name, list_file.rename(there / f"{name}.csv"), images)
    check_slice_datasets(config("train", "new"))
    assert "in common" not in caplog.text
    if refused:
        with pytest.raises(UserError, match=r"Patient 3 in both DATASETS.TRAIN \(train\) and DATASETS.TEST \(seen\)"):
            check_slice_datasets(config("train", "seen"))
        return
    check_slice_datasets(config("train", "seen"))
    (told,) = [record for record in caplog.records if "in common" in record.message]
    assert told.levelname == "WARNING" and "different folders: 1 in train and seen." in told.message


def test_slices_without_a_patient_are_warned_of(tmp_path, catalog, caplog):
    few, images = make(tmp_path, ["file,label,patient_id", "a.png,0,p1", "b.png,1,", "c.png,2,p2"])
    none, _ = make(tmp_path, ["file,label", "d.png,0"], name="none.csv")
    every, _ = make(tmp_path, ["file,label,Patient_ID", "e.png,0,p3"], name="every.csv")
    for name, path in (("few", few), ("none", none), ("every", every)):
        register_slices(name, path, images)
    check_slice_datasets(get_config(opts=["DATASETS.TRAIN", ("few",), "DATASETS.TEST", ("none", "every")]))
    told = [record.message for record in caplog.records if "name no patient" in record.message]
    assert [message.split(" slices")[0] for message in told] == ["few: 1 of 3", "none: 1 of 1"]


@pytest.mark.parametrize("classes, warned", [(("healthy", "ill"), False), (("ill", "healthy"), True)])
def test_a_first_class_with_disease_is_warned_of(tmp_path, catalog, caplog, classes, warned):
    path, images = make(tmp_path, ["file,label,patient_id", "a.png,ill,1", "b.png,healthy,2"])
    register_slices("train", path, images, classes)
    check_slice_datasets(get_config(opts=["DATASETS.TRAIN", ("train",), "MODEL.CLASSIFIER.NUM_CLASSES", 2]))
    told = "Of the image classes ill, healthy the first, ill, is taken for the one without disease"
    assert (told in caplog.text) == warned == ("without disease" in caplog.text)


def test_an_image_in_training_and_test_is_refused(tmp_path, catalog):
    list_file, images = make(tmp_path, ["file,label", "sub/a.png,0", "sub/b.png,1", "sub/c.png,2"])
    other, _ = make(tmp_path, ["file,label", "b.png,1", "d.png,2"], ["sub/d.png"], name="other.csv")
    (tmp_path / "link").symlink_to(images / "sub")
    register_slices("all", list_file, images)
    register_slices("other", other, tmp_path / "link")
    with pytest.raises(UserError, match=r"sub/a.png is in DATASETS.TRAIN \(all\) and .* \(and 2 more like it\)"):
        check_slice_datasets(config("all", "all"))
    with pytest.raises(UserError, match=r"sub/b.png is in DATASETS.TRAIN \(all\) and DATASETS.TEST \(other\); give"):
        check_slice_datasets(config("all", "other"))


def test_16_bit_images_that_training_would_misread_are_said(tmp_path, catalog, caplog):
    lines = ["file,label,patient_id", *(f"{i}.png,{i % 3},p{i}" for i in range(20))]
    list_file, images = make(tmp_path, lines)
    for i in range(20):
        pixels = np.linspace(31700, 36900 if i else 65535, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    register_slices("offset", list_file, images)
    check_slice_datasets(get_config(opts=["DATASETS.TRAIN", ("offset",)]))
    (told,) = [record for record in caplog.records if "8 bits" in record.message]
    assert told.levelname == "WARNING" and "Dataset offset: " in told.message
    assert "is gray 123 to 144 of 255" in told.message and "in 4 of the 5 images looked at" in told.message


@pytest.mark.parametrize("classes", [[0] * 7 + [1] * 2 + [2], [0, 1], [1, 1, 1], []])
def test_balanced_epoch(classes):
    indices = balanced_indices(classes, np.random.default_rng(3))
    assert len(indices) == len(classes)
    counts = np.bincount(np.array(classes, int)[indices], minlength=3)
    present = np.unique(classes).astype(int)
    assert not len(present) or np.ptp(counts[present]) <= 1
    for image_class in present:
        times = np.bincount(indices, minlength=len(classes))[np.array(classes) == image_class]
        assert np.ptp(times) <= 1
    assert np.array_equal(indices, balanced_indices(classes, np.random.default_rng(3)))


def test_balanced_epochs_reach_every_slice():
    rng = np.random.default_rng(0)
    seen = {int(i) for _ in range(20) for i in balanced_indices([0] * 20 + [1] * 2, rng)}
    assert seen == set(range(22))


def test_balanced_subset():
    listed = [ListedSlice(f"{i}.png", i % 3, line=i + 1) for i in range(30)]
    chosen = balanced_subset(listed, 9, 3, seed=1)
    assert [sum(s.image_class == c for s in chosen) for c in range(3)] == [3, 3, 3]
    assert [s.line for s in chosen] == sorted({s.line for s in chosen})
    assert chosen == balanced_subset(listed, 9, 3, seed=1) != balanced_subset(listed, 9, 3, seed=2)
    for total, said in ((10, "evenly"), (0, "evenly"), (33, "takes 11 slices of class 0, not 10")):
        with pytest.raises(UserError, match=said):
            balanced_subset(listed, total, 3, seed=1)


def test_mapper_reads_alike_in_training_and_evaluation(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cfg = get_config(opts=["INPUT.MIN_SIZE_TRAIN", (40,), "INPUT.MIN_SIZE_TEST", 40, "INPUT.RANDOM_FLIP", "none"])
    sample = {"file_name": str(tmp_path / "a.png"), "image_id": 0, "image_class": 1, "patient_id": "", "scan_id": ""}
    train, test = (SliceMapper(cfg, is_train=is_train)(dict(sample)) for is_train in (True, False))
    assert train["image"].shape == (3, 40, 60) and train["image"].dtype == torch.uint8
    assert torch.equal(train["image"], test["image"])
    assert (test["height"], test["width"], test["image_class"]) == (20, 30, 1)
    assert "height" not in sample


def test_mapper_augments_from_the_sample_seed(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    cfg = get_config(opts=["INPUT.MIN_SIZE_TRAIN", (8,), "INPUT.AUGMENTATION.ROTATION", 90.0])
    sample = {"file_name": str(tmp_path / "a.png"), "image_id": 0, "image_class": 1}
    mapper = SliceMapper(cfg, is_train=True)
    one, again, other = (mapper(sample | {"sample_seed": seed})["image"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="sample_seed"):
        mapper(sample)
