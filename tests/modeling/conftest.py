"""Small classifiers on the CPU, built from the shipped configs."""

from d2_covid import get_config

import pytest
import torch
from detectron2.modeling import build_model

TINY = """MODEL.DEVICE cpu MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
MODEL.RPN.PRE_NMS_TOPK_TEST 60 MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.CLASSIFIER.NUM_ROIS 16
MODEL.CLASSIFIER.HIDDEN_DIM 12""".split()


def tiny_config(*opts: str, config_file: str = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"):
    """The R18-T2 classifier with few channels, proposals and RoIs."""
    return get_config(config_file, [*TINY, *opts])


@pytest.fixture
def tiny_cfg():
    return tiny_config


@pytest.fixture
def tiny_model():
    """``tiny_model(*opts)`` builds a tiny classifier whose detector finds something: its last layers are not near 0."""

    def build(*opts: str, config_file: str = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"):
        torch.manual_seed(0)
        model = build_model(tiny_config(*opts, config_file=config_file))
        generator = torch.Generator().manual_seed(1)
        predictor = model.roi_heads.box_predictor
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.data.normal_(0, 0.5, generator=generator)
        return model

    return build


@pytest.fixture
def slices():
    """Three network inputs, two sizes."""
    generator = torch.Generator().manual_seed(2)
    sizes = [(64, 64), (64, 64), (48, 80)]
    return [
        {
            "image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator),
            "height": 2 * h,
            "width": 2 * w,
            "image_class": i,
        }
        for i, (h, w) in enumerate(sizes)
    ]
