import copy

from d2_covid import get_config
from d2_covid.config import config_dir
from d2_covid.errors import UserError
from d2_covid.modeling import count_parameters

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

SEGMENTATION = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"


def classify(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs)


def test_outputs(tiny_model, slices):
    outputs = classify(tiny_model(), slices)
    assert len(outputs) == 3
    for output, item in zip(outputs, slices, strict=True):
        assert output["image_logits"].shape == output["image_scores"].shape == (3,)
        assert output["image_scores"].sum().item() == pytest.approx(1)
        ranked = output["ranked"]
        assert ranked.rows.shape == (16, 5)
        assert ranked.image_size == (item["height"], item["width"])
        assert torch.equal(ranked.scores, ranked.rows[:, 0])
        boxes = ranked.pred_boxes.tensor
        assert (boxes[:, 2] <= item["width"]).all() and (boxes[:, 3] <= item["height"]).all()
        assert boxes.max() > max(item["image"].shape), "boxes are scaled to the output"


def test_logits_are_s_of_the_ranked_rows(tiny_model, slices):
    model = tiny_model()
    for output in classify(model, slices):
        logits = model.roi_heads.image_classifier(output["ranked"].rows[None])[0]
        assert torch.allclose(logits, output["image_logits"], atol=1e-6)


def test_batch_and_single_images_agree(tiny_model, slices):
    model = tiny_model()
    together = classify(model, slices[:2])
    for item, output in zip(slices[:2], together, strict=True):
        assert torch.allclose(classify(model, [item])[0]["image_logits"], output["image_logits"], atol=1e-4)


def test_same_input_same_numbers(tiny_model, slices):
    model = tiny_model("MODEL.CLASSIFIER.PADDING", "sampled")
    first, second = classify(model, slices), classify(model, slices)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["image_logits"], b["image_logits"])


def test_temperature_from_config(tiny_model, slices):
    plain, soft = (classify(tiny_model("MODEL.CLASSIFIER.TEMPERATURE", t), slices) for t in ("1.0", "3.0"))
    for a, b in zip(plain, soft, strict=True):
        assert torch.equal(a["image_logits"], b["image_logits"])
        assert torch.allclose(b["image_scores"], torch.softmax(a["image_logits"] / 3, 0))


def test_no_detection_still_has_a_class(tiny_model, slices):
    model = tiny_model("MODEL.CLASSIFIER.SCORE_THRESH", "2.0")  # no score passes
    for output in classify(model, slices):
        assert len(output["ranked"]) == 0
        assert output["image_logits"].isfinite().all()
    loss = model.train()(slices)["loss_image"]
    loss.backward()
    assert loss.isfinite()


def test_masks_ride_along_and_change_nothing(tiny_model, slices):
    """One pass gives class, boxes and masks: class as without masks, instances as the segmentation model's."""
    with_masks = tiny_model("MODEL.MASK_ON", "True")
    without = tiny_model("MODEL.MASK_ON", "False")
    without.load_state_dict(with_masks.state_dict(), strict=False)
    segmentation = tiny_model(config_file=SEGMENTATION)
    segmentation.load_state_dict(with_masks.state_dict(), strict=False)
    seen = 0
    for a, b, c in zip(*(classify(m, slices) for m in (with_masks, without, segmentation)), strict=True):
        assert torch.equal(a["image_logits"], b["image_logits"])
        assert torch.equal(a["ranked"].rows, b["ranked"].rows)
        assert not b["instances"].has("pred_masks")
        for field in ("scores", "pred_classes", "pred_masks"):
            assert torch.equal(a["instances"].get(field), c["instances"].get(field))
        assert torch.equal(a["instances"].pred_boxes.tensor, c["instances"].pred_boxes.tensor)
        seen += len(a["instances"])
    assert seen


def test_instances_keep_their_own_thresholds(tiny_model, slices):
    strict = tiny_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "TEST.DETECTIONS_PER_IMAGE", "3")
    loose = tiny_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    for a, b in zip(classify(strict, slices), classify(loose, slices), strict=True):
        assert len(a["instances"]) == 0 and len(b["instances"]) > 3
        assert torch.equal(a["image_logits"], b["image_logits"])


