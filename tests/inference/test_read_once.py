"""An image file is decoded once and resized once on its way to the network."""

from pathlib import Path

from d2_covid.cli import main
from d2_covid.data.augmentation import Augmentation
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.data.mappers import LesionDatasetMapper
from d2_covid.data.slice_mapper import SliceMapper

import numpy as np
import pytest
from detectron2.data.transforms import ResizeTransform
from PIL import Image, ImageFile

COUNT, SHAPE = 3, (48, 60)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A PNG file and two JPEG files."""
    folder = tmp_path / "slices"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        image = Image.fromarray(rng.integers(0, 256, SHAPE, dtype=np.uint8))
        image.save(folder / f"{index}.{'jpg' if index else 'png'}")
    return folder


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that Pillow has decoded; to read a header is not to decode."""
    names, plain = [], ImageFile.ImageFile.load

    def load(self):
        if self.tile:  # what is still to be decoded
            names.append(Path(self.filename).name)
        return plain(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return names


@pytest.fixture
def resized(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the slices that were resized; masks, which go by their nearest pixel, are not among them."""
    shapes, plain = [], ResizeTransform.apply_image

    def apply_image(self, image, interp=None):
        if interp is None:
            shapes.append(image.shape)
        return plain(self, image, interp)

    monkeypatch.setattr(ResizeTransform, "apply_image", apply_image)
    return shapes


def sample(file: Path) -> dict:
    """The dataset dict of a slice with three lesions, which overlap."""
    masks = np.zeros((3, *SHAPE), bool)
    for number, mask in enumerate(masks):
        mask[10:30, 5 + 10 * number : 20 + 10 * number] = True
    annotations = [{"segmentation": encode_mask(mask), "category_id": 0} for mask in masks]
    height, width = SHAPE
    return {"file_name": str(file), "height": height, "width": width, "annotations": annotations, "sample_seed": 1}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("mapper", [LesionDatasetMapper, SliceMapper])
def test_in_training_and_evaluation(mapper, is_train, folder, decoded, resized):
    augmentation = Augmentation(horizontal_flip=0.5, rotation=15, scale=0.2, intensity=0.2)
    mapper = mapper(is_train=is_train, min_sizes=(64,), max_size=100, augmentation=augmentation)
    files = sorted(folder.iterdir())
    for file in files:
        output = mapper(sample(file))
        assert output["image"].shape == (3, 64, 80)
        assert "instances" not in output or len(output["instances"]) == 3
    assert decoded == [file.name for file in files]
    assert resized == [SHAPE] * COUNT


def test_in_prediction(folder, decoded, resized, make_weights, tmp_path):
    weights, output = make_weights("segmentation/mask_rcnn_R_18_T2_FPN.yaml"), tmp_path / "out"
    # Not the report: it reads again the slices that it shows, so that no more than one is held at a time.
    arguments = ["--weights", weights, "--device", "cpu", "--score-threshold", "0", "--save", "json,overlays"]
    assert main(["predict", str(folder), "-o", str(output), *map(str, arguments)]) == 0
    assert len(list((output / "slices" / "overlays").glob("000*.png"))) == COUNT
    assert decoded == [file.name for file in sorted(folder.iterdir())]
    assert resized == [SHAPE] * COUNT
