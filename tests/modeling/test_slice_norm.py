"""BatchNorm that trained on one slice at a time, predicting as it trained."""

from d2_covid import get_config
from d2_covid.errors import UserError
from d2_covid.modeling.slice_norm import trains_batch_norm, with_slice_statistics

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

CONFIG = "segmentation/mask_rcnn_R_18_T1_FPN.yaml"


def lesion_model(*opts: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(get_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "8", *opts]))
    for norm in model.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_var, 2.0, 3.0)
    return model


def slices(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        (found,) = model.backbone(images).values()
    return found


def test_it_predicts_as_batches_of_one_trained():
    model = lesion_model().eval()
    images = slices(1)
    made = with_slice_statistics(model)
    assert not any(module.training for module in made.modules())
    running, own = features(model, images), features(made, images)
    trained = features(model.train(), images)
    torch.testing.assert_close(own, trained, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(running, trained, rtol=0.1)


def test_a_slice_is_the_same_in_every_batch():
    made, images = with_slice_statistics(lesion_model().eval()), slices(3)
    together = features(made, images)
    for number in range(3):
        torch.testing.assert_close(together[number : number + 1], features(made, images[number : number + 1]))


def test_the_model_stays_as_it_is():
    model = lesion_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features(with_slice_statistics(model), slices(1))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("norm", ["GN", "FrozenBN"])
def test_other_norms_are_refused(norm):
    model = lesion_model("MODEL.RESNETS.NORM", norm)
    assert not trains_batch_norm(model.train())
    with pytest.raises(UserError, match="MODEL.RESNETS.NORM BN.*has none"):
        with_slice_statistics(model)


def test_when_batch_norm_trains():
    model = lesion_model()
    assert trains_batch_norm(model.train()) and not trains_batch_norm(model.eval())
