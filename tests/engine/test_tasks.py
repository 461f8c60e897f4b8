"""What a task trains on."""

import json

from d2_covid import get_config
from d2_covid.data import datasets
from d2_covid.data.datasets import register_lesions
from d2_covid.engine.tasks import lesion_train_dicts
from d2_covid.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def crowds(lesion_sets, tmp_path):
    """``crowds(share)`` registers the training set with this share of its annotations as crowd regions."""

    def register(share: float) -> None:
        path = lesion_sets["train"]
        content = json.loads(path.read_text())
        content["info"]["image_root"] = str(path.parent / "image")
        annotations = content["annotations"]
        for annotation in annotations[: int(share * len(annotations))]:
            annotation["iscrowd"] = 1
        (tmp_path / "crowds.json").write_text(json.dumps(content))
        register_lesions("crowds", tmp_path / "crowds.json")

    yield register
    DatasetCatalog.remove("crowds")
    MetadataCatalog.remove("crowds")
    datasets._sources.pop("crowds")


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
