"""Bad input gets one clear line that names the file: through the prepare command, the loader and the mapper."""

import json

from d2_covid.data.cncb import prepare_lesions
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.lesion_masks import read_mask
from d2_covid.data.mappers import LesionDatasetMapper
from d2_covid.data.pairing import pair_cncb
from d2_covid.data.preprocessing import read_slice
from d2_covid.data.splits import split_by_csv, split_by_patients
from d2_covid.errors import UserError

import numpy as np
import pytest
from PIL import Image


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("not an image\n" * 20)


def _larger(path):
    Image.new("L", (65, 48)).save(path)


def _value_7(path):
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = 7
    Image.fromarray(mask).save(path)


BAD_IMAGES = [(_truncate, "is damaged or unreadable"), (_empty, "is an empty file"), (_text, "is not an image")]


def _one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def _prepare(folder, output, **options):
    pairing = pair_cncb(folder)
    return prepare_lesions(pairing, split_by_patients(pairing.pairs, ["2"]), output, progress=False, **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("spoil, message", BAD_IMAGES, ids=["truncated", "empty", "text"])
@pytest.mark.parametrize("read", [read_slice, read_mask])
def test_unreadable_images(tmp_path, suffix, spoil, message, read):
    path = tmp_path / f"slice{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8)).save(path)
    spoil(path)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in _one_line(error) and message in str(error.value)


@pytest.mark.parametrize("make, message", [(lambda p: None, "no such file"), (lambda p: p.mkdir(), "unreadable")])
def test_missing_files_and_folders(tmp_path, make, message):
    make(tmp_path / "slice.png")
    with pytest.raises(UserError, match=message) as error:
        read_slice(tmp_path / "slice.png")
    assert "slice.png" in _one_line(error)


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        *(("image/1/2.jpg", *case) for case in BAD_IMAGES),
        *(("mask/1/2.png", *case) for case in BAD_IMAGES),
        ("image/1/2.jpg", _larger, "is 65x48, but its mask"),
        ("mask/1/2.png", _larger, "is 65x48; they must be of one size"),
        ("mask/1/2.png", _value_7, "holds the value 7; a mask has 0 background, 1 lung"),
    ],
)
def test_preparing_refuses_a_bad_slice_and_can_leave_it_out(small_cncb, tmp_path, file, spoil, message):
    spoil(small_cncb / file)
    with pytest.raises(UserError) as error:
        _prepare(small_cncb, tmp_path / "out")
    assert file in _one_line(error) and message in str(error.value)
    assert not (tmp_path / "out").exists()

    done = _prepare(small_cncb, tmp_path / "out", skip_bad=True)
    assert [s.slices for s in done.splits if s.mask_type == "merge"] == [3, 1]
    assert len(done.warnings()) == 1 and file in done.warnings()[0]


def test_preparing_counts_further_bad_slices(small_cncb, tmp_path):
    for name in ("1/2", "10/1", "2/1"):
        _empty(small_cncb / "image" / f"{name}.jpg")
    with pytest.raises(UserError, match=r"1/2\.jpg is an empty file.* \(2 more bad slices; --skip-bad") as error:
        _prepare(small_cncb, tmp_path / "out")
    _one_line(error)
    with pytest.raises(UserError, match=r"No slice is left for .*merge_val\.json; of 3 bad ones: .*1/2\.jpg"):
        _prepare(small_cncb, tmp_path / "out", skip_bad=True)


def test_image_without_mask_and_mask_without_image(small_cncb, tmp_path):
    (small_cncb / "mask/1/2.png").unlink()
    (small_cncb / "image/10/1.jpg").unlink()
    done = _prepare(small_cncb, tmp_path / "out")
    assert done.warnings() == [
        f"{small_cncb}/image/1/2.jpg has no mask of the same name; left out.",
        f"{small_cncb}/mask/10/1.png has no image of the same name; left out.",
    ]
    assert sum(s.slices for s in done.splits if s.mask_type == "merge") == 3


def test_patient_in_two_splits(small_cncb, tmp_path):
    (tmp_path / "splits.csv").write_text("patient_id,split\n1,train\n2,val\n1,val\n")
    with pytest.raises(UserError) as error:
        split_by_csv(pair_cncb(small_cncb).pairs, tmp_path / "splits.csv")
    assert _one_line(error) == f"{tmp_path}/splits.csv: patient 1 is in two splits, train and val."


@pytest.fixture
def prepared(small_cncb, tmp_path):
    _prepare(small_cncb, tmp_path / "out")
    return tmp_path / "out/annotations/merge_train.json"


def test_json_that_names_a_missing_file(prepared, small_cncb):
    (small_cncb / "image/1/10.jpg").unlink()
    with pytest.raises(UserError) as error:
        load_lesion_json(prepared)
    assert f"{prepared} names 1 missing image, the first is {small_cncb}/image/1/10.jpg" in _one_line(error)


def test_box_outside_its_image(prepared):
    content = json.loads(prepared.read_text())
    content["annotations"][0]["bbox"][0] = 60
    prepared.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_lesion_json(prepared)
    assert "annotation 1 of" in _one_line(error) and "outside its 64x48 image" in str(error.value)


@pytest.mark.parametrize("spoil, message", [*BAD_IMAGES, (_larger, "is 65x48, but its dataset says 64x48")])
def test_slice_that_went_bad_after_preparing(prepared, spoil, message):
    dataset_dict = load_lesion_json(prepared).dicts[0]
    mapper = LesionDatasetMapper(is_train=False, min_sizes=[48], max_size=100)
    assert mapper(dataset_dict)["image"].shape == (3, 48, 64)
    spoil(prepared.parent / dataset_dict["file_name"])
    with pytest.raises(UserError) as error:
        mapper(dataset_dict)
    assert dataset_dict["file_name"] in _one_line(error) and message in str(error.value)
