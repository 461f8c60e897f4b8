"""The model that predicts: a fast copy of the one that trained, as ``TEST.FAST`` and ``TEST.DTYPE`` say."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN

from ..errors import UserError, check_choice
from ..modeling.fast import for_inference
from ..modeling.slice_norm import with_slice_statistics

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of ``TEST.DTYPE``."""

NORM_STATISTICS = ("running", "slice")
"""Values of ``TEST.NORM_STATISTICS``."""

_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}


def inference_model(cfg: CfgNode, model: torch.nn.Module) -> torch.nn.Module:
    """A copy of ``model`` for prediction, in inference mode: the fast one or, with ``TEST.NORM_STATISTICS slice``, a
    plain one that normalises by each slice's own. With ``TEST.FAST`` False, or if it is no ``GeneralizedRCNN``,
    ``model`` itself as it is.

    Raises:
        UserError: as :func:`check_inference`, or the model has no BatchNorm for ``TEST.NORM_STATISTICS slice``.
    """
    dtype = inference_dtype(cfg)
    if not isinstance(model, GeneralizedRCNN):
        return model
    if by_slice_statistics(cfg):
        return with_slice_statistics(model).eval()
    if not cfg.TEST.FAST:
        return model
    return for_inference(model, dtype=dtype, cuda_graph=cfg.TEST.CUDA_GRAPH)


def check_inference(cfg: CfgNode) -> None:
    """Refuse keys of ``TEST`` by which no model predicts.

    Raises:
        UserError: as :func:`inference_dtype` and :func:`by_slice_statistics`.
    """
    inference_dtype(cfg)
    by_slice_statistics(cfg)


def by_slice_statistics(cfg: CfgNode) -> bool:
    """Whether ``TEST.NORM_STATISTICS`` asks for each slice's own.

    Raises:
        UserError: its value is unknown, or not for this model or ``TEST.DTYPE``.
    """
    name = cfg.TEST.NORM_STATISTICS
    check_choice("TEST.NORM_STATISTICS", name, NORM_STATISTICS)
    if name == "running":
        return False
    if cfg.MODEL.META_ARCHITECTURE == "CovidCTMaskNet":
        raise UserError(
            "TEST.NORM_STATISTICS slice is for lesion models: a classifier learns with running statistics; leave it "
            "running."
        )
    if cfg.TEST.DTYPE != "float32":
        raise UserError(f"TEST.NORM_STATISTICS slice computes in float32, and TEST.DTYPE is {cfg.TEST.DTYPE}.")
    return True


def inference_dtype(cfg: CfgNode) -> torch.dtype:
    """The type that ``TEST.DTYPE`` names.

    Raises:
        UserError: it is unknown, not for ``MODEL.DEVICE``, or not for the plain model.
    """
    name = cfg.TEST.DTYPE
    check_choice("TEST.DTYPE", name, tuple(DTYPES))
    if name == "float32":
        return DTYPES[name]
    if not cfg.TEST.FAST:
        raise UserError(f"TEST.DTYPE {name} needs TEST.FAST True; the plain model computes in float32.")
    if cfg.MODEL.DEVICE == "cpu":
        if name == "float16":
            raise UserError("TEST.DTYPE float16 (--dtype float16) is for a GPU; on a CPU use bfloat16 or float32.")
        if not cpu_has_bfloat16():
            logger.warning("this processor has no bfloat16 instructions: bfloat16 is slower here than float32")
    return DTYPES[name]


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself: PyTorch takes it on others too, and is slow there."""
    if device == "cpu":
        return cpu_has_bfloat16()
    if not device.startswith("cuda") or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; False where that can't be told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in text.splitlines() if line.startswith(("flags", "Features")))
    return bool(_BF16_FLAGS & set(next(flags, ())))
