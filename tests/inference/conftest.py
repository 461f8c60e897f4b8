"""Small models for prediction: real ones with few channels, and one that finds what a test can work out by itself."""

import shutil

from d2_covid import get_config
from d2_covid.engine.carried_config import carried_facts
from d2_covid.engine.checkpoint import model_facts, write_checkpoint
from d2_covid.inference import shipped
from d2_covid.inference.predictor import Predictor
from d2_covid.zoo.shipping import CompareOn, ship

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


def card_facts() -> dict:
    """What a person has to say of a model."""
    source = {"name": "discs", "url": "https://example.org", "used": "all", "terms": "none", "citation": "nobody"}
    return {
        "summary": "Finds discs.",
        "intended_use": "Tests.",
        "not_intended_use": "Anything else.",
        "limits": ["Random weights: it knows nothing.", "Small."],
        "training": {"recipe": "none", "command": "none", "data": [source]},
        "licence": {"weights": "Any use.", "reason": "Nothing was learned."},
    }


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory):
    """``make_classifier(lesion_checkpoint, change=...)`` gives the checkpoint of a tiny classifier on that detector,
    trained so far that ``change(state)`` happened to its tensors."""

    def make(lesion, change=lambda state: None):
        cfg = get_config(CLASSIFIER, TINY)
        torch.manual_seed(3)
        state = build_model(cfg).state_dict()
        state |= {name: tensor for name, tensor in torch.load(lesion)["model"].items() if name in state}
        change(state)
        path = tmp_path_factory.mktemp("classifier") / "model_best.pth"
        facts = model_facts(cfg, classifier=True) | carried_facts(cfg)
        write_checkpoint(path, {"model": state, "d2_covid": facts})
        return path

    return make


@pytest.fixture(scope="session")
def few_slices() -> CompareOn:
    """Two slices of noise."""
    slices = np.random.default_rng(0).integers(0, 255, (2, 48, 56), np.uint8)
    return CompareOn(list(slices), "noise")


@pytest.fixture(scope="session")
def tiny_store(make_weights, make_classifier, few_slices, tmp_path_factory):
    """A folder of two models that ship, ``tiny_lesion`` and ``tiny_classifier``; not to be changed.

    ``tiny_store.parent`` has the checkpoints that they were made of, ``lesion.pth`` and ``classifier.pth``.
    """
    folder = tmp_path_factory.mktemp("shipped")
    lesion, store = folder / "lesion.pth", folder / "models"
    # What random weights find scores little.
    lesion.write_bytes(make_weights(LESION, "TEST.UNION_SCORE_THRESH", "0.05").read_bytes())
    (folder / "classifier.pth").write_bytes(make_classifier(lesion).read_bytes())
    ship("tiny_lesion", lesion, card_facts(), store, compare_on=few_slices)
    ship("tiny_classifier", folder / "classifier.pth", card_facts(), store, base="tiny_lesion", compare_on=few_slices)
    return store


@pytest.fixture
def ships(tiny_store, tmp_path, monkeypatch):
    """A copy of :func:`tiny_store`, which ships for the length of a test."""
    store = tmp_path / "ships"
    shutil.copytree(tiny_store, store)
    monkeypatch.setattr(shipped, "store_dir", lambda: store)
    return store


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
