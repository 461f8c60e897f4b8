"""Truncated backbones: shapes, names, and the parameter counts of the reference."""

from d2_covid import get_config
from d2_covid.errors import UserError
from d2_covid.modeling.backbone import truncation_of
from d2_covid.modeling.complexity import count_parameters, fpn_input_surplus

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

MODELS = {
    # (depth, truncation): (total parameters, the paper's Table 1 in millions)
    (18, "full"): (14_520_029, 14.52),
    (18, "T1"): (6_055_645, 6.12),
    (18, "T2"): (3_920_605, 4.02),
    (34, "full"): (24_635_613, 24.63),
    (34, "T1"): (11_448_541, 11.45),
    (34, "T2"): (4_586_717, 4.68),
}
OUTPUT = {"full": ("p5", 32, 512), "T1": ("p4", 16, 256), "T2": ("p3", 8, 128)}


def _config(depth: int, truncation: str, *opts):
    return get_config(f"segmentation/mask_rcnn_R_{depth}_{truncation}_FPN.yaml", ["MODEL.DEVICE", "cpu", *opts])


def _count(*modules: torch.nn.Module) -> int:
    weights = sum(p.numel() for module in modules for p in module.parameters())
    statistics = sum(
        b.numel() for module in modules for n, b in module.named_buffers() if not n.endswith("num_batches_tracked")
    )
    return weights + statistics


def _torchvision_count(depth: int, truncation: str) -> int:
    """The same architecture built of torchvision's parts, as the reference builds it."""
    resnet = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    keep = {"full": 8, "T1": 7, "T2": 6}[truncation]
    body = torch.nn.Sequential(*list(resnet.children())[:keep])
    parts = [
        body,
        torchvision.ops.FeaturePyramidNetwork([OUTPUT[truncation][2]], 256),
        RPNHead(256, 30),
        TwoMLPHead(256 * 7 * 7, 128),
        FastRCNNPredictor(128, 2),
        MaskRCNNHeads(256, (128,), 1),
        MaskRCNNPredictor(128, 128, 2),
    ]
    # torchvision also regresses a box and a mask for the background class; Detectron2 does not.
    return _count(*parts) - 4 * (128 + 1) - (128 + 1)


@pytest.mark.parametrize("depth, truncation", MODELS)
def test_parameter_counts(depth, truncation):
    total, paper = MODELS[depth, truncation]
    cfg = _config(depth, truncation)
    model = build_model(cfg)
    counted, trainable = count_parameters(model)
    assert counted == total == _torchvision_count(depth, truncation)
    assert trainable == sum(p.numel() for p in model.parameters())
    assert truncation_of(cfg) == truncation
    # Where the paper differs, it counts an FPN that reads 512 maps.
    as_paper = total + (fpn_input_surplus(model) if abs(total / 1e6 - paper) > 0.011 else 0)
    assert abs(as_paper / 1e6 - paper) < 0.011


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN", "mask_rcnn_R_50_FPN_both"])
def test_resnet50_baseline_counts(name):
    cfg = get_config(f"segmentation/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    total, _ = count_parameters(build_model(cfg))
    assert round(total / 1e6, 2) == 31.78
    assert truncation_of(cfg) == "fpn4"


@pytest.mark.parametrize("truncation", OUTPUT)
def test_one_output_level_named_as_detectron2_names_it(truncation):
    name, stride, channels = OUTPUT[truncation]
    backbone = build_backbone(_config(18, truncation)).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert list(features) == [name] == list(backbone.output_shape())
    assert features[name].shape == (1, 256, 64 // stride, 96 // stride)
    assert backbone.lateral_convs[0].in_channels == channels
    assert backbone.output_shape()[name].stride == stride


def test_dropped_stages_are_never_built():
    stages = {name.split(".")[1] for name, _ in build_backbone(_config(34, "T2")).named_parameters() if "res" in name}
    assert stages == {"res2", "res3"}


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.FPN.IN_FEATURES", "('res3', 'res4')"], "IN_FEATURES must be one of"),
        (["MODEL.FPN.IN_FEATURES", "('stem',)"], "IN_FEATURES must be one of"),
        (["MODEL.FPN.IN_FEATURES", "('res3',)"], "must name the same stage"),
    ],
)
def test_contradictions_are_refused(opts, words):
    with pytest.raises(UserError, match=words):
        build_backbone(_config(18, "T1", *opts))


@pytest.mark.parametrize("depth, truncation", MODELS)
def test_every_light_model_trains_and_infers_with_and_without_lesions(depth, truncation):
    """A step on one slice with a lesion and one without, then inference: losses finite, outputs well formed."""
    cfg = _config(depth, truncation, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 16)
    model = build_model(cfg)
    lesion = torch.zeros(1, 64, 64, dtype=torch.bool)
    lesion[0, 16:40, 20:44] = True
    with_lesion, without = Instances((64, 64)), Instances((64, 64))
    with_lesion.gt_boxes, with_lesion.gt_classes = Boxes(torch.tensor([[20.0, 16, 44, 40]])), torch.tensor([0])
    with_lesion.gt_masks = BitMasks(lesion)
    without.gt_boxes, without.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.long)
    without.gt_masks = BitMasks(torch.zeros(0, 64, 64, dtype=torch.bool))
    batch = [
        {"image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), "instances": instances}
        for instances in (with_lesion, without)
    ]
    with EventStorage():
        losses = model(batch)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        outputs = model([{"image": sample["image"], "height": 128, "width": 128} for sample in batch])
    for output in outputs:
        assert output["instances"].image_size == (128, 128)
        assert output["instances"].pred_masks.shape[1:] == (128, 128)
