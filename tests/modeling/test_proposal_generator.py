"""LesionRPN beside Detectron2's RPN: the same weights, losses, gradients and proposals."""

from d2_covid import get_config
from d2_covid.modeling.proposal_generator import LesionRPN

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SIZES = [(128, 128), (120, 128), (128, 96)]
EVERYTHING = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.RPN.POSITIVE_FRACTION", "0.5")
ONE_LEVEL, FOUR_LEVELS = "segmentation/mask_rcnn_R_18_T1_FPN.yaml", "segmentation/mask_rcnn_R_50_FPN.yaml"


def networks(*opts: str, config: str = ONE_LEVEL) -> tuple[RPN, LesionRPN, dict[str, torch.Tensor]]:
    """Detectron2's RPN and ours in training mode with the same weights, and features for them."""
    cfg = get_config(config, ["MODEL.RPN.CONV_DIMS", "[8]", *opts])
    torch.manual_seed(3)
    strides = {name: 2 ** int(name[1]) for name in cfg.MODEL.RPN.IN_FEATURES}
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in strides.items()}
    plain, ours = RPN(cfg, shapes), LesionRPN(cfg, shapes)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain.rpn_head.conv.bias.data += 2  # else places where no unit is active have equal logits, in any order
    ours.load_state_dict(plain.state_dict())
    features = {name: torch.randn(3, 8, 128 // stride, 128 // stride) for name, stride in strides.items()}
    return plain.train(), ours.train(), features


def targets() -> list[Instances]:
    boxes = [[[10, 10, 40, 60], [70, 20, 100, 90.5]], [], [[5, 5, 7, 7], [30, 30, 62, 62], [30, 30, 62, 62]]]
    return [
        Instances(size, gt_boxes=Boxes(torch.tensor(image, dtype=torch.float32).view(-1, 4)))
        for size, image in zip(SIZES, boxes)
    ]


def run(network: RPN, features: dict[str, torch.Tensor]):
    """Proposals, losses, gradients of features and weights, and what was logged."""
    features = {name: x.clone().requires_grad_() for name, x in features.items()}
    with EventStorage() as storage:
        proposals, losses = network(ImageList(torch.zeros(3, 3, 128, 128), SIZES), features, targets())
        network.zero_grad()
        (1e4 * losses["loss_rpn_cls"] + 3e4 * losses["loss_rpn_loc"]).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    gradients = [x.grad for x in features.values()] + [p.grad for p in network.parameters()]
    return proposals, losses, gradients, logged


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        (ONE_LEVEL, ()),
        (ONE_LEVEL, ("MODEL.RPN.BOUNDARY_THRESH", "0", "MODEL.RPN.SMOOTH_L1_BETA", "0.1")),
        (ONE_LEVEL, ("MODEL.RPN.IOU_THRESHOLDS", "[0.3, 0.5]", "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "2.0")),
        (FOUR_LEVELS, ()),
    ],
)
def test_losses_gradients_and_proposals_are_detectron2s(config, opts):
    plain, ours, features = networks(*EVERYTHING, *opts, config=config)
    expected, found = run(plain, features), run(ours, features)
    assert expected[1].keys() == found[1].keys() and found[1]["loss_rpn_loc"] > 0
    for name, loss in expected[1].items():
        torch.testing.assert_close(found[1][name], loss, rtol=1e-5, atol=1e-9)
    for theirs, gradient in zip(expected[2], found[2], strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert found[3] == pytest.approx(expected[3]) and found[3]["rpn/num_pos_anchors"] > 1
    for theirs, proposals in zip(expected[0], found[0], strict=True):
        torch.testing.assert_close(proposals.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(proposals.objectness_logits, theirs.objectness_logits)


def test_quotas_and_the_seed():
    plain, ours, features = networks("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.POSITIVE_FRACTION", "0.25")
    expected = run(plain, features)[3]
    torch.manual_seed(1)
    _, first, _, logged = run(ours, features)
    torch.manual_seed(1)
    again = run(ours, features)[1]
    other = run(ours, features)[1]
    assert logged == pytest.approx(expected)
    assert first == again and first != other


def test_inference_and_other_losses_are_detectron2s_own():
    plain, ours, features = networks()
    images = ImageList(torch.zeros(3, 3, 128, 128), SIZES)
    expected, found = plain.eval()(images, features)[0], ours.eval()(images, features)[0]
    assert isinstance(found, list)
    assert all(torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor) for a, b in zip(expected, found))

    plain, ours, features = networks(*EVERYTHING, "MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou")
    expected, found = run(plain, features), run(ours, features)
    assert isinstance(found[0], list) and expected[1] == found[1]


def test_proposals_that_are_not_finite_make_the_loss_so():
    _, ours, features = networks("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1")
    features["p4"][1, :, 2, 2] = torch.inf
    with EventStorage():
        proposals, losses = ours(ImageList(torch.zeros(3, 3, 128, 128), SIZES), features, targets())
    assert losses["loss_rpn_cls"].isnan()
    assert all(torch.isfinite(x.proposal_boxes.tensor).all() for x in proposals)


def test_a_batch_without_any_lesion():
    _, ours, features = networks()
    empty = [Instances(size, gt_boxes=Boxes(torch.zeros(0, 4))) for size in SIZES]
    with EventStorage():
        proposals, losses = ours(ImageList(torch.zeros(3, 3, 128, 128), SIZES), features, empty)
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"] > 0 and len(proposals[0])


@pytest.mark.parametrize("config", [ONE_LEVEL, FOUR_LEVELS])
def test_it_is_the_default_and_takes_detectron2s_weights(config):
    cfg = get_config(config)
    shapes = {name: ShapeSpec(channels=8, stride=2 ** int(name[1])) for name in cfg.MODEL.RPN.IN_FEATURES}
    network = build_proposal_generator(cfg, shapes)
    assert type(network) is LesionRPN
    network.load_state_dict(RPN(cfg, shapes).state_dict(), strict=True)
