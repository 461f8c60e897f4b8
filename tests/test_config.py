"""Configs: every one that ships builds, and what is wrong in one is said in a line."""

from d2_covid import get_config
from d2_covid.config import config_dir
from d2_covid.errors import UserError

import pytest

LEAVES = sorted(
    path.relative_to(config_dir()).as_posix() for path in config_dir().glob("*/**/*.yaml") if "Base" not in path.name
)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_shipped_config_loads_and_is_short(leaf):
    cfg = get_config(leaf)
    classes = {"merge": 1, "ggo": 1, "both": 2}[cfg.DATASETS.MASK_TYPE]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes
    assert all(f"_{cfg.DATASETS.MASK_TYPE}_" in name for name in cfg.DATASETS.TRAIN if name.startswith("cncb"))


def test_paper_hyperparameters():
    """The table of hyper-parameters of the reference, key by key."""
    cfg = get_config("segmentation/mask_rcnn_R_18_T1_FPN.yaml")
    model, rpn, heads = cfg.MODEL, cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53] and model.PIXEL_STD == [58.395, 57.12, 57.375]
    assert model.RESNETS.NORM == "BN" and model.BACKBONE.FREEZE_AT == 0 and model.FPN.OUT_CHANNELS == 256
    assert model.ANCHOR_GENERATOR.SIZES == [[2, 4, 8, 16, 32]]
    assert model.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.1, 0.25, 0.5, 1.0, 1.5, 2.0]]
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.NMS_THRESH) == (256, 0.75, 0.75)
    assert rpn.IOU_THRESHOLDS == [0.3, 0.7]
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN) == (2000, 2000)
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (1000, 1000)
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.NMS_THRESH_TEST) == (256, 0.75, 0.75)
    assert heads.IOU_THRESHOLDS == [0.5, 0.75] and heads.IOU_LABELS == [0, -1, 1]
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    assert (box.NUM_FC, box.FC_DIM, box.POOLER_RESOLUTION, box.POOLER_SAMPLING_RATIO) == (2, 128, 7, 2)
    assert not box.CLS_AGNOSTIC_BBOX_REG and tuple(box.BBOX_REG_WEIGHTS) == (10.0, 10.0, 5.0, 5.0)
    assert (mask.NUM_CONV, mask.CONV_DIM, mask.POOLER_RESOLUTION, mask.POOLER_SAMPLING_RATIO) == (1, 128, 14, 2)
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR) == ("Adam", 1e-5)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-3, 1e-3)
    assert (solver.IMS_PER_BATCH, solver.EPOCHS) == (1, 100)
    assert cfg.INPUT.RANDOM_FLIP == "none" and cfg.INPUT.MIN_SIZE_TEST == 512 and cfg.INPUT.MAX_SIZE_TEST == 1024
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [512] and cfg.INPUT.MAX_SIZE_TRAIN == 1024
    assert not any(cfg.INPUT.AUGMENTATION.values())
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 128 and cfg.TEST.PAPER_AP_SCORE_THRESH == 0.75


def test_paper_hyperparameters_of_the_classifier():
    cfg = get_config("classification/covid_ct_mask_net_R_18_T1_FPN.yaml")
    detector = get_config("segmentation/mask_rcnn_R_18_T1_FPN.yaml")
    own = ("META_ARCHITECTURE", "MASK_ON", "ROI_HEADS", "CLASSIFIER")
    assert {**cfg.MODEL, **dict.fromkeys(own)} == {**detector.MODEL, **dict.fromkeys(own)}
    assert {**cfg.MODEL.ROI_HEADS, "NAME": ""} == {**detector.MODEL.ROI_HEADS, "NAME": ""}
    assert cfg.INPUT == detector.INPUT and not cfg.MODEL.MASK_ON
    s, solver = cfg.MODEL.CLASSIFIER, cfg.SOLVER
    assert (s.NUM_ROIS, s.HIDDEN_DIM, s.NUM_CLASSES, s.FEATURES) == (128, 512, 3, "deltas")
    assert (s.SCORE_THRESH, s.NMS_THRESH, s.DROP_EMPTY) == (-0.01, 0.75, True)
    assert (s.LOSS, s.CLASS_WEIGHTS, s.TRAIN_NORM) == ("bce", (), True)
    assert cfg.MODEL.ROI_BOX_HEAD.SCORE_FUNCTION == "softmax"
    assert (solver.OPTIMIZER, solver.BASE_LR) == ("Adam", 1e-5)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-3, 1e-3)
    assert (solver.IMS_PER_BATCH, solver.EPOCHS) == (8, 50)
    large = get_config("classification/covid_ct_mask_net_R_50_FPN.yaml").MODEL.CLASSIFIER
    assert (large.NUM_ROIS, large.HIDDEN_DIM) == (256, 1024)


def test_defaults_of_detectron2_stay_untouched():
    from detectron2.config import get_cfg

    get_config()
    assert "MASK_TYPE" not in get_cfg().DATASETS


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere.yaml",), "No config file nowhere.yaml"),
        ((None, ["MODEL.BACKBNE.NAME", "x"]), "BACKBNE"),
        ((None, ["SOLVER.BASE_LR"]), "SOLVER.BASE_LR"),
        ((None, ["SOLVER.BASE_LR", "fast"]), "SOLVER.BASE_LR fast"),
        ((None, ["SEED.NUMBER", "1"]), "SEED.NUMBER 1"),
        ((None, ["MODEL", "1"]), "for config key: MODEL"),
    ],
)
def test_bad_config_is_one_line(arguments, words):
    with pytest.raises(UserError) as error:
        get_config(*arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_unknown_key_in_a_file_names_file_and_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  BACKBNE: 1\nVERSION: 2\n")
    with pytest.raises(UserError, match="mine.yaml.*BACKBNE"):
        get_config(path)


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL: [1,\n")
    with pytest.raises(UserError, match="mine.yaml"):
        get_config(path)


def test_a_config_file_runs_no_code(tmp_path):
    """Such as one that comes with somebody's weights: config.yaml beside a checkpoint is read unasked."""
    path, trace = tmp_path / "config.yaml", tmp_path / "trace"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']\nVERSION: 2\n")
    with pytest.raises(UserError, match=r"config\.yaml is not plain yaml: .*os\.mkdir"):
        get_config(path)
    assert not trace.exists()


def test_a_leaf_that_was_copied_without_its_base_says_so(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('_BASE_: "../Base-LesionMaskRCNN.yaml"\nVERSION: 2\n')
    with pytest.raises(UserError) as error:
        get_config(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "Base-LesionMaskRCNN.yaml: No such file" in message and "\n" not in message
    assert "give _BASE_ the path" in message and str(config_dir()) in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no config"),
        (b"- 1\n", "holds no config"),
        (b"just words\n", "holds no config"),
        (b"_BASE_:\n", "holds no config"),
        (b"_BASE_: mine.yaml\n", "holds no config"),
        (b"PK\x03\x04\x80\xff", "is not plain yaml"),
        (b"\xff\xfe\x80", "is not plain yaml"),
        (b"MODEL: {BACKBONE: [1]}\n", "MODEL.BACKBONE"),
    ],
)
def test_a_file_that_is_no_config_is_named_in_a_line(content, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        get_config(path)
    assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)
