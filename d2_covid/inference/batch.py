"""A trained model over many slices, one after another."""

from pathlib import Path
from typing import Any, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..data.preprocessing import network_input, read_slice
from ..engine.inference_model import check_inference, inference_model
from ..engine.setup import build_described
from ..engine.weights import load_weights
from ..errors import UserError


def load_model(cfg: CfgNode) -> torch.nn.Module:
    """The model of ``cfg`` with ``MODEL.WEIGHTS`` in it, on ``MODEL.DEVICE`` and ready to predict.

    It is the fast copy of that model (:mod:`~d2_covid.modeling.fast`), unless ``TEST.FAST`` is False.

    Raises:
        UserError: no weights are given, they are not those of this model, ``cfg`` describes none that can be built, or
            ``TEST.DTYPE`` is not for this device.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("A model that predicts needs its weights: give MODEL.WEIGHTS the path of a checkpoint.")
    check_inference(cfg)  # what is wrong with it is said before the weights are read
    model = build_described(cfg)
    load_weights(model, cfg, complete=True)
    return inference_model(cfg, model.eval())


def slice_record(gray: np.ndarray, cfg: CfgNode) -> dict[str, Any]:
    """One slice as a model of ``cfg`` takes it, in the size of evaluation.

    Args:
        gray: (H, W) ``uint8``.

    Returns:
        ``image``, (3, h, w) ``uint8``, and ``height`` and ``width``, H and W: results come in the pixels of the slice.
    """
    tensor = network_input(gray, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return {"image": tensor, "height": gray.shape[0], "width": gray.shape[1]}


def predict_slices(
    model: torch.nn.Module, slices: Iterable[str | Path | np.ndarray], cfg: CfgNode
) -> Iterator[tuple[np.ndarray, Instances]]:
    """Predict slice by slice, as they are asked for.

    Args:
        model: from :func:`load_model`.
        slices: image files, or (H, W) uint8 arrays.
        cfg: what the model was built from; its ``INPUT`` sizes are those of evaluation.

    Yields:
        The slice, (H, W) uint8, and its instances in the slice's own pixels, on the CPU, in descending score.
    """
    for item in slices:
        image = item if isinstance(item, np.ndarray) else read_slice(item)
        record = slice_record(image, cfg)
        # Only around the call: a generator that is left half-way must not leave its caller without gradients.
        with torch.inference_mode():
            output = model([record])[0]["instances"].to("cpu")
        yield image, output
