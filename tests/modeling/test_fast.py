"""The fast copy of a model against the model: the same detections, masks and classes, whatever it is fed."""

import copy

from d2_covid.inference.explanation import explain
from d2_covid.inference.ranked import mask_logits
from d2_covid.modeling import fast as fast_module
from d2_covid.modeling.fast import FastCovidCTMaskNet, FastRCNN, for_inference
from d2_covid.modeling.fast_inputs import network_batch

import pytest
import torch
from detectron2.layers.mask_ops import _do_paste_mask
from detectron2.structures import Boxes
from torch import nn

CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
T1 = "segmentation/mask_rcnn_R_18_T1_FPN.yaml"
T2 = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
R50 = "segmentation/mask_rcnn_R_50_FPN.yaml"
BOTH = ("MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATASETS.MASK_TYPE", "both")
SHOW = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "12")


@pytest.fixture
def spread_model(tiny_model):
    """``spread_model(config_file, *opts)``: a tiny model in inference mode whose BatchNorm does something and whose
    scores, boxes and masks differ from each other."""

    def build(config_file: str, *opts: str) -> nn.Module:
        model = tiny_model(*SHOW, *opts, config_file=config_file).eval()
        generator = torch.Generator().manual_seed(3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.1, generator=generator)
        head = model.proposal_generator.rpn_head
        for layer in (head.objectness_logits, head.anchor_deltas):
            layer.weight.data.normal_(0, 0.2, generator=generator)
        if model.roi_heads.mask_on:
            model.roi_heads.mask_head.predictor.weight.data.normal_(0, 1, generator=generator)
            model.roi_heads.mask_head.predictor.bias.data.normal_(0, 0.1, generator=generator)
        return model

    return build


