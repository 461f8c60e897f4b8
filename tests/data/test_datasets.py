"""Dataset names, the jsons behind them, and checks across datasets."""

import json
import re

from d2_covid import get_config
from d2_covid.data import datasets
from d2_covid.data.cncb import prepare_lesions
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.datasets import (
    check_datasets,
    check_mask_type,
    check_patient_splits,
    data_fingerprint,
    ensure_registered,
    register_lesions,
)
from d2_covid.data.lesion_masks import MASK_TYPES
from d2_covid.data.pairing import pair_cncb
from d2_covid.data.splits import split_by_patients
from d2_covid.errors import UserError

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image


@pytest.fixture(autouse=True)
def catalog(monkeypatch, tmp_path):
    """Names registered in a test are gone after it, and sets are looked for below ``tmp_path/sets``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        datasets._sources.pop(name, None)
    for name in list(MetadataCatalog):
        if name in set(MetadataCatalog) - before:
            MetadataCatalog.remove(name)


@pytest.fixture
def prepare(small_cncb, tmp_path):
    """``prepare(set name, val patients)`` prepares the small set under ``$DETECTRON2_DATASETS``."""

    def make(name="small", val=("2",), source=small_cncb):
        pairing = pair_cncb(source)
        prepare_lesions(pairing, split_by_patients(pairing.pairs, val), tmp_path / "sets" / name, progress=False)

    return make


@pytest.fixture
def user_json(tmp_path):
    """``user_json(**changes)`` writes a json of two 20x10 images with polygons; returns it and the image folder."""

    def make(**changes):
        folder = tmp_path / "own"
        (folder / "ann" / "p7").mkdir(parents=True, exist_ok=True)
        names = ["ann/p7/b.png", "a.png"]
        for name in names:
            Image.new("L", (20, 10)).save(folder / name)
        annotation = {
            "id": 5, "image_id": 2, "category_id": 1, "bbox": [2, 3, 4, 5],
            "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]], **changes.pop("annotation", {}),
        }  # fmt: skip
        content = {
            "images": [{"id": 9 - 7 * i, "file_name": n, "height": 10, "width": 20} for i, n in enumerate(names)],
            "annotations": [{k: v for k, v in annotation.items() if v is not None}],
            "categories": [{"id": 1, "name": "opacity"}],
            **changes,
        }
        (folder / "own.json").write_text(json.dumps(content))
        return folder / "own.json", folder

    return make


def _config(train, test, *opts):
    return get_config(opts=["DATASETS.TRAIN", str(tuple(train)), "DATASETS.TEST", str(tuple(test)),
                            "MODEL.ROI_HEADS.NUM_CLASSES", "1", *opts])  # fmt: skip


# Names


@pytest.mark.parametrize("name", ["cncb_merge_train", "phantom_both_val", "radiopaedia_ggo_val", "coronacases_ggo_val"])
def test_importing_registers_the_builtin_names(name):
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "lesion"
    assert metadata.thing_classes == list(MASK_TYPES[metadata.mask_type])


@pytest.mark.parametrize(
    "name, command",
    [
        ("cncb_both_val", "prepare_cncb.py --source FOLDER --name cncb --mask-types both"),
        ("phantom_merge_train", "prepare_phantoms.py"),
    ],
)
def test_missing_set_names_the_path_and_the_command(name, command, tmp_path):
    with pytest.raises(UserError) as error:
        DatasetCatalog.get(name)
    set_name, mask_type, split = name.split("_")
    assert f"{tmp_path}/sets/{set_name}/annotations/{mask_type}_{split}.json" in str(error.value)
    assert command in str(error.value) and "DETECTRON2_DATASETS" in str(error.value)


def test_root_is_looked_up_when_data_is_asked_for(prepare, monkeypatch, tmp_path):
    prepare("cncb")
    assert len(DatasetCatalog.get("cncb_merge_train")) == 4
    (tmp_path / "sets").rename(tmp_path / "moved")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "moved"))
    assert len(DatasetCatalog.get("cncb_merge_val")) == 1
    DatasetCatalog.get("cncb_merge_train")
    assert MetadataCatalog.get("cncb_merge_train").json_file.startswith(str(tmp_path / "moved"))


def test_prepared_sets_have_names_without_code(prepare):
    prepare("my_hospital")
    ensure_registered(["my_hospital_both_train", "cncb_merge_val"])
    ensure_registered(["my_hospital_both_train"])
    assert len(DatasetCatalog.get("my_hospital_both_train")) == 4
    assert MetadataCatalog.get("my_hospital_both_train").thing_classes == ["GGO", "consolidation"]


@pytest.mark.parametrize("name", ["lesions", "cncb_all_train", "merge_train"])
def test_names_of_another_form_are_refused(name):
    said = f"Unknown dataset '{name}'.*--register-lesions NAME.*--register-slices NAME.*validate, name the json"
    with pytest.raises(UserError, match=said):
        ensure_registered([name])


def test_registering_twice(user_json):
    path, images = user_json()
    register_lesions("own", path, images)
    register_lesions("own", path, images)
    with pytest.raises(UserError, match="own is taken"):
        register_lesions("own", path, images, "merge")
    with pytest.raises(UserError, match="cncb_merge_train is taken"):
        register_lesions("cncb_merge_train", path, images)


# Loading


def test_dataset_dicts_and_metadata(prepare, small_cncb, tmp_path):
    prepare("cncb")
    dicts = DatasetCatalog.get("cncb_both_train")
    assert [d["file_name"] for d in dicts] == [
        str(small_cncb / "image" / n) for n in ("1/2.jpg", "1/10.jpg", "10/1.jpg", "10/2.jpg")
    ]
    assert [d["patient_id"] for d in dicts] == ["1", "1", "10", "10"]
    assert [[a["category_id"] for a in d["annotations"]] for d in dicts] == [[0], [1], [], []]
    assert all((d["height"], d["width"]) == (48, 64) for d in dicts)
    assert dicts[1]["annotations"][0]["bbox"] == [30, 20, 10, 15]
    assert dicts[1]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    metadata = MetadataCatalog.get("cncb_both_train")
    assert metadata.json_file == str(tmp_path / "sets/cncb/annotations/both_train.json")
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    assert (metadata.mask_type, metadata.evaluator_type) == ("both", "lesion")


def test_users_polygons_and_names(user_json):
    path, images = user_json()
    register_lesions("own", path, images)
    first, second = DatasetCatalog.get("own")
    # In the order of image ids; without patient_id, the folder is the patient, and without a folder nobody is.
    assert "patient_id" not in first and second["patient_id"] == "p7"
    assert second["annotations"] == []
    mask = mask_util.decode(first["annotations"][0]["segmentation"])
    assert mask.shape == (10, 20) and mask.sum() == mask[3:8, 2:6].sum() == 20
    metadata = MetadataCatalog.get("own")
    assert (metadata.thing_classes, metadata.mask_type) == (["opacity"], "merge")


def test_uncompressed_run_length_codes(user_json):
    path, _ = user_json(annotation={"segmentation": {"size": [10, 20], "counts": [23, 5, 172]}, "bbox": [2, 3, 1, 5]})
    rle = load_lesion_json(path).dicts[0]["annotations"][0]["segmentation"]
    assert isinstance(rle["counts"], str) and mask_util.decode(rle)[3:8, 2].sum() == 5


@pytest.mark.parametrize("patient", [None, "", " ", float("nan"), float("inf"), "NA", "nan", "null"])
def test_a_patient_that_is_null_nan_or_blank_is_none(user_json, patient):
    images = [{"id": 2, "file_name": "ann/p7/b.png", "height": 10, "width": 20, "patient_id": patient}]
    assert load_lesion_json(user_json(images=images)[0]).dicts[0]["patient_id"] == "p7"


@pytest.mark.parametrize("patient", [12, 12.0, "12", "12.0"])
def test_a_patient_is_the_same_however_its_number_is_written(user_json, patient):
    # A table's column of whole numbers turns to floats where some are missing.
    images = [{"id": 2, "file_name": "ann/p7/b.png", "height": 10, "width": 20, "patient_id": patient}]
    assert load_lesion_json(user_json(images=images)[0]).dicts[0]["patient_id"] == "12"


def test_images_without_patient_and_folder_are_said_apart_from_those_with_one(user_json, caplog):
    path, _ = user_json()
    load_lesion_json(path)
    by_folder, unknown = [record.message for record in caplog.records if "patient_id" in record.message]
    assert by_folder == f"{path}: 1 images without 'patient_id'; the name of their folder is taken for it."
    assert (
        unknown.startswith(f"{path}: 1 images with neither 'patient_id' nor a folder") and "resample slices" in unknown
    )


TWO_CLASSES = {
    "house order": (["GGO", "consolidation"], [0, 1], {}),
    "another case": (["ggo", "Consolidation"], [0, 1], {}),
    "another order": (["consolidation", "GGO"], [1, 0], {}),
    "one known": (["Consolidation", "ground glass"], [1, 0], {0: "ground glass"}),
    "the other known": (["crazy paving", "ggo"], [1, 0], {1: "crazy paving"}),
    "none known": (["cyst", "nodule"], [0, 1], {0: "cyst", 1: "nodule"}),
    "one name twice": (["GGO", "ggo"], [0, 1], {1: "ggo"}),
}


@pytest.mark.parametrize("case", TWO_CLASSES)
def test_two_classes_come_in_the_order_of_the_predictions_names(user_json, caplog, case):
    names, expected, kept = TWO_CLASSES[case]
    shape = {"image_id": 2, "bbox": [2, 3, 4, 5], "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]}
    path, images = user_json(
        categories=[{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        annotations=[{"id": i, "category_id": i, **shape} for i in (1, 2)],
    )
    register_lesions("own", path, images)
    dicts = DatasetCatalog.get("own")
    assert [a["category_id"] for d in dicts for a in d["annotations"]] == expected
    metadata = MetadataCatalog.get("own")
    house = dict(enumerate(MASK_TYPES["both"]))
    assert (metadata.mask_type, metadata.thing_classes) == ("both", list((house | kept).values()))
    assert metadata.thing_dataset_id_to_contiguous_id == {1: expected[0], 2: expected[1]}
    for index, name in kept.items():
        assert f"{name} as {house[index]}" in caplog.text
    assert ("a model trained on it reports" in caplog.text) == bool(kept)


def test_names_in_any_case_tell_the_mask_type(user_json):
    for name, mask_type in {"ggo": "ggo", "Lesion": "merge", "opacity": "merge"}.items():
        loaded = load_lesion_json(user_json(categories=[{"id": 1, "name": name}])[0])
        assert (loaded.mask_type, loaded.category_ids) == (mask_type, (1,))


def test_image_folder_of_the_json_itself(user_json):
    path, folder = user_json(info={"image_root": "../own"})
    assert load_lesion_json(path).image_root.resolve() == folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotation": {"category_id": 2}}, "has category id 2; its categories are 1 to 1"),
        ({"categories": [{"id": 0, "name": "x"}]}, r"category ids are \[0\]; number .* from 1"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 3, "name": "y"}]}, r"category ids are \[1, 3\]"),
        ({"categories": []}, r"category ids are \[\]"),
        ({"annotation": {"segmentation": None}}, "a.png has no segmentation"),
        ({"annotation": {"segmentation": []}}, "a.png has no segmentation"),
        ({"annotation": {"segmentation": [[1, 2]]}}, "neither polygons nor run-length code .*three points"),
        ({"annotation": {"segmentation": [[float("nan")] * 6]}}, "annotation 5 of .* that is no finite number"),
        ({"annotation": {"segmentation": [[None] * 6]}}, "annotation 5 of .* that is no finite number"),
        ({"annotation": {"segmentation": [[float("inf")] * 6]}}, "annotation 5 of .* that is no finite number"),
        ({"annotation": {"segmentation": [[2, 3, 41, 3, 6, 8]]}}, "annotation 5 of .* 41, far outside of its 20x10 im"),
        ({"annotation": {"segmentation": [[2, 3, 6, 3, 6, -11]]}}, "annotation 5 of .* -11, far outside of its 20x10"),
        ({"annotation": {"segmentation": "mask"}}, "neither polygons nor run-length code"),
        ({"annotation": {"segmentation": {"size": [20, 10], "counts": [100, 100]}}}, "mask of 10x20 on an image of 20"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": [200]}}}, "without a pixel"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": [23, 5]}}}, "of 28 pixels on .* the last one of"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": "g05"}}}, "28 pixels on an image of 20x10"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": [23, 5, 173]}}}, "of 201 pixels"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": [-1, 5, 196]}}}, "a run of -1 pixels"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": [2**70, 5]}}}, "nor run-length code"),
        ({"annotation": {"segmentation": {"size": [10, 20], "counts": "abc"}}}, "no compressed run-length code"),
        ({"annotation": {"segmentation": {"counts": [23, 5, 172]}}}, "it has no 'size'"),
        ({"annotation": {"bbox": [2, 3, 30, 5]}}, r"the box \[2, 3, 30, 5\].* outside its 20x10 image"),
        ({"annotation": {"bbox": [-9, 3, 3, 5]}}, "outside its 20x10 image"),
        ({"annotation": {"bbox": [2, 3, 0, 5]}}, "empty or outside"),
        ({"annotation": {"bbox": [2, 3]}}, "a box is"),
        ({"annotation": {"bbox": None}}, "has no 'bbox'"),
        ({"annotation": {"image_id": 77}}, "belongs to image id 77"),
        ({"annotation": {"image_id": [2]}}, r"annotation 5 has the image_id \[2\]; an id is a number"),
        ({"annotation": {"id": {"a": 1}}}, "annotation at position 0 has the id {'a': 1}; an id"),
        ({"annotation": {"iscrowd": [0]}}, r"iscrowd \[0\]; it is 0 or 1"),
        ({"annotation": {"iscrowd": float("nan")}}, "iscrowd nan"),
        ({"categories": [{"id": [1], "name": "x"}]}, r"a category has the id \[1\]"),
        ({"images": [{"id": [2], "file_name": "a.png", "height": 10, "width": 20}]}, r"image a.png has the id \[2\]"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 10}]}, "image a.png has no 'width'"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}] * 2}, "image id 1 is given twice"),
        (
            {"images": [{"id": n, "file_name": "a.png", "height": 10, "width": 20} for n in (2, 7)]},
            "image a.png is given twice, with the ids 2 and 7",
        ),
        (
            {"images": [{"id": 2, "file_name": "a" * 5000, "height": 10, "width": 20}]},
            r"names 1 missing image, the first is .*aaa\.\.\.; prepare",
        ),
        ({"images": []}, "lists no image"),
        ({"annotations": {}}, "has no list 'annotations'"),
        ({"annotations": ["x"]}, "every entry of 'annotations'"),
    ],
)
def test_jsons_that_training_would_trip_over_are_refused(user_json, changes, message):
    path, _ = user_json(**changes)
    with pytest.raises(UserError, match=message) as error:
        load_lesion_json(path)
    assert "own.json" in str(error.value) and "\n" not in str(error.value)


def test_a_box_may_count_its_last_pixel(user_json):
    path, _ = user_json(annotation={"bbox": [16, 3, 5, 5]})
    assert len(load_lesion_json(path).dicts[0]["annotations"]) == 1


def test_a_polygon_may_reach_one_image_beyond_its_own(user_json):
    path, _ = user_json(annotation={"segmentation": [[-20, -10, 40, -10, 40, 20, -20, 20]], "bbox": [0, 0, 20, 10]})
    assert load_lesion_json(path).dicts[0]["annotations"][0]["area"] == 200


def test_crowd_regions_are_said(user_json, caplog):
    path, _ = user_json()
    assert load_lesion_json(path) and "iscrowd" not in caplog.text
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 6, "iscrowd": 1})
    path.write_text(json.dumps(content))
    assert [a["iscrowd"] for a in load_lesion_json(path).dicts[0]["annotations"]] == [0, 1]
    assert f"{path}: 1 of 2 annotations have iscrowd 1, and are neither trained on nor evaluated" in caplog.text


def test_a_null_iscrowd_is_0(user_json):
    path, _ = user_json()
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = None
    path.write_text(json.dumps(content))
    assert load_lesion_json(path).dicts[0]["annotations"][0]["iscrowd"] == 0


RLE = {"size": [10, 20], "counts": [23, 5, 5, 5, 5, 5, 5, 5, 142]}  # as the polygon of user_json


@pytest.mark.parametrize("masked", [{}, {"segmentation": RLE}], ids=["polygon", "run-length code"])
@pytest.mark.parametrize("box, said", [([2, 3, 4, 5], 0), ([4, 1, 4, 5], 0), ([2, 3, 7, 5], 1), ([2, 3, 6, 8], 1)])
def test_boxes_that_are_not_those_of_their_masks_are_said(user_json, caplog, masked, box, said):
    path, _ = user_json(annotation={"bbox": box, **masked})
    assert load_lesion_json(path).dicts[0]["annotations"][0]["bbox"] == box
    told = [record.message for record in caplog.records if "those of their masks" in record.message]
    assert len(told) == said
    if said:
        assert f"{path}: 1 of 1 boxes" in told[0] and "annotation 5 of" in told[0] and "a.png" in told[0]


@pytest.mark.parametrize("text", ["{", "", "[1]", '{"images": 3}', "\x00"])
def test_files_that_are_no_coco_json_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json (is not a json file|has no list)"):
        load_lesion_json(tmp_path / "x.json")


# Checks across datasets


def test_mask_type_and_classes_must_fit_the_config(prepare):
    prepare("cncb")
    check_mask_type(_config(["cncb_merge_train"], ["cncb_merge_val"]))
    with pytest.raises(UserError, match="cncb_both_val holds 'both' masks, but DATASETS.MASK_TYPE is 'merge'"):
        check_mask_type(_config(["cncb_merge_train"], ["cncb_both_val"]))
    with pytest.raises(UserError, match=r"1 lesion class\(es\) \(lesion\), but MODEL.ROI_HEADS.NUM_CLASSES is 2"):
        check_mask_type(_config(["cncb_merge_train"], [], "MODEL.ROI_HEADS.NUM_CLASSES", "2"))


def test_three_lesion_classes_are_refused(user_json):
    path, images = user_json(categories=[{"id": i, "name": name} for i, name in enumerate("abc", 1)])
    register_lesions("three", path, images)
    for count in ("1", "3"):
        with pytest.raises(UserError, match=r"Dataset three has 3 lesion classes \(a, b, c\), and .* merge or drop"):
            check_mask_type(_config(["three"], [], "MODEL.ROI_HEADS.NUM_CLASSES", count))


def test_classes_of_the_model_must_fit_its_mask_type():
    """Where the data, registered by other code, have none."""
    DatasetCatalog.register("foreign", lambda: [])
    MetadataCatalog.get("foreign").set(thing_classes=["a", "b"])
    two = ("MODEL.ROI_HEADS.NUM_CLASSES", "2")
    check_mask_type(_config(["foreign"], [], *two, "DATASETS.MASK_TYPE", "both"))
    with pytest.raises(UserError, match=r"NUM_CLASSES is 2, but DATASETS.MASK_TYPE 'merge' has 1 .*\(lesion\)"):
        check_mask_type(_config(["foreign"], [], *two))
    with pytest.raises(UserError, match="Unknown mask type 'all'"):
        check_mask_type(_config(["foreign"], [], *two, "DATASETS.MASK_TYPE", "all"))


def test_json_of_another_mask_type_is_refused(prepare, tmp_path):
    prepare("cncb")
    annotations = tmp_path / "sets/cncb/annotations"
    (annotations / "ggo_val.json").replace(annotations / "merge_val.json")
    with pytest.raises(UserError, match="holds 'ggo' masks, not 'merge'"):
        DatasetCatalog.get("cncb_merge_val")


def test_number_of_classes_must_fit_the_mask_type(user_json):
    for changes, mask_type in (({}, "both"), ({"info": {"mask_type": "both"}}, None)):
        with pytest.raises(UserError, match=r"1 lesion class\(es\) \(opacity\), but mask type 'both' has 2"):
            load_lesion_json(user_json(**changes)[0], mask_type=mask_type)
    assert load_lesion_json(user_json(info={"mask_type": ["both"]})[0]).mask_type == "merge"


def test_check_datasets_passes_what_fits(prepare):
    prepare("cncb")
    check_datasets(_config(["cncb_merge_train"], ["cncb_merge_val"]))


def test_a_patient_in_training_and_test_is_refused(prepare):
    prepare("cncb", val=["2", "10"])
    prepare("other", val=["1", "2"])
    with pytest.raises(UserError, match=r"Patient 1 in both DATASETS.TRAIN \(cncb_merge_train\).*\(other_merge_val\)"):
        check_datasets(_config(["cncb_merge_train"], ["other_merge_val"]))
    with pytest.raises(UserError, match="Patients 2, 10 in both"):
        check_patient_splits(["cncb_merge_val"], ["cncb_merge_val"])


def test_an_image_in_training_and_test_is_refused(user_json):
    json_file, folder = user_json()
    images = [{"id": 1, "file_name": "b.png", "height": 10, "width": 20, "patient_id": "another"}]
    content = {**json.loads(json_file.read_text()), "images": images, "annotations": []}
    (folder / "ann" / "test.json").write_text(json.dumps(content))
    register_lesions("files_train", json_file, folder)
    register_lesions("files_test", folder / "ann" / "test.json", folder / "ann" / "p7")
    with pytest.raises(UserError, match=r"b\.png is in DATASETS.TRAIN \(files_train\) and DATASETS.TEST"):
        check_patient_splits(["files_train"], ["files_test"])


def test_patients_of_unrelated_sets_may_share_a_number(prepare, make_cncb, slice_mask, caplog):
    prepare("cncb", val=["2"])
    prepare("radiopaedia", val=["1"], source=make_cncb({"1/1": slice_mask(), "2/1": slice_mask()}, folder="elsewhere"))
    check_patient_splits(["cncb_merge_train"], ["radiopaedia_merge_val"])
    assert "in common" not in caplog.text
    for name, place in (("own_train", ("cncb", "merge", "train")), ("own_val", ("radiopaedia", "merge", "val"))):
        register_lesions(name, datasets.prepared_json(*place))
    check_patient_splits(["cncb_merge_train", "own_train"], ["radiopaedia_merge_val", "own_val"])
    (told,) = [record for record in caplog.records if "in common" in record.message]
    pairs = ("cncb_merge_train and own_val", "own_train and radiopaedia_merge_val", "own_train and own_val")
    assert told.levelname == "WARNING" and "; ".join(f"1 in {pair}" for pair in pairs) in told.message


def test_a_json_named_without_its_folder_shares_that(user_json, monkeypatch):
    json_file, folder = user_json()
    content = json.loads(json_file.read_text())
    for split, name in (("train", "ann/p7/b.png"), ("val", "a.png")):
        image = {"id": 2, "file_name": (folder / name).name, "height": 10, "width": 20, "patient_id": "p7"}
        (folder / f"{split}.json").write_text(json.dumps({**content, "images": [image]}))
        register_lesions(f"bare_{split}", f"{split}.json", (folder / name).parent)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="Patient p7 in both"):
        check_patient_splits(["bare_train"], ["bare_val"])


def _of_one_folder(user_json, **splits):
    """Registers ``own_<split>`` for each split, of entries of ``images`` or their file names, all in one folder."""
    json_file, folder = user_json()
    content = json.loads(json_file.read_text()) | {"annotations": []}
    for split, entries in splits.items():
        images = [{"file_name": entry} if isinstance(entry, str) else entry for entry in entries]
        images = [{"id": number, "height": 10, "width": 20, **image} for number, image in enumerate(images)]
        for image in images:
            (folder / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 10)).save(folder / image["file_name"])
        (folder / f"{split}.json").write_text(json.dumps({**content, "images": images}))
        register_lesions(f"own_{split}", folder / f"{split}.json")


def test_a_folder_that_all_images_of_both_sets_lie_in_is_no_patient(user_json, caplog):
    _of_one_folder(user_json, train=["JPEGImages/1.png", "JPEGImages/2.png"], val=["JPEGImages/3.png"])
    check_patient_splits(["own_train"], ["own_val"])
    (told,) = [record for record in caplog.records if "patients are unknown" in record.message]
    assert told.levelname == "WARNING" and "own_train and own_val (JPEGImages)" in told.message
    assert "in common" not in caplog.text
    _of_one_folder(user_json, again=["JPEGImages/3.png"])
    with pytest.raises(UserError, match=r"JPEGImages/3.png is in DATASETS.TRAIN \(own_val\) and"):
        check_patient_splits(["own_val"], ["own_again"])


def test_folders_of_one_name_are_no_patient_either(user_json, caplog):
    _of_one_folder(user_json, train=["train/images/1.png"], val=["val/images/2.png"])
    check_patient_splits(["own_train"], ["own_val"])
    assert "a folder of one name" in caplog.text and "own_train and own_val (images)" in caplog.text


def test_ids_of_other_code_that_are_none_are_shared_by_nobody(caplog):
    names = ["foreign_train", "foreign_val"]
    dicts = [{"patient_id": float("nan")}, {"patient_id": None}, {}]
    for name in names:
        MetadataCatalog.get(name).set(image_root="x")
    check_patient_splits(names[:1], names[1:], dict.fromkeys(names, dicts))
    assert not caplog.records
    with pytest.raises(UserError, match="Patient 12 in both"):
        check_patient_splits(names[:1], names[1:], dict(zip(names, ([{"patient_id": 12}], [{"patient_id": 12.0}]))))


NO_PATIENT = r" \(from the folder in file_name; give images a patient_id if that is no patient\)"


@pytest.mark.parametrize(
    "train, val, said",
    [
        (["p1/1.png", "p2/1.png"], ["p2/2.png"], f"Patient p2{NO_PATIENT} in both"),
        (["p1/1.png", "p2/1.png"], ["p1/2.png", "p2/2.png"], f"Patients p1, p2{NO_PATIENT} in both"),
        # Not one folder, but one name of several.
        (["p1/CT/1.png", "p2/CT/1.png"], ["p1/CT/2.png"], f"Patient CT{NO_PATIENT} in both"),
        (["flat/1.png"], ["flat/2.png", "3.png"], f"Patient flat{NO_PATIENT} in both"),
        (["flat/1.png"], [{"file_name": "x/2.png", "patient_id": "flat"}], f"Patient flat{NO_PATIENT} in both"),
        *(
            ([{"file_name": "flat/1.png", "patient_id": one}], [{"file_name": "flat/2.png", "patient_id": one}], said)
            for one, said in (("a", "Patient a in both"), ("flat", "Patient flat in both"))
        ),
    ],
)
def test_patients_by_folder_and_told_ones_in_training_and_test_are_refused(user_json, train, val, said):
    _of_one_folder(user_json, train=train, val=val)
    with pytest.raises(UserError, match=said):
        check_patient_splits(["own_train"], ["own_val"])


def _of_two_classes(user_json, name, *classes):
    json_file, folder = user_json(categories=[{"id": i, "name": one} for i, one in enumerate(classes, 1)])
    content = json.loads(json_file.read_text())
    Image.new("L", (20, 10)).save(folder / f"{name}.png")
    content["images"] = [{"id": 2, "file_name": f"{name}.png", "height": 10, "width": 20, "patient_id": name}]
    (folder / f"{name}.json").write_text(json.dumps(content))
    register_lesions(name, folder / f"{name}.json")


@pytest.mark.parametrize("train, test", [(["one", "other"], []), (["one"], ["other"])])
def test_own_classes_in_another_order_are_refused(user_json, train, test):
    """They have no names of the house's, by which they could be put in order."""
    _of_two_classes(user_json, "one", "nodule", "infiltrate")
    _of_two_classes(user_json, "other", "Infiltrate", "nodule")
    _of_two_classes(user_json, "alike", "Nodule", "infiltrate")
    _of_two_classes(user_json, "third", "nodule", "cyst")
    both = ("DATASETS.MASK_TYPE", "both", "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    said = "one of .* classes nodule, infiltrate, and other has Infiltrate, nodule: .*alike"
    with pytest.raises(UserError, match=said):
        check_datasets(_config(train, test, *both))
    check_datasets(_config(["one", "alike"], ["third"], *both))
    check_datasets(_config([], ["one", "other"], *both))  # an evaluation, of each by itself


def test_the_houses_classes_may_come_in_any_order(user_json):
    _of_two_classes(user_json, "one", "GGO", "consolidation")
    _of_two_classes(user_json, "other", "Consolidation", "GGO")
    check_datasets(_config(["one"], ["other"], "DATASETS.MASK_TYPE", "both", "MODEL.ROI_HEADS.NUM_CLASSES", "2"))


@pytest.mark.parametrize(
    "lowest, highest, said",
    [
        (0, 4095, "no value above 4095; such slices .* this one is nearly black"),
        (31700, 36900, "only values from 31700 to 36900; such slices .* this one is gray 123 to 144 of 255"),
        (0, 65535, ""),
        (33000, 33000, ""),
    ],
)
def test_16_bit_images_that_training_would_misread_are_said(user_json, caplog, lowest, highest, said):
    path, images = user_json()
    pixels = np.linspace(lowest, highest, 200).astype(np.uint16).reshape(10, 20)
    Image.fromarray(pixels).save(images / "a.png")
    register_lesions("own", path, images)
    check_datasets(_config(["own"], []))
    told = [record for record in caplog.records if "8 bits" in record.message]
    assert len(told) == bool(said)
    for record in told:
        assert record.levelname == "WARNING" and re.search(f"Dataset own: .*{said}", record.message)
        assert "in 1 of the 2 images looked at" in record.message


def test_fingerprint_tells_data_apart(prepare, tmp_path):
    prepare("cncb")
    names = ["cncb_merge_train", "cncb_merge_val"]
    fingerprint = data_fingerprint(names)
    assert len(fingerprint) == 64 and fingerprint == data_fingerprint(names)
    assert fingerprint != data_fingerprint(names[:1])
    path = tmp_path / "sets/cncb/annotations/merge_val.json"
    path.write_text(path.read_text() + " ")
    assert fingerprint != data_fingerprint(names)


def test_fingerprint_of_a_dataset_that_other_code_registered():
    DatasetCatalog.register("foreign", lambda: [{"file_name": "a", "array": np.arange(2)}])
    assert data_fingerprint(["foreign"]) == data_fingerprint(["foreign"])
