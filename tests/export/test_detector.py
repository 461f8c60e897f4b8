"""The module that is exported says what the model says, for every kind of model, before any exporter."""

from d2_covid.errors import UserError
from d2_covid.export.dense import DensePart
from d2_covid.export.detector import WholeModel
from d2_covid.export.operators import ONNX, PLAIN
from d2_covid.export.outputs import outputs_of

import pytest
import torch

from .conftest import BOTH, CLASSIFIER, LESION

R50 = "segmentation/mask_rcnn_R_50_FPN.yaml"
VARIANTS = {
    "T1": (LESION,),
    "T2, two classes": ("segmentation/mask_rcnn_R_18_T2_FPN.yaml", *BOTH),
    "sigmoid": (LESION, *BOTH, "MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid"),
    "adaptive sampling": (LESION, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "0"),
    "one box and mask for all classes": (
        *(LESION, *BOTH, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
    ),
    "tuned": ("segmentation/tuned/mask_rcnn_R_18_T1_FPN.yaml",),
    "four levels": (R50, "MODEL.RPN.POST_NMS_TOPK_TEST", "90"),
    "classifier": (CLASSIFIER, "MODEL.CLASSIFIER.NMS_THRESH", "0.1"),
    "classifier, masks, two classes": (CLASSIFIER, *BOTH, "MODEL.MASK_ON", "True"),
    "classifier, boxes, sampled": (
        *(CLASSIFIER, "MODEL.CLASSIFIER.FEATURES", "boxes", "MODEL.CLASSIFIER.PADDING", "sampled"),
        *("MODEL.CLASSIFIER.NMS_THRESH", "0.1", "MODEL.CLASSIFIER.TEMPERATURE", "2.0"),
    ),
    "nothing is found": (
        *(CLASSIFIER, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "MODEL.CLASSIFIER.SCORE_THRESH", "1.0"),
        *("MODEL.MASK_ON", "True"),
    ),
}


@pytest.mark.parametrize("operators", [PLAIN, ONNX], ids=["plain", "onnx"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_says_what_the_model_says(make_model, name, operators):
    model, _ = make_model(*VARIANTS[name])
    module = WholeModel(model, operators)
    generator = torch.Generator().manual_seed(5)
    # 70 x 90 is padded: no stride divides it.
    for height, width in ((64, 96), (70, 90)):
        images = torch.randint(0, 256, (2, height, width), dtype=torch.uint8, generator=generator)
        images[1, :, 40:] = 0
        expected = model.inference([{"image": x[None].expand(3, -1, -1)} for x in images], do_postprocess=False)
        outputs = module(images)
        described = outputs_of(module)
        assert [str(x.dtype).removeprefix("torch.") for x in outputs] == [output.dtype for output in described]
        found = {output.name: x for output, x in zip(described, outputs, strict=True)}
        for index, one in enumerate(expected):
            _same(one, found, index)
        total = sum(len(x["instances"] if isinstance(x, dict) else x) for x in expected)
        assert (total == 0) == (name == "nothing is found")


@torch.no_grad()
def test_a_later_detectron2s_sigmoid_loss_has_scores_to_go_with_it(make_model):
    model, _ = make_model(LESION)
    softmax = WholeModel(model)
    model.roi_heads.box_predictor.use_sigmoid_ce = True
    expected, _ = make_model(LESION, "MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid")
    image = torch.randint(0, 256, (1, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    (found, wanted, other) = (module(image)[2] for module in (WholeModel(model), WholeModel(expected), softmax))
    assert torch.equal(found, wanted) and not torch.equal(found, other)


def _same(expected, found: dict, index: int) -> None:
    instances = expected["instances"] if isinstance(expected, dict) else expected
    mine = found["image_index"] == index
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found["boxes"][mine], instances.pred_boxes.tensor, rtol=0, atol=2e-3)
    torch.testing.assert_close(found["scores"][mine], instances.scores, **close)
    torch.testing.assert_close(found["classes"][mine], instances.pred_classes)
    if instances.has("pred_masks"):
        torch.testing.assert_close(found["masks"][mine], instances.pred_masks[:, 0], rtol=0, atol=1e-3)
    if isinstance(expected, dict):
        ranked = expected["ranked"]
        kept = found["ranked_detections"][index] >= 0
        torch.testing.assert_close(found["image_logits"][index], expected["image_logits"], **close)
        torch.testing.assert_close(found["image_scores"][index], expected["image_scores"], **close)
        torch.testing.assert_close(found["ranked_rows"][index][kept], ranked.rows, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["ranked_boxes"][index][kept], ranked.pred_boxes.tensor, rtol=0, atol=2e-3)
        torch.testing.assert_close(found["ranked_detections"][index][kept], ranked.detection)
        assert found["ranked_rows"][index][~kept].abs().sum() == 0


@torch.no_grad()
def test_dense_part_is_the_models(make_model):
    model, _ = make_model(LESION)
    image = torch.randint(0, 256, (1, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits, deltas = DensePart(model)(image)
    expected = model.backbone(model.preprocess_image([{"image": image.expand(3, -1, -1)}]).tensor)
    (expected_logits,), (expected_deltas,) = model.proposal_generator.rpn_head([expected["p4"]])
    for value, other in ((features, expected["p4"]), (logits, expected_logits), (deltas, expected_deltas)):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_exporting_changes_nothing_in_the_model(make_model):
    model, _ = make_model(LESION)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    WholeModel(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"), "RoIAlign"),
        (("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RPN.IN_FEATURES", "['res4']",
          "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"), "ResNet with FPN"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
          "MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0,1.0,1.0,1.0,1.0)", "MODEL.ANCHOR_GENERATOR.ANGLES", "[[0]]"), "RRPN"),
    ],
)  # fmt: skip
def test_what_can_not_be_exported_is_said(make_model, opts, message):
    model, _ = make_model(LESION, *opts)
    with pytest.raises(UserError, match=message) as error:
        WholeModel(model)
    assert "\n" not in str(error.value)
