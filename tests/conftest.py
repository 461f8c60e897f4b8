"""Fixtures that every test may use."""

import importlib.util
import os
from pathlib import Path

import d2_covid  # noqa: F401  (before any test imports Detectron2)

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent

# The first gradient decides which threads autograd starts. After torch.export has made PyTorch believe in a GPU there
# would be some, and no forked process could compute a gradient.
torch.ones(1, requires_grad=True).sum().backward()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, autograd has its thread, and a forked process can't compute a gradient: such tests are run
    by one of them in a process that doesn't see the GPU (``tests/engine/test_processes.py``)."""
    if torch.cuda.is_available():
        skip = pytest.mark.skip(reason="a forked process computes no gradient where there is a GPU")
        for item in items:
            if item.get_closest_marker("forks"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real CT; a test that asks for it is skipped, with this reason, where it is absent."""
    folder = Path(os.environ.get("D2_COVID_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real CT at {folder}; set D2_COVID_REAL_DATA to its folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def scans():
    """The module ``scans.py`` beside this file: makes small CT files of every format."""
    spec = importlib.util.spec_from_file_location("d2_covid_test_scans", Path(__file__).with_name("scans.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
