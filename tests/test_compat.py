"""Compat supplies what Detectron2 0.6 asks for, and changes nothing for a newer one."""

import subprocess
import sys
import textwrap
from pathlib import Path

from d2_covid import compat

import pytest

COMPAT = Path(compat.__file__)
OLD = {
    "data/build.py": "def f():\n    histogram = np.zeros((num_classes,), dtype=np.int)\n",
    "data/transforms/transform.py": (
        "class T:\n    def __init__(self, src_rect, output_size, interp=Image.LINEAR, fill=0):\n        pass\n"
    ),
    "layers/deform_conv.py": "from detectron2 import _C\n",
    "modeling/anchor_generator.py": "def f():\n    shift_y, shift_x = torch.meshgrid(shifts_y, shifts_x)\n",
}
NEW = {
    "data/build.py": "def f():\n    histogram = np.zeros((num_classes,), dtype=int)\n",
    "data/transforms/transform.py": (
        "class T:\n    def __init__(self, src_rect, output_size, interp=Image.BILINEAR, fill=0):\n        pass\n"
    ),
    "layers/deform_conv.py": "try:\n    from detectron2 import _C\nexcept ImportError:\n    pass\n",
    "modeling/anchor_generator.py": 'def f():\n    y, x = meshgrid(shifts_y, shifts_x, indexing="ij")\n',
}


def _tree(folder: Path, sources: dict[str, str]) -> Path:
    root = folder / "detectron2"
    for name, text in {"__init__.py": "", **sources}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _python(code: str, path: Path) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh interpreter whose ``detectron2`` is the one below ``path``."""
    load = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("compat", {str(COMPAT)!r})
        compat = importlib.util.module_from_spec(spec)
        sys.modules["compat"] = compat
        spec.loader.exec_module(compat)
    """
    command = textwrap.dedent(load) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", command], env={"PYTHONPATH": str(path)}, capture_output=True, text=True
    )


def test_old_tree_gets_exactly_the_patches_it_needs(tmp_path):
    _tree(tmp_path, OLD)
    result = _python(
        """
        print(compat.apply())
        import numpy
        from PIL import Image
        assert numpy.int is int and numpy.float is float and Image.LINEAR == Image.BILINEAR
        from detectron2 import _C
        try:
            _C.box_iou_rotated(1, 2)
        except RuntimeError as error:
            print(error)
        assert not _C.has_cuda() and not hasattr(_C, "__file__")
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "detectron2._C" in result.stdout and "PIL.Image.LINEAR" in result.stdout
    assert "box_iou_rotated is a compiled operator" in result.stdout


def test_new_tree_is_left_alone(tmp_path):
    _tree(tmp_path, NEW)
    result = _python(
        """
        import numpy
        from PIL import Image
        import warnings
        before, filters = (set(vars(numpy)), set(vars(Image))), list(warnings.filters)
        assert compat.apply() == (), compat.applied
        assert warnings.filters == filters and before == (set(vars(numpy)), set(vars(Image)))
        assert "detectron2._C" not in sys.modules
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr


def test_compiled_operators_are_never_replaced(tmp_path):
    root = _tree(tmp_path, OLD)
    assert not compat.has_compiled_ops(root)
    (root / "_C.py").write_text("real = True\n")  # any importable _C counts, as the compiled one would
    assert compat.has_compiled_ops(root)
    result = _python("assert 'detectron2._C' not in compat.apply()\nimport detectron2._C as c\nassert c.real", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("patch", compat.PATCHES, ids=lambda patch: patch.name)
def test_each_patch_follows_its_upstream_line(patch, tmp_path, monkeypatch):
    """Missing in the environment is not enough: the line must be there; and the line alone is not enough either."""
    always = compat.Patch(patch.name, patch.upstream, patch.line, lambda root: True, patch.apply)
    never = compat.Patch(patch.name, patch.upstream, patch.line, lambda root: False, patch.apply)
    old, new = _tree(tmp_path / "old", OLD), _tree(tmp_path / "new", NEW)
    assert always.needed(old) and not always.needed(new)
    assert not never.needed(old)


def test_apply_twice_changes_nothing_more():
    before = compat.applied
    assert compat.apply() == before


def test_installed_detectron2_runs():
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.layers import nms

    assert ResizeShortestEdge and nms


def test_without_detectron2_import_fails_with_one_line(repository):
    code = "import sys; sys.modules['detectron2'] = None; import d2_covid"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == f"ImportError: {compat.DETECTRON2_MISSING}"
    assert "make install" in compat.DETECTRON2_MISSING and "\n" not in compat.DETECTRON2_MISSING
