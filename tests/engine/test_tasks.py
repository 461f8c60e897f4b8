"""What a task trains on."""

import json
import logging

from d2_covid import get_config
from d2_covid.data import datasets
from d2_covid.data.datasets import register_lesions
from d2_covid.engine.tasks import lesion_train_dicts
from d2_covid.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def changed(lesion_sets, tmp_path):
    """``changed(name, change)`` registers the training set, after ``change(content)``, under that name."""
    names = []

    def register(name: str, change) -> None:
        path = lesion_sets["train"]
        content = json.loads(path.read_text())
        content["info"]["image_root"] = str(path.parent / "image")
        change(content)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_lesions(name, tmp_path / f"{name}.json")
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        datasets._sources.pop(name)


@pytest.fixture
def crowds(changed):
    """``crowds(share)`` registers the training set with this share of its annotations as crowd regions."""

    def register(share: float) -> None:
        def change(content):
            annotations = content["annotations"]
            for annotation in annotations[: int(share * len(annotations))]:
                annotation["iscrowd"] = 1

        changed("crowds", change)

    return register


@pytest.mark.parametrize("leave_out_empty", [False, True])
def test_a_training_set_of_crowd_regions_alone_is_refused(crowds, leave_out_empty):
    crowds(1)
    cfg = get_config(opts=["DATASETS.TRAIN", "('crowds',)"])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = leave_out_empty
    with pytest.raises(UserError, match=r"crowds of DATASETS.TRAIN: all \d annotations have iscrowd 1.*set it to 0"):
        lesion_train_dicts(cfg)


@pytest.mark.parametrize("leave_out_empty, count", [(False, 6), (True, 2)])
def test_crowd_regions_among_lesions_are_left_out(crowds, leave_out_empty, count):
    crowds(0.5)
    cfg = get_config(opts=["DATASETS.TRAIN", "('crowds',)"])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = leave_out_empty
    assert len(lesion_train_dicts(cfg)) == count


@pytest.mark.parametrize("leave_out_empty", [False, True])
def test_a_training_set_without_a_lesion_is_refused(changed, leave_out_empty):
    changed("bare", lambda content: content.update(annotations=[]))
    cfg = get_config(opts=["DATASETS.TRAIN", "('bare',)"])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = leave_out_empty
    with pytest.raises(UserError, match=r"No slice of DATASETS.TRAIN \(bare\) has a lesion.*give annotations"):
        lesion_train_dicts(cfg)


@pytest.mark.parametrize("second", [0, 1])
def test_lesions_are_counted_by_class_and_an_absent_class_is_said(changed, caplog, second):
    def change(content):
        content["info"]["mask_type"] = "both"
        content["categories"] = [{"id": 1, "name": "GGO"}, {"id": 2, "name": "consolidation"}]
        content["annotations"][0] |= {"category_id": 1 + second}
        content["annotations"][1] |= {"iscrowd": 1}  # no lesion

    changed("two", change)
    cfg = get_config(opts=["DATASETS.TRAIN", "('two',)"])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    with caplog.at_level(logging.INFO):
        assert len(lesion_train_dicts(cfg)) == 6
    counts = f"3 lesions (GGO {3 - second}, consolidation {second}), on 3 of 6 slices"
    assert f"DATASETS.TRAIN (two): {counts}" in caplog.text
    told = [record.message for record in caplog.records if "can't be learned" in record.message]
    assert told == ["No lesion of DATASETS.TRAIN (two) is of class consolidation: it can't be learned."] * (1 - second)


def test_training_sets_may_call_their_one_class_by_two_names(changed):
    for name in ("opacity", "infiltrate"):
        changed(name, lambda content, name=name: content["categories"][0].update(name=name))
    cfg = get_config(opts=["DATASETS.TRAIN", "('opacity', 'infiltrate')"])
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    assert len(lesion_train_dicts(cfg)) == 8
