"""What the ROI heads learn from, beside Detectron2's, image by image."""

from d2_covid import get_config
from d2_covid.modeling import roi_targets
from d2_covid.modeling.roi_targets import mask_targets, sample_rois, trains_batched

import pytest
import torch
from detectron2.modeling import StandardROIHeads, build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.POST_NMS_TOPK_TRAIN 100 MODEL.ROI_HEADS.FAST_POOLING False""".split()
EVERYTHING = """MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.POSITIVE_FRACTION 0.5
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 1000 MODEL.ROI_HEADS.POSITIVE_FRACTION 0.5""".split()
MANY_FOREGROUND = "MODEL.ROI_HEADS.IOU_THRESHOLDS [0.1,0.2]".split()
SIZES = [(96, 128), (128, 128), (128, 128), (80, 64)]


def ellipse(size: tuple[int, int]) -> torch.Tensor:
    """A mask that may reach over the image's edge."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    y, x = (torch.rand(2) * torch.tensor(size)).tolist()
    radii = 4 + torch.rand(2) * 20
    return ((rows - y) / radii[0]) ** 2 + ((columns - x) / radii[1]) ** 2 <= 1


def truth(*counts: int, classes: int = 1) -> list[Instances]:
    """Ground truth of images of :data:`SIZES`, so many lesions each."""
    targets = []
    for size, count in zip(SIZES, counts):
        masks = [mask for mask in (ellipse(size) for _ in range(count)) if mask.any()]
        masks = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
        target = Instances(size, gt_masks=BitMasks(masks), gt_boxes=BitMasks(masks).get_bounding_boxes())
        target.gt_classes = torch.randint(0, classes, (len(masks),))
        targets.append(target)
    return targets


def proposals(targets: list[Instances], extra: int = 40) -> list[Instances]:
    """Boxes beside the ground truth, and anywhere."""
    found = []
    for target in targets:
        near = target.gt_boxes.tensor.repeat(6, 1)
        near = near + torch.randn_like(near) * 2
        corners = torch.rand(extra, 2) * 60
        boxes = Boxes(torch.cat((near, torch.cat((corners, corners + 4 + torch.rand(extra, 2) * 40), dim=1))))
        boxes.clip(target.image_size)
        boxes = boxes[boxes.nonempty()]
        logits = torch.randn(len(boxes))
        found.append(Instances(target.image_size, proposal_boxes=boxes, objectness_logits=logits))
    return found


def options(number: int, fraction: float, thresholds=(0.5, 0.75), labels=(0, -1, 1), **others):
    return {
        "matcher": Matcher(list(thresholds), list(labels)),
        "num_classes": 2,
        "batch_size_per_image": number,
        "positive_fraction": fraction,
        **others,
    }


def plain_heads(given) -> StandardROIHeads:
    """As much of Detectron2's heads as its sampling needs."""
    heads = StandardROIHeads.__new__(StandardROIHeads)
    torch.nn.Module.__init__(heads)
    heads.proposal_matcher = given["matcher"]
    heads.proposal_append_gt = given.get("append_gt", True)
    heads.num_classes, heads.batch_size_per_image = given["num_classes"], given["batch_size_per_image"]
    heads.positive_fraction = given["positive_fraction"]
    return heads


def as_rows(image: int, x: Instances) -> torch.Tensor:
    """Sampled RoIs of Detectron2 in a form to compare: box, class, and ground-truth box where it is foreground."""
    boxes = x.gt_boxes.tensor if x.has("gt_boxes") else x.proposal_boxes.tensor
    rows = torch.cat((torch.full((len(x), 1), image), x.proposal_boxes.tensor, x.gt_classes[:, None].float()), dim=1)
    return torch.cat((rows, boxes.where(x.gt_classes[:, None] < 2, 0.0)), dim=1)


@pytest.mark.parametrize("append_gt", [True, False])
@pytest.mark.parametrize(("thresholds", "labels"), [((0.5, 0.75), (0, -1, 1)), ((0.5,), (0, 1))])
def test_all_candidates_are_detectron2s(append_gt, thresholds, labels):
    targets = truth(3, 0, 5, 1, classes=2)
    found = proposals(targets)
    given = options(1000, 0.5, thresholds, labels, append_gt=append_gt)
    with EventStorage() as ours:
        sampled = sample_rois(found, targets, **given)
    with EventStorage() as theirs:
        expected = plain_heads(given).label_and_sample_proposals(found, targets)
    assert sampled.counts == [len(x) for x in expected]
    rows = torch.cat((sampled.rois, sampled.gt_classes[:, None].float()), dim=1)
    rows = torch.cat((rows, sampled.gt_boxes.where(sampled.gt_classes[:, None] < 2, 0.0)), dim=1)
    wanted = torch.cat([as_rows(i, x) for i, x in enumerate(expected)])
    assert sorted(rows.tolist()) == sorted(wanted.tolist())
    assert len({key for key, _ in ours.latest().items()}) == 2
    for name, (value, _) in theirs.latest().items():
        assert ours.latest()[name][0] == pytest.approx(value)

    assert torch.equal(sampled.foreground, (sampled.gt_classes < 2).nonzero()[:, 0]) and len(sampled.foreground) > 5
    assert sampled.foreground_counts == [int((x.gt_classes < 2).sum()) for x in expected]
    all_boxes = torch.cat([x.gt_boxes.tensor for x in targets])
    assert torch.equal(all_boxes[sampled.gt_index], sampled.gt_boxes[sampled.foreground])


