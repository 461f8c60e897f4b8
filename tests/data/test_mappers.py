"""From dataset dicts to the network's input."""

from d2_covid import get_config
from d2_covid.data.augmentation import AffineTransform, Augmentation
from d2_covid.data.lesion_masks import encode_mask
from d2_covid.data.mappers import LesionDatasetMapper, augmented, lesion_instances, transformed_masks
from d2_covid.data.preprocessing import network_input, read_slice, resize_transform
from d2_covid.errors import UserError

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BoxMode
from fvcore.transforms.transform import BlendTransform, HFlipTransform
from PIL import Image

ALL = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, rotation=15, scale=0.2, intensity=0.2)


def _blob(top, left, height, width, shape=(60, 80)):
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def _annotation(mask, category_id=0, **fields):
    rle = encode_mask(mask)
    box = mask_util.toBbox(rle).tolist()
    return {"segmentation": rle, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **fields}


@pytest.fixture
def sample(tmp_path):
    """``sample(mask, ...)``: dataset dict of a slice whose lesions are bright on dark."""

    def make(*masks, **fields):
        image = np.full((60, 80), 40, dtype=np.uint8)
        for mask in masks:
            image[mask] = 200
        Image.fromarray(image).save(tmp_path / "slice.png")
        return {
            "file_name": str(tmp_path / "slice.png"), "height": 60, "width": 80, "image_id": 3, "patient_id": "1",
            "annotations": [_annotation(mask, i) for i, mask in enumerate(masks)], **fields,
        }  # fmt: skip

    return make


def _mapper(*sizes, max_size=1000, is_train=True, augmentation=None, sampling="choice"):
    return LesionDatasetMapper(
        is_train=is_train, min_sizes=sizes or (60,), max_size=max_size, augmentation=augmentation, sampling=sampling
    )


@pytest.mark.parametrize("min_size, max_size", [(60, 1000), (96, 1000), (96, 100), (31, 1000)])
def test_training_evaluation_and_prediction_see_the_same_bytes(sample, min_size, max_size):
    cfg = get_config(opts=["INPUT.MIN_SIZE_TRAIN", f"({min_size},)", "INPUT.MIN_SIZE_TEST", str(min_size),
                           "INPUT.MAX_SIZE_TRAIN", str(max_size), "INPUT.MAX_SIZE_TEST", str(max_size),
                           "INPUT.RANDOM_FLIP", "none"])  # fmt: skip
    dataset_dict = sample(_blob(10, 20, 15, 12))
    image = read_slice(dataset_dict["file_name"])
    expected = network_input(image, min_size, max_size)
    for is_train in (True, False):
        np.testing.assert_array_equal(LesionDatasetMapper(cfg, is_train)(dataset_dict)["image"], expected)
    rgb = np.repeat(image[..., None], 3, 2)
    detectron2 = ResizeShortestEdge([min_size] * 2, max_size).get_transform(rgb).apply_image(rgb)
    np.testing.assert_array_equal(expected, detectron2.transpose(2, 0, 1))


def test_instances_without_augmentation(sample):
    masks = [_blob(10, 20, 15, 12), _blob(0, 70, 60, 10)]
    output = _mapper()(sample(*masks))
    instances = output["instances"]
    assert instances.image_size == (60, 80)
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), masks)
    assert instances.gt_boxes.tensor.tolist() == [[20, 10, 32, 25], [70, 0, 80, 60]]
    assert instances.gt_classes.tolist() == [0, 1] and instances.gt_classes.dtype == torch.int64
    assert (output["height"], output["width"], output["image_id"]) == (60, 80, 3)
    assert "annotations" not in output


def test_masks_and_boxes_follow_the_resize(sample):
    instances = _mapper(120)(sample(_blob(10, 20, 15, 12)))["instances"]
    assert instances.image_size == (120, 160)
    assert instances.gt_boxes.tensor.tolist() == [[40, 20, 64, 50]]
    assert instances.gt_masks.tensor.sum() == 4 * 15 * 12


