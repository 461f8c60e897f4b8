"""Fixtures that every test may use."""

import os
from pathlib import Path

import d2_covid  # noqa: F401  (before any test imports Detectron2)

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


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
    return folder


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
