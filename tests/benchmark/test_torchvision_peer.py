"""The torchvision peer is the same model: what it finds, and what it learns from, with converted weights."""

from d2_covid.benchmark.detectors import TorchvisionDetector, with_soft_masks
from d2_covid.benchmark.differences import differences
from d2_covid.benchmark.torchvision_peer import (
    as_peer_images,
    as_peer_targets,
    build_torchvision_peer,
    convert_to_torchvision,
)
from d2_covid.errors import UserError

import pytest
import torch
from detectron2.utils.events import EventStorage

SEGMENTATION = ["R_18_T1", "R_18_T2", "R_18_full", "R_34_T2", "R_18_T1_FPN_both"]


def _peer(cfg, model):
    peer = build_torchvision_peer(cfg)
    peer.load_state_dict(convert_to_torchvision(model.state_dict(), cfg))
    return peer


def _config(name: str) -> str:
    return f"segmentation/mask_rcnn_{name}" + ("" if "FPN" in name else "_FPN")


@pytest.mark.parametrize("name", SEGMENTATION)
def test_same_detections_and_masks(name, small_cfg, spread_model, slices):
    cfg = small_cfg(_config(name))
    model = spread_model(cfg)
    peer = TorchvisionDetector(_peer(cfg, model))
    for image in slices:
        found = differences(with_soft_masks(model, image), with_soft_masks(peer, image))
        assert found.detections > 10 and found.unmatched == 0
        assert found.box_px < 1e-3 and found.score < 1e-4 and found.soft_mask < 1e-4
        assert found.mask_pixels == 0


def test_other_weights_are_told_apart(small_cfg, spread_model, slices):
    cfg = small_cfg(_config("R_18_T2"))
    model, other = spread_model(cfg), spread_model(cfg, seed=1)
    peer = TorchvisionDetector(_peer(cfg, other))
    assert differences(with_soft_masks(model, slices[0]), with_soft_masks(peer, slices[0])).unmatched > 0


def test_a_batch_gives_what_each_slice_gives(small_cfg, spread_model, slices):
    cfg = small_cfg(_config("R_18_T2"))
    peer = TorchvisionDetector(_peer(cfg, spread_model(cfg)))
    with torch.no_grad():
        together = peer([{"image": image, "height": 128, "width": 128} for image in slices])
    for image, output in zip(slices, together, strict=True):
        alone = with_soft_masks(peer, image)
        found = differences(alone, output["instances"])
        assert found.unmatched == 0 and found.score < 1e-5 and found.pasted_iou > 0.999


@pytest.mark.parametrize("name", ["R_18_T1", "R_18_T2", "R_34_T1"])
def test_same_training_losses(name, small_cfg, spread_model, slices, truth):
    """With the same draw of RoIs; Detectron2's box losses made as smooth as torchvision's fixed ones."""
    beta = ["MODEL.RPN.SMOOTH_L1_BETA", 1 / 9, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 1 / 9]
    # Detectron2's own training: ours draws other random numbers.
    stock = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
    cfg = small_cfg(_config(name), *beta, *stock)
    model = spread_model(cfg)
    peer = _peer(cfg, model)
    batch = [{"image": image, "instances": truth(image)} for image in slices[:2]]
    model.train(), peer.train()
    torch.manual_seed(3)
    with EventStorage():
        ours = model(batch)
    torch.manual_seed(3)
    theirs = peer(as_peer_images([x["image"] for x in batch]), as_peer_targets(batch))
    names = {
        "loss_rpn_cls": "loss_objectness",
        "loss_rpn_loc": "loss_rpn_box_reg",
        "loss_cls": "loss_classifier",
        "loss_box_reg": "loss_box_reg",
    }
    for our_name, their_name in names.items():
        assert float(ours[our_name].detach()) == pytest.approx(float(theirs[their_name].detach()), rel=1e-4), our_name
    # torchvision's mask targets are soft and half a pixel aside.
    assert float(ours["loss_mask"].detach()) == pytest.approx(float(theirs["loss_mask"].detach()), rel=0.15)
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    gradient = model.proposal_generator.rpn_head.objectness_logits.weight.grad
    assert torch.allclose(gradient, peer.rpn.head.cls_logits.weight.grad, rtol=1e-3, atol=1e-6)
    assert gradient.abs().sum() > 0


def test_every_tensor_of_the_peer_is_converted(small_cfg, spread_model):
    cfg = small_cfg(_config("R_34_full"))
    model = spread_model(cfg)
    converted = convert_to_torchvision(model.state_dict(), cfg)
    assert converted.keys() == build_torchvision_peer(cfg).state_dict().keys()
    # Nothing of ours is lost: the peer has the background's box and mask on top, the settings below are buffers.
    size = sum(v.numel() for k, v in model.state_dict().items() if k not in ("pixel_mean", "pixel_std"))
    size -= sum(v.numel() for k, v in model.state_dict().items() if "anchor_generator" in k)
    head = cfg.MODEL.ROI_BOX_HEAD.FC_DIM + 1
    assert sum(v.numel() for v in converted.values()) == size + 4 * head + cfg.MODEL.ROI_MASK_HEAD.CONV_DIM + 1


@pytest.mark.parametrize(
    "key, value", [("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid"), ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign")]
)
def test_what_torchvision_cannot_express_is_refused(key, value, small_cfg):
    with pytest.raises(UserError, match=f"{key} .*{value}"):
        build_torchvision_peer(small_cfg(_config("R_18_T2"), key, value))


def test_results_leave_at_the_size_of_the_slice(small_cfg, spread_model, slices):
    cfg = small_cfg(_config("R_18_T2"))
    model = spread_model(cfg)
    peer = TorchvisionDetector(_peer(cfg, model))
    with torch.no_grad():
        (ours,), (theirs,) = (m([{"image": slices[0], "height": 64, "width": 192}]) for m in (model, peer))
    found = differences(ours["instances"], theirs["instances"])
    assert theirs["instances"].pred_masks.shape[1:] == (64, 192)
    assert found.detections > 10 and found.unmatched == 0 and found.box_px < 1e-3