@pytest.mark.parametrize("augmentation", [None, ALL])
def test_slice_without_lesions_has_all_fields(sample, augmentation):
    instances = _mapper(augmentation=augmentation)(sample(sample_seed=1))["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.tensor.shape == (0, 60, 80)


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("overlapping", [False, True])
def test_masks_go_through_the_transforms_as_each_would_alone(count, overlapping):
    rng = np.random.default_rng(4)
    masks = np.zeros((count, 60, 80), dtype=bool)
    owner = rng.integers(0, 2 * count, (60, 80))  # half of the pixels belong to nobody
    masks[:] = owner == np.arange(count)[:, None, None]
    masks[1] |= overlapping & masks[0]
    masks[2] = False
    image = np.zeros((60, 80), dtype=np.uint8)
    transforms = ALL.draw(np.random.default_rng(1), image) + resize_transform(60, 80, 90, 1000)
    found = transformed_masks([encode_mask(mask) for mask in masks], transforms, (90, 120))
    expected = [transforms.apply_segmentation(mask.astype(np.uint8)) for mask in masks]
    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.stack(expected))
    annotations = [_annotation(mask, i) for i, mask in enumerate(masks)]
    instances = lesion_instances(annotations, transforms, (90, 120))
    assert instances.gt_classes.tolist() == [i for i, mask in enumerate(expected) if mask.any()]
    np.testing.assert_array_equal(instances.gt_masks.tensor, found[found.any((1, 2))])
    assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)


def test_masks_that_do_not_overlap_are_transformed_255_at_a_time():
    class Counting:
        calls = 0

        def apply_segmentation(self, segmentation):
            self.calls += 1
            return segmentation

    masks = np.zeros((600, 20, 30), dtype=bool)
    masks.reshape(600, -1)[np.arange(600), np.arange(600)] = True
    counting = Counting()
    np.testing.assert_array_equal(transformed_masks([encode_mask(mask) for mask in masks], counting, (20, 30)), masks)
    assert counting.calls == 3


def test_brightness_and_contrast_looked_up_are_those_computed():
    image = np.random.default_rng(2).integers(0, 256, (60, 80), dtype=np.uint8)
    for seed in range(4):
        transforms = ALL.draw(np.random.default_rng(seed), image)
        transforms = transforms + BlendTransform(12.0, 0.3, 0.7) + HFlipTransform(80) + BlendTransform(image, 0.5, 0.5)
        np.testing.assert_array_equal(augmented(image, transforms), transforms.apply_image(image))


def test_lesions_that_vanish_and_crowds_are_dropped(sample):
    dataset_dict = sample(_blob(1, 1, 1, 1), _blob(20, 20, 20, 20))
    dataset_dict["annotations"].append(_annotation(_blob(40, 40, 5, 5), iscrowd=1))
    assert _mapper(15)(dataset_dict)["instances"].gt_classes.tolist() == [1]


def test_dataset_dict_is_left_as_it_was(sample):
    dataset_dict = sample(_blob(5, 5, 5, 5), sample_seed=1)
    _mapper(augmentation=ALL)(dataset_dict)
    assert "image" not in dataset_dict and len(dataset_dict["annotations"]) == 1


def test_augmentation_depends_on_the_sample_seed_alone(sample):
    mapper, dataset_dict = _mapper(60, 90, augmentation=ALL), sample(_blob(10, 20, 15, 12), _blob(40, 50, 15, 12))
    first = mapper({**dataset_dict, "sample_seed": 7})
    np.random.seed(0)
    other = mapper({**dataset_dict, "sample_seed": 8})
    np.random.seed(1)
    again = mapper({**dataset_dict, "sample_seed": 7})
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["instances"].gt_masks.tensor, again["instances"].gt_masks.tensor)
    assert first["image"].shape != other["image"].shape or not torch.equal(first["image"], other["image"])


def test_augmentation_without_a_seed_is_an_error(sample):
    for mapper in (_mapper(augmentation=ALL), _mapper(60, 90)):
        with pytest.raises(ValueError, match="sample_seed"):
            mapper(sample())
    _mapper(60, 60)(sample())


def test_evaluation_is_never_augmented(sample):
    output = _mapper(is_train=False, augmentation=ALL)(sample(_blob(10, 20, 15, 12)))
    assert torch.equal(output["image"], _mapper()(sample(_blob(10, 20, 15, 12)))["image"])


