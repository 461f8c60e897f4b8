"""datasets/prepare_slices.py: slices as prediction sees them, and a list that training reads."""

import csv
import importlib.util

from d2_covid.data import slice_datasets
from d2_covid.data.discovery import discover
from d2_covid.data.preprocessing import network_input, read_slice, window_to_uint8
from d2_covid.data.slice_datasets import register_slices
from d2_covid.data.volumes import Series
from d2_covid.errors import UserError

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

NAME = "prepared_slices_under_test"
FLIPPED = np.diag([-0.8, -1.0, -2.0, 1.0])  # row 0 posterior, column 0 at the patient's left, slice 0 superior


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "datasets" / "prepare_slices.py"
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(scans, tmp_path):
    """A DICOM series of one patient, a volume that is stored the other way round of another, and one right there."""
    top = tmp_path / "in"
    scans.dicom_series(top / "p1" / "scan", scans.body(3), series="1.5", PatientID="MRN-4711", PatientName="Doe^Jane")
    scans.nifti(top / "p 2" / "a.nii.gz", scans.body(4)[::-1, ::-1, ::-1], FLIPPED)
    scans.nifti(top / "loose.nii", scans.body(2))
    return top


@pytest.fixture
def load():
    """``load(folder)`` registers a set and gives its dataset dicts."""

    def load(folder) -> list[dict]:
        register_slices(NAME, folder / "slices.csv", folder)
        return DatasetCatalog.get(NAME)

    yield load
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
        slice_datasets._sources.pop(NAME, None)


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "slices.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_slices_are_what_prediction_feeds(tool, source, scans, tmp_path):
    out = tmp_path / "out"
    assert tool.main([str(source), "--output", str(out), "--label", "COVID-19"]) == 0
    found = {series.identifier: series for series in discover([source])}
    assert set(found) == {"1.5", "a", "loose"}
    for name, series in found.items():
        volume = scans.body(series.num_slices)
        for index, plane in enumerate(volume):
            pixels = read_slice(out / name / f"{index:04d}.png")
            np.testing.assert_array_equal(pixels, window_to_uint8(plane, -600, 1500))
            fed = network_input(series.gray(index, -600, 1500), 64, 128)
            assert network_input(pixels, 64, 128).equal(fed)
        assert len(list((out / name).iterdir())) == len(volume)


def test_the_list_is_read_by_training(tool, source, tmp_path, load):
    out = tmp_path / "out"
    assert tool.main([str(source), "--output", str(out), "--label", "COVID-19", "--every", "2"]) == 0
    dicts = load(out)
    assert [d["file_name"] for d in dicts] == [str(out / row["file"]) for row in rows(out)]
    assert {d["image_class"] for d in dicts} == {2}
    assert [(d["patient_id"], d["scan_id"]) for d in dicts] == [
        ("p1", "1.5"), ("p1", "1.5"), ("loose", "loose"), ("p 2", "a"), ("p 2", "a")
    ]  # fmt: skip
    assert [row["file"] for row in rows(out)][:2] == ["1.5/0000.png", "1.5/0002.png"]
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert b"MRN-4711" not in path.read_bytes() and b"Doe^Jane" not in path.read_bytes()


def test_another_window(tool, source, scans, tmp_path, capsys):
    window = ["--level", "40", "--width", "400"]
    plain = [str(source / "loose.nii"), "--output", str(tmp_path / "out"), "--label", "0"]
    assert tool.main(plain) == 0
    assert "INPUT.WINDOW" not in capsys.readouterr().out
    assert tool.main([*plain, *window]) == 0
    assert "train on them with INPUT.WINDOW.LEVEL 40 INPUT.WINDOW.WIDTH 400:" in capsys.readouterr().out
    pixels = read_slice(tmp_path / "out" / "loose" / "0001.png")
    np.testing.assert_array_equal(pixels, window_to_uint8(scans.body(2)[1], 40, 400))


