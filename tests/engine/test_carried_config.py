"""What a checkpoint carries: the config, and its image classes, with the datasets that may be judged by them."""

from d2_covid import get_config
from d2_covid.data.slice_datasets import COVID_CT_CLASSES
from d2_covid.data.slice_lists import IMAGE_CLASSES
from d2_covid.engine import carried_config
from d2_covid.engine.carried_config import (
    carried_facts,
    check_carried_classes,
    config_from_facts,
    image_class_names,
    silent_differences,
    without_machine,
)
from d2_covid.errors import UserError

import pytest
from detectron2.data import MetadataCatalog

CLASSIFIER = "classification/covid_ct_mask_net_R_18_T2_FPN.yaml"

# Other values than the configs', of every key that is compared.
SILENT = {
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8, 16]]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "[[1.0]]",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "0.5",
    "MODEL.PIXEL_MEAN": "[0.0, 0.0, 0.0]",
    "MODEL.PIXEL_STD": "[1.0, 1.0, 1.0]",
    "MODEL.RESNETS.STRIDE_IN_1X1": "True",
    "MODEL.RPN.BBOX_REG_WEIGHTS": "[2.0, 2.0, 2.0, 2.0]",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": "[2.0, 2.0, 2.0, 2.0]",
    "MODEL.ROI_BOX_HEAD.SCORE_FUNCTION": "sigmoid",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "1",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "1",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "7",
    "TEST.NORM_STATISTICS": "slice",
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": "256",
    "INPUT.MAX_SIZE_TEST": "300",
    "INPUT.WINDOW.LEVEL": "40.0",
    "INPUT.WINDOW.WIDTH": "400.0",
}
SILENT_OF_CLASSIFIER = {
    "MODEL.CLASSIFIER.NMS_THRESH": "0.2",
    "MODEL.CLASSIFIER.SCORE_THRESH": "0.5",
    "MODEL.CLASSIFIER.DROP_EMPTY": "False",
    "MODEL.CLASSIFIER.PADDING": "sampled",
    "MODEL.CLASSIFIER.PADDING_SEED": "5",
    "MODEL.RPN.NMS_THRESH": "0.2",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "60",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "50",
}


@pytest.mark.parametrize(
    "count, carried, names",
    [
        (2, list(COVID_CT_CLASSES), COVID_CT_CLASSES),
        (3, ["a", "b", "c"], ("a", "b", "c")),
        (3, None, IMAGE_CLASSES),
        (2, None, ("class 0", "class 1")),
    ],
)
def test_names_of_the_classes_are_the_models_own(count, carried, names):
    cfg = get_config(CLASSIFIER, ["MODEL.CLASSIFIER.NUM_CLASSES", str(count)])
    facts = {} if carried is None else {"image_classes": carried}
    assert image_class_names(cfg, facts) == names
    assert image_class_names(get_config("segmentation/mask_rcnn_R_18_T2_FPN.yaml"), facts) == ()


@pytest.fixture
def dataset():
    name = "tiny_for_carried_classes"
    yield lambda *classes: MetadataCatalog.get(name).set(image_classes=list(classes)).name
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("facts", [{}, {"image_classes": list(IMAGE_CLASSES)}])
def test_other_words_for_the_papers_classes_are_the_same_classes(dataset, facts):
    check_carried_classes(facts, [dataset("Normal", "CP", "NCP")], "x.pth")


def test_classes_called_by_numbers_are_their_names(dataset):
    facts = {"image_classes": ["1", "2"]}
    check_carried_classes(facts, [dataset("1", "2")], "x.pth")
    MetadataCatalog.remove("tiny_for_carried_classes")
    with pytest.raises(UserError, match="image classes 0, 1, and x.pth was trained on 1, 2"):
        check_carried_classes(facts, [dataset("0", "1")], "x.pth")


@pytest.mark.parametrize("classes", [IMAGE_CLASSES[::-1], IMAGE_CLASSES[:2], (*IMAGE_CLASSES[:2], "tumour"), ()])
def test_other_classes_are_refused(dataset, classes):
    with pytest.raises(UserError, match="x.pth was trained on control, common pneumonia, COVID-19, in that order"):
        check_carried_classes({"image_classes": list(IMAGE_CLASSES)}, [dataset(*classes)], "x.pth")


def test_every_key_that_is_compared_has_a_case():
    assert set(SILENT) == set(carried_config._SILENT)
    assert set(SILENT_OF_CLASSIFIER) == set(carried_config._SILENT_OF_CLASSIFIER)


@pytest.mark.parametrize("key, value", SILENT.items())
def test_what_no_error_would_tell_is_told(key, value):
    lesion, facts = "segmentation/mask_rcnn_R_50_FPN.yaml", carried_facts(get_config())
    for leaf in (lesion, CLASSIFIER):
        facts = carried_facts(get_config(leaf))
        (told,) = silent_differences(get_config(leaf, [key, value]), facts)
        assert told.startswith(f"{key} {value}, theirs is ")
    section, part, *rest = key.split(".")
    del facts["config"][section][part]  # as an older checkpoint, which has no such key
    assert silent_differences(get_config(leaf, [key, value]), facts) == []
    assert silent_differences(get_config(leaf, [key, value]), {}) == []


@pytest.mark.parametrize("opts", SILENT_OF_CLASSIFIER.items())
def test_which_detections_are_ranked_matters_to_a_classifiers_own_weights_alone(opts):
    cfg, lesion = get_config(CLASSIFIER, opts), "segmentation/mask_rcnn_R_18_T2_FPN.yaml"
    (told,) = silent_differences(cfg, carried_facts(get_config(CLASSIFIER)))
    assert told.startswith(" ".join(opts))
    assert silent_differences(cfg, carried_facts(get_config(lesion))) == []
    assert silent_differences(get_config(lesion, opts), carried_facts(get_config(CLASSIFIER))) == []
    assert silent_differences(get_config(lesion, opts), carried_facts(get_config(lesion))) == []


def test_what_suited_the_machine_that_trained_is_not_carried():
    """A model that a GPU trained and judged in float16 predicts on a CPU."""
    machine = ["TEST.DTYPE", "float16", "TEST.CUDA_GRAPH", "True", "TEST.FAST", "False", "MODEL.DEVICE", "cuda:1"]
    cfg = get_config(CLASSIFIER, [*machine, "TEST.PATIENT_K", "7"])
    cfg.freeze()
    facts = carried_facts(cfg)
    older = {"config": facts["config"] | {"TEST": facts["config"]["TEST"] | {"DTYPE": "float16", "FAST": False}}}
    assert facts["config"]["TEST"]["DTYPE"] == "float32" and cfg.TEST.DTYPE == "float16"
    for carried in (facts, older):
        read = config_from_facts(carried, "x.pth")
        assert (read.TEST.DTYPE, read.TEST.CUDA_GRAPH, read.TEST.FAST) == ("float32", False, True)
        assert read.TEST.PATIENT_K == 7 and read.MODEL.DEVICE == "cpu"
    assert without_machine(cfg) is cfg and cfg.TEST.DTYPE == "float32"
