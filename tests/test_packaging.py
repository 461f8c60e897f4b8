"""An installed d2_covid has every file that a checkout has, and the models that ship are whole."""

import shutil
import subprocess
import sys
import tarfile

from d2_covid.engine.checkpoint import read_checkpoint
from d2_covid.inference.shipped import MAX_BYTES, shipped_models, store_dir, verified

import pytest
import torch


def _setup(repository, *command):
    command = [sys.executable, "setup.py", "--quiet", *map(str, command)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)


def _files(folder, *patterns):
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern)}


def test_every_config_template_and_schema_is_shipped(repository, tmp_path):
    _setup(repository, "build_py", "--build-lib", tmp_path)
    built = tmp_path / "d2_covid"
    assert _files(built / "configs", "*.yaml") == _files(repository / "configs", "*.yaml") != set()
    kinds = ("*.html", "*.json", "*.py", "*.pth", "README.md")
    assert _files(repository / "d2_covid", *kinds) <= _files(built, *kinds)
    assert (tmp_path / "d2_covid_entry.py").is_file()


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory):
    """A copy of what a package is made of, with one more model in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("d2_covid", "configs"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "d2_covid_entry.py", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder)
    for name in ("one_more.pth", "one_more.json"):
        (folder / "d2_covid" / "models" / name).write_text("{}")
    return folder


def test_a_model_that_is_dropped_in_is_installed(checkout, tmp_path):
    _setup(checkout, "build_py", "--build-lib", tmp_path)
    assert {"one_more.pth", "one_more.json", "README.md"} <= _files(tmp_path / "d2_covid" / "models", "*")


def test_a_model_that_is_dropped_in_is_in_the_source_archive(checkout, tmp_path):
    _setup(checkout, "egg_info", "--egg-base", tmp_path, "sdist", "--formats", "gztar", "--dist-dir", tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    models = {f"d2_covid/models/{name}" for name in ("one_more.pth", "one_more.json", "README.md")}
    assert models | {"d2_covid_entry.py", "configs/segmentation/mask_rcnn_R_18_T1_FPN.yaml"} <= names


# ---- the models that ship; without one these hold as well ----


def test_every_weight_has_its_card_and_every_card_its_weights():
    assert {path.stem for path in store_dir().glob("*.pth")} == {path.stem for path in store_dir().glob("*.json")}
    others = {path.name for path in store_dir().iterdir()} - {"README.md", "__pycache__"}
    assert {name.rpartition(".")[2] for name in others} <= {"pth", "json"}


def test_one_of_the_models_is_the_default():
    models = shipped_models()
    assert [model.card.default for model in models] == [True, False, False, False, False][: len(models)]


def test_shipped_models_are_whole_small_and_measured():
    for model in shipped_models():
        card = verified(model).card
        assert card.size_bytes <= MAX_BYTES, f"{card.name} is too large"
        assert card.evaluation, f"{card.name} is not measured: tools/ship_weights.py --name {card.name} --evaluate ..."
        intervals = [metric for one in card.evaluation for metric in one.metrics.values() if metric.low is not None]
        assert intervals, f"{card.name} has no figure with an interval"
        assert "FILL IN" not in str(card.as_dict()), f"the card of {card.name} has a gap"


def test_shipped_weights_are_tensors_and_plain_values_in_half_precision():
    for model in shipped_models():
        own = torch.load(model.path, map_location="cpu", weights_only=True)
        assert set(own) == {"model", "d2_covid"} and {"config", "lesion_classes"} <= own["d2_covid"].keys()
        wide = [name for name, tensor in own["model"].items() if tensor.dim() > 1 and tensor.dtype != torch.float16]
        assert not wide, f"{model.name} has {wide[0]} in full"
        whole = read_checkpoint(model.path)["model"]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in whole.values()), model.name
