"""The classification peer ranks as COVID-CT-Mask-Net does, and learns the same."""

from d2_covid.benchmark.classification_peer import TorchvisionClassifier

import pytest
import torch

CONFIG = "classification/covid_ct_mask_net_R_18_T2_FPN"


def _pair(cfg, spread_model):
    model = spread_model(cfg)
    peer = TorchvisionClassifier(cfg)
    peer.load_detectron2(model.state_dict(), cfg)
    return model, peer.eval()


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MODEL.CLASSIFIER.FEATURES", "boxes"],
        ["MODEL.CLASSIFIER.SCORE_THRESH", 0.9],  # too few: repeats
        ["MODEL.CLASSIFIER.SCORE_THRESH", 1.0],  # none at all
        ["MODEL.ROI_HEADS.NUM_CLASSES", 2],
        ["MODEL.MASK_ON", True],
    ],
)
def test_same_ranked_rows_and_logits(opts, small_cfg, spread_model, slices):
    cfg = small_cfg(CONFIG, *opts)
    model, peer = _pair(cfg, spread_model)
    batch = [{"image": image} for image in slices]
    with torch.no_grad():
        ours, theirs = model.ranked_rows(batch), peer.ranked_rows(batch)
        logits = [torch.stack([one["image_logits"] for one in m(batch)]) for m in (model, peer)]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(*logits, atol=1e-5)
    assert bool(ours.abs().sum() > 0) == (opts != ["MODEL.CLASSIFIER.SCORE_THRESH", 1.0])


def test_same_training_step(small_cfg, spread_model, slices):
    cfg = small_cfg(CONFIG)
    model, peer = _pair(cfg, spread_model)
    model.train(), peer.train()
    batch = [{"image": image, "image_class": number} for number, image in enumerate(slices)]
    losses = [m(batch)["loss_image"] for m in (model, peer)]
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-5)
    ours = model.backbone.bottom_up.stem.conv1.norm.weight.grad
    theirs = peer.detector.backbone.body.bn1.weight.grad
    assert ours.abs().sum() > 0 and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, peer)]
    assert trained[0] == trained[1]
    assert not peer.detector.training and peer.image_classifier.training


def test_drawn_repeats_are_refused(small_cfg):
    with pytest.raises(ValueError, match="evenly"):
        TorchvisionClassifier(small_cfg(CONFIG, "MODEL.CLASSIFIER.PADDING", "sampled"))