def make_slices(*sizes: tuple[int, int], scale: float = 1.5) -> list[dict]:
    """Gray network inputs with some structure, to be predicted in other sizes."""
    generator = torch.Generator().manual_seed(4)
    records = []
    for height, width in sizes:
        low = torch.rand(1, 1, height // 8 + 1, width // 8 + 1, generator=generator)
        gray = nn.functional.interpolate(low, size=(height, width), mode="bilinear")[0] * 255
        image = gray.round().to(torch.uint8).repeat(3, 1, 1)
        records.append({"image": image, "height": round(height * scale), "width": round(width * scale)})
    return records


def assert_same(plain: list[dict], fast: list[dict]) -> None:
    """Scores, logits and boxes to 1e-4; masks but for pixels at one half."""
    for expected, found in zip(plain, fast, strict=True):
        assert expected.keys() == found.keys()
        for name in ("image_logits", "image_scores"):
            if name in expected:
                assert torch.allclose(expected[name], found[name], rtol=1e-4, atol=1e-5)
        for name in ("instances", "ranked"):
            if name in expected:
                assert_same_instances(expected[name], found[name])


def assert_same_instances(expected, found) -> None:
    assert expected.image_size == found.image_size and len(expected) == len(found)
    assert expected.get_fields().keys() == found.get_fields().keys()
    for name, value in expected.get_fields().items():
        other = found.get(name)
        if name == "pred_masks":
            assert value.shape == other.shape and other.dtype == torch.bool
            # A probability within 1e-4 of one half may fall on either side; of smooth masks that is no pixel in 1000.
            assert (value != other).float().mean() < 1e-3 if value.numel() else True
        elif name == "pred_boxes":
            assert torch.allclose(value.tensor, other.tensor, rtol=1e-4, atol=1e-3)
        elif value.is_floating_point():
            assert torch.allclose(value, other, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(value, other)


def run(model: nn.Module, records: list[dict]) -> list[dict]:
    with torch.no_grad():
        return model(records)


MODELS = {
    "T1": (T1,),
    "T2": (T2,),
    "two classes": (T2, *BOTH),
    "sigmoid": (T2, *BOTH, "MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "sigmoid"),
    "class-agnostic": (
        *(T2, *BOTH, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
    ),
    "other heads": (
        *(T2, "MODEL.ROI_MASK_HEAD.NUM_CONV", "2", "MODEL.ROI_BOX_HEAD.NUM_CONV", "1"),
        *("MODEL.ROI_BOX_HEAD.CONV_DIM", "6", "MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_HEADS.NAME"),
        *("StandardROIHeads", "MODEL.ROI_MASK_HEAD.NORM", "BN", "MODEL.ROI_BOX_HEAD.NORM", "BN"),
    ),
    "no mask convolution": (T2, "MODEL.ROI_MASK_HEAD.NUM_CONV", "0"),
    "dense sampling": (T2, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "0"),
    "plain pooling": (T2, "MODEL.ROI_HEADS.FAST_POOLING", "False"),
    "wide": (T2, "MODEL.FPN.OUT_CHANNELS", "128"),
    "classifier": (CLASSIFIER,),
    "classifier with temperature": (CLASSIFIER, "MODEL.CLASSIFIER.TEMPERATURE", "3.0"),
    "classifier with masks": (CLASSIFIER, *BOTH, "MODEL.MASK_ON", "True", "MODEL.CLASSIFIER.FEATURES", "boxes"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_results(name, spread_model):
    model = spread_model(*MODELS[name])
    fast = for_inference(model)
    assert isinstance(fast, (FastRCNN, FastCovidCTMaskNet)) and not fast.training
    records = make_slices((96, 96))
    expected, found = run(model, records), run(fast, records)
    assert len(expected[0]["instances"]) > 3
    assert_same(expected, found)


@pytest.mark.parametrize("config_file", [T2, CLASSIFIER])
@pytest.mark.parametrize(
    "sizes",
    [[(96, 64)], [(90, 75)], [(64, 64)] * 5, [(64, 96), (96, 64)], [(61, 47), (96, 64), (33, 90)]],
)
def test_every_size_and_batch(sizes, config_file, spread_model):
    model = spread_model(config_file)
    fast = for_inference(model)
    records = make_slices(*sizes)
    together = run(fast, records)
    assert_same(run(model, records), together)
    if len(set(sizes)) == 1:  # padding to a neighbour's size changes a border, in the plain model too
        assert_same([run(fast, [record])[0] for record in records], together)


def test_several_levels(spread_model):
    """The large model keeps Detectron2's FPN and poolers, around a fast ResNet and heads."""
    model = spread_model(R50, "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.FPN.OUT_CHANNELS", "16")
    fast = for_inference(model)
    assert isinstance(fast, FastRCNN)
    records = make_slices((64, 64), (64, 64))
    expected = run(model, records)
    assert all(len(x["instances"]) > 3 for x in expected)
    assert_same(expected, run(fast, records))


def test_colour_one_channel_and_floats(spread_model):
    model = spread_model(T2)
    fast = for_inference(model)
    generator = torch.Generator().manual_seed(5)
    (record,) = make_slices((64, 80))
    colour = dict(record, image=torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=generator))
    one_channel, floats = dict(record, image=record["image"][:1]), dict(record, image=record["image"].float())
    for records in ([colour], [colour, record], [one_channel], [floats], [record, floats]):
        assert_same(run(model, records), run(fast, records))
    assert_same(run(model, [record, record]), run(fast, [record, one_channel]))


def test_gray_images_take_one_channel_where_nothing_is_padded():
    mean, std = torch.ones(3, 1, 1), torch.full((3, 1, 1), 2.0)
    gray = torch.randint(0, 256, (1, 6, 8), dtype=torch.uint8).repeat(3, 1, 1)
    colour = gray.clone()
    colour[2, 5, 7] += 1

    def batch(*images, step=2):
        return network_batch(list(images), mean, std, step, torch.float32)

    assert torch.equal(batch(gray, gray), gray[None, :1].float().repeat(2, 1, 1, 1))
    padded = batch(gray, step=8)
    assert padded.shape == (1, 2, 8, 8) and torch.equal(padded[0, 1].bool(), padded.new_ones(8, 8).bool().tril(99) & (
        torch.arange(8)[:, None] < 6
    ))  # fmt: skip
    assert batch(gray, gray[:, :4]).shape == (2, 2, 6, 8)
    assert torch.allclose(batch(gray, colour), (torch.stack((gray, colour)) - mean) / std)


@pytest.mark.parametrize("config_file, opts", [(T2, ()), (CLASSIFIER, ()), (CLASSIFIER, ("MODEL.MASK_ON", "True"))])
def test_an_image_without_detections(config_file, opts, spread_model):
    model = spread_model(config_file, *opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    records = make_slices((64, 64), (64, 64))
    expected, found = run(model, records), run(for_inference(model), records)
    assert all(len(x["instances"]) == 0 for x in found)
    for one in (*expected, *found):
        if one["instances"].has("pred_masks"):
            assert one["instances"].pred_masks.shape == (0, 96, 96)
            one["instances"].remove("pred_masks")
    assert_same(expected, found)


def test_masks_of_a_batch_with_an_image_that_has_none(spread_model):
    model = spread_model(T2)
    fast = for_inference(model)
    records = make_slices((64, 64), (64, 64), (64, 64))
    found = fast.inference(records, do_postprocess=False)
    kept = [found[0][:5], found[1][:0], found[2][:3]]
    with torch.no_grad():
        expected, again = (one.inference(records, copy.deepcopy(kept), do_postprocess=False) for one in (model, fast))
    assert [len(x) for x in again] == [5, 0, 3]
    for one, other in zip(expected, again, strict=True):
        assert one.pred_masks.shape == other.pred_masks.shape
        assert torch.allclose(one.pred_masks, other.pred_masks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config_file", [T2, CLASSIFIER])
def test_an_image_without_proposals(config_file, spread_model):
    model = spread_model(config_file, "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "1000")
    records = make_slices((64, 64))
    (found,) = run(for_inference(model), records)
    assert len(found["instances"]) == 0
    if config_file == CLASSIFIER:
        (expected,) = run(model, records)
        assert len(found["ranked"]) == 0 and torch.allclose(found["image_logits"], expected["image_logits"], atol=1e-6)


def test_ranked_rows_and_rows_from_elsewhere(spread_model):
    model = spread_model(CLASSIFIER)
    fast = for_inference(model)
    records = make_slices((64, 64), (64, 64))
    rows = fast.ranked_rows(records)
    with torch.no_grad():
        assert torch.allclose(model.ranked_rows(records), rows, rtol=1e-4, atol=1e-5)
    kept = [{"ranked_rows": x} for x in rows]
    for a, b in zip(run(model, kept), run(fast, kept), strict=True):
        assert a.keys() == b.keys() and torch.equal(a["image_logits"], b["image_logits"])


def test_what_others_ask_a_model_for(spread_model):
    """Explanations, raw mask scores, given boxes, and results in the network's own pixels."""
    model = spread_model(CLASSIFIER, "MODEL.MASK_ON", "True")
    fast = for_inference(model)
    records = make_slices((64, 96))
    (expected,), (found,) = run(model, records), fast(records)
    assert not found["image_logits"].requires_grad
    a, b = explain(model, expected), explain(fast, found)
    assert torch.allclose(a.contributions, b.contributions, rtol=1e-3, atol=1e-4)

    boxes = torch.tensor([[3.0, 4, 40, 50], [10, 20, 90, 60]])
    classes = torch.zeros(2, dtype=torch.int64)
    raw = [mask_logits(one, records[0]["image"], boxes, classes) for one in (model, fast)]
    assert torch.allclose(*raw, rtol=1e-4, atol=1e-4)

    for one in (model, fast):
        assert one.device == torch.device("cpu") and one.roi_heads.num_classes == 1
    with torch.no_grad():
        raw = [one.inference(records, do_postprocess=False) for one in (model, fast)]
    given = [copy.deepcopy(x[0]["instances"]) for x in raw]
    for x in given:
        x.remove("pred_masks")
    assert torch.allclose(raw[0][0]["instances"].pred_masks, raw[1][0]["instances"].pred_masks, atol=1e-4)
    with torch.no_grad():
        again = [one.inference(records, [x], do_postprocess=False) for one, x in zip((model, fast), given)]
    assert torch.allclose(again[0][0].pred_masks, again[1][0].pred_masks, atol=1e-4)


def test_masks_differ_only_where_the_probability_is_one_half(spread_model):
    model = spread_model(T2, "MODEL.ANCHOR_GENERATOR.SIZES", "[[24, 48]]")
    fast = for_inference(model)
    records = make_slices((96, 96))
    with torch.no_grad():
        (raw,) = fast.inference(records, do_postprocess=False)
    (expected,), (found,) = run(model, records), run(fast, records)
    boxes = Boxes(raw.pred_boxes.tensor.clone())
    boxes.scale(1.5, 1.5)
    values, _ = _do_paste_mask(raw.pred_masks, boxes.tensor, 144, 144, skip_empty=False)
    differ = expected["instances"].pred_masks != found["instances"].pred_masks
    assert ((values - 0.5).abs() < 1e-4)[differ].all()
    assert found["instances"].pred_masks.float().mean() > 0.01


def test_the_model_stays_as_it_is(spread_model):
    model = spread_model(CLASSIFIER, "MODEL.MASK_ON", "True").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    fast = for_inference(model)
    assert model.training and not fast.training
    assert torch.equal(random, torch.get_rng_state())
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    records = make_slices((64, 64))
    expected = run(fast, records)
    for parameter in model.parameters():
        parameter.data.add_(1)
    assert_same(expected, run(fast, records))


def test_a_copy_does_not_train(spread_model):
    fast = for_inference(spread_model(T2))
    assert fast.eval() is fast
    with pytest.raises(RuntimeError, match="predicts only"):
        fast.train()
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_parts_that_are_not_known_stay(spread_model, caplog):
    model = spread_model(T2, "MODEL.RESNETS.NORM", "GN")
    with caplog.at_level("INFO", logger=fast_module.__name__):
        fast = for_inference(model, dtype=torch.bfloat16)
    assert type(fast) is type(model) and "only BatchNorm is folded" in caplog.text
    records = make_slices((64, 64))
    assert_same(run(model, records), run(fast, records))

    model = spread_model(T2)
    model.roi_heads.box_head.fc_relu1 = nn.GELU()
    model.roi_heads.__class__ = type("OwnHeads", (type(model.roi_heads),), {})
    fast = for_inference(model)
    assert type(fast) is type(model) and not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert_same(run(model, records), run(fast, records))


@pytest.mark.parametrize("config_file", [T2, CLASSIFIER])
def test_bfloat16_is_near(config_file, spread_model):
    model = spread_model(config_file)
    fast = for_inference(model, dtype=torch.bfloat16)
    records = make_slices((96, 96), (96, 96))
    images, plain_images = fast.preprocess_image(records).tensor, model.preprocess_image(records).tensor
    with torch.no_grad():
        found, expected = fast.backbone(images)["p3"], model.backbone(plain_images)["p3"]
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    for one, other in zip(run(fast, records), run(model, records), strict=True):
        assert one["instances"].scores.dtype == one["instances"].pred_boxes.tensor.dtype == torch.float32
        assert torch.allclose(one["instances"].scores[:3], other["instances"].scores[:3], atol=0.05)
        if config_file == CLASSIFIER:
            assert one["image_logits"].dtype == torch.float32
            assert torch.allclose(one["image_scores"], other["image_scores"], atol=0.05)
