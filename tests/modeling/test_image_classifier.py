import math

from d2_covid import get_config
from d2_covid.modeling import ImageClassifier, image_loss, image_scores

import pytest
import torch

LOGITS = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
CLASSES = torch.tensor([0, 2])


@pytest.mark.parametrize("num_rois, hidden, parameters", [(128, 512, 592_387), (256, 1024, 2_364_419)])
def test_parameter_counts(num_rois, hidden, parameters):
    module = ImageClassifier(num_rois=num_rois, hidden_dim=hidden, num_classes=3)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_sizes_come_from_config():
    opts = ["MODEL.CLASSIFIER.NUM_ROIS", "4", "MODEL.CLASSIFIER.HIDDEN_DIM", "6", "MODEL.CLASSIFIER.NUM_CLASSES", "2"]
    module = ImageClassifier(get_config(opts=opts))
    assert module(torch.rand(7, 4, 5)).shape == (7, 2)


def softplus(x):
    return math.log1p(math.exp(x))


def test_bce_is_the_mean_over_classes_and_images():
    first = (softplus(-2) + softplus(-1) + softplus(0)) / 3
    assert image_loss(LOGITS, CLASSES).item() == pytest.approx((first + math.log(2)) / 2, rel=1e-6)


def test_cross_entropy():
    first = math.log(math.exp(2) + math.exp(-1) + 1) - 2
    assert image_loss(LOGITS, CLASSES, "ce").item() == pytest.approx((first + math.log(3)) / 2, rel=1e-6)


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_class_weights_weigh_images(loss):
    single = [image_loss(LOGITS[i : i + 1], CLASSES[i : i + 1], loss).item() for i in range(2)]
    weighted = image_loss(LOGITS, CLASSES, loss, class_weights=(1, 5, 3)).item()
    assert weighted == pytest.approx((1 / 3 * single[0] + 3 / 3 * single[1]) / 2, rel=1e-6)
    # As where processes, or a validation, take one image each.
    alone = [image_loss(LOGITS[i : i + 1], CLASSES[i : i + 1], loss, (1, 5, 3)).item() for i in range(2)]
    assert weighted == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert image_loss(LOGITS[:1], CLASSES[:1], loss, (0, 1, 1)).item() == 0
    assert image_loss(LOGITS, CLASSES, loss, (2, 2, 2)).item() == pytest.approx(sum(single) / 2, rel=1e-6)


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="bce, ce"):
        image_loss(LOGITS, CLASSES, "mse")


def test_temperature_changes_confidence_but_not_the_class():
    cold, hot = image_scores(LOGITS), image_scores(LOGITS, 4.0)
    assert torch.allclose(hot.sum(-1), torch.ones(2))
    assert hot[0].max() < cold[0].max()
    assert torch.equal(hot.argmax(-1), cold.argmax(-1))
