"""The check of a data set: everything wrong is found, by kind, and nothing stops it."""

import json
from pathlib import Path

from d2_covid.cli import main
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.data.near_duplicates import BITS, MAX_DISTANCE, near_duplicates, perceptual_hash
from d2_covid.data.slice_datasets import register_slices
from d2_covid.data.validation import validate
from d2_covid.data.validation_findings import KINDS
from d2_covid.errors import UserError

import numpy as np
import pytest
from PIL import Image


def _picture(seed: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A smooth picture from black to white; one for each seed."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def _save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _lung(*patches: tuple[int, int, int, int, int]) -> np.ndarray:
    mask = np.ones((48, 64), np.uint8)
    for value, top, left, height, width in patches:
        mask[top : top + height, left : left + width] = value
    return mask


GGO, CONSOLIDATION = (2, 4, 4, 12, 12), (3, 20, 30, 15, 10)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two patients of two slices in the CNCB layout, with nothing wrong."""
    top = tmp_path / "set"
    for number, (name, mask) in enumerate({
        "1/1": _lung(GGO), "1/2": _lung(), "2/1": _lung(CONSOLIDATION), "2/2": _lung(GGO, CONSOLIDATION)
    }.items()):  # fmt: skip
        _save(top / "image" / f"{name}.png", _picture(number))
        _save(top / "mask" / f"{name}.png", mask)
    return top


def _found(*items, **options) -> dict[str, int]:
    return dict(validate(items, **options).findings.counts)


# ---- folders ----


def test_a_flat_folder_is_checked_like_a_prepared_one(folder, tmp_path):
    flat = tmp_path / "flat"
    for kind in ("image", "mask"):
        (flat / kind).mkdir(parents=True)
        for path in (folder / kind).rglob("*.*"):
            (flat / kind / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    assert _found(flat) == _found(folder)


def test_a_good_folder(folder):
    found = validate([folder])
    assert dict(found.findings.counts) == {"no_lesion": 1} and (found.errors, found.warnings) == (0, 0)
    (split,) = found.splits
    assert split.class_counts == {"GGO": 2, "consolidation": 2} and split.without_lesion == 1
    assert found.compared == "patients"


BLANK = np.zeros((48, 64), np.uint8)


def _add(folder: Path, name: str, mask: np.ndarray) -> None:
    _save(folder / "image" / f"{name}.png", _picture(sum(map(ord, name))))
    _save(folder / "mask" / f"{name}.png", mask)


def _empty_mask(folder):
    _save(folder / "mask/1/2.png", BLANK)
    _add(folder, "1/10", _lung())


def _constant(folder):
    _save(folder / "image/1/1.png", np.full((48, 64), 90, np.uint8))


def _dark_16_bit(folder):
    _save(folder / "image/1/1.png", _picture(0).astype(np.uint16) * 16)


def _offset_16_bit(folder):
    _save(folder / "image/1/1.png", _picture(0).astype(np.uint16) * 20 + 31700)


def _coloured(folder):
    pixels = np.repeat(_picture(0)[..., None], 3, axis=2)
    pixels[:4, :4] = (255, 0, 0)
    _save(folder / "image/1/1.png", pixels)


DEFECTS = {
    "value 7": (lambda f: _save(f / "mask/1/1.png", _lung((7, 0, 0, 9, 9))), {"label_out_of_range": 1}),
    "torn image": (lambda f: (f / "image/1/1.png").write_bytes(b"\x89PNG"), {"unreadable_file": 1}),
    "empty mask file": (lambda f: (f / "mask/1/1.png").write_bytes(b""), {"unreadable_file": 1}),
    "size": (lambda f: _save(f / "mask/1/1.png", _lung(GGO)[:40]), {"size_differs": 1}),
    "empty mask": (_empty_mask, {"empty_mask": 1}),
    "no mask": (lambda f: (f / "mask/1/1.png").unlink(), {"image_without_mask": 1}),
    "no image": (lambda f: (f / "image/1/1.png").unlink(), {"mask_without_image": 1}),
    "tiny": (lambda f: _save(f / "mask/1/1.png", _lung(GGO, (2, 30, 4, 10, 10), (3, 0, 40, 1, 1))), {"tiny_lesion": 1}),
    "constant": (_constant, {"constant": 1}),
    "black": (lambda f: _save(f / "image/1/1.png", _picture(0) // 40), {"nearly_black": 1}),
    "white": (lambda f: _save(f / "image/1/1.png", 255 - _picture(0) // 40), {"nearly_white": 1}),
    "narrow": (lambda f: _save(f / "image/1/1.png", 100 + _picture(0) // 6), {"low_contrast": 1}),
    "12 bits in 16": (_dark_16_bit, {"dark_16_bit": 1, "nearly_black": 0}),
    "an offset in 16": (_offset_16_bit, {"narrow_16_bit": 1}),
    "constant in 16": (lambda f: _save(f / "image/1/1.png", np.full((48, 64), 33000, np.uint16)), {"constant": 1}),
    "colours": (_coloured, {"coloured": 1}),
    "copy": (lambda f: _save(f / "image/2/1.png", _picture(0)), {"near_duplicate": 1}),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_one_defect_in_a_folder(name, folder):
    spoil, expected = DEFECTS[name]
    spoil(folder)
    found = _found(folder)
    others = {"no_lesion", "class_missing", "low_contrast", "nearly_black"} - expected.keys()
    assert {kind: count for kind, count in found.items() if kind not in others} == {
        kind: count for kind, count in expected.items() if count
    }


def test_all_defects_at_once_and_all_named(folder):
    (folder / "image/1/1.png").write_bytes(b"torn")
    _save(folder / "mask/1/2.png", _lung((9, 0, 0, 5, 5)))
    _save(folder / "mask/2/1.png", _lung((2, 0, 0, 5, 5)))
    _save(folder / "image/2/2.png", np.zeros((48, 64), np.uint8))
    found = validate([folder])
    assert (found.errors, found.warnings) == (2, 2)
    for kind, file in {
        "unreadable_file": "image/1/1.png",
        "label_out_of_range": "mask/1/2.png",
        "tiny_lesion": "mask/2/1.png",
        "constant": "image/2/2.png",
    }.items():
        (one,) = found.findings.kept(kind)
        assert one.file == str(folder / file) and one.file in one.message and "\n" not in one.message


def test_blank_masks_are_no_error_where_no_mask_has_lung(folder):
    for path in (folder / "mask").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        _save(path, np.where(mask == 1, 0, mask).astype(np.uint8))
    assert _found(folder) == {"no_lesion": 1}


def test_blank_masks_above_and_below_the_lungs_are_no_error(folder):
    for name in ("1/0", "1/3", "1/4", "2/0", "2/11", "3/1"):
        _add(folder, name, BLANK)
    found = validate([folder])
    assert (found.findings.counts["empty_mask"], found.errors) == (0, 0)
    _add(folder, "1/5", _lung())
    between = [str(folder / f"mask/1/{number}.png") for number in (3, 4)]
    assert [one.file for one in validate([folder]).findings.kept("empty_mask")] == between


def test_blank_masks_at_the_ends_of_two_scans_of_a_patient_are_no_error(tmp_path):
    for name in ("1_1_1", "1_1_3", "1_2_2", "1_2_4"):
        _add(tmp_path, name, _lung())
    for name in ("1_1_4", "1_2_1"):
        _add(tmp_path, name, BLANK)
    assert "empty_mask" not in _found(tmp_path)
    _add(tmp_path, "1_1_2", BLANK)
    assert _found(tmp_path)["empty_mask"] == 1


def test_only_the_first_findings_are_kept(folder):
    for path in (folder / "mask").rglob("*.png"):
        path.write_bytes(b"")
    found = validate([folder], max_shown=2)
    assert found.findings.counts["unreadable_file"] == 4 and len(found.findings.kept("unreadable_file")) == 2


# ---- json ----


@pytest.fixture
def coco(tmp_path):
    """``coco(split, patients, change)`` writes a json of one slice and lesion a patient, and returns its path."""

    def make(split: str, patients, change=lambda content: None) -> Path:
        lesion = _lung(GGO) == 2
        content = {"info": {"image_root": "../image"}, "categories": [{"id": 1, "name": "lesion"}]}
        content["images"], content["annotations"] = [], []
        for number, patient in enumerate(patients, start=1):
            file = f"{patient}/{split}.png"
            _save(tmp_path / "image" / file, _picture(sum(map(ord, file))))
            content["images"].append(
                {"id": number, "file_name": file, "height": 48, "width": 64, "patient_id": str(patient)}
            )
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [4, 4, 12, 12], "iscrowd": 0}
                | {"segmentation": encode_mask(lesion), "area": 144}
            )
        change(content)
        path = tmp_path / "annotations" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return make


def _of_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


def _of_image(**values):
    return lambda content: content["images"][0].update(values)


DOT = encode_mask(_lung((2, 4, 4, 10, 10)) == 2)
JSON_DEFECTS = {
    "box outside": (_of_annotation(bbox=[60, 4, 12, 12]), "box_outside"),
    "no box": (_of_annotation(bbox=None), "box_outside"),
    "category": (_of_annotation(category_id=2), "label_out_of_range"),
    "no segmentation": (_of_annotation(segmentation=None), "no_segmentation"),
    "no pixel": (_of_annotation(segmentation=encode_mask(np.zeros((48, 64), bool))), "bad_segmentation"),
    "other size": (_of_annotation(segmentation=encode_mask(np.ones((40, 64), bool))), "bad_segmentation"),
    "broken": (_of_annotation(segmentation={"counts": 3}), "bad_segmentation"),
    "too few runs": (_of_annotation(segmentation={"size": [48, 64], "counts": [200, 150]}), "bad_segmentation"),
    "too many pixels": (_of_annotation(segmentation={"size": [48, 64], "counts": [200, 9999]}), "bad_segmentation"),
    "a negative run": (_of_annotation(segmentation={"size": [48, 64], "counts": [-1, 3073]}), "bad_segmentation"),
    "no size": (_of_annotation(segmentation={"counts": [200, 2872]}), "bad_segmentation"),
    "box of corners": (_of_annotation(bbox=[4, 4, 16, 16]), "box_differs"),
    "box beside": (_of_annotation(bbox=[7, 4, 12, 12]), "box_differs"),
    "box beside polygon": (_of_annotation(segmentation=[[1, 4, 13, 4, 13, 16, 1, 16]]), "box_differs"),
    "a point far out": (_of_annotation(segmentation=[[4, 4, 129, 4, 16, 16]]), "bad_segmentation"),
    "a point of NaN": (_of_annotation(segmentation=[[float("nan")] * 6]), "bad_segmentation"),
    "crowd region": (_of_annotation(iscrowd=1), "crowd"),
    "id of a list": (_of_annotation(id=[1]), "bad_entry"),
    "image of a list": (_of_annotation(image_id=[1]), "bad_entry"),
    "crowd": (_of_annotation(iscrowd="no"), "bad_entry"),
    "orphan": (lambda c: c["annotations"].append({"id": 9, "image_id": 77}), "bad_entry"),
    "twice": (lambda c: c["annotations"].append(c["annotations"][0]), "bad_entry"),
    "image without id": (lambda c: c["images"].append({"file_name": "x.png", "height": 1, "width": 1}), "bad_entry"),
    "image twice": (lambda c: c["images"].append(c["images"][0] | {"id": 8}), "bad_entry"),
    "image height": (lambda c: c["images"].append(c["images"][0] | {"id": 8, "height": "48"}), "bad_entry"),
    "file": (lambda c: c["images"].append(c["images"][0] | {"id": 8, "file_name": "1/no.png"}), "missing_file"),
    "long name": (lambda c: c["images"].append(c["images"][0] | {"id": 8, "file_name": "a" * 5000}), "missing_file"),
    "size": (_of_image(height=50), "size_differs"),
    "tiny": (_of_annotation(segmentation=DOT), "tiny_lesion"),
    "patient": (lambda c: c["images"][0].pop("patient_id"), "no_patient"),
    "null patient": (_of_image(patient_id=None), "no_patient"),
    "blank patient": (_of_image(patient_id=""), "no_patient"),
}


@pytest.mark.parametrize("name", JSON_DEFECTS)
def test_one_defect_in_a_json(name, coco):
    change, kind = JSON_DEFECTS[name]
    found = _found(coco("train", [1, 2], change))
    found.pop("no_lesion", None)
    # A mask of the json's own size on an image of another is wrong twice.
    assert found.pop(kind) == 1 and set(found) <= ({"bad_segmentation"} if name == "size" else set())


def test_crowd_regions_are_no_lesions_and_nothing_else_is_an_error(coco):
    found = validate([coco("train", [1, 2], _of_annotation(iscrowd=1))])
    assert (found.errors, found.splits[0].class_counts["lesion"], found.splits[0].without_lesion) == (0, 1, 1)
    assert "1 of 2 annotations have iscrowd 1" in found.findings.kept("crowd")[0].message

    def all_crowd(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    found = validate([coco("train", [1, 2], all_crowd)])
    (one,) = found.findings.kept("all_crowd")
    assert found.errors == 1 and "all 2 annotations have iscrowd 1" in one.message
    assert (found.splits[0].class_counts["lesion"], found.splits[0].without_lesion) == (0, 2)


def test_slices_of_a_flat_json_are_no_patients(coco, tmp_path, capsys):
    def flatten(content):
        content["info"]["image_root"] = "../image/1"
        content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
        content["images"][0]["file_name"] = "train.png"
        del content["images"][0]["patient_id"]

    path = coco("train", [1, 2], flatten)
    found = validate([path])
    assert [entry.patient_id for entry in found.splits[0].slices] == [""] and found.compared is None
    (one,) = found.findings.kept("no_patient")
    assert "neither 'patient_id' nor a folder" in one.message and found.errors == 0
    assert main(["validate", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "train.json: 1 slice of unknown patients (lesion 1)" in capsys.readouterr().out


def test_boxes_may_be_two_pixels_off_and_iscrowd_null(coco):
    assert _found(coco("train", [1, 2], _of_annotation(bbox=[2, 6, 12, 12], iscrowd=None))) == {}
    assert _found(coco("train", [1, 2], _of_annotation(segmentation=[[4, 4, 16, 4, 16, 16, 4, 16]]))) == {}
    found = validate([coco("train", [1, 2], _of_annotation(bbox=[4, 4, 16, 16]))])
    (one,) = found.findings.kept("box_differs")
    assert "annotation 1 of" in one.message and "[4.0, 4.0, 12.0, 12.0]" in one.message and "\n" not in one.message


def test_a_good_json_and_category_ids_with_their_mapping(coco):
    assert _found(coco("train", [1, 2])) == {}

    def renumber(content):
        content["categories"] = [{"id": 7, "name": "GGO"}, {"id": 0, "name": "consolidation"}]
        content["annotations"][0]["category_id"], content["annotations"][1]["category_id"] = 7, 0

    found = validate([coco("train", [1, 2], renumber)])
    (one,) = found.findings.kept("category_ids")
    assert "0 (consolidation) -> 1, 7 (GGO) -> 2" in one.message and found.errors == 1


def _two_classes(content):
    content["categories"].append({"id": 2, "name": "other"})
    content["info"]["mask_type"] = "merge"
    content["annotations"][1]["category_id"] = 2


REFUSED_CATEGORIES = {
    "no name": (lambda c: c["categories"][0].pop("name"), "category_ids"),
    "no id": (lambda c: c["categories"].append({"name": "other"}), "category_ids"),
    "id of a list": (lambda c: c["categories"].append({"id": [2], "name": "other"}), "category_ids"),
    "none": (lambda c: c.update(categories=[], annotations=[]), "category_ids"),
    "two of merge": (_two_classes, "mask_type"),
}


@pytest.mark.parametrize("name", REFUSED_CATEGORIES)
def test_categories_that_training_refuses_are_an_error_with_its_words(name, coco):
    change, kind = REFUSED_CATEGORIES[name]
    path = coco("train", [1, 2], change)
    with pytest.raises(UserError) as refused:
        load_lesion_json(path)
    found = validate([path])
    assert [one.message for one in found.findings.kept(kind)] == [str(refused.value)] and found.errors == 1


def test_more_classes_than_a_mask_type_has_are_an_error(coco):
    def three(content):
        content["categories"] += [{"id": 2, "name": "consolidation"}, {"id": 3, "name": "effusion"}]

    (one,) = validate([coco("train", [1, 2], three)]).findings.kept("mask_type")
    assert "3 lesion classes (lesion, consolidation, effusion)" in one.message


def test_a_patient_in_two_splits_is_an_error(coco):
    found = validate([coco("train", [1, 2, 3]), coco("val", [3, 4])])
    (one,) = found.findings.kept("patient_in_two_splits")
    assert one.file == "3" and found.errors == 1 and found.compared == "splits"
    assert validate([coco("train", [1, 2]), coco("val", [3, 4])]).errors == 0


def _tell_no_patient(content):
    for image in content["images"]:
        del image["patient_id"]


def test_a_folder_that_all_images_of_two_splits_lie_in_is_no_patient(coco, tmp_path, capsys):
    names = [str(coco(split, ["JPEGImages"], _tell_no_patient)) for split in ("train", "val")]
    found = validate(names)
    assert found.errors == 0 and [entry.patient_id for split in found.splits for entry in split.slices] == ["", ""]
    told = [one.message for one in found.findings.kept("no_patient") if "patients are unknown" in one.message]
    assert [message.split(": ")[0] for message in told] == names and all(
        "folder called JPEGImages" in one for one in told
    )
    assert main(["validate", *names, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("1 slice of unknown patients") == 2
    # Their neighbours are looked for then.
    copy = tmp_path / "image/JPEGImages/val.png"
    copy.write_bytes(copy.with_name("train.png").read_bytes())
    assert _found(*names)["near_duplicate"] == 1


def test_one_name_of_several_folders_is_a_patient(coco):
    names = [coco("train", ["p1/CT", "p2/CT"], _tell_no_patient), coco("val", ["p1/CT"], _tell_no_patient)]
    (one,) = validate(names).findings.kept("patient_in_two_splits")
    assert one.file == "CT"


@pytest.mark.parametrize("val", [["p2", "p3"], ["p2"]])
def test_a_patient_by_folder_in_two_splits_is_an_error_that_says_so(coco, val):
    found = validate([coco("train", ["p1", "p2"], _tell_no_patient), coco("val", val, _tell_no_patient)])
    (one,) = found.findings.kept("patient_in_two_splits")
    assert found.errors == 1 and one.file == "p2"
    assert one.message.startswith("Patient p2 (from the folder in file_name; give images a patient_id if that is no ")


def test_one_patient_that_both_splits_tell_is_an_error(coco):
    (one,) = validate([coco("train", ["a"]), coco("val", ["a"])]).findings.kept("patient_in_two_splits")
    assert one.message.startswith("Patient a is in train.json and val.json;")


def test_one_image_in_two_splits(coco, tmp_path):
    train = coco("train", [1, 2])
    copy = tmp_path / "annotations" / "copy.json"
    copy.write_text(train.read_text())
    found = _found(train, copy)
    assert found == {"image_in_two_splits": 2, "patient_in_two_splits": 2}


def test_near_duplicates_across_splits_and_not_within(coco, tmp_path):
    train, val = coco("train", [1, 2]), coco("val", [3, 4])
    brighter = (_picture(sum(map(ord, "1/train.png"))).astype(float) * 0.7 + 40).astype(np.uint8)
    _save(tmp_path / "image/4/val.png", brighter)
    _save(tmp_path / "image/2/train.png", brighter)  # of another patient, but in the same split
    found = validate([train, val])
    (one,) = found.findings.kept("near_duplicate")
    assert one.pictures[0].endswith("4/val.png") and found.errors == 0


# ---- lists ----


def test_a_list_with_bad_lines(tmp_path):
    for number in range(4):
        _save(tmp_path / f"{number}.png", _picture(number))
    lines = ["file,label,patient_id,split", "0.png,0,a,train", "1.png,9,b,train", ",1,b,train", "2.png,1,a,val"]
    lines += ["gone.png,2,c,val", "3.png,normal,d,val"]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines))
    found = validate([path])
    counts = found.findings.counts
    assert (counts["label_out_of_range"], counts["bad_entry"], counts["missing_file"]) == (1, 1, 1)
    assert counts["patient_in_two_splits"] == 1 and found.errors == 4
    assert [split.name for split in found.splits] == ["list.csv:train", "list.csv:val"]
    assert "line 3" in found.findings.kept("label_out_of_range")[0].message
    missing = {one.file for one in found.findings.kept("class_missing")}
    assert missing == {"list.csv:train: common pneumonia", "list.csv:train: COVID-19"}


def test_lists_in_one_folder_with_image_folders_of_their_own(tmp_path):
    names = []
    for split in ("train", "val"):
        _save(tmp_path / split / "0.png", _picture(len(split)))
        (tmp_path / f"{split}.csv").write_text("file,label,patient_id\n0.png,0,a\n")
        names.append(f"validated_{split}_{tmp_path.name}")
        register_slices(names[-1], tmp_path / f"{split}.csv", tmp_path / split)
    assert [one.file for one in validate(names).findings.kept("patient_in_two_splits")] == ["a"]


# ---- the hash ----


def _hamming(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first ^ second).sum())


def test_the_hash_stays_with_brightness_size_and_compression(tmp_path):
    picture = _picture(0, (256, 256))
    plain = perceptual_hash(picture)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=40)
    variants = [
        (picture * 0.5 + 60).astype(np.uint8),
        np.asarray(Image.fromarray(picture).resize((128, 128))),
        np.asarray(Image.open(tmp_path / "a.jpg")),
    ]
    assert all(_hamming(plain, perceptual_hash(one)) <= MAX_DISTANCE for one in variants)
    assert _hamming(plain, perceptual_hash(_picture(1, (256, 256)))) > 70
    assert perceptual_hash(np.full((64, 64), 7, np.uint8)) is None


@pytest.mark.parametrize("block", [(1024, 8192), (3, 4)])
def test_nearest_of_another_group(monkeypatch, block):
    """Against every pair counted one by one, whatever the size of the blocks."""
    monkeypatch.setattr("d2_covid.data.near_duplicates._ROWS", block[0])
    monkeypatch.setattr("d2_covid.data.near_duplicates._COLUMNS", block[1])
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (20, BITS + 1), dtype=np.uint8)
    bits[:, BITS] = 0
    bits[10:] = bits[:10]
    for row in bits[10:]:
        row[rng.choice(BITS, 25, replace=False)] ^= 1
    bits[19] = bits[0]
    hashes = np.packbits(bits, axis=1)
    groups, patients = rng.integers(0, 2, 20).tolist(), rng.integers(0, 6, 20).tolist()
    expected = []
    for i in range(20):
        near = [(_hamming(hashes[i], hashes[j]), j) for j in range(i)
                if groups[i] != groups[j] and patients[i] != patients[j]]  # fmt: skip
        if near and min(near)[0] <= 32:
            expected.append((i, min(near)[1], min(near)[0]))
    assert expected and list(near_duplicates(hashes, groups, patients, 32)) == expected


# ---- the command ----


def test_the_command_writes_json_and_sheet(folder, tmp_path, capsys):
    _save(folder / "mask/1/1.png", _lung((7, 0, 0, 9, 9)))
    (folder / "image/2/1.png").write_bytes(b"torn")
    output = tmp_path / "out"
    assert main(["validate", str(folder), "-o", str(output)]) == 1
    facts = json.loads((output / "validation.json").read_text())
    assert facts["errors"] == 2 and {one["kind"] for one in facts["findings"]} >= {"label_out_of_range"}
    assert all(one["severity"] == KINDS[one["kind"]].severity for one in facts["findings"])
    with Image.open(output / "validation.png") as sheet:
        assert min(sheet.size) > 256 and len(np.unique(np.asarray(sheet))) > 50
    shown = capsys.readouterr().out
    assert "error: label out of range: 1" in shown and str(folder / "image/2/1.png") in shown


def test_status_of_a_good_set_and_of_what_can_not_start(folder, tmp_path, capsys):
    output = tmp_path / "out"
    (output / "sub").mkdir(parents=True)
    (output / "validation.png").write_bytes(b"of an earlier check")
    assert main(["validate", str(folder), "-o", str(output)]) == 0
    assert not (output / "validation.png").exists()
    for item in (tmp_path / "nothing.json", "no_such_set", output / "sub", tmp_path / "no" / "thing"):
        assert main(["validate", str(item), "-o", str(output)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_a_dataset_by_name(coco, tmp_path, monkeypatch):
    coco("merge_train", [1, 2])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path.parent))
    name = f"{tmp_path.name}_merge_train"
    found = validate([name])
    assert found.splits[0].name == name and len(found.splits[0].slices) == 2 and not found.errors
    with pytest.raises(UserError, match="prepare_cncb"):
        validate([f"{tmp_path.name}_ggo_train"])


def test_a_dataset_of_another_mask_type_than_its_name_is_an_error(coco, tmp_path, monkeypatch):
    coco("ggo_train", [1, 2], lambda content: content["info"].update(mask_type="merge"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path.parent))
    found = validate([f"{tmp_path.name}_ggo_train"])
    (one,) = found.findings.kept("mask_type")
    assert found.errors == 1 and "holds 'merge' masks, not 'ggo'" in one.message


@pytest.mark.parametrize("bits, found", [(32, [(1, 0, 32)]), (33, [])])
def test_images_are_near_up_to_32_bits(bits, found):
    signs = np.zeros((2, BITS + 1), np.uint8)
    signs[1, :bits] = 1
    assert list(near_duplicates(np.packbits(signs, axis=1), [0, 1], [0, 1])) == found
