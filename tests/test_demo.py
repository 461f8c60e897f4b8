"""tools/demo.py --quick-check from end to end, and what it does with a folder that is not its own."""

import importlib.util
import os

from d2_covid.engine.folder_lock import held
from d2_covid.errors import UserError

import pytest


@pytest.fixture()
def demo(repository, monkeypatch):
    # The demo sets it for itself and its scripts; afterwards it is as it was.
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = importlib.util.spec_from_file_location("demo_under_test", repository / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_makes_everything_once(demo, tmp_path, capsys):
    folder = tmp_path / "demo"
    assert demo.main(["--output", str(folder), "--quick-check"]) == 0
    said = capsys.readouterr().out
    for path in ("summary.html", "overlays", "segmentation/model_final.pth", "classifier/model_final.pth"):
        assert (folder / path).exists()
        assert str(folder / path) in said
    page = (folder / "summary.html").read_text(encoding="utf-8")
    assert "Mask AP50" in page and "phantom_merge_val" in page and page.count("<figure>") >= 3
    assert "Confusion matrix" in page and "Sensitivity, COVID-19" in page
    assert len(list((folder / "overlays").glob("*.png"))) > 3

    made = (folder / "summary.html").stat().st_mtime_ns
    assert demo.main(["--output", str(folder), "--quick-check"]) == 0
    assert capsys.readouterr().out.count("done before") == 4
    assert (folder / "summary.html").stat().st_mtime_ns == made


def test_a_folder_with_other_things_is_left_alone(demo, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other things than a demo"):
        demo.main(["--output", str(tmp_path), "--fresh"])
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_demo_that_trains_is_not_thrown_away(demo, tmp_path):
    pytest.importorskip("fcntl", reason="this system knows no locks of folders")
    demo.prepare_output(tmp_path, fresh=False)
    for training in ("segmentation", "classifier"):
        checkpoint = tmp_path / training / "checkpoint"
        checkpoint.parent.mkdir()
        checkpoint.touch()
        with held(checkpoint.parent), pytest.raises(UserError, match=f"Another demo trains in .*{training}: wait"):
            demo.prepare_output(tmp_path, fresh=True)
        assert checkpoint.is_file()
    demo.prepare_output(tmp_path, fresh=True)
    assert not (tmp_path / "segmentation").exists()


def test_a_failing_step_is_named_with_its_log(demo, tmp_path, monkeypatch, capfd):
    plan = demo.Plan(tmp_path, phantoms=("--patients", "none"))
    with pytest.raises(UserError, match=r"prepare_phantoms.py failed with status 2.*phantoms.log"):
        demo.make_phantoms(plan)
    assert "--patients" in capfd.readouterr().err
