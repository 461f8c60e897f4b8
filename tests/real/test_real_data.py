"""Preparing and reading real CT; skipped where it is absent."""

import json
from collections import Counter

from d2_covid.data.cncb import prepare_lesions
from d2_covid.data.coco_json import load_lesion_json
from d2_covid.data.mappers import LesionDatasetMapper
from d2_covid.data.pairing import Pairing, pair_cncb
from d2_covid.data.preprocessing import network_input, read_slice
from d2_covid.data.splits import split_by_patients

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

VALIDATION = {"radiopaedia": ["1", "4"], "coronacases": ["6", "7"]}
SLICES = {
    "radiopaedia": {"1": 43, "2": 19, "3": 184, "4": 27, "6": 9, "9": 74},
    "coronacases": {"1": 53, "2": 40, "3": 40, "4": 38, "5": 39, "6": 24, "7": 31},
}


@pytest.fixture(scope="module", params=["radiopaedia", "coronacases"])
def pairing(request, real_data) -> tuple[str, Pairing]:
    return request.param, pair_cncb(real_data / request.param)


def test_every_slice_has_its_mask(pairing):
    name, pairs = pairing
    assert not pairs.images_without_mask and not pairs.masks_without_image
    found = Counter(pair.patient_id for pair in pairs.pairs)
    # Folders may hold further patients; those that are named here are whole.
    assert {patient: found[patient] for patient in SLICES[name]} == SLICES[name]


def test_prepared_jsons_agree_with_the_masks(pairing, tmp_path):
    """A few slices of each patient through the whole preparation, recounted from the mask files."""
    name, whole = pairing
    by_patient: dict[str, list] = {}
    for pair in whole.pairs:
        by_patient.setdefault(pair.patient_id, []).append(pair)
    pairs = [pair for patient in by_patient.values() for pair in patient[:: max(1, len(patient) // 3)]]
    mask_types = ["merge"] if name == "coronacases" else ["merge", "ggo", "both"]
    done = prepare_lesions(
        whole, split_by_patients(pairs, VALIDATION[name]), tmp_path / name, mask_types=mask_types, progress=False
    )
    of_image = {pair.image: pair.mask for pair in pairs}
    for summary in done.splits:
        loaded = load_lesion_json(summary.json_file)
        assert len(loaded.dicts) == summary.slices
        assert {d["patient_id"] for d in loaded.dicts}.isdisjoint(VALIDATION[name]) == (summary.split == "train")
        values = {"merge": [[2, 3]], "ggo": [[2]], "both": [[2], [3]]}[summary.mask_type]
        for dataset_dict in loaded.dicts:
            mask = np.asarray(Image.open(of_image[type(whole.image_root)(dataset_dict["file_name"])]))
            mapped = LesionDatasetMapper(is_train=False, min_sizes=[0], max_size=9999)(dataset_dict)["instances"]
            for category, of_class in enumerate(values):
                union = mapped.gt_masks.tensor[mapped.gt_classes == category].any(0).numpy()
                assert not union[~np.isin(mask, of_class)].any()
                missed, count = ndimage.label(np.isin(mask, of_class) & ~union, np.ones((3, 3)))
                assert count == 0 or np.bincount(missed.ravel())[1:].max() <= 100


def test_slices_with_only_consolidation_are_labelled_consolidation(real_data, tmp_path):
    whole = pair_cncb(real_data / "radiopaedia")
    only = []
    for pair in whole.pairs:
        values = set(np.unique(np.asarray(Image.open(pair.mask))))
        if 3 in values and 2 not in values:
            only.append(pair)
    assert len({pair.patient_id for pair in only}) >= 1
    prepare_lesions(whole, {"train": only}, tmp_path / "only", mask_types=["both"], progress=False)
    content = json.loads((tmp_path / "only/annotations/both_train.json").read_text())
    assert len(content["images"]) == len(only) and content["annotations"]
    assert {a["category_id"] for a in content["annotations"]} == {2}


def test_network_input_of_real_slices(pairing):
    _, pairs = pairing
    image = read_slice(pairs.pairs[10].image)
    tensor = network_input(image, 512, 1024)
    assert tensor.shape == (3, 512, 512)
    assert abs(float(tensor[0].float().mean()) - image.mean()) < 1
