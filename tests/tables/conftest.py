"""Phantoms in the layouts of CNCB and COVIDx-CT, and tools/make_tables.py with its scripts run in this process."""

import contextlib
import functools
import importlib.util
import io
import os
from pathlib import Path
from types import ModuleType

from d2_covid.cli import run_command
from d2_covid.data.phantom import write_phantoms
from d2_covid.errors import UserError
from d2_covid.tables import run as tables_run
from d2_covid.tables.phantom_layouts import write_covidx_layout

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_tables_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Folder with ``cncb`` (two patients a class, one of them for validation, three slices each) and ``covidx_ct``."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(
        folder / "cncb", patients_per_class=2, slices_per_patient=3, seed=1, size=128, val_fraction=0.5, progress=False
    )
    write_covidx_layout(folder / "cncb", folder / "covidx_ct")
    return folder


def execute_here(command, log, environment) -> None:
    """As run_logged, without a process: the script's last line on stderr is the reason of a failure."""
    said = io.StringIO()
    before = os.environ.get("DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = environment["DETECTRON2_DATASETS"]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            script = load_script(Path(command[0]))
            status = run_command(lambda: script.main([*command[1:]]))
    finally:
        os.environ.pop("DETECTRON2_DATASETS")
        if before is not None:
            os.environ["DETECTRON2_DATASETS"] = before
    if status:
        raise UserError(said.getvalue().strip().splitlines()[-1].removeprefix("error: "))


@pytest.fixture
def tool(repository, monkeypatch) -> ModuleType:
    """tools/make_tables.py."""
    module = load_script(repository / "tools" / "make_tables.py")
    monkeypatch.setattr(module, "carry_out", functools.partial(tables_run.carry_out, execute=execute_here))
    return module


@pytest.fixture
def quick(tool, phantoms):
    """The arguments that make runs tiny, on the phantoms."""
    data = ("--cncb", str(phantoms / "cncb"), "--val-fraction", "0.5", "--covidx", str(phantoms / "covidx_ct"))
    return (*data, "--epochs", "1", "--classifier-epochs", "1", *tool.QUICK)
