from d2_covid.errors import UserError
from d2_covid.modeling import LesionBoxPredictor

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

LOGITS = torch.tensor([[3.0, 2.0, 4.0], [-1.0, 0.0, 5.0]])  # two RoIs; two classes and the background
DELTAS = torch.zeros(2, 8)


def predictor(score_function=None, cls=LesionBoxPredictor):
    torch.manual_seed(0)
    kwargs = {} if score_function is None else {"score_function": score_function}
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return cls(ShapeSpec(channels=4), box2box_transform=transform, num_classes=2, test_score_thresh=0.75, **kwargs)


def proposals(**fields):
    boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60]]))
    return [Instances((64, 64), proposal_boxes=boxes, **fields)]


def test_softmax_is_the_default_and_detectron2s():
    own, stock = predictor(), predictor(cls=FastRCNNOutputLayers)
    assert own.score_function == "softmax"
    ours, theirs = (p.predict_probs((LOGITS, DELTAS), proposals())[0] for p in (own, stock))
    assert torch.equal(ours, theirs)


def test_sigmoid_scores_are_independent_of_the_other_classes():
    module = predictor("sigmoid")
    (scores,) = module.predict_probs((LOGITS, DELTAS), proposals())
    assert torch.equal(scores[:, :2], LOGITS[:, :2].sigmoid())
    changed = LOGITS.clone()
    changed[:, 1:] += 7
    (again,) = module.predict_probs((changed, DELTAS), proposals())
    assert torch.equal(again[:, 0], scores[:, 0])


def test_one_roi_gives_two_detections_under_sigmoid_and_none_under_softmax():
    counts = {}
    for function in ("softmax", "sigmoid"):
        (instances,), _ = predictor(function).inference((LOGITS, DELTAS), proposals())
        counts[function] = instances.pred_classes.tolist()
    assert counts == {"softmax": [], "sigmoid": [0, 1]}


def test_scores_are_split_by_image():
    two = proposals() + [Instances((64, 64), proposal_boxes=Boxes(torch.zeros(0, 4)))]
    assert [len(s) for s in predictor("sigmoid").predict_probs((LOGITS, DELTAS), two)] == [2, 0]


def test_training_is_the_same_for_both():
    labelled = proposals(gt_classes=torch.tensor([0, 2]), gt_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]] * 2)))
    with EventStorage():
        losses = [predictor(f).losses((LOGITS, DELTAS), labelled) for f in ("softmax", "sigmoid")]
    assert losses[0] == losses[1]


def test_unknown_score_function_is_refused():
    with pytest.raises(UserError, match="softmax, sigmoid, not 'tanh'"):
        predictor("tanh")


def test_config_key_reaches_the_segmentation_model(tiny_model):
    name = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
    model = tiny_model("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid", config_file=name)
    assert model.roi_heads.box_predictor.score_function == "sigmoid"