@pytest.mark.parametrize(("number", "fraction"), [(16, 0.25), (30, 0.75), (4, 0.0)])
def test_quotas_are_detectron2s(number, fraction):
    targets = truth(3, 0, 5, 1)
    found, given = proposals(targets), options(number, fraction, (0.5,), (0, 1))
    with EventStorage():
        sampled = sample_rois(found, targets, **given)
        expected = plain_heads(given).label_and_sample_proposals(found, targets)
    assert sampled.counts == [len(x) for x in expected]
    assert sampled.foreground_counts == [int((x.gt_classes < 2).sum()) for x in expected]
    assert len(sampled.rois.unique(dim=0)) == len(sampled.rois)


@pytest.mark.parametrize("at_once", [1, 1 << 26])
@pytest.mark.parametrize("number", [1000, 4])
def test_mask_targets_are_detectron2s(number, at_once, monkeypatch):
    monkeypatch.setattr(roi_targets, "PIXELS_AT_ONCE", at_once)
    targets = truth(3, 0, 5, 2)
    with EventStorage():
        sampled = sample_rois(proposals(targets), targets, **options(number, 0.5, (0.3,), (0, 1)))
    cut = mask_targets([x.gt_masks.tensor for x in targets], sampled, 28)
    assert cut.dtype == torch.bool and len(cut) == len(sampled.foreground) >= (30 if number > 30 else 6)
    rois, first, expected = sampled.rois[sampled.foreground], 0, []
    for i, target in enumerate(targets):
        mine = rois[:, 0] == i
        if mine.any():
            masks = target.gt_masks[sampled.gt_index[mine] - first]
            expected.append(masks.crop_and_resize(rois[mine, 1:], 28))
        first += len(target)
    assert torch.equal(cut, torch.cat(expected))


def samples(*counts: int, classes: int = 1) -> list[dict]:
    return [
        {"image": torch.randint(0, 256, (3, *x.image_size), dtype=torch.uint8), "instances": x}
        for x in truth(*counts, classes=classes)
    ]


