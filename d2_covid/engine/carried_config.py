"""The part of a config that a checkpoint carries, so that its weights alone are enough to predict."""

import logging
from functools import reduce
from pathlib import Path
from typing import Any, Iterable, Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import get_config
from ..data.slice_lists import IMAGE_CLASSES, class_number
from ..errors import UserError
from .run_record import plain_config

logger = logging.getLogger(__name__)

# What builds a model and runs it. The rest says how it was trained, and where its files lay.
_CARRIED = ("MODEL", "INPUT", "TEST")
# Of TEST: how the machine at hand predicts, which another one may not be able to.
_OF_THE_MACHINE = ("FAST", "DTYPE", "CUDA_GRAPH")
# Another value here loads without an error, and then predicts nonsense.
_SILENT = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
    *("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "MODEL.RPN.BBOX_REG_WEIGHTS"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.FORMAT", "INPUT.WINDOW.LEVEL", "INPUT.WINDOW.WIDTH"),
    *("MODEL.ANCHOR_GENERATOR.OFFSET", "MODEL.RESNETS.STRIDE_IN_1X1"),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "MODEL.ROI_MASK_HEAD.POOLER_TYPE"),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO"),
    *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "TEST.NORM_STATISTICS"),
)
# Of a classifier's own checkpoint: which detections its module S learned from, and how they were repeated where they
# are too few. A detector alone may give it others.
_SILENT_OF_CLASSIFIER = (
    *("MODEL.CLASSIFIER.NMS_THRESH", "MODEL.CLASSIFIER.SCORE_THRESH", "MODEL.CLASSIFIER.DROP_EMPTY"),
    *("MODEL.CLASSIFIER.PADDING", "MODEL.CLASSIFIER.PADDING_SEED"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TEST"),
)


def carried_facts(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint carries for prediction: ``config``, plain values of the model's and the input's keys, and
    ``image_classes``, names, where the config's datasets have them."""
    plain = plain_config(without_machine(cfg.clone()))
    config = {section: plain[section] for section in _CARRIED}
    config["MODEL"] |= {"WEIGHTS": "", "DEVICE": "cpu"}
    config["MODEL"]["CLASSIFIER"] |= {"CACHE_DIR": ""}
    config["DATASETS"] = {"MASK_TYPE": cfg.DATASETS.MASK_TYPE}
    facts = {"config": config}
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        classes = MetadataCatalog.get(name).get("image_classes")
        if classes and len(classes) == cfg.MODEL.CLASSIFIER.NUM_CLASSES:
            return facts | {"image_classes": list(classes)}
    return facts


def without_machine(cfg: CfgNode) -> CfgNode:
    """``cfg`` itself, now without what suited the machine that trained: a GPU's ``TEST.DTYPE float16``, say."""
    defaults = get_config().TEST
    for key in _OF_THE_MACHINE:
        cfg.TEST[key] = defaults[key]
    return cfg


def carried_image_classes(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the image classes that a checkpoint carries; none of a lesion model, nor of an older classifier."""
    names = facts.get("image_classes")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def image_class_names(cfg: CfgNode, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the C image classes of the model of ``cfg``, whose checkpoint carries ``facts``: its own, else the
    paper's where C is 3, else ``class 0`` and so on. None of a model that does not classify."""
    if cfg.MODEL.META_ARCHITECTURE != "CovidCTMaskNet":
        return ()
    count, names = cfg.MODEL.CLASSIFIER.NUM_CLASSES, carried_image_classes(facts)
    if len(names) == count:
        return names
    return IMAGE_CLASSES if count == len(IMAGE_CLASSES) else tuple(f"class {number}" for number in range(count))


def check_carried_classes(facts: Mapping[str, Any], datasets: Iterable[str], source: str | Path) -> None:
    """Refuse datasets whose image classes are others than those that a checkpoint carries, or stand in another order.

    Other names of the paper's classes, such as NCP for COVID-19, are the same classes.

    Raises:
        UserError: names both lists.
    """
    own = carried_image_classes(facts)
    for name in datasets if own else ():
        classes = MetadataCatalog.get(name).get("image_classes", ())
        if [class_number(label, own) for label in classes] != list(range(len(own))):
            raise UserError(
                f"Dataset {name} has the image classes {', '.join(classes)}, and {source} was trained on "
                f"{', '.join(own)}, in that order; give slices of these classes, registered in the same order."
            )


def config_from_facts(facts: Mapping[str, Any], source: str | Path) -> CfgNode | None:
    """The config that a checkpoint carries, everything else at its default; None if it carries none.

    Raises:
        UserError: it has keys that this version does not know, or values of another kind.
    """
    if "config" not in facts:
        return None
    cfg = get_config()
    try:
        cfg.merge_from_other_cfg(CfgNode(facts["config"]))
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise UserError(
            f"{source} carries a config that this d2_covid can't read ({reason}); update d2_covid, or give the model's "
            "config with --model."
        ) from error
    return without_machine(cfg)  # older checkpoints carry that too


def silent_differences(cfg: CfgNode, facts: Mapping[str, Any]) -> list[str]:
    """Keys in which ``cfg`` differs from the config that a checkpoint carries, of those that no error would tell:
    ``"INPUT.MIN_SIZE_TEST 512, theirs is 256"``."""
    own, trained = plain_config(cfg), facts.get("config") or {}
    classify = all(_value(config, "MODEL.META_ARCHITECTURE") == "CovidCTMaskNet" for config in (own, trained))
    keys = (*_SILENT, *_SILENT_OF_CLASSIFIER) if classify else _SILENT
    pairs = ((key, _value(own, key), _value(trained, key)) for key in keys)
    return [f"{key} {mine}, theirs is {its}" for key, mine, its in pairs if its is not None and its != mine]


def warn_of_silent_differences(cfg: CfgNode, facts: Mapping[str, Any]) -> None:
    """Log a warning for each of :func:`silent_differences`."""
    for what in silent_differences(cfg, facts):
        logger.warning("the config differs from the weights' own: %s", what)


def _value(config: Mapping[str, Any], key: str) -> Any:
    return reduce(lambda node, part: (node or {}).get(part), key.split("."), config)
