"""What an exported model gives: name, type, shape and meaning of each output."""

from dataclasses import dataclass

from .dense import DensePart
from .detector import WholeModel

_DETECTIONS = "detections"
_ROWS = "as the model's classifier sees them, in descending score; repeats of a detection stand next to each other"


@dataclass(frozen=True)
class Output:
    """One output of the graph; a string in ``shape`` is a length that changes from call to call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


def outputs_of(module: DensePart | WholeModel, batch: int | None = None) -> tuple[Output, ...]:
    """The outputs of a module, in order.

    Args:
        batch: N; None: it changes from call to call.
    """
    n = batch or "batch"
    return _dense_outputs(module, n) if isinstance(module, DensePart) else _whole_outputs(module, n)


def _dense_outputs(module: DensePart, n: int | str) -> tuple[Output, ...]:
    shapes, head = module.backbone.output_shape(), module.rpn_head
    anchors, numbers = head.objectness_logits.out_channels, head.anchor_deltas.out_channels
    kinds = (
        (module.feature_names, "features", None, "feature map of the FPN, a cell every {} pixels of the input"),
        (module.rpn_features, "rpn_logits", anchors, "objectness of each anchor, before the sigmoid"),
        (module.rpn_features, "rpn_deltas", numbers, "of each anchor in turn dx, dy, dw, dh: its encoded regression"),
    )
    return tuple(
        Output(
            f"{kind}_{level}",
            "float32",
            (n, channels or shapes[level].channels, f"rows_{level}", f"columns_{level}"),
            meaning.format(shapes[level].stride),
        )
        for levels, kind, channels, meaning in kinds
        for level in levels
    )


def _whole_outputs(module: WholeModel, n: int | str) -> tuple[Output, ...]:
    m = _DETECTIONS
    found = [
        Output("image_index", "int64", (m,), "which image of the batch a detection lies in, ascending"),
        Output("boxes", "float32", (m, 4), "x0, y0, x1, y1 in pixels of the input, inside the image"),
        Output("scores", "float32", (m,), "0 to 1, descending in each image"),
        Output("classes", "int64", (m,), "index into lesion_classes"),
    ]
    if module.with_masks:
        edge = module.mask_pooler.size[0] * 2
        meaning = "probabilities over the detection's box, stretched to it; lesion where they reach thresholds.mask"
        found.append(Output("masks", "float32", (m, edge, edge), meaning))
    if module.ranked is not None:
        d, c = module.ranked.options.num_rois, module.ranked.classifier.num_classes
        box = "encoded regression" if module.ranked.options.features == "deltas" else "shares of width and height"
        found += [
            Output("image_logits", "float32", (n, c), "of each of image_classes"),
            Output("image_scores", "float32", (n, c), "of each of image_classes; they sum to 1"),
            Output("ranked_rows", "float32", (n, d, 5), f"score and 4 box numbers ({box}) of detections, {_ROWS}"),
            Output("ranked_boxes", "float32", (n, d, 4), "their boxes, x0, y0, x1, y1 in pixels of the input"),
            Output("ranked_detections", "int64", (n, d), "which detection a row repeats, from 0; -1: there is none"),
        ]
    return tuple(found)
