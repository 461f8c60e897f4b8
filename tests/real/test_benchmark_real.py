"""The torchvision peers on real slices, at the paper's size; skipped where they are absent."""

from d2_covid import get_config
from d2_covid.benchmark import context, inputs
from d2_covid.benchmark.classification_peer import TorchvisionClassifier
from d2_covid.benchmark.detectors import with_soft_masks
from d2_covid.benchmark.differences import differences
from d2_covid.benchmark.weights import spread_weights

import pytest
import torch
from detectron2.modeling import build_model


@pytest.fixture(scope="module")
def slices(real_data, tmp_path_factory):
    found = inputs.load_inputs(tmp_path_factory.mktemp("inputs"), real=real_data, slices=4)
    return found.network_inputs(3, 512, 1024)


@pytest.fixture(scope="module", params=["R_18_T1", "R_18_T2", "R_34_T1"])
def model(request, slices):
    """A config with all detections shown, and spread weights of its model."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg = get_config(f"segmentation/mask_rcnn_{request.param}_FPN.yaml", opts)
    return cfg, spread_weights(build_model(context.plain_parts(cfg)), slices[:2]).state_dict()


def test_the_peer_finds_the_same_128_lesions(model, slices):
    plain, peer = (context.build_candidate(name, *model, slices) for name in (context.PLAIN, context.TORCHVISION))
    for image in slices[:2]:
        found = differences(with_soft_masks(plain, image), with_soft_masks(peer, image))
        assert found.detections > 100 and found.unmatched == 0
        assert found.box_px < 1e-3 and found.score < 1e-4 and found.soft_mask < 1e-4 and found.mask_pixels == 0


def test_the_classification_peer_gives_the_same_logits(model, slices):
    cfg = context.classifier_config(model[0])
    names = (context.PLAIN, context.TORCHVISION)
    plain, peer = (context.build_candidate(name, cfg, model[1], slices) for name in names)
    assert isinstance(peer, TorchvisionClassifier)
    with torch.inference_mode():
        ours, theirs = (torch.stack([x["image_logits"] for x in m(context.records(slices))]) for m in (plain, peer))
    assert torch.allclose(ours, theirs, atol=1e-4) and ours.std() > 0.01