@pytest.mark.parametrize("item", [".", "p1", "*", "p1/scan"])
def test_patients_are_the_first_folders_below_an_input_or_the_input(tool, source, tmp_path, item):
    assert tool.main([str(source / item), "--output", str(tmp_path / "out"), "--label", "0"]) == 0
    patients = {row["scan_id"]: row["patient_id"] for row in rows(tmp_path / "out")}
    assert patients["1.5"] == {"p1": "scan", "p1/scan": "scan"}.get(item, "p1")


def test_a_series_that_can_not_be_read_costs_itself_only(tool, source, tmp_path, monkeypatch, capsys):
    plain = Series.gray

    def gray(self, index, level, width):
        if (self.identifier, index) == ("a", 2):
            raise UserError(f"{self.source_files[0]} changed while it was read; run again.")
        return plain(self, index, level, width)

    monkeypatch.setattr(Series, "gray", gray)
    (source / "p1" / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    for number in range(2):
        Image.fromarray(np.full((40, 48), 84, np.uint8)).save(source / "p1" / f"{number}.png")
    (source / "p1" / "1.png").write_bytes((source / "p1" / "1.png").read_bytes()[:60])
    assert tool.main([str(source), "--output", str(tmp_path / "out"), "--label", "0"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [sum(name in line for line in errors) for name in ("broken.nii.gz", "a.nii.gz", "1.png")] == [1, 1, 1]
    assert len(errors) == 3
    assert {row["scan_id"] for row in rows(tmp_path / "out")} == {"1.5", "loose", "p1"}
    folders = {path.name for path in (tmp_path / "out").iterdir()}
    assert folders == {"1.5", "loose", "p1", "slices.csv", "done.json"}
    assert [path.name for path in (tmp_path / "out" / "p1").iterdir()] == ["0000.png"]


def test_nothing_is_left_where_nothing_could_be_read(tool, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(UserError, match="Nothing was written"):
        tool.main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--label", "0"])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_labels_by_name_of_file_patient_or_input(tool, source, tmp_path, load, capsys):
    labels, out = tmp_path / "labels.csv", tmp_path / "out"
    labels.write_text("name,label\np1,NCP\nin,0\na.nii.gz,1\n")
    assert tool.main([str(source), "--output", str(out), "--labels", str(labels)]) == 0
    assert {d["scan_id"]: d["image_class"] for d in load(out)} == {"1.5": 2, "a": 1, "loose": 0}
    labels.write_text("name,label\np1,NCP\nloose,0\n")
    assert tool.main([str(source), "--output", str(out), "--labels", str(labels)]) == 1
    assert f"a: {labels} has a label for none of a.nii.gz, p 2, in." in capsys.readouterr().err
    assert {row["scan_id"] for row in rows(out)} == {"1.5", "loose"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("name,label\np1,0\np1,1\n", "p1 has two labels"),
        ("patient,label\np1,0\n", "a line has"),
        (None, "can't be read"),
    ],
)
def test_labels_that_are_none(tool, source, tmp_path, text, said):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=rf"labels\.csv.*{said}") as error:
        tool.main([str(source), "--output", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.csv")])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_only_an_empty_folder_or_an_earlier_run_is_replaced(tool, source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--output", str(out), "--label", "0"]
    assert tool.main([str(source), *arguments]) == 0
    assert tool.main([str(source / "p1"), *arguments]) == 0
    assert {path.name for path in out.iterdir()} == {"1.5", "slices.csv", "done.json"}
    (out / "train.csv").write_text("mine")  # made of slices.csv by hand
    for refused in (out, source.parent):
        with pytest.raises(UserError, match=r"holds train\.csv, which no earlier run|lie in one another"):
            tool.main([str(source), "--output", str(refused), "--label", "0"])
    assert (out / "train.csv").read_text() == "mine"


@pytest.mark.parametrize("item, output", [("in", "in/out"), ("in/*/*.png", "in"), ("in/p1", "in")])
def test_an_output_among_the_inputs_is_refused(tool, source, tmp_path, item, output):
    with pytest.raises(UserError, match="lie in one another"):
        tool.main([str(tmp_path / item), "--output", str(tmp_path / output), "--label", "0"])
