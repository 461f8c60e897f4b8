"""The two sets, found and described; what is missing is refused in a sentence."""

import shutil

from d2_covid.errors import UserError
from d2_covid.paper_tables import VALIDATION_PATIENTS
from d2_covid.tables.sources import PAPER_SPLIT, find_class_set, find_lesion_set

import numpy as np
import pytest
from PIL import Image


def cncb(folder, patients, slices=5):
    """CNCB's layout, in files that hold nothing yet: only names count."""
    for patient in patients:
        for part, suffix in (("image", "jpg"), ("mask", "png")):
            (folder / part / str(patient)).mkdir(parents=True)
            for number in range(slices):
                (folder / part / str(patient) / f"{number * 23}.{suffix}").touch()
    return folder


def test_the_papers_split_is_the_default(tmp_path):
    found = find_lesion_set(cncb(tmp_path / "ct_lesion_seg", range(150)).parent)
    assert found.slices == {"train": 650, "val": 100} and found.patients == {"train": 130, "val": 20}
    assert found.split == PAPER_SPLIT and found.departures == []
    backwards = find_lesion_set(tmp_path, val_patients=[str(patient) for patient in reversed(VALIDATION_PATIENTS)])
    assert backwards.fingerprint == found.fingerprint and backwards.departures == []
    shutil.rmtree(tmp_path / "ct_lesion_seg" / "image" / "3")
    fewer = find_lesion_set(tmp_path)
    assert fewer.slices["train"] == 645 and "645 training" in fewer.departures[0]
    assert fewer.fingerprint != found.fingerprint


def test_other_patients_ask_for_a_choice(tmp_path):
    cncb(tmp_path, ["a", "b", "c", VALIDATION_PATIENTS[0]])
    with pytest.raises(UserError, match="not all of the paper's 20 validation patients; give --val-fraction"):
        find_lesion_set(tmp_path)
    assert find_lesion_set(tmp_path, val_patients=["b"]).slices == {"train": 15, "val": 5}
    drawn = find_lesion_set(tmp_path, val_fraction=0.5, seed=3)
    assert drawn.split == ("--val-fraction", "0.5", "--seed", "3") and drawn.patients == {"train": 2, "val": 2}
    assert "not that of the paper" in drawn.departures[0]
    with pytest.raises(UserError, match="ways to split; give one"):
        find_lesion_set(tmp_path, val_patients=["b"], val_fraction=0.5)


def test_lists_and_the_flat_layout(tmp_path):
    for part in ("image", "mask"):
        (tmp_path / part).mkdir()
        for name in ("1_5", "1_6", "2_5"):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / part / f"{name}.png")
    (tmp_path / "train.txt").write_text("1_5.jpg\n1_6.jpg\n")
    (tmp_path / "val.txt").write_text("2_5.jpg\n")
    lists = {"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"}
    assert find_lesion_set(tmp_path, **lists).slices == {"train": 2, "val": 1}
    with pytest.raises(UserError, match="both --train-list and --val-list"):
        find_lesion_set(tmp_path, train_list=tmp_path / "train.txt")


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder; --cncb"):
        find_lesion_set(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folders image/ and mask/"):
        find_lesion_set(tmp_path)
    with pytest.raises(UserError, match="no such folder; --covidx"):
        find_class_set(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no list train_COVIDx-CT.txt; give the one you mean as --covidx-train"):
        find_class_set(tmp_path)


def test_covidx_lists_and_images_are_found(phantoms, tmp_path):
    found = find_class_set(phantoms / "covidx_ct")
    assert found.images.name == "COVIDx-CT" and found.train.name == "train_COVIDx-CT.txt"
    assert found.subset == 0 and found.training_slices == sum(found.slices["train"]) > 0
    assert min(found.slices["test"]) > 0 and len(found.departures) == 2
    assert find_class_set(phantoms / "covidx_ct", subset=3).training_slices == 3
    (tmp_path / "test_COVIDx_CT-2A.txt").write_text(found.test.read_text())
    for name in ("train_COVIDx_CT-2A.txt", "train_COVIDx_CT-3A.txt"):
        (tmp_path / name).write_text(found.train.read_text())
    with pytest.raises(UserError, match="several lists .*2A.txt, .*3A.txt.*--covidx-train"):
        find_class_set(tmp_path)
    with pytest.raises(UserError, match="has no image .*give the folder of the images as --covidx-images"):
        find_class_set(tmp_path, train=tmp_path / "train_COVIDx_CT-3A.txt")
    elsewhere = find_class_set(tmp_path, train=tmp_path / "train_COVIDx_CT-3A.txt", images=found.images)
    assert elsewhere.slices == found.slices
