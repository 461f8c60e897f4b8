"""From folders to COCO jsons: pairing, splitting, and the command that does both."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from d2_covid.data.cncb import check_pairing, prepare_lesions
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.pairing import natural_key, pair_cncb, pair_flat, pair_set, patient_of_flat_name
from d2_covid.data.splits import split_by_csv, split_by_fraction, split_by_lists, split_by_patients
from d2_covid.data.validation import validate
from d2_covid.errors import UserError

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO


def _prepare(folder, output, val=("2",), **options):
    pairing = pair_cncb(folder)
    return prepare_lesions(pairing, split_by_patients(pairing.pairs, val), output, progress=False, **options)


def _names(pairs):
    return [pair.name for pair in pairs]


def _flat(small_cncb, tmp_path) -> tuple[Path, Path]:
    for part in ("image", "mask"):
        (tmp_path / f"{part}s").mkdir()
        for path in (small_cncb / part).glob("*/*"):
            path.rename(tmp_path / f"{part}s" / f"{path.parent.name}_{path.name}")
    return tmp_path / "images", tmp_path / "masks"


# Pairing


def test_pairs_are_in_natural_order(small_cncb):
    pairing = pair_cncb(small_cncb)
    assert _names(pairing.pairs) == ["1/2", "1/10", "2/1", "10/1", "10/2"]
    assert [pair.patient_id for pair in pairing.pairs] == ["1", "1", "2", "10", "10"]


def test_natural_key_orders_numbers_in_names():
    assert sorted(["b1", "a10", "a9", "10", "9", "a"], key=natural_key) == ["9", "10", "a", "a9", "a10", "b1"]


def test_files_are_paired_by_name_not_by_position(small_cncb):
    (small_cncb / "image/1/2.jpg").unlink()
    (small_cncb / "mask/2/1.png").unlink()
    pairing = pair_cncb(small_cncb)
    assert _names(pairing.pairs) == ["1/10", "10/1", "10/2"]
    assert all(p.image.stem == p.mask.stem and p.image.parent.name == p.mask.parent.name for p in pairing.pairs)
    assert pairing.images_without_mask == (small_cncb / "image/2/1.jpg",)
    assert pairing.masks_without_image == (small_cncb / "mask/1/2.png",)


def test_folder_of_the_download_is_found(small_cncb, tmp_path):
    (tmp_path / "download").mkdir()
    small_cncb.rename(tmp_path / "download" / "ct_lesion_seg")
    assert len(pair_cncb(tmp_path / "download").pairs) == 5


def test_two_images_of_one_name_are_refused(small_cncb):
    Image.new("L", (64, 48)).save(small_cncb / "image/1/2.png")
    with pytest.raises(UserError, match=r"2\.(jpg|png) and .*2\.(jpg|png) are one slice by name"):
        pair_cncb(small_cncb)


@pytest.mark.parametrize("missing", ["image", "mask"])
def test_other_folders_are_told_what_is_expected(small_cncb, missing):
    (small_cncb / missing).rename(small_cncb / "other")
    with pytest.raises(UserError, match=r"no folders image/ and mask/.*slice>\.png\)\.$"):
        pair_cncb(small_cncb)


def test_symbolic_links_are_followed(small_cncb, tmp_path):
    (tmp_path / "link").mkdir()
    for part in ("image", "mask"):
        (tmp_path / "link" / part).symlink_to(small_cncb / part)
    assert len(pair_cncb(tmp_path / "link").pairs) == 5


@pytest.mark.parametrize(
    "name, patient",
    [("0_115", "0"), ("100_27", "100"), ("12_3_4", "12"), ("0_1728_1013_0023", "1728"), ("Normal_17_42_0000", "17")],
)
def test_patient_of_a_flat_name(name, patient):
    assert patient_of_flat_name(name) == patient


@pytest.mark.parametrize("name", ["115", "_115", "a_b_c_d_e"])
def test_flat_names_without_a_patient_are_refused(name):
    with pytest.raises(UserError, match=f"{name}: this file name tells no patient"):
        patient_of_flat_name(name)


def test_flat_layout(small_cncb, tmp_path):
    pairing = pair_flat(*_flat(small_cncb, tmp_path))
    assert _names(pairing.pairs) == ["1_2", "1_10", "2_1", "10_1", "10_2"]
    assert [pair.patient_id for pair in pairing.pairs] == ["1", "1", "2", "10", "10"]


def test_flat_layout_with_names_of_ones_own(make_cncb, slice_mask, tmp_path):
    make_cncb({"P07-slice-003": slice_mask(), "P8-slice-1": slice_mask()})
    images, masks = tmp_path / "source/image", tmp_path / "source/mask"
    assert [p.patient_id for p in pair_flat(images, masks, r"^P0*(\d+)-").pairs] == ["7", "8"]
    for pattern, message in (("x(", "not a regular"), ("P", "needs a group"), ("(Q)", "finds no patient")):
        with pytest.raises(UserError, match=message):
            pair_flat(images, masks, pattern)


# Splitting


def test_split_by_patients(small_cncb):
    splits = split_by_patients(pair_cncb(small_cncb).pairs, ["10"])
    assert {k: _names(v) for k, v in splits.items()} == {"train": ["1/2", "1/10", "2/1"], "val": ["10/1", "10/2"]}


@pytest.mark.parametrize("val, message", [(["7"], "No slices of patient 7"), (["1", "2", "10"], "Every patient")])
def test_split_by_patients_refuses(small_cncb, val, message):
    with pytest.raises(UserError, match=message):
        split_by_patients(pair_cncb(small_cncb).pairs, val)


def test_split_by_fraction_is_seeded_and_by_patient(make_cncb, slice_mask):
    pairs = pair_cncb(make_cncb({f"{p}/{s}": slice_mask() for p in range(10) for s in range(2)})).pairs
    splits = [split_by_fraction(pairs, 0.3, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        train, val = ({p.patient_id for p in split[k]} for k in ("train", "val"))
        assert len(val) == 3 and len(train) == 7 and not train & val
    assert len(split_by_fraction(pairs, 0.001, 0)["val"]) == 2
    for fraction in (0, 1, -1):
        with pytest.raises(UserError, match="between 0 and 1"):
            split_by_fraction(pairs, fraction, 0)
    with pytest.raises(UserError, match="needs two or more"):
        split_by_fraction(pairs[:2], 0.5, 0)


def test_split_by_csv(small_cncb, tmp_path):
    table = tmp_path / "splits.csv"
    table.write_text("patient_id, split\n10, test\n1, train\n1, train\n", encoding="utf-8-sig")
    splits = split_by_csv(pair_cncb(small_cncb).pairs, table)
    assert {k: _names(v) for k, v in splits.items()} == {"train": ["1/2", "1/10"], "test": ["10/1", "10/2"]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("patient_id,split\n1,train\n1,val\n", "patient 1 is in two splits, train and val"),
        ("patient_id,split\n77,train\n", "names patient 77, who has no slices"),
        ("patient,split\n1,train\n", "columns patient_id and split"),
        ("patient_id,split\n1,\n", "line 2: give a patient and its split"),
        ("patient_id,split\n", "splits.csv names no patient"),
        ("patient_id,split\n1,my_split\n", "letters, digits and hyphens"),
        ("", "columns patient_id and split"),
    ],
)
def test_split_by_csv_refuses(small_cncb, tmp_path, text, message):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        split_by_csv(pair_cncb(small_cncb).pairs, tmp_path / "splits.csv")


def test_split_by_lists(small_cncb, tmp_path):
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("imgs\\10_2.jpg\n\n10_1.jpg\n10_1.jpg\n")
    val.write_text("1_10\nsome/where/1_2.png\n")
    splits = split_by_lists(pair_flat(*_flat(small_cncb, tmp_path)).pairs, {"train": train, "val": val})
    assert {k: _names(v) for k, v in splits.items()} == {"train": ["10_1", "10_2"], "val": ["1_2", "1_10"]}


def test_split_by_lists_of_the_cncb_layout(small_cncb, tmp_path):
    (tmp_path / "train.txt").write_text("image/10/2.jpg\n1/2.jpg\n")
    splits = split_by_lists(pair_cncb(small_cncb).pairs, {"train": tmp_path / "train.txt"})
    assert _names(splits["train"]) == ["1/2", "10/2"]


@pytest.mark.parametrize(
    "train, val, message",
    [
        ("1_2", "1_10", r"val.txt, line 1: patient 1 is in two splits, train and val \(slice 1_10\)"),
        ("1_2", "3_1", "val.txt, line 1: 3_1 has no image and mask"),
        ("1_2", " \n", "val.txt lists no slice"),
    ],
)
def test_split_by_lists_refuses(small_cncb, tmp_path, train, val, message):
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "val.txt").write_text(val)
    with pytest.raises(UserError, match=message):
        split_by_lists(
            pair_flat(*_flat(small_cncb, tmp_path)).pairs,
            {"train": tmp_path / "train.txt", "val": tmp_path / "val.txt"},
        )


# Preparing


def test_prepared_jsons_say_what_is_in_the_masks(small_cncb, tmp_path):
    done = _prepare(small_cncb, tmp_path / "sets" / "small")
    found = {(s.split, s.mask_type): (s.patients, s.slices, s.slices_without_lesion, s.instances) for s in done.splits}
    assert found[("train", "merge")] == (2, 4, 2, {"lesion": {"small": 2, "medium": 0, "large": 0}})
    assert found[("train", "ggo")] == (2, 4, 3, {"GGO": {"small": 1, "medium": 0, "large": 0}})
    assert found[("val", "both")][3] == {
        "GGO": {"small": 1, "medium": 0, "large": 0},
        "consolidation": {"small": 1, "medium": 0, "large": 0},
    }
    assert dict(done.splits[0].dropped) == {("lesion", "100 pixels or fewer"): 1}
    assert "dropped: 1 component of lesion (100 pixels or fewer)" in done.text()
    assert not done.warnings()


def test_json_is_coco(small_cncb, tmp_path):
    _prepare(small_cncb, tmp_path / "sets" / "small", min_area=0, source="somewhere")
    path = tmp_path / "sets/small/annotations/both_train.json"
    content = json.loads(path.read_text())
    assert content["info"] == {
        "description": "",
        "mask_type": "both",
        "min_area": 0,
        "image_root": str(small_cncb / "image"),
        "source": "somewhere",
        "version": "1",
    }
    assert [i["file_name"] for i in content["images"]] == ["1/2.jpg", "1/10.jpg", "10/1.jpg", "10/2.jpg"]
    assert [i["patient_id"] for i in content["images"]] == ["1", "1", "10", "10"]
    assert content["categories"] == [{"id": 1, "name": "GGO"}, {"id": 2, "name": "consolidation"}]
    coco = COCO(str(path))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        image = coco.loadImgs(annotation["image_id"])[0]
        values = np.asarray(Image.open((small_cncb / "mask" / image["file_name"]).with_suffix(".png")))
        assert set(values[mask > 0]) == {annotation["category_id"] + 1}
        assert annotation["area"] == mask.sum()


def test_images_inside_the_sets_are_found_after_a_move(small_cncb, tmp_path):
    (tmp_path / "sets").mkdir()
    small_cncb.rename(tmp_path / "sets" / "small")
    _prepare(tmp_path / "sets" / "small", tmp_path / "sets" / "small")
    content = json.loads((tmp_path / "sets/small/annotations/merge_val.json").read_text())
    assert content["info"]["image_root"] == "../image"


@pytest.mark.parametrize("linked_when_prepared", [True, False])
def test_images_beside_a_linked_set_are_found(small_cncb, tmp_path, linked_when_prepared):
    """The way up from a link to a folder leads elsewhere by name than by file system."""
    base, store = tmp_path / "sets", tmp_path / "far" / "store"
    (store / "small").mkdir(parents=True)
    base.mkdir()
    (base / "small").symlink_to(store / "small")
    images = (base if linked_when_prepared else store) / "raw"
    small_cncb.rename(images)
    _prepare(images, (base if linked_when_prepared else store) / "small")
    json_file = base / "small/annotations/merge_val.json"
    assert json.loads(json_file.read_text())["info"]["image_root"] == "../../raw/image"
    assert load_lesion_json(json_file).image_root == (images / "image").resolve()
    assert not list(validate([str(json_file)]).findings.kept("missing_file"))


def test_same_files_give_same_bytes(small_cncb, tmp_path):
    for output in ("a/small", "b/small"):
        _prepare(small_cncb, tmp_path / output)
    files = sorted((tmp_path / "a/small/annotations").iterdir())
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (tmp_path / "b/small/annotations" / path.name).read_bytes()


def test_sizes_are_cocos(make_cncb, tmp_path):
    masks = {}
    for patient, area in enumerate((1023, 1024, 9215, 9216)):
        mask = np.zeros(128 * 128, dtype=np.uint8)
        mask[:area] = 2
        masks[f"{patient}/1"] = mask.reshape(128, 128)
    masks["val/1"] = np.zeros((128, 128))
    done = _prepare(make_cncb(masks), tmp_path / "out", val=["val"], mask_types=["merge"])
    assert done.splits[0].instances == {"lesion": {"small": 1, "medium": 2, "large": 1}}


def test_masks_without_consolidation_are_remarked_on(make_cncb, slice_mask, tmp_path):
    source = make_cncb({"1/1": slice_mask((2, 0, 0, 20, 20)), "2/1": slice_mask()})
    assert any("use --mask-types merge" in line for line in _prepare(source, tmp_path / "out").warnings())
    assert not _prepare(source, tmp_path / "out", mask_types=["merge"]).warnings()


def test_binary_masks_are_remarked_on(make_cncb, slice_mask, tmp_path):
    lesion = np.zeros((48, 64))
    lesion[4:20, 4:20] = 1
    source = make_cncb({"1/1": lesion, "2/1": np.zeros((48, 64))})
    (warning,) = _prepare(source, tmp_path / "out").warnings()
    assert "No mask holds a lesion" in warning and "binary masks" in warning and "write them as 2" in warning


def test_slices_in_no_split_are_counted(small_cncb, tmp_path):
    pairing = pair_cncb(small_cncb)
    done = prepare_lesions(pairing, {"train": list(pairing.pairs[:2])}, tmp_path / "out", progress=False)
    assert done.warnings() == ["3 slices belong to no split; left out."]


def test_jsons_of_another_split_are_named_and_stay(small_cncb, tmp_path):
    output = tmp_path / "out"
    _prepare(small_cncb, output, val=["1", "2"])
    assert not _prepare(small_cncb, output, val=["1", "2"], mask_types=["merge"]).warnings()
    for name in ("both_old_train", "notes", "ggo_broken"):
        (output / f"annotations/{name}.json").write_text("[]")
    done = _prepare(small_cncb, output, val=["1"], mask_types=["merge"])
    (warning,) = done.warnings()
    names = "both_train.json, both_val.json, ggo_train.json, ggo_val.json"
    assert warning.startswith(f"{output / 'annotations'} keeps") and f": {names}. " in warning and "\n" not in warning
    assert all(path.is_file() for path in done.of_another_split) and len(done.of_another_split) == 4
    assert not _prepare(small_cncb, output, val=["1"]).warnings()


def test_a_split_prepared_apart_is_of_another_split_only_where_it_shares_patients(small_cncb, tmp_path):
    pairing = pair_cncb(small_cncb)
    by_patient = {p: [pair for pair in pairing.pairs if pair.patient_id == p] for p in ("1", "2", "10")}

    def prepare(**splits):
        chosen = {split: by_patient[patient] for split, patient in splits.items()}
        return prepare_lesions(pairing, chosen, tmp_path / "out", mask_types=["merge"], progress=False).of_another_split

    assert prepare(test="10") == prepare(train="1", val="2") == ()
    assert [path.name for path in prepare(train="1", val="10")] == ["merge_test.json"]


def test_strict_refuses_files_without_partner(small_cncb):
    check_pairing(pair_cncb(small_cncb))
    (small_cncb / "mask/1/2.png").unlink()
    (small_cncb / "mask/2/1.png").unlink()
    with pytest.raises(UserError, match=r"1/2\.jpg has no mask of the same name \(and 1 more like it\)"):
        check_pairing(pair_cncb(small_cncb))


def test_slices_at_another_depth_are_named(small_cncb, tmp_path):
    for part, suffix in (("image", "jpg"), ("mask", "png")):
        scan = small_cncb / part / "7" / "scan1"
        scan.mkdir(parents=True)
        (small_cncb / part / "1" / f"2.{suffix}").rename(scan / f"1.{suffix}")
        (small_cncb / part / ".hidden").mkdir()
        (small_cncb / part / ".hidden" / f"1.{suffix}").touch()
    (small_cncb / "image" / "10" / "1.jpg").rename(small_cncb / "image" / "loose.jpg")
    pairing = pair_set(small_cncb)
    elsewhere = {path.relative_to(small_cncb).as_posix() for path in pairing.out_of_place}
    assert elsewhere == {"image/7/scan1/1.jpg", "image/loose.jpg", "mask/7/scan1/1.png"}
    assert _names(pairing.pairs) == ["1/10", "2/1", "10/2"]
    done = prepare_lesions(pairing, {"train": list(pairing.pairs)}, tmp_path / "out", progress=False)
    assert sum("lies in another folder" in line for line in done.warnings()) == 3
    (small_cncb / "mask" / "10" / "1.png").unlink()
    with pytest.raises(UserError, match=r"7/scan1/1\.jpg lies in another folder .* \(and 2 more like it\)"):
        check_pairing(pair_set(small_cncb))


def test_where_slices_lie_instead_is_said(small_cncb):
    for part in ("image", "mask"):
        patients = list((small_cncb / part).iterdir())
        (small_cncb / part / "all").mkdir()
        for folder in patients:
            folder.rename(small_cncb / part / "all" / folder.name)
    with pytest.raises(UserError, match=r"no images in its folders, one for each patient, .* as .*image/all/1/10\.jpg"):
        pair_cncb(small_cncb)


def test_a_folder_without_images_makes_a_flat_set_no_other(small_cncb, tmp_path):
    for folder, name in zip(_flat(small_cncb, tmp_path), ("image", "mask"), strict=True):
        folder.rename(tmp_path / name)
    for name in ("notes", ".ipynb_checkpoints", "@eaDir"):
        (tmp_path / "image" / name).mkdir()
    (tmp_path / "image" / "@eaDir" / "thumb.jpg").touch()
    assert len(pair_set(tmp_path).pairs) == 5 and not pair_set(tmp_path).out_of_place


def test_a_flat_set_in_the_folder_of_the_download(small_cncb, tmp_path, prepare_cncb):
    for folder, name in zip(_flat(small_cncb, tmp_path), ("image", "mask"), strict=True):
        (tmp_path / "X" / "ct_lesion_seg").mkdir(parents=True, exist_ok=True)
        folder.rename(tmp_path / "X" / "ct_lesion_seg" / name)
    for layout in ("auto", "flat"):
        args = prepare_cncb.build_parser().parse_args(["--source", str(tmp_path / "X"), "--layout", layout])
        assert len(prepare_cncb.find_pairs(args).pairs) == len(pair_set(tmp_path / "X").pairs) == 5


# The command


@pytest.fixture(scope="module")
def prepare_cncb(repository):
    """The command as a module."""
    spec = importlib.util.spec_from_file_location("prepare_cncb", repository / "datasets/prepare_cncb.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "either --source, or --images and --masks"),
        (["--images", "a"], "both --images and --masks"),
        (["--source", "a", "--images", "a", "--masks", "b"], "either --source"),
        (["--images", "a", "--masks", "b", "--layout", "cncb"], "for the flat layout"),
        (["--source", "nowhere"], "nowhere: no such folder"),
        (["--source", "{}", "--patient-pattern", "(.)"], "for the flat layout"),
        (["--source", "{}", "--val-patients", "1", "--val-fraction", "0.5"], "--val-patients and --val-fraction are"),
        (["--source", "{}", "--val-fraction", "2"], "between 0 and 1"),
        (["--source", "{}", "--min-area", "-1"], "--min-area is -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(prepare_cncb, small_cncb, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare_cncb.main([*(a.format(small_cncb) for a in arguments), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output, expected", [(".", "here"), ("../sets", "sets"), ("..", None), ("a/b", "b")])
def test_a_set_has_the_name_of_its_folder(prepare_cncb, tmp_path, monkeypatch, output, expected):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    parse = prepare_cncb.build_parser().parse_args
    expected = expected or tmp_path.name
    assert prepare_cncb.output_folder(parse(["--output", output])).name == expected
    assert prepare_cncb.output_folder(parse(["--output", output, "--name", expected])).name == expected
    with pytest.raises(UserError, match=f"--name other and --output .* here {expected}; leave out one"):
        prepare_cncb.output_folder(parse(["--output", output, "--name", "other"]))


def test_layout_is_told_by_the_folders(prepare_cncb, small_cncb, tmp_path):
    find = lambda *a: prepare_cncb.find_pairs(prepare_cncb.build_parser().parse_args([*map(str, a)]))  # noqa: E731
    assert _names(find("--source", small_cncb).pairs)[0] == "1/2"
    images, masks = _flat(small_cncb, tmp_path)
    assert _names(find("--images", images, "--masks", masks).pairs)[0] == "1_2"
    images.rename(tmp_path / "image")
    masks.rename(tmp_path / "mask")
    assert _names(find("--source", tmp_path).pairs)[0] == "1_2"


def test_without_a_choice_a_fifth_of_the_patients_validates(prepare_cncb, make_cncb, slice_mask, tmp_path):
    source = make_cncb({f"{patient}/1": slice_mask() for patient in range(10)})
    args = prepare_cncb.build_parser().parse_args(["--source", str(source)])
    splits = prepare_cncb.make_splits(args, prepare_cncb.find_pairs(args))
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 8, "val": 2}


def _command(repository, *arguments, root):
    return subprocess.run(
        [sys.executable, repository / "datasets/prepare_cncb.py", *map(str, arguments)],
        capture_output=True, text=True, env={"DETECTRON2_DATASETS": str(root), "PATH": ""}, timeout=120,
    )  # fmt: skip


def test_command_prepares_and_reports(repository, small_cncb, tmp_path):
    (small_cncb / "mask/1/2.png").unlink()
    result = _command(
        repository, "--source", small_cncb, "--name", "mine", "--mask-types", "merge", "--val-patients", 10,
        root=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "mine/annotations/merge_train.json").is_file()
    assert f"warning: {small_cncb}/image/1/2.jpg has no mask of the same name; left out." in result.stderr
    assert "2 patients, 2 slices, 0 of them without a lesion" in result.stdout
    assert "mine_merge_train, mine_merge_val" in result.stdout


def test_command_warns_of_jsons_of_another_split(prepare_cncb, small_cncb, tmp_path, capsys):
    arguments = ["--source", str(small_cncb), "--output", str(tmp_path / "mine")]
    assert prepare_cncb.main([*arguments, "--val-patients", "1", "2"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert prepare_cncb.main([*arguments, "--val-patients", "1", "--mask-types", "merge"]) == 0
    assert f"warning: {tmp_path / 'mine/annotations'} keeps jsons of another split" in capsys.readouterr().err


def test_command_ends_with_one_line_and_status_2(repository, small_cncb, tmp_path):
    (small_cncb / "image/1/2.jpg").write_bytes(b"")
    result = _command(repository, "--source", small_cncb, "--val-patients", 10, root=tmp_path)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "1/2.jpg is an empty file" in errors[0]
    assert "Traceback" not in result.stderr and not (tmp_path / "cncb").exists()


def test_the_patients_drawn_are_the_same_everywhere(make_cncb, slice_mask):
    pairs = pair_cncb(make_cncb({f"{p}/1": slice_mask() for p in range(12)})).pairs
    # Pinned: whoever prepares a published split again must get it, whatever the order of files or of Python's sets.
    for order in (pairs, pairs[::-1]):
        assert {pair.patient_id for pair in split_by_fraction(order, 0.3, 0)["val"]} == {"2", "4", "7", "9"}
    assert len(split_by_fraction(pairs, 0.23, 0)["val"]) == 3, "2.76 of 12, rounded"
