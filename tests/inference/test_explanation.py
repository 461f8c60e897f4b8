import math

from d2_covid.data.preprocessing import window_to_uint8
from d2_covid.inference.explanation import Explanation, explain, explain_slice, removal_effects, row_contributions
from d2_covid.inference.predictor import Predictor
from d2_covid.modeling import ImageClassifier, image_loss, repeat_in_place

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

D = 24


def linear_classifier():
    """Module S without a bend: weight w per number, class 1 sees their negative."""
    weight = torch.arange(1.0, D * 5 + 1) / 50
    layer = nn.Linear(D * 5, 2)
    layer.weight.data = torch.stack((weight, -weight))
    layer.bias.data = torch.tensor([0.5, -0.5])
    return nn.Sequential(nn.Flatten(), layer)


def ranked(kept: int, seed: int = 0, high: float = 1.0) -> Instances:
    """``kept`` detections with descending scores, repeated to D rows."""
    generator = torch.Generator().manual_seed(seed)
    detection = repeat_in_place(torch.tensor([kept]), D)[0]
    scores = (torch.rand(kept, generator=generator) * high).sort(descending=True).values
    deltas = torch.randn(kept, 4, generator=generator) * 0.3
    rows = torch.cat((scores[:, None], deltas), dim=1)[detection]
    boxes = Boxes(torch.arange(kept, dtype=torch.float32)[detection, None].repeat(1, 4))
    return Instances((64, 64), pred_boxes=boxes, scores=rows[:, 0], rows=rows, detection=detection)


class Model(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.image_classifier = classifier

    def output(self, instances):
        with torch.no_grad():
            return {"ranked": instances, "image_logits": self.roi_heads.image_classifier(instances.rows[None])[0]}


@pytest.fixture(scope="module")
def trained():
    """Module S that learned, from toy batches, to tell images with high scores from those with low ones."""
    torch.manual_seed(0)
    model = Model(ImageClassifier(num_rois=D, hidden_dim=32, num_classes=3))
    highs = (0.1, 0.5, 1.0)
    rows = torch.stack([ranked(D, seed, highs[seed % 3]).rows for seed in range(240)])
    classes = torch.arange(240) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        image_loss(model.roi_heads.image_classifier(rows), classes).backward()
        optimizer.step()
    accuracy = (model.roi_heads.image_classifier(rows).argmax(1) == classes).float().mean()
    assert accuracy > 0.95
    return model


def test_contributions_of_a_linear_classifier_are_exact():
    classifier, instances = linear_classifier(), ranked(10)
    contributions = row_contributions(classifier, instances.rows, 1)
    logit = classifier(instances.rows[None])[0, 1]
    assert contributions.sum().item() == pytest.approx(logit.item() + 0.5, abs=1e-5)
    explanation = explain(Model(classifier), Model(classifier).output(instances))
    assert torch.allclose(explanation.contributions, explanation.removal, atol=1e-5)
    assert explanation.agreement == pytest.approx(1)


def test_repeats_are_summed_to_their_detection():
    model, instances = Model(linear_classifier()), ranked(5)
    explanation = explain(model, model.output(instances))
    by_row = row_contributions(model.roi_heads.image_classifier, instances.rows, explanation.image_class)
    for i in range(5):
        rows = by_row[instances.detection == i]
        assert len(rows) in (4, 5)
        assert explanation.contributions[i].item() == pytest.approx(rows.sum().item(), abs=1e-6)
    assert explanation.shares.abs().sum().item() == pytest.approx(1)
    assert explanation.instances.pred_boxes.tensor[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(300, 312))
def test_gradient_and_removal_agree_in_rank_order(trained, seed):
    explanation = explain(trained, trained.output(ranked(D, seed, (0.1, 0.5, 1.0)[seed % 3])))
    assert explanation.agreement > 0.8


def test_removing_what_speaks_for_a_class_lowers_its_logit(trained):
    explanation = explain(trained, trained.output(ranked(D, 302, 1.0)))
    best, worst = explanation.contributions.argmax(), explanation.contributions.argmin()
    assert explanation.removal[best] > 0 > explanation.removal[worst]


def test_predicted_class_is_the_default(trained):
    output = trained.output(ranked(D, 301, 1.0))
    assert explain(trained, output).image_class == int(output["image_logits"].argmax())
    assert explain(trained, output, 0).image_class == 0


def test_removal_keeps_the_other_rows_in_place():
    classifier, instances = linear_classifier(), ranked(D)
    rows = instances.rows.clone()
    rows[3] = 0
    expected = classifier(instances.rows[None])[0, 0] - classifier(rows[None])[0, 0]
    assert removal_effects(classifier, instances.rows, instances.detection, 0)[3].item() == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_an_image_without_detections(trained):
    nothing = ranked(D)[:0]
    explanation = explain(trained, {"ranked": nothing, "image_logits": torch.tensor([0.1, 0.3, 0.2])})
    assert explanation.image_class == 1
    assert len(explanation.contributions) == len(explanation.instances) == 0
    assert math.isnan(explanation.agreement)


def test_one_detection_has_the_whole_share(trained):
    explanation = explain(trained, trained.output(ranked(1)))
    assert explanation.shares.abs().tolist() == [1]
    assert math.isnan(explanation.agreement)


def test_explaining_leaves_no_gradient_behind(trained):
    trained.zero_grad()
    with torch.no_grad():
        explain(trained, trained.output(ranked(D)))
    assert all(p.grad is None for p in trained.parameters())


@pytest.fixture(scope="module")
def classifier(classifier_weights):
    return Predictor(weights=classifier_weights, device="cpu", score_threshold=0.0)


def test_a_slice_explained_by_itself_and_in_a_result(classifier, scans):
    gray = window_to_uint8(scans.body(1)[0], -600, 1500)  # not square
    found, alone = classifier.slice(gray).contributions, explain_slice(classifier.model, gray, classifier.cfg)
    np.testing.assert_allclose(found.boxes, alone.instances.pred_boxes.tensor, atol=1e-3)
    assert found.boxes[:, 3].max() > 0 and (found.boxes.max(axis=0) <= [48, 40, 48, 40]).all()
    assert not torch.allclose(alone.contributions, alone.removal, rtol=1e-3)
    for name in ("contributions", "shares", "removal"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.sign(found.shares), np.sign(found.contributions))
    assert (found.shares < 0).any() and (found.shares > 0).any()


def test_agreement_is_of_ranks():
    numbers = torch.zeros(2), torch.tensor([1.0, 2, 3]), torch.zeros(3), torch.tensor([1.0, 10, 1000])
    assert Explanation(0, *numbers, instances=None).agreement == pytest.approx(1)
