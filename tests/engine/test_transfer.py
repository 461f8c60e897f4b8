"""Batches packed into one buffer and unpacked again."""

from d2_covid.engine.loader import Batches, shuffled_order, train_batches
from d2_covid.engine.transfer import PackedBatch, pack, unpack_bits
from d2_covid.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

CPU = torch.device("cpu")


def lesions(index: int, size: tuple[int, int], count: int, gray: bool = True) -> dict:
    generator = torch.Generator().manual_seed(index)
    instances = Instances(size, gt_boxes=Boxes(torch.rand(count, 4, generator=generator)))
    instances.gt_classes = torch.randint(0, 2, (count,), generator=generator)
    instances.gt_masks = BitMasks(torch.rand(count, *size, generator=generator) < 0.5)
    image = torch.randint(0, 256, (1 if gray else 3, *size), dtype=torch.uint8, generator=generator)
    name = f"{index}.png"
    return {"file_name": name, "height": 7, "image": image.expand(3, -1, -1), "instances": instances}


def assert_same(found: list[dict], expected: list[dict]) -> None:
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor):
                assert ours[key].dtype == value.dtype and torch.equal(ours[key], value)
            elif isinstance(value, Instances):
                assert ours[key].image_size == value.image_size and len(ours[key]) == len(value)
                assert torch.equal(ours[key].gt_boxes.tensor, value.gt_boxes.tensor)
                assert torch.equal(ours[key].gt_classes, value.gt_classes)
                assert ours[key].gt_masks.tensor.dtype == torch.bool
                assert torch.equal(ours[key].gt_masks.tensor, value.gt_masks.tensor)
            else:
                assert ours[key] == value


@pytest.mark.parametrize(
    "batch",
    [
        [lesions(0, (12, 17), 3), lesions(1, (12, 17), 0), lesions(2, (9, 5), 2)],
        [lesions(0, (12, 17), 0)],
        [lesions(0, (6, 7), 2, gray=False), lesions(1, (6, 7), 1)],
        [{"image": torch.zeros(3, 4, 5, dtype=torch.uint8), "image_class": 2}],
        [{"ranked_rows": torch.rand(6, 5), "image_class": 1, "file_name": "a"}] * 2,
    ],
)
def test_a_batch_comes_back_as_it_was(batch):
    packed = pack(batch)
    assert isinstance(packed, PackedBatch)
    assert_same(packed.unpack(CPU), batch)


def test_gray_images_and_masks_travel_light():
    packed = pack([lesions(0, (64, 64), 4)])
    assert packed.buffer.numel() < 64 * 64 + 4 * 64 * 64 / 8 + 200


def test_bits_are_numpys():
    packed = torch.randint(0, 256, (37,), dtype=torch.uint8)
    assert torch.equal(unpack_bits(packed), torch.from_numpy(np.unpackbits(packed.numpy()).astype(bool)))


def test_what_is_no_sample_stays():
    batch = [UserError("a.png: no such file."), lesions(0, (4, 4), 1)]
    assert pack(batch) is batch
    with pytest.raises(UserError, match="a.png: no such file"):
        next(iter(Batches([pack(batch)], CPU)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to send batches to")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_arrive_on_the_gpu(num_workers):
    dicts = [lesions(i, (12, 17), i) for i in range(4)]
    options = {"batch_size": 2, "seed": 5, "num_workers": num_workers, "start_iter": 0, "max_iter": 3}
    there = list(train_batches(dicts, dict, shuffled_order(4, 5), device=torch.device("cuda"), **options))
    here = list(train_batches(dicts, dict, shuffled_order(4, 5), device=CPU, **options))
    for ours, expected in zip(there, here, strict=True):
        assert all(sample["image"].is_cuda and sample["instances"].gt_masks.tensor.is_cuda for sample in ours)
        back = [dict(x, image=x["image"].cpu(), instances=x["instances"].to("cpu")) for x in ours]
        assert_same(back, expected)
