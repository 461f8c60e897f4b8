"""The fast copy on a CUDA device; skipped where there is none."""

from d2_covid.modeling.fast import for_inference
from d2_covid.modeling.fast_nms import nms_by_image

import pytest
import torch
from torch import nn
from torchvision.ops import nms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
T2 = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
SHOW = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "12")


@pytest.fixture(autouse=True)
def _exact():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def model(request, tiny_model):
    config_file, *opts = request.param
    model = tiny_model(*SHOW, *opts, config_file=config_file).eval()
    head = model.proposal_generator.rpn_head
    generator = torch.Generator().manual_seed(3)
    for layer in (head.objectness_logits, head.anchor_deltas):
        layer.weight.data.normal_(0, 0.2, generator=generator)
    return model.cuda()


def make_slices(*sizes: tuple[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(4)
    records = []
    for height, width in sizes:
        low = torch.rand(1, 1, height // 8 + 1, width // 8 + 1, generator=generator)
        gray = nn.functional.interpolate(low, size=(height, width), mode="bilinear")[0] * 255
        image = gray.round().to(torch.uint8).repeat(3, 1, 1)
        records.append({"image": image, "height": height * 2, "width": width * 2})
    return records


MODELS = [(T2,), (CLASSIFIER,), (CLASSIFIER, "MODEL.MASK_ON", "True")]
SIZES = [[(96, 96)], [(64, 64)] * 3, [(61, 47), (96, 64)]]


def assert_near(expected: list[dict], found: list[dict], tolerance: float) -> None:
    for one, other in zip(expected, found, strict=True):
        a, b = one["instances"].to("cpu"), other["instances"].to("cpu")
        assert torch.allclose(a.scores[:4], b.scores[:4], atol=tolerance)
        if tolerance < 1e-3:
            assert len(a) == len(b) and torch.equal(a.pred_classes, b.pred_classes)
            assert torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-2)
            if a.has("pred_masks"):
                assert (a.pred_masks != b.pred_masks).float().mean() < 1e-3
        if "image_scores" in one:
            assert torch.allclose(one["image_scores"].cpu(), other["image_scores"].cpu(), atol=tolerance)


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_same_results(model, sizes, cuda_graph):
    records = make_slices(*sizes)
    with torch.no_grad():
        expected = model(records)
    fast = for_inference(model, cuda_graph=cuda_graph)
    for _ in range(3):
        assert_near(expected, fast(records), 5e-4)


@pytest.mark.parametrize("model", MODELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_half_precision_is_near(model, dtype, cuda_graph):
    records = make_slices((96, 96), (96, 96))
    with torch.no_grad():
        expected = model(records)
    fast = for_inference(model, dtype=dtype, cuda_graph=cuda_graph)
    found = fast(records)
    assert found[0]["instances"].scores.dtype == torch.float32
    assert_near(expected, found, 0.05)


@pytest.mark.parametrize("model", MODELS[:1], indirect=True)
def test_graphs_of_several_shapes_do_not_mix(model):
    fast, graphed = for_inference(model), for_inference(model, cuda_graph=True)
    batches = [make_slices(*[(size, size)] * count) for size, count in ((64, 1), (96, 2), (64, 3), (80, 1), (64, 2))]
    for _ in range(2):
        for records in batches:
            assert_near(fast(records), graphed(records), 5e-4)


@pytest.mark.parametrize("model", MODELS[:1], indirect=True)
def test_a_graph_that_inference_mode_has_captured_serves_outside_it(model):
    records, graphed = make_slices((64, 64)), for_inference(model, cuda_graph=True)
    with torch.inference_mode():
        expected = graphed(records)
    with torch.no_grad():
        assert_near(expected, graphed(records), 5e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
@pytest.mark.parametrize("model", MODELS[:1], indirect=True)
def test_graphs_on_a_gpu_that_is_not_the_current_one(model):
    model.to("cuda:1")
    batches = [make_slices((size, size)) for size in (64, 96, 64)]
    expected = [for_inference(model)(records) for records in batches]
    graphed = for_inference(model, cuda_graph=True)
    assert torch.cuda.current_device() == 0
    for records, wanted in zip(batches, expected, strict=True):
        assert_near(wanted, graphed(records), 5e-4)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("model", MODELS[:2], indirect=True)
def test_the_copy_on_a_processor_agrees(model):
    records = make_slices((96, 96), (96, 96))
    assert_near(for_inference(model.cpu())(records), for_inference(model.cuda())(records), 5e-4)


def test_suppression_of_many_images():
    torch.manual_seed(0)
    counts = [300, 0, 500, 1]
    corner = torch.rand(sum(counts), 2) * 100
    boxes = torch.cat((corner, corner + torch.rand(sum(counts), 2) * 40), 1).cuda()
    scores = torch.rand(sum(counts)).cuda()
    order, kept = nms_by_image(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64).cuda(), counts, 0.5, 100)
    start = 0
    for count, found in zip(counts, order.split(kept), strict=True):
        part = slice(start, start + count)
        assert torch.equal(found - start, nms(boxes[part], scores[part], 0.5)[:100])
        start += count