@pytest.mark.parametrize("seed", range(8))
def test_masks_stay_on_their_lesions(sample, seed):
    """Bright lesions are found again where their warped masks say, and boxes fit the masks."""
    geometry = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, rotation=30, scale=0.3)
    output = _mapper(90, augmentation=geometry)(sample(_blob(8, 50, 20, 14), _blob(35, 20, 9, 30), sample_seed=seed))
    bright = output["image"][0] > 120
    masks = output["instances"].gt_masks
    union = masks.tensor.any(0)
    overlap = (bright & union).sum() / (bright | union).sum()
    assert overlap > 0.9
    assert torch.equal(output["instances"].gt_boxes.tensor, masks.get_bounding_boxes().tensor)


@pytest.mark.parametrize("flip, expected", [("horizontal_flip", [48, 10, 60, 25]), ("vertical_flip", [20, 35, 32, 50])])
def test_flips(sample, flip, expected):
    output = _mapper(augmentation=Augmentation(**{flip: 1.0}))(sample(_blob(10, 20, 15, 12), sample_seed=0))
    assert output["instances"].gt_boxes.tensor.tolist() == [expected]
    x0, y0, x1, y1 = expected
    assert (output["image"][0, y0:y1, x0:x1] == 200).all() and (output["image"] == 200).sum() == 3 * 15 * 12


def test_a_quarter_turn_is_exact_and_counter_clockwise():
    image = np.arange(25, dtype=np.uint8).reshape(5, 5)
    turn = AffineTransform(5, 5, 90, 1.0)
    np.testing.assert_array_equal(turn.apply_segmentation(image), np.rot90(image))
    np.testing.assert_array_equal(turn.apply_image(image), np.rot90(image))
    np.testing.assert_allclose(turn.apply_coords(np.array([[5.0, 0.0], [2.5, 2.5]])), [[0, 0], [2.5, 2.5]], atol=1e-9)


def test_warped_masks_hold_no_values_in_between():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 20:40] = 1
    assert set(np.unique(AffineTransform(60, 80, 17, 1.3).apply_segmentation(mask * 255))) == {0, 255}


def test_switching_one_augmentation_on_leaves_the_others(sample):
    image = np.zeros((60, 80), np.uint8)
    alone = Augmentation(rotation=10).draw(np.random.default_rng(3), image).transforms
    both = Augmentation(rotation=10, intensity=0.1).draw(np.random.default_rng(3), image).transforms
    np.testing.assert_array_equal(alone[0].of_pixels, both[0].of_pixels)


@pytest.mark.parametrize(
    "name, value", [("HORIZONTAL_FLIP", 1.5), ("ROTATION", -1.0), ("SCALE", 1.0), ("INTENSITY", -0.1)]
)
def test_augmentation_out_of_range_is_refused(name, value):
    cfg = get_config(opts=[f"INPUT.AUGMENTATION.{name}", str(value)])
    with pytest.raises(UserError, match=f"INPUT.AUGMENTATION.{name} is {value}"):
        LesionDatasetMapper(cfg, True)


@pytest.mark.parametrize(
    "sizes, sampling", [((), "choice"), ((60,), "range"), ((60, 90), "other"), ((90, 60), "range")]
)
def test_training_sizes_that_make_no_sense_are_refused(sizes, sampling):
    with pytest.raises(UserError, match="INPUT.MIN_SIZE_TRAIN"):
        LesionDatasetMapper(is_train=True, min_sizes=sizes, max_size=100, sampling=sampling)


@pytest.mark.parametrize("sampling, allowed", [("choice", {60, 70}), ("range", set(range(60, 71)))])
def test_training_sizes_are_drawn(sample, sampling, allowed):
    mapper = _mapper(60, 70, sampling=sampling)
    heights = {mapper(sample(sample_seed=seed))["image"].shape[1] for seed in range(25)}
    assert heights <= allowed and len(heights) >= 2


def test_both_ends_of_a_range_of_sizes_are_drawn():
    mapper = LesionDatasetMapper(is_train=True, min_sizes=(60, 61), max_size=1000, sampling="range")
    assert {mapper._draw_size(np.random.default_rng(seed)) for seed in range(20)} == {60, 61}
