"""``d2-covid predict`` from the command line's side: many scans, statuses, resuming, and what goes wrong."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import d2_covid_entry
from d2_covid.cli import main
from d2_covid.data import files
from d2_covid.data.lung import lung_masks
from d2_covid.data.volumes import series_from_array
from d2_covid.inference import predict_command, shipped
from d2_covid.inference.batch_run import BatchOptions, BatchRun, Progress
from d2_covid.inference.predictor import Predictor
from d2_covid.inference.summary_table import SummaryRow, printed_table

import nibabel
import numpy as np
import pytest
from PIL import Image

EACH = {"done.json", "predictions.json", "report.html"}


@pytest.fixture
def folder(scans, tmp_path) -> Path:
    """Two DICOM series, a volume, and an image, in a tree with a text file."""
    top = tmp_path / "in put é"
    scans.dicom_series(top / "a", scans.body(3), series="1.5")
    scans.dicom_series(top / "b" / "c", scans.body(4), series="1.6")
    scans.nifti(top / "b" / "volume.nii.gz", scans.body(2))
    (top / "images").mkdir()
    Image.fromarray(np.full((40, 48), 84, np.uint8)).save(top / "images" / "slice.png")
    (top / "notes.txt").write_text("hello")
    return top


@pytest.fixture
def predict(known, monkeypatch, tmp_path):
    """``predict(*arguments)`` runs the command with the model of ``known``, and gives status and output folder."""
    monkeypatch.setattr(predict_command, "Predictor", lambda *args, **options: known)

    def run(*arguments, output=tmp_path / "out") -> tuple[int, Path]:
        return main(["predict", *map(str, arguments), "-o", str(output)]), output

    return run


def _rows(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "summary.csv", newline="", encoding="utf-8") as file:
        return {row["series"]: row for row in csv.DictReader(file)}


def test_a_tree_of_many_series(predict, folder, capsys):
    status, output = predict(folder)
    assert status == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"1.5", "1.6", "volume", "slice", "run.json", "summary.csv"}
    for name in ("1.5", "1.6"):
        assert {path.name for path in (output / name).iterdir()} == EACH | {
            "overlays", "lesions.nii.gz", "lung.nii.gz", "lesions.seg.dcm"
        }  # fmt: skip
    assert {path.name for path in (output / "slice").iterdir()} == EACH | {"overlays"}
    rows = _rows(output)
    assert set(rows) == {"1.5", "1.6", "volume", "slice"} and {row["status"] for row in rows.values()} == {"done"}
    assert (rows["1.6"]["slices"], rows["1.6"]["lesions"], rows["slice"]["lesion_ml"]) == ("4", "2", "")
    shown = capsys.readouterr()
    assert "1.6" in shown.out and "Research use only" in shown.out
    assert "Traceback" not in shown.err


def test_the_record_of_a_run(predict, folder, known):
    _, output = predict(folder / "a", "--save", "json", "--seed", "7", "--assume-window")
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and record["seed"] == 7 and "Research use only" in record["notice"]
    model = record["model"]
    assert model["weights_sha256"] == known.source.weights_sha256 and len(model["config_sha256"]) == 64
    assert record["options"]["save"] == ["json"] and record["inputs"] == [str(folder / "a")]
    assert {"d2_covid", "torch", "pydicom", "highdicom"} <= set(record["versions"])
    assert {"read", "lung", "model", "write"} <= set(record["seconds_by_stage"])
    (series,) = record["series"]
    assert series["identifier"] == "1.5" and series["status"] == "done" and series["slices"] == 3
    assert record["failures"] == [] and record["ended"] >= record["started"]


def test_one_bad_series_costs_only_itself(predict, folder, scans, capsys):
    for path in (folder / "b" / "c").iterdir():
        path.write_bytes(path.read_bytes()[:-500])
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    status, output = predict(folder, "--save", "json,nifti")
    assert status == 1
    assert {path.name for path in output.iterdir()} == {"1.5", "volume", "slice", "run.json", "summary.csv"}
    assert [row["status"] for row in _rows(output).values()].count("done") == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert any("broken.nii.gz" in line for line in errors) and any("IM" in line for line in errors)
    record = json.loads((output / "run.json").read_text())
    assert any("broken.nii.gz" in failure["message"] for failure in record["failures"])


def test_pixels_that_can_not_be_read_cost_their_series_only(predict, folder, monkeypatch, capsys):
    plain = Predictor.series

    def series(self, source, **options):
        if source.identifier == "1.5":
            raise RuntimeError("boom")
        return plain(self, source, **options)

    monkeypatch.setattr(Predictor, "series", series)
    status, output = predict(folder, "--save", "json")
    assert status == 1 and not (output / "1.5").exists() and (output / "1.6").is_dir()
    assert "unforeseen RuntimeError; --debug shows where" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="boom"):
        predict(folder, "--save", "json", "--debug", output=output.parent / "out2")
    assert json.loads((output.parent / "out2" / "run.json").read_text())["status"] == "interrupted"


def test_a_damaged_image_among_good_ones(predict, folder):
    (folder / "images" / "torn.png").write_bytes((folder / "images" / "slice.png").read_bytes()[:60])
    status, output = predict(folder / "images", "--save", "json")
    (row,) = _rows(output).values()
    assert status == 1 and row["status"] == "partly" and row["message"] == "1 slice(s) can't be read"
    found = json.loads((output / "images" / "predictions.json").read_text())
    assert [one["name"] for one in found["slices"]] == ["slice.png"] and found["failed_slices"][0]["name"] == "torn.png"


def test_a_damaged_file_beside_a_series_is_in_its_result_and_said_once(predict, folder, scans, capsys):
    scans.nifti(folder / "a" / "whole.nii", scans.body(2))
    (folder / "a" / "bad.dcm").write_bytes(next((folder / "a").glob("IM*")).read_bytes()[:-2500])
    status, output = predict(folder / "a", "--save", "json")
    assert status == 1 and capsys.readouterr().err.count("bad.dcm") == 1
    assert {name: _warnings_of(output / name, "bad.dcm") for name in ("1.5", "whole")} == {"1.5": 1, "whole": 0}
    assert [row["status"] for row in _rows(output).values()] == ["failed", "done", "done"]
    (folder / "a" / "bad.dcm").unlink()
    assert predict(folder / "a", "--save", "json", "--resume")[0] == 0 and not _warnings_of(output / "1.5", "bad.dcm")


def _warnings_of(result: Path, name: str) -> int:
    found = json.loads((result / "predictions.json").read_text(encoding="utf-8"))["warnings"]
    return sum(name in warning for warning in found)


def test_a_segmentation_that_is_missing_is_said(predict, scans, tmp_path, capsys):
    top, clear = tmp_path / "in", np.full((2, 40, 48), -1000, np.int16)
    clear[:, 8:-8, 8:-8] = 40
    scans.dicom_series(top / "bare", scans.body(2), series="1.7", FrameOfReferenceUID=None)
    scans.dicom_series(top / "clear", clear, series="1.8")
    scans.nifti(top / "volume.nii", scans.body(2))
    for options, expected in ([], ["1.7"]), (["--save", "dicom-seg"], ["1.7", "volume"]):
        assert predict(top, *options)[0] == 0
        lines = [line.split(": ") for line in capsys.readouterr().err.splitlines() if "dicom-seg" in line]
        assert [line[:3] for line in lines] == [["warning", name, "no dicom-seg"] for name in expected]


def test_the_summary_has_the_numbers_of_the_voxels(predict, scans, tmp_path):
    volume = scans.body(5)
    lesions = (volume <= -850) & (volume > -860) | (volume == 700)
    volume[2][lesions[2]] = -900  # a slice without
    lesions[2] = False
    scans.dicom_series(tmp_path / "in", volume, series="1.9")
    row = _rows(predict(tmp_path / "in", "--save", "json")[1])["1.9"]
    assert (row["slices"], row["slices_with_lesion"]) == ("5", "4")
    assert float(row["lesion_ml"]) == pytest.approx(lesions.sum() * 2.0 * 1.0 * 0.8 / 1000, abs=6e-4)
    lungs = np.stack(list(lung_masks(series_from_array(volume, (2.0, 1.0, 0.8)))))
    assert float(row["lung_share_percent"]) == pytest.approx(100 * lesions.sum() / (lungs | lesions).sum(), abs=6e-4)


def test_a_kept_value_that_can_not_be_read_is_said_and_costs_nothing_else(predict, scans, tmp_path, capsys):
    scans.dicom_series(tmp_path / "in", scans.body(3), series="1.9", PregnancyStatus=4)
    for path in (tmp_path / "in").iterdir():
        scans.spoil_number(path, "PregnancyStatus")
    keep = ("--keep-tags", "PatientID", "PregnancyStatus")
    status, output = predict(tmp_path / "in", "--save", "json,dicom-seg", *keep)
    assert status == 0 and (output / "1.9" / "lesions.seg.dcm").is_file()
    assert capsys.readouterr().err.count("PregnancyStatus") == 1 == _warnings_of(output / "1.9", "PregnancyStatus")
    found = json.loads((output / "1.9" / "predictions.json").read_text(encoding="utf-8"))
    assert found["input"]["tags"] == {"PatientID": "test"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing.png"], "nothing.png"),
        (["IN", "--save", "jsn"], "jsn"),
        (["IN", "--save", ""], "--save names nothing"),
        (["IN", "--save", " ,"], "--save names nothing"),
        (["IN", "--keep-tags", "Name"], "Name"),
        (["IN/.."], "lies in the input"),
        (["IN/../**"], "lies in the input"),
        (["IN/../*/*/overlays"], "lies in the input"),
    ],
)
def test_what_can_not_start(predict, folder, arguments, message, capsys):
    status, _ = predict(*[a.replace("IN", str(folder)) for a in arguments])
    err = capsys.readouterr().err
    assert status == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--weights"),
        (["--weights", "no.pth"], "no.pth"),
        (["--model", "no_model", "--weights", "no.pth"], "no_model"),
    ],
)
def test_a_model_that_is_not_there(options, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shipped, "store_dir", lambda: tmp_path / "nothing")
    assert main(["predict", str(folder), "-o", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_window_that_does_nothing_is_said_once(predict, folder, capsys):
    window = ("--save", "json", "--window", "-600", "1500")
    (folder / "more").mkdir()
    (folder / "more" / "other.png").write_bytes((folder / "images" / "slice.png").read_bytes())
    for arguments, expected in (
        ((folder, *window), 1),
        ((folder / "a", *window), 0),  # in Hounsfield units
        ((folder / "images", "--save", "json"), 0),
    ):
        assert predict(*arguments)[0] == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "--window" in line]
        assert len(told) == expected and all("slice: --window does nothing" in line for line in told)
        assert all(line.startswith("warning: ") and "not in Hounsfield units" in line for line in told)


def test_the_help_names_the_schema(repository, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    (path,) = [word for word in capsys.readouterr().out.split() if "schemas/" in word]
    assert (repository / path.rstrip(".")).is_file()


def test_scouts_are_left_out_and_said(predict, folder, scans, capsys):
    scout = scans.dicom(scans.body(1)[0], series="1.9", ImageType=["ORIGINAL", "LOCALIZER"])
    scans.save(folder / "a" / "scout.dcm", scout)
    status, output = predict(folder / "a", "--save", "json")
    assert status == 0 and "note: " in capsys.readouterr().err
    assert "scout" in json.loads((output / "run.json").read_text())["left_out"][0]["message"]


def test_inputs_without_a_ct_can_not_start(predict, folder, scans, capsys):
    scans.dicom_series(folder / "mr", scans.body(2), Modality="MR")
    status, output = predict(folder / "mr", "--save", "json")
    note, error = capsys.readouterr().err.splitlines()
    assert status == 2 and note.startswith("note: ") and error.startswith("error: There is nothing to predict on")
    assert _rows(output) == {}


def test_globs_beside_their_output_may_be_run_twice(predict, folder):
    for _ in range(2):
        status, output = predict(folder / ".." / "*" / "*" / "*.dcm", "--save", "dicom-seg")
        assert status == 0 and set(_rows(output)) == {"1.5"}


def test_names_that_are_no_utf8(predict, folder, scans, capsys):
    top = folder / os.fsdecode(b"caf\xe9")
    scans.dicom_series(top / "ct", scans.body(2), series="1.7")
    scans.nifti(folder / "volume.nii.gz", scans.body(2)).rename(top / os.fsdecode(b"\xe9t\xe9.nii.gz"))
    for number in range(2):
        Image.fromarray(np.full((40, 48), 84, np.uint8)).save(folder / "slice.png")
        (folder / "slice.png").rename(top / os.fsdecode(b"\xe9%d.png" % number))
    status, output = predict(top, "--save", "json,report", output=folder.parent / os.fsdecode(b"sortie \xe9"))
    assert status == 0 and {row["status"] for row in _rows(output).values()} == {"done"} and len(_rows(output)) == 3
    assert "sortie \\udce9" in capsys.readouterr().out
    assert json.loads((output / "run.json").read_text(encoding="utf-8"))["inputs"] == [str(top)]
    names = [f"{os.fsdecode(bytes([0xE9]))}{number}.png" for number in range(2)]
    (images,) = [path.parent for path in output.glob("*/predictions.json") if "png" in path.read_text()]
    found = json.loads((images / "predictions.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["slices"]] == names and found["input"]["path"] == str(top)
    assert "\\udce90.png" in (images / "report.html").read_text(encoding="utf-8")


# ---- resuming ----


def _changes(output: Path) -> dict[str, int]:
    return {path.parent.name: path.parent.stat().st_ctime_ns for path in output.rglob("predictions.json")}


def test_resume_skips_what_is_whole_and_only_that(predict, folder, scans, known):
    _, output = predict(folder, "--save", "json,nifti")
    before = _changes(output)
    (output / "1.6" / "lesions.nii.gz").unlink()  # no longer whole
    scans.nifti(folder / "b" / "volume.nii.gz", scans.body(3))  # another input under the same name
    status, _ = predict(folder, "--save", "json,nifti", "--resume")
    after = _changes(output)
    assert status == 0 and {name for name in before if before[name] != after[name]} == {"1.6", "volume"}
    rows = _rows(output)
    assert rows["1.5"]["status"] == "whole already" and rows["1.5"]["lesions"] == "2"
    assert rows["volume"]["status"] == "done" and rows["volume"]["slices"] == "3"
    assert (output / "1.6" / "lesions.nii.gz").is_file()

    known.score_threshold = 0.85  # other options: other results
    predict(folder, "--save", "json,nifti", "--resume")
    assert all(_changes(output)[name] != after[name] for name in after)


def test_without_resume_everything_is_made_anew(predict, folder):
    _, output = predict(folder / "a", "--save", "json,overlays")
    before = _changes(output)
    predict(folder / "a", "--save", "json")
    assert _changes(output) != before and not (output / "1.5" / "overlays").exists()


def test_a_killed_run_leaves_no_half_series(known, folder, tmp_path):
    class Killed(Progress):
        def advance(self, share, name=""):
            if name == "1.6":
                raise KeyboardInterrupt

    output, lines = tmp_path / "out", []
    run = BatchRun(known, [folder], output, BatchOptions(save=["json"]), lines.append, Killed())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert {path.name for path in output.iterdir()} == {"1.5", "run.json", "summary.csv"}
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"
    (output / ".1.6.part").mkdir()  # as a power cut would leave it
    (output / ".1.6.part" / "predictions.json").write_text("{")
    assert BatchRun(known, [folder], output, BatchOptions(save=["json"], resume=True), lines.append).run() == 0
    assert not (output / ".1.6.part").exists() and (output / "1.6" / "done.json").is_file()


# ---- outputs that can't be written ----


def test_an_output_that_is_a_file(predict, folder, tmp_path, capsys):
    (tmp_path / "out").write_text("x")
    status, _ = predict(folder)
    assert status == 2 and capsys.readouterr().err.startswith(f"error: Cannot write {tmp_path / 'out'}")


def test_a_disk_that_fills_up(predict, folder, monkeypatch, capsys):
    plain, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if 1 < len(calls) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    status, output = predict(folder, "--save", "json")
    err = capsys.readouterr().err
    assert status == 1 and "No space left on device" in err and "Traceback" not in err
    left = [str(path.relative_to(output)) for path in output.rglob("*")]
    assert left == ["run.json"], left  # what was there before the disk was full


def test_results_of_someone_else_are_not_touched(predict, folder, capsys):
    _, output = predict(folder / "a", "--save", "json")
    (output / "1.5" / "done.json").unlink()
    status, _ = predict(folder / "a", "--save", "json")
    assert status == 1 and "no result of d2-covid" in capsys.readouterr().err
    assert (output / "1.5" / "predictions.json").is_file()


# ---- memory, table, and the whole with a real model ----


def test_a_series_is_let_go_before_the_next(known, scans, tmp_path, monkeypatch):
    import weakref

    for number in range(4):
        scans.nifti(tmp_path / "in" / f"{number}.nii.gz", scans.body(2))
    alive, most = weakref.WeakSet(), []
    plain = Predictor.series

    def series(self, source, **options):
        alive.add(source)
        most.append(len(alive))
        return plain(self, source, **options)

    monkeypatch.setattr(Predictor, "series", series)
    run = BatchRun(known, [tmp_path / "in"], tmp_path / "out", BatchOptions(save=["json"]), lambda line: None)
    assert run.run() == 0 and most == [1, 1, 1, 1]


def test_progress_counts_scans(known, folder, tmp_path):
    class Counting(Progress):
        total, done = 0, 0.0

        def found(self, scans):
            self.total = scans

        def advance(self, share, name=""):
            self.done += share

    progress = Counting()
    BatchRun(known, [folder], tmp_path / "out", BatchOptions(save=["json"]), lambda line: None, progress).run()
    assert progress.total == 4 and progress.done == pytest.approx(4)


def test_the_printed_table_shortens_names_and_leaves_out_empty_columns():
    table = printed_table([SummaryRow("1.2.840." + "9" * 60, "done", lesion_ml=1.0)])
    assert "..." in table and "1.00" in table and "image class" not in table and max(map(len, table.splitlines())) < 80


def test_the_command_with_a_real_model(classifier_weights, folder, tmp_path, monkeypatch, capsys):
    arguments = ["predict", str(folder), "-o", str(tmp_path / "out"), "--weights", str(classifier_weights)]
    arguments += ["--device", "cpu", "--score-threshold", "0", "--keep-tags", "PatientID"]
    monkeypatch.setattr(sys, "argv", ["d2-covid", *arguments])
    assert d2_covid_entry.main() == 0
    found = json.loads((tmp_path / "out" / "1.5" / "predictions.json").read_text())
    assert found["input"]["tags"] == {"PatientID": "test"} and found["result"]["classes"][0]["image_class"]
    assert found["slices"][0]["contributions"]["rows"]
    mask = nibabel.load(tmp_path / "out" / "1.5" / "lesions.nii.gz")
    assert mask.shape == (48, 40, 3)
    assert found["result"]["classes"][0]["image_class"] in capsys.readouterr().out
