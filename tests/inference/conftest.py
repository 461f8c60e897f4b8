"""Small models for prediction: real ones with few channels, and one that finds what a test can work out by itself."""

from d2_covid import get_config
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.inference.predictor import Predictor

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

LESION = "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"
TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.CONV_DIMS [8] MODEL.RPN.PRE_NMS_TOPK_TEST 40 MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 6
MODEL.CLASSIFIER.NUM_ROIS 16 MODEL.CLASSIFIER.HIDDEN_DIM 12 INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 128
MODEL.ANCHOR_GENERATOR.SIZES [[16,32]]""".split()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory):
    """``make_weights(config_file, *opts, carried=True)`` gives the checkpoint of a tiny random model."""

    def make(config_file: str, *opts: str, carried: bool = True):
        cfg = get_config(config_file, [*TINY, *opts])
        torch.manual_seed(0)
        model = build_model(cfg)
        generator = torch.Generator().manual_seed(1)
        predictor = model.roi_heads.box_predictor
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.data.normal_(0, 0.5, generator=generator)
        facts = model_facts(cfg, classifier=config_file == CLASSIFIER)
        if carried:
            facts |= carried_facts(cfg)
        path = tmp_path_factory.mktemp("weights") / "model_best.pth"
        write_checkpoint(path, {"model": model.state_dict(), "d2_covid": facts})
        return path

    return make


@pytest.fixture(scope="session")
def lesion_weights(make_weights):
    """A tiny segmentation model of GGO and consolidation that keeps a slice's size."""
    opts = ["DATASETS.MASK_TYPE", "both", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "INPUT.MIN_SIZE_TEST", "0"]
    return make_weights(LESION, *opts)


@pytest.fixture(scope="session")
def classifier_weights(make_weights):
    """A tiny classifier with masks."""
    return make_weights(CLASSIFIER, "MODEL.MASK_ON", "True")


class KnownModel(torch.nn.Module):
    """Finds, by their gray, the left lung of :func:`scans.body` as GGO, and its bright bar as consolidation."""

    def forward(self, records: list[dict]) -> list[dict]:
        return [{"instances": self._instances(record["image"][0].numpy())} for record in records]

    def _instances(self, gray: np.ndarray) -> Instances:
        masks = [(number, mask) for number, mask in enumerate((known_ggo(gray), gray == 255)) if mask.any()]
        found = Instances(gray.shape)
        boxes = [
            [np.flatnonzero(m.any(0))[0], np.flatnonzero(m.any(1))[0], *(n[-1] + 1 for n in np.nonzero(m)[::-1])]
            for _, m in masks
        ]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.tensor([0.9 - 0.1 * number for number, _ in masks])
        found.pred_classes = torch.tensor([number for number, _ in masks], dtype=torch.int64)
        found.pred_masks = torch.tensor(np.array([m for _, m in masks], dtype=bool).reshape(-1, *gray.shape))
        return found


def known_ggo(gray: np.ndarray) -> np.ndarray:
    """Gray of Hounsfield units from -858 to -850 under the window -600, 1500: lung at the patient's right."""
    return (gray >= 83) & (gray <= 85)


@pytest.fixture
def known(lesion_weights) -> Predictor:
    """A predictor that finds what :class:`KnownModel` finds."""
    predictor = Predictor(weights=lesion_weights, device="cpu")
    predictor.model = KnownModel()
    return predictor
