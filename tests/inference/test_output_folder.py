"""What a run finds in its output folder: results of other inputs, records of other commands, another run."""

import csv
import json
from pathlib import Path

from d2_covid.engine.folder_lock import held
from d2_covid.errors import UserError
from d2_covid.inference import resume as resume_module
from d2_covid.inference.batch_run import BatchOptions, BatchRun
from d2_covid.inference.result_folders import ResultFolders
from d2_covid.inference.summary_table import printed_table

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def run(known, tmp_path):
    """``run(*inputs)`` saves predictions.json into ``tmp_path/out``, and gives the exit status and the lines said."""

    def start(*inputs, resume=False) -> tuple[int, list[str]]:
        lines = []
        options = BatchOptions(save=["json"], resume=resume)
        return BatchRun(known, inputs, tmp_path / "out", options, lines.append).run(), lines

    return start


def _images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((40, 48), 84, np.uint8)).save(folder / f"{number}.png")
    return folder


KINDS = {
    "volume": ("ct", lambda scans, top: scans.nifti(top / "ct.nii.gz", scans.body(2))),
    "volume in two": ("ct", lambda scans, top: scans.itk(top / "ct.mhd", scans.body(2))),
    "image": ("0", lambda scans, top: _images(top / "x", 1) / "0.png"),
    "images": ("x", lambda scans, top: _images(top / "x", 2)),
    "DICOM without UID": ("x", lambda scans, top: scans.dicom_series(top / "x", scans.body(2), SeriesInstanceUID=None)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_of_another_input_of_that_name_stays(kind, run, scans, tmp_path):
    name, write = KINDS[kind]
    one, other = (write(scans, tmp_path / patient) for patient in "AB")
    result, second = tmp_path / "out" / name, tmp_path / "out" / f"{name}-2"
    assert run(one)[0] == 0
    before = {path: path.stat().st_ino for path in result.iterdir()}
    for resume in (False, True):
        assert run(other, resume=resume)[0] == 0
        assert {path: path.stat().st_ino for path in result.iterdir()} == before
        facts = json.loads((second / "predictions.json").read_text())["input"]
        assert facts["identifier"] == second.name and str(other) in facts["path"]
        (entry,) = json.loads((tmp_path / "out" / "run.json").read_text())["series"]
        assert entry["identifier"] == second.name and entry["status"] == ("whole already" if resume else "done")
    assert run(one)[0] == 0 and {path: path.stat().st_ino for path in result.iterdir()} != before


def test_a_patient_more_leaves_each_result_its_folder(run, scans, tmp_path):
    """Discovery numbers series of one name in order: a new one would come between the others."""
    paths = [scans.nifti(tmp_path / "in" / patient / "ct.nii", scans.body(2)) for patient in "BC"]
    for number in (1, 2):
        assert run(tmp_path / "in", resume=True)[0] == 0
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        found = {Path(series["path"]).parent.name: series["identifier"] for series in record["series"]}
        assert found == {"B": "ct", "C": "ct-2"} | ({"A": "ct-3"} if number == 2 else {})
        states = [series["status"] for series in record["series"]]
        assert states == (["done"] * 2 if number == 1 else ["done", "whole already", "whole already"])
        paths.append(scans.nifti(tmp_path / "in" / "A" / "ct.nii", scans.body(2)))
    paths[0].unlink()
    assert run(tmp_path / "in")[0] == 0
    for name, patient in {"ct": "B", "ct-2": "C", "ct-3": "A"}.items():
        assert f"/{patient}/" in json.loads((tmp_path / "out" / name / "predictions.json").read_text())["input"]["path"]


def test_images_of_one_folder_are_the_same_series_if_some_are(run, tmp_path):
    folder = _images(tmp_path / "x", 4)
    images = sorted(folder.iterdir())
    for chosen, names in ((images[:2], ["x"]), (images[2:], ["x", "x-2"]), (images[:3], ["x", "x-2"])):
        assert run(*chosen)[0] == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == names
    counts = [len(json.loads((tmp_path / "out" / n / "predictions.json").read_text())["slices"]) for n in ("x", "x-2")]
    assert counts == [3, 2]


def _slices(output: Path) -> dict[str, int]:
    """Slices by the name of a result's folder."""
    found = {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/predictions.json")}
    assert all(facts["input"]["identifier"] == name for name, facts in found.items())
    return {name: len(facts["slices"]) for name, facts in found.items()}


@pytest.mark.parametrize("order", [["x", "x/2.png"], ["x/2.png", "x"]])
def test_an_image_and_its_folder_are_two_inputs(order, run, tmp_path):
    _images(tmp_path / "x", 4)
    assert [run(tmp_path / one)[0] for one in order * 2] == [0] * 4
    assert _slices(tmp_path / "out") == {"x": 4, "2": 1}


def test_some_images_of_a_folder_are_its_series_once_the_others_are_gone(run, tmp_path):
    images = sorted(_images(tmp_path / "x", 4).iterdir())
    for chosen in ([tmp_path / "x"], images[:2], images[:2]):
        run(*chosen)
    assert _slices(tmp_path / "out") == {"x": 4, "x-2": 2}
    images[3].unlink()
    _, lines = run(tmp_path / "x")
    assert _slices(tmp_path / "out") == {"x": 3, "x-2": 2}
    assert "warning: x: the earlier result, of 4 slices, is replaced by this one of 3." in lines


def test_a_slice_that_replaces_the_result_of_its_series_is_said(run, scans, tmp_path):
    folder = scans.dicom_series(tmp_path / "in", scans.body(3), series="1.5")
    said = [any("of 3 slices" in line for line in run(one)[1]) for one in (folder, next(folder.iterdir()), folder)]
    assert said == [False, True, False] and _slices(tmp_path / "out") == {"1.5": 3}


@pytest.mark.parametrize(
    "earlier, identifier, name",
    [
        ({}, "ct", "ct"),
        ({"ct": ["b"]}, "ct", "ct-2"),
        ({"CT": ["b"]}, "ct", "ct-2"),  # of one name where case does not count
        ({"ct": ["b"], "ct-2": ["c"]}, "ct-2", "ct-3"),
        ({"scan-1": ["b"]}, "scan-1", "scan-1-2"),
        ({"ct": ["b"], "ct-7": ["a"]}, "ct", "ct-7"),
        ({"ct": ["b"], "ct-7": ["x", "a"]}, "ct", "ct-2"),  # one image, and a folder that it lies in
        ({"ct": ["a"], "ct-2": ["a"]}, "ct-2", "ct-2"),  # a DICOM series in two parts
        ({"ct": None}, "ct", "ct"),
        ({"ct-2": ["a"], ".ct-2.old": ["a"]}, "ct", "ct-2"),  # left by a run that was killed
    ],
)
def test_the_name_of_a_results_folder(earlier, identifier, name, tmp_path):
    for folder, sources in earlier.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "done.json").write_text(json.dumps({} if sources is None else {"sources": sources}))
    folders = ResultFolders(tmp_path)
    assert folders.claim(identifier, ["a"]) == name
    assert folders.claim(identifier, ["a"]) != name


def test_a_renamed_result_is_kept(run, scans, tmp_path):
    path = scans.nifti(tmp_path / "in" / "ct.nii", scans.body(2))
    run(path)
    (tmp_path / "out" / "ct").rename(tmp_path / "out" / "ct_v1")
    before = (tmp_path / "out" / "ct_v1" / "predictions.json").read_bytes()
    for resume in (False, True):
        assert run(path, resume=resume) == (0, [])
        assert (tmp_path / "out" / "ct" / "predictions.json").is_file()
        assert (tmp_path / "out" / "ct_v1" / "predictions.json").read_bytes() == before
    assert not (tmp_path / "out" / "ct-2").exists()


def test_an_earlier_result_that_stays_is_told_of(run, known, scans, tmp_path, monkeypatch):
    path = scans.nifti(tmp_path / "ct.nii", scans.body(2))
    run(path)
    monkeypatch.setattr(type(known), "series", lambda *_, **__: _fail())
    status, lines = run(path)
    assert status == 1 and f"warning: ct: its earlier result stays in {tmp_path / 'out' / 'ct'}." in lines
    (entry,) = json.loads((tmp_path / "out" / "run.json").read_text())["series"]
    assert entry["earlier_result"] == "ct" and (tmp_path / "out" / "ct" / "predictions.json").is_file()


def test_while_a_run_goes_on_there_is_no_summary_of_another(run, known, scans, tmp_path, monkeypatch):
    path = scans.nifti(tmp_path / "ct.nii", scans.body(2))
    run(path)
    there = []
    monkeypatch.setattr(type(known), "series", lambda *_, **__: there.append((tmp_path / "out/summary.csv").exists()))
    run(path)
    assert there == [False] and (tmp_path / "out" / "summary.csv").exists()


def _fail():
    raise RuntimeError("boom")


def test_the_same_input_by_another_path_is_the_same(run, scans, tmp_path, monkeypatch):
    path = scans.nifti(tmp_path / "A" / "ct.nii", scans.body(2))
    (tmp_path / "link").symlink_to(tmp_path / "A")
    monkeypatch.chdir(tmp_path)
    assert [run(one)[0] for one in (path, Path("A") / "ct.nii", tmp_path / "link")] == [0, 0, 0]


def test_dicom_with_a_uid_may_lie_elsewhere_the_next_time(run, scans, tmp_path):
    folders = [scans.dicom_series(tmp_path / name, scans.body(2), series="1.5") for name in "AB"]
    assert [run(folder)[0] for folder in folders] == [0, 0]


def test_a_result_that_does_not_say_of_what_is_replaced(run, scans, tmp_path):
    """As an earlier version wrote it."""
    paths = [scans.nifti(tmp_path / patient / "ct.nii", scans.body(2)) for patient in "AB"]
    run(paths[0])
    done = tmp_path / "out" / "ct" / "done.json"
    facts = json.loads(done.read_text())
    assert facts.pop("sources") == [str(paths[0])]
    done.write_text(json.dumps(facts))
    assert run(paths[1])[0] == 0 and json.loads(done.read_text())["sources"] == [str(paths[1])]


def test_what_an_earlier_version_figured_is_not_whole(run, scans, tmp_path, monkeypatch):
    path = scans.nifti(tmp_path / "ct.nii", scans.body(2))
    with monkeypatch.context() as earlier:
        earlier.setattr(resume_module, "EDITION", resume_module.EDITION - 1)
        run(path)
    for status in ("done", "whole already"):
        run(path, resume=True)
        assert json.loads((tmp_path / "out" / "run.json").read_text())["series"][0]["status"] == status


def test_series_of_one_name_are_told_apart_by_their_path(known, scans, tmp_path):
    paths = [scans.nifti(tmp_path / patient / "ct.nii", scans.body(2)) for patient in "AB"]
    damaged = scans.save(tmp_path / "C" / "ct.nii.gz", b"\x1f\x8b nothing")
    expected = {"ct": str(paths[0]), "ct-2": str(paths[1])}
    for resume in (False, True):
        options = BatchOptions(save=["json"], resume=resume)
        batch = BatchRun(known, [*paths, damaged], tmp_path / "out", options, lambda line: None)
        assert batch.run() == 1
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert {series["identifier"]: series["path"] for series in record["series"]} == expected
        with open(tmp_path / "out" / "summary.csv", newline="") as file:
            rows = {row["series"]: row["path"] for row in csv.DictReader(file)}
        assert rows == expected | {str(damaged): str(damaged)}
    for name, path in expected.items():
        assert json.loads((tmp_path / "out" / name / "predictions.json").read_text())["input"]["path"] == path
    assert "path" not in printed_table(batch.rows) and str(paths[0])[-15:] not in printed_table(batch.rows)


def test_a_series_without_a_lung_is_said_and_kept(run, scans, tmp_path):
    volume = np.full((2, 40, 48), 40, np.int16)
    volume[:, :, :20] = -853
    status, lines = run(scans.nifti(tmp_path / "ct.nii", volume))
    (warning,) = [line.removeprefix("warning: ") for line in lines]
    assert status == 0 and "no lung was found" in warning
    for file in ("run.json", "ct/predictions.json"):
        found = json.loads((tmp_path / "out" / file).read_text())
        assert found.get("series", [found])[0]["warnings"] == [warning]
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        assert next(csv.DictReader(file))["lung_share_percent"] == ""


# ---- what is no result of predict's ----


@pytest.mark.parametrize(
    "name, content",
    [("run.json", '{"status": "finished", "config": {}}'), ("run.json", '{"notice'), ("summary.csv", "a,b\n")],
)
def test_what_another_command_wrote_is_not_replaced(name, content, run, scans, tmp_path):
    path = scans.nifti(tmp_path / "ct.nii", scans.body(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(UserError, match=f"out holds a {name} that d2-covid predict did not write"):
        run(path)
    assert (tmp_path / "out" / name).read_text() == content and len(list((tmp_path / "out").iterdir())) == 1


def test_two_runs_at_once_do_not_share_a_folder(run, scans, tmp_path):
    pytest.importorskip("fcntl", reason="this system knows no locks of folders")
    path = scans.nifti(tmp_path / "ct.nii", scans.body(2))
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out"), pytest.raises(UserError, match="Another run writes into .*out; wait"):
        run(path)
    assert list((tmp_path / "out").iterdir()) == []
    assert run(path)[0] == 0
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"ct", "run.json", "summary.csv"}
