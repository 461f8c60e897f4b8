"""The part of a config that a checkpoint carries, so that its weights alone are enough to predict."""

from pathlib import Path
from typing import Any, Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import get_config
from ..errors import UserError
from .run_record import plain_config

# What builds a model and runs it. The rest says how it was trained, and where its files lay.
_CARRIED = ("MODEL", "INPUT", "TEST")
# Another value here loads without an error, and then predicts nonsense.
_SILENT = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
    *("MODEL.ROI_BOX_HEAD.SCORE_FUNCTION", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "MODEL.RPN.BBOX_REG_WEIGHTS"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.FORMAT"),
)


def carried_facts(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint carries for prediction: ``config``, plain values of the model's and the input's keys, and
    ``image_classes``, names, where the config's datasets have them."""
    plain = plain_config(cfg)
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
    return cfg


def silent_differences(cfg: CfgNode, facts: Mapping[str, Any]) -> list[str]:
    """Keys in which ``cfg`` differs from the config that a checkpoint carries, of those that no error would tell:
    ``"INPUT.MIN_SIZE_TEST 512, trained with 256"``."""
    differing = []
    for key in _SILENT if "config" in facts else ():
        trained, own = facts["config"], plain_config(cfg)
        for part in key.split("."):
            trained, own = (trained or {}).get(part), own[part]
        if trained is not None and trained != own:
            differing.append(f"{key} {own}, trained with {trained}")
    return differing
