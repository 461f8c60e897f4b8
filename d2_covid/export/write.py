"""Modules as files: ONNX, and PyTorch's own exported programs."""

import io
import logging
import warnings
from contextlib import contextmanager
from importlib import import_module
from typing import Iterator, Sequence

import torch
from packaging.version import Version
from torch import nn

from ..errors import UserError
from .operators import onnx_translations
from .outputs import Output

FORMATS = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""What can be written, and the name of the file."""

OPSET = 18
"""Version of ONNX's operators; RoiAlign as Detectron2 computes it came with 16."""

LARGEST_BATCH, SMALLEST_EDGE, LARGEST_EDGE = 1024, 65, 4096
"""Bounds of what may change from call to call."""

_EXAMPLE = (2, 128, 160)
_SINCE = "2.9"
"""The oldest PyTorch that the tests have passed with; 2.6 can't export rows whose number depends on the data."""


def require_format(kind: str) -> None:
    """Make sure that a format can be written here.

    Raises:
        UserError: a package is missing, or too old; the message gives the command.
    """
    if Version(Version(torch.__version__).base_version) < Version(_SINCE):
        raise UserError(f"Exporting needs PyTorch {_SINCE} or newer, and this is {torch.__version__}.")
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(
                f"--format onnx needs {package}, which is not installed; pip install 'd2_covid[export]', or use "
                "--format pt2."
            ) from error


def to_bytes(
    module: nn.Module,
    kind: str,
    *,
    outputs: Sequence[Output],
    batch: int | None = None,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A module of (N, H, W) ``uint8`` images as the content of a file.

    Nothing of the machine that it was made on is in it, and the same module gives the same bytes.

    Args:
        kind: of :data:`FORMATS`.
        outputs: of the module.
        batch: N; None: any, up to :data:`LARGEST_BATCH`.
        size: (H, W); None: any, from :data:`SMALLEST_EDGE` to :data:`LARGEST_EDGE`.
    """
    program = _program(module, batch, size)
    if kind == "pt2":
        file = io.BytesIO()
        torch.export.save(program, file)
        return file.getvalue()
    return _onnx(program, outputs)


def ir_version(content: bytes) -> int:
    """The version of ONNX's file format that an ONNX file has."""
    import onnx

    return onnx.load_model_from_string(content).ir_version


def _program(module: nn.Module, batch: int | None, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    shape = (batch or _EXAMPLE[0], *(size or _EXAMPLE[1:]))
    dynamic = {}
    if batch is None:
        dynamic[0] = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    if size is None:
        dynamic |= {
            axis: torch.export.Dim(name, min=SMALLEST_EDGE, max=LARGEST_EDGE)
            for axis, name in ((1, "height"), (2, "width"))
        }
    image = torch.zeros(shape, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            module.eval(), (image,), dynamic_shapes={"image": dynamic} if dynamic else None, strict=False
        )
    for node in program.graph.nodes:
        for key in ("stack_trace", "source_fn_stack"):  # not "nn_module_stack": PyTorch 2.9 decomposes by it
            node.meta.pop(key, None)
    return program


def _onnx(program: torch.export.ExportedProgram, outputs: Sequence[Output]) -> bytes:
    with torch.no_grad(), _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=onnx_translations(),
            input_names=["image"],
            output_names=[output.name for output in outputs],
            verbose=False,
        )
    proto = made.model_proto
    # What the exporter knows of the source of each node, and of values in between, whose lengths have no names.
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    for holder in (proto.graph, *proto.functions):
        del holder.metadata_props[:]
        for node in holder.node:
            del node.metadata_props[:]
            node.ClearField("doc_string")
    _name_lengths(proto.graph.input[0], ("batch", "height", "width"))
    for value, output in zip(proto.graph.output, outputs, strict=True):
        _name_lengths(value, output.shape, described=True)
    return proto.SerializeToString(deterministic=True)


def _name_lengths(value, shape: Sequence[int | str], *, described: bool = False) -> None:
    """Give the lengths of an ONNX input or output that change their names."""
    del value.metadata_props[:]
    for length, name in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        # Also where the exporter has worked out a number: what model.json says of the shape holds for the file.
        if (described and isinstance(name, str)) or not length.HasField("dim_value"):
            length.dim_param = str(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters warn of: it is for those who write them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