def models(config: str, *opts: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model with Detectron2's RPN and heads, and ours with the same weights."""
    cfg = get_config(config, [*TINY, *opts, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"])
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    plain = build_model(cfg).train()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME = "LesionRPN", "LesionROIHeads"
    ours = build_model(cfg).train()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def losses_and_gradients(model: torch.nn.Module, batch: list[dict]):
    with EventStorage() as storage:
        losses = model(batch)
        model.zero_grad()
        sum(losses.values()).backward()
        logged = {name: value for name, (value, _) in storage.latest().items()}
    return losses, {name: p.grad for name, p in model.named_parameters()}, logged


@pytest.mark.parametrize(
    ("config", "opts", "counts"),
    [
        ("segmentation/mask_rcnn_R_18_T2_FPN.yaml", (), (3, 0, 5, 1)),
        ("segmentation/mask_rcnn_R_18_T2_FPN.yaml", (), (0, 0)),
        ("segmentation/mask_rcnn_R_18_T2_FPN.yaml", ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "0.1"), (2,)),
        (
            "segmentation/mask_rcnn_R_18_T1_FPN_both.yaml",
            ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
            (2, 2, 2),
        ),
        ("segmentation/mask_rcnn_R_18_T1_FPN_both.yaml", (), (2, 4, 2)),
        ("segmentation/tuned/mask_rcnn_R_18_T2_FPN.yaml", (), (4, 2, 3)),
    ],
)
def test_a_whole_model_trains_as_detectron2s(config, opts, counts):
    many = ("MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]", *MANY_FOREGROUND)
    plain, ours = models(config, *EVERYTHING, *many, *opts)
    batch = samples(*counts, classes=ours.roi_heads.num_classes)
    expected, found = losses_and_gradients(plain, batch), losses_and_gradients(ours, batch)
    assert expected[0].keys() == found[0].keys()
    for name, loss in expected[0].items():
        torch.testing.assert_close(found[0][name], loss, rtol=1e-5, atol=1e-7)
    for name, gradient in expected[1].items():
        scale = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)
    assert found[2] == pytest.approx(expected[2], rel=1e-5, abs=1e-6)
    if sum(counts):
        assert found[0]["loss_mask"] > 0 and found[2]["roi_head/num_fg_samples"] >= 1


@pytest.mark.parametrize("counts", [(3, 0, 5, 0), (0, 0)])
def test_an_image_without_lesions_needs_no_masks(counts):
    """Detectron2's own mapper gives it none."""
    plain, ours = models("segmentation/mask_rcnn_R_18_T2_FPN.yaml", *EVERYTHING, *MANY_FOREGROUND)
    batch = samples(*counts)
    for x in batch:
        if not len(x["instances"]):
            x["instances"].remove("gt_masks")
    assert trains_batched(ours.roi_heads, [x["instances"] for x in batch])
    expected, found = losses_and_gradients(plain, batch)[0], losses_and_gradients(ours, batch)[0]
    assert expected.keys() == found.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pooling", ["True", "False"])
@pytest.mark.parametrize("agnostic", ["True", "False"])
def test_no_proposal_is_no_error(agnostic, pooling):
    """NaN leaves none, and an image without lesions brings no box of its own; the training loop tells of the NaN."""
    opts = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    opts += ("MODEL.ROI_HEADS.FAST_POOLING", pooling)
    _, ours = models("segmentation/mask_rcnn_R_18_T1_FPN_both.yaml", *opts)
    torch.nn.init.constant_(ours.backbone.bottom_up.stem.conv1.weight, torch.nan)
    losses, _, logged = losses_and_gradients(ours, samples(0))
    assert losses["loss_rpn_cls"].isnan()
    assert [losses[name].item() for name in ("loss_cls", "loss_box_reg", "loss_mask")] == [0, 0, 0]
    assert logged["roi_head/num_fg_samples"] == logged["roi_head/num_bg_samples"] == 0
    assert not any(name.startswith(("fast_rcnn/", "mask_rcnn/")) for name in logged)


def test_no_proposal_at_all_gives_no_rois():
    targets = truth(0)
    none = [Instances(SIZES[0], proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))]
    for append_gt in (True, False):
        with EventStorage():
            sampled = sample_rois(none, targets, **options(8, 0.5, append_gt=append_gt))
        assert sampled.rois.shape == (0, 5) and sampled.counts == sampled.foreground_counts == [0]


def test_several_feature_levels():
    small = "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.ROI_MASK_HEAD.NUM_CONV 1".split()
    plain, ours = models("segmentation/mask_rcnn_R_50_FPN.yaml", *EVERYTHING, *small)
    batch = samples(2, 0)
    expected, found = losses_and_gradients(plain, batch)[0], losses_and_gradients(ours, batch)[0]
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-6)


def test_losses_in_mixed_precision_stay_near():
    _, ours = models("segmentation/mask_rcnn_R_18_T2_FPN.yaml", *EVERYTHING)
    batch = samples(3, 1)
    single = losses_and_gradients(ours, batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses_and_gradients(ours, batch)[0]
    for name, loss in single.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(loss.item(), rel=0.1, abs=0.02)


def test_the_seed_decides():
    _, ours = models("segmentation/mask_rcnn_R_18_T2_FPN.yaml", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8")
    batch = samples(2, 3)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(losses_and_gradients(ours, batch)[0])
    assert results[0] == results[1] != results[2]


def test_other_heads_train_as_detectron2_does():
    batch = samples(2, 1)
    targets = [x["instances"] for x in batch]
    for opts in (
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5, 0.75]", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"),
    ):
        plain, ours = models("segmentation/mask_rcnn_R_18_T2_FPN.yaml", *EVERYTHING, *opts)
        assert not trains_batched(ours.roi_heads, targets)
        expected, found = losses_and_gradients(plain, batch)[0], losses_and_gradients(ours, batch)[0]
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-5)
    _, ours = models("segmentation/mask_rcnn_R_18_T2_FPN.yaml")
    assert trains_batched(ours.roi_heads, targets)
    ours.roi_heads.box_predictor.use_sigmoid_ce = True  # as a later Detectron2 has it
    assert not trains_batched(ours.roi_heads, targets)


def test_matches_of_this_file_are_foreground_somewhere():
    """The random boxes above are near enough to lesions for the tests to mean something."""
    targets = truth(3, 5)
    near = proposals(targets)
    assert all((pairwise_iou(t.gt_boxes, p.proposal_boxes) > 0.75).any() for t, p in zip(targets, near))