def test_masks_of_given_boxes(tiny_model, slices):
    """As in Detectron2: known boxes in, their masks out."""
    model = tiny_model("MODEL.MASK_ON", "True").eval()
    with torch.no_grad():
        ranked = model.inference(slices[:1], do_postprocess=False)[0]["ranked"][:4]
        (given,) = model.inference(slices[:1], detected_instances=[ranked], do_postprocess=False)
    assert given.pred_masks.shape == (4, 1, 28, 28)


@pytest.mark.parametrize("loss", ["bce", "ce"])
@pytest.mark.parametrize("features", ["deltas", "boxes"])
@pytest.mark.parametrize("num_classes", ["1", "2"])
def test_training_lowers_the_loss(tiny_model, slices, loss, features, num_classes):
    options = {"LOSS": loss, "FEATURES": features, "TRAIN_NORM": "False"}
    opts = [x for key, value in options.items() for x in (f"MODEL.CLASSIFIER.{key}", value)]
    model = tiny_model(*opts, "MODEL.ROI_HEADS.NUM_CLASSES", num_classes).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(model(slices)["loss_image"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_scores_are_ranked_in_single_precision_under_mixed_precision(tiny_model):
    heads = tiny_model("MODEL.ROI_HEADS.NUM_CLASSES", "2").roi_heads
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(30, 8, generator=generator).bfloat16().float()  # as the box head gives them in either mode
    corner = torch.rand(30, 2, generator=generator) * 30
    proposals = Instances((64, 64), proposal_boxes=Boxes(torch.cat((corner, corner + 20), 1)))
    heads.box_features = lambda *_: features
    heads.box_predictor.cls_score.bias.data[:-1] += 6  # sure of itself: scores close to 1
    rows = {}
    for mixed in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            rows[mixed] = heads.rank(heads.predict({}, [proposals]), [proposals]).rows
    assert rows[True].dtype == torch.float32 and rows[False][0, 0, 0] > 0.99
    assert torch.allclose(rows[True], rows[False], atol=1e-6)


@pytest.mark.parametrize("train_norm", ["True", "False"])
def test_training_in_mixed_precision(tiny_model, slices, train_norm):
    model = tiny_model("MODEL.CLASSIFIER.TRAIN_NORM", train_norm).train()
    exact = model(slices)["loss_image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(slices)["loss_image"]
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in trained)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_module_s_reads_rows_in_single_precision(tiny_model):
    heads = tiny_model().roi_heads
    rows, classes = 1 - torch.rand(2, 16, 5) / 256, torch.tensor([0, 1])
    exact = heads.image_losses(rows, classes)["loss_image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(heads.image_losses(rows, classes)["loss_image"], exact)


# --- freezing --------------------------------------------------------------------------------------------------------


def changed_by_a_step(model, slices):
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(slices)["loss_image"].backward()
    optimizer.step()
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_step_changes_s_and_batchnorm_weights_alone(tiny_model, slices):
    model = tiny_model("MODEL.MASK_ON", "True")
    expected = {n for n, _ in model.named_parameters() if "image_classifier" in n}
    assert len(expected) == 6
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            expected |= {f"{name}.weight", f"{name}.bias"}
    assert len(expected) == 6 + 2 * 10, "R18-T2: a stem, two stages of four, one shortcut"
    assert changed_by_a_step(model, slices) == expected


def test_train_norm_false_changes_s_alone(tiny_model, slices):
    model = tiny_model("MODEL.CLASSIFIER.TRAIN_NORM", "False")
    changed = changed_by_a_step(model, slices)
    assert len(changed) == 6 and all("image_classifier" in name for name in changed)


def test_detector_stays_in_inference_mode(tiny_model):
    model = tiny_model("MODEL.MASK_ON", "True").train()
    training = {name for name, module in model.named_modules() if module.training}
    assert training == {"", "roi_heads"} | {n for n, _ in model.named_modules() if "image_classifier" in n}
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize(
    "name, total, trainable",
    [("R_18_full", 14_751_583, 601_987), ("R_18_T1", 6_287_199, 596_867), ("R_18_T2", 4_152_159, 594_307)]
    + [("R_34_full", 24_867_167, 609_411), ("R_34_T1", 11_680_095, 602_243), ("R_34_T2", 4_818_271, 595_587)]
    + [("R_50", 31_521_631, 2_417_539)],
)
def test_parameters_of_the_papers_classifiers(name, total, trainable):
    """Weights plus BatchNorm statistics, as reference-facts counts; 0.6 million trainable (Table 1)."""
    model = build_model(get_config(f"classification/covid_ct_mask_net_{name}_FPN.yaml", ["MODEL.DEVICE", "cpu"]))
    assert count_parameters(model) == (total, trainable)


# --- configs and bad input -------------------------------------------------------------------------------------------


def test_every_classifier_has_the_detector_of_its_segmentation_model():
    leaves = sorted((config_dir() / "classification").glob("covid_ct_mask_net_*.yaml"))
    assert len(leaves) >= 8
    for leaf in leaves:
        ours = get_config(leaf)
        theirs = get_config(config_dir() / "segmentation" / leaf.name.replace("covid_ct_mask_net", "mask_rcnn"))
        for node in ("BACKBONE", "RESNETS", "FPN", "ANCHOR_GENERATOR", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
            assert ours.MODEL[node] == theirs.MODEL[node], (leaf.name, node)
        assert ours.MODEL.ROI_HEADS.NUM_CLASSES == theirs.MODEL.ROI_HEADS.NUM_CLASSES
        assert ours.DATASETS.MASK_TYPE == theirs.DATASETS.MASK_TYPE
        assert ours.INPUT == theirs.INPUT


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.CLASSIFIER.FEATURES", "masks"], "MODEL.CLASSIFIER.FEATURES must be one of deltas, boxes, not 'masks'"),
        (["MODEL.CLASSIFIER.PADDING", "zeros"], "MODEL.CLASSIFIER.PADDING must be one of even, sampled"),
        (["MODEL.CLASSIFIER.LOSS", "mse"], "MODEL.CLASSIFIER.LOSS must be one of bce, ce"),
        (["MODEL.CLASSIFIER.CLASS_WEIGHTS", "(1.0, 2.0)"], "CLASS_WEIGHTS has 2 numbers for 3 classes"),
        (["MODEL.CLASSIFIER.CLASS_WEIGHTS", "(1.0, -2.0, 1.0)"], "each is 0 or more"),
        (["MODEL.CLASSIFIER.CLASS_WEIGHTS", "(0.0, 0.0, 0.0)"], "not all are 0"),
        (["MODEL.CLASSIFIER.TEMPERATURE", "0.0"], "MODEL.CLASSIFIER.TEMPERATURE must be a number above 0, not 0.0"),
        (["MODEL.CLASSIFIER.TEMPERATURE", "-1.0"], "above 0, not -1.0"),
        (["MODEL.CLASSIFIER.TEMPERATURE", "1e999"], "above 0, not inf"),
        (["MODEL.ROI_HEADS.NAME", "LesionROIHeads"], "MODEL.ROI_HEADS.NAME CovidROIHeads, not LesionROIHeads"),
    ],
)
def test_config_mistakes_are_one_line(tiny_model, opts, message):
    with pytest.raises(UserError, match=message):
        tiny_model(*opts)


@pytest.mark.parametrize("train_norm", [True, False])
def test_batchnorm_of_the_box_head_trains_too(tiny_model, train_norm):
    opts = ("MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8", "MODEL.ROI_BOX_HEAD.NORM", "BN")
    model = tiny_model(*opts, "MODEL.CLASSIFIER.TRAIN_NORM", str(train_norm))
    trains = {name for name, parameter in model.roi_heads.box_head.named_parameters() if parameter.requires_grad}
    assert trains == ({"conv1.norm.weight", "conv1.norm.bias"} if train_norm else set())
