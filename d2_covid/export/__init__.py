"""Trained models as files that run without Detectron2: ONNX, or PyTorch's exported programs.

``d2-covid export`` writes them (:mod:`.command`, :mod:`.model`); :func:`session` runs them, and so does the file
``run.py`` that lies beside each, without this package.
"""

from pathlib import Path

from ..errors import UserError
from .runtime import Result, Session

__all__ = ["Result", "Session", "session"]


def session(path: str | Path, threads: int | None = None) -> Session:
    """Load an exported model: ``session(path)(slice_u8)`` is a :class:`Result` in the slice's own pixels.

    Args:
        path: the folder that ``d2-covid export`` wrote, or the model's file in it.
        threads: of the computation; None: as many as ONNX Runtime or PyTorch takes.

    Raises:
        UserError: there is no exported model, its file is another than ``model.json`` says, or ONNX Runtime is missing.
    """
    try:
        return Session(path, threads)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; `d2-covid export` writes it.") from error
    except ModuleNotFoundError as error:
        missing = f"{path} needs {error.name}, which is not installed; pip install 'd2_covid[export]'."
        raise UserError(missing) from error
    except ValueError as error:
        raise UserError(str(error)) from error
