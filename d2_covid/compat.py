"""What lets Detectron2 0.6 run on current NumPy, Pillow and PyTorch, without its compiled operators.

Each patch names the line of Detectron2 that needs it, and is applied only where the installed Detectron2 still has that
line and the installed library no longer has what the line asks for. With a Detectron2 built from its repository
nothing matches and nothing changes.
"""

import importlib.machinery
import importlib.util
import re
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

DETECTRON2_MISSING = (
    "d2_covid needs Detectron2, which is not installed: run `make install` in a checkout of d2_covid, "
    "or see INSTALL.md for other ways."
)


@dataclass(frozen=True)
class Patch:
    """One repair: ``line`` in ``upstream`` fails (or makes noise) where ``missing()`` holds; ``apply`` mends that."""

    name: str
    upstream: str
    line: str
    missing: Callable[[Path], bool]
    apply: Callable[[], None]

    def needed(self, root: Path) -> bool:
        """Whether the Detectron2 package at ``root`` has the line and this Python lacks what it asks for."""
        source = root / self.upstream
        if not source.is_file() or not self.missing(root):
            return False
        return re.search(rf"^{re.escape(self.line)}", source.read_text(encoding="utf-8"), re.MULTILINE) is not None


def detectron2_root() -> Path:
    """Folder of the installed Detectron2 package, found without importing it.

    Raises:
        ImportError: Detectron2 is not installed; the message is one line that says what to run.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(DETECTRON2_MISSING, name="detectron2")
    return Path(next(iter(spec.submodule_search_locations)))


def has_compiled_ops(root: Path) -> bool:
    """Whether the Detectron2 package at ``root`` carries its compiled extension ``detectron2._C``."""
    return importlib.machinery.PathFinder.find_spec("detectron2._C", [str(root)]) is not None


def _alias_numpy_scalars() -> None:
    import numpy

    for name, scalar in {"int": int, "float": float, "bool": bool, "str": str, "object": object}.items():
        if not _has_numpy(name):
            setattr(numpy, name, scalar)


def _has_numpy(name: str) -> bool:
    import numpy

    # Not hasattr(): between NumPy 1.20 and 1.24 it warns on these names.
    return name in vars(numpy)


def _alias_pillow_linear() -> None:
    from PIL import Image

    Image.LINEAR = Image.BILINEAR


def _has_pillow_linear() -> bool:
    from PIL import Image

    return hasattr(Image, "LINEAR")


class _MissingOps(types.ModuleType):
    """Stands in for ``detectron2._C``: imports, and says what is missing when an operator is touched."""

    has_cuda = staticmethod(lambda: False)
    get_compiler_version = staticmethod(lambda: "not compiled (d2_covid.compat)")
    get_cuda_version = staticmethod(lambda: "not compiled (d2_covid.compat)")

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 was installed without them. "
            "Mask R-CNN as d2_covid builds it needs none; for rotated boxes, deformable convolution or "
            "COCOEvaluator(use_fast_impl=True), build Detectron2 from its repository (INSTALL.md)."
        )


def _install_missing_ops() -> None:
    import detectron2

    stand_in = _MissingOps("detectron2._C")
    sys.modules["detectron2._C"] = stand_in
    detectron2._C = stand_in


def _quieten_meshgrid() -> None:
    # Detectron2's call keeps its meaning; only PyTorch's notice, at every command's first image, goes.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release", category=UserWarning)


PATCHES = (
    Patch(
        "numpy.bool/int/float/str",
        "data/build.py",
        "    histogram = np.zeros((num_classes,), dtype=np.int)",
        lambda _: not _has_numpy("int"),
        _alias_numpy_scalars,
    ),
    Patch(
        "PIL.Image.LINEAR",
        "data/transforms/transform.py",
        "    def __init__(self, src_rect, output_size, interp=Image.LINEAR, fill=0):",
        lambda _: not _has_pillow_linear(),
        _alias_pillow_linear,
    ),
    Patch(
        "detectron2._C",
        "layers/deform_conv.py",
        "from detectron2 import _C",
        lambda root: not has_compiled_ops(root),
        _install_missing_ops,
    ),
    Patch(
        "torch.meshgrid's notice",
        "modeling/anchor_generator.py",
        "    shift_y, shift_x = torch.meshgrid(shifts_y, shifts_x)",
        # Harmless, so a Detectron2 that somebody built keeps it.
        lambda root: not has_compiled_ops(root),
        _quieten_meshgrid,
    ),
)

applied: tuple[str, ...] = ()
"""Names of the patches that this process needed."""


def apply() -> tuple[str, ...]:
    """Apply the patches that the installed Detectron2 needs; returns (and remembers) their names.

    Raises:
        ImportError: Detectron2 is not installed.
    """
    global applied
    root = detectron2_root()
    for patch in PATCHES:
        if patch.name not in applied and patch.needed(root):
            patch.apply()
            applied += (patch.name,)
    return applied
