"""Inputs of every kind, mixed; and broken, odd and hostile ones, each of which costs one line and nothing else."""

import os
import shutil
import tracemalloc
import zlib
from pathlib import PurePath

from d2_covid.data.discovery import discover
from d2_covid.data.preprocessing import network_input, read_slice
from d2_covid.data.volumes import Problem, Series
from d2_covid.errors import UserError

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import MediaStorageDirectoryStorage


def _split(inputs, **options) -> tuple[list[Series], list[Problem]]:
    results = list(discover(inputs, **options))
    for problem in results:
        if isinstance(problem, Problem):
            assert "\n" not in problem.message and problem.message.isprintable() and len(problem.message) < 700
    return [r for r in results if isinstance(r, Series)], [r for r in results if isinstance(r, Problem)]


def _png(path, value: int = 100, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def tree(scans, tmp_path):
    """A DICOM series in two folders, another beside it, two volumes of one name, images, and files of no interest."""
    root = tmp_path / "studies mit Ümläut 肺"
    volume = scans.body()
    scans.dicom_series(root / "CT" / "part 1", volume[:4], zs=[0, 2, 4, 6], series="1.1")
    scans.dicom_series(root / "CT" / "part 2", volume[4:], zs=[8, 10, 12, 14], series="1.1")
    scans.dicom_series(root / "CT" / "part 2" / "more", volume, series="1.2")
    scans.nifti(root / "a" / "scan.nii.gz", volume)
    scans.itk(root / "b" / "scan.mhd", volume)
    for number in (10, 9, 1):
        _png(root / "pictures" / f"slice {number}.png", number)
    (root / "README.txt").write_text("hello")
    (root / ".DS_Store").write_bytes(b"\0" * 600)
    (root / "empty.txt").touch()
    return root


def test_a_tree_of_everything(scans, tree):
    series, problems = _split([tree])
    assert not problems
    assert [s.identifier for s in series] == ["1.1", "1.2", "scan", "scan-2", "pictures"]
    assert [s.num_slices for s in series] == [8, 8, 8, 8, 3]
    assert [s.kind for s in series] == ["dicom"] * 2 + ["volume"] * 2 + ["images"]
    for k in range(8):
        np.testing.assert_array_equal(series[0].slice(k), scans.body()[k])
    assert series[4].slice_names == ("slice 1.png", "slice 9.png", "slice 10.png")
    assert series[4].geometry is None and series[4].spacing is None and not series[4].hounsfield
    with pytest.raises(ValueError, match="no geometry"):
        series[4].affine  # noqa: B018


def test_files_globs_and_folders_together_are_read_once(tree):
    files = sorted((tree / "CT" / "part 1").iterdir())
    series, problems = _split([*files, str(tree / "CT" / "part 2" / "*.dcm"), tree / "CT", str(tree / "**" / "*.png")])
    assert not problems
    assert [(s.identifier, s.num_slices) for s in series] == [("1.1", 8), ("1.2", 8), ("pictures", 3)]


@pytest.mark.parametrize("inputs", [["", "CT"], ["CT", "CT/part 2/more", "CT"], ["**"], ["*", "a"], ["C*", "CT/*"]])
def test_a_folder_whose_files_another_input_named_is_no_problem(tree, inputs):
    (tree / "CT" / "letters").mkdir()
    (tree / "CT" / "letters" / "report.txt").write_text("hello")
    series, problems = _split([tree / item for item in inputs])
    assert not problems and {"1.1", "1.2"} <= {s.identifier for s in series}


@pytest.mark.parametrize("content", [b"\0" * 128 + b"DICM", b""], ids=["damaged", "empty"])
def test_a_damaged_file_that_several_inputs_name_is_told_of_once(tmp_path, content):
    _png(tmp_path / "CT" / "a.png")
    (tmp_path / "CT" / "x.dcm").write_bytes(content)
    series, problems = _split([tmp_path, tmp_path / "CT", tmp_path / "**", tmp_path / "CT" / "x.dcm"])
    assert len(series) == 1 and len(problems) == 1


def test_what_a_glob_matches_is_taken_as_what_a_folder_holds(scans, tmp_path):
    scans.dicom_series(tmp_path / "CT", scans.body(3))
    scout = scans.dicom(scans.body(1)[0], series="1.9", ImageType=["ORIGINAL", "LOCALIZER"])
    scans.save(tmp_path / "CT" / "scout.dcm", scout)
    (tmp_path / "CT" / "notes.txt").write_text("hello")
    for item in ("CT", "CT/*.dcm", "CT/*", "*"):
        (series,), (problem,) = _split([tmp_path / item])
        assert series.num_slices == 3 and not problem.failed and "scout" in problem.message
    (problem,) = _split([tmp_path / "CT" / "*.txt"])[1]
    assert problem.failed and "holds no CT" in problem.message


def test_a_dicomdir_is_left_out(scans, tmp_path):
    scans.dicom_series(tmp_path / "DICOM", scans.body(3))
    record, directory = Dataset(), Dataset()
    record.DirectoryRecordType, record.PatientID = "PATIENT", "test"
    directory.FileSetID, directory.DirectoryRecordSequence = "DISC", [record]
    directory.SOPInstanceUID = "1.2.4"
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.4"
    directory.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    path = scans.save(tmp_path / "DICOMDIR", directory)
    (series,), (problem,) = _split([tmp_path])
    assert series.num_slices == 3 and not problem.failed and "DICOMDIR" in problem.message
    (named,) = _split([path])[1]
    assert named.failed and "no slice of a CT: DICOMDIR" in named.message


def test_folders_are_looked_up_once_each(tmp_path, monkeypatch):
    for number in range(200):
        (tmp_path / str(number)).mkdir()
    plain, calls = PurePath.__hash__, []
    monkeypatch.setattr(PurePath, "__hash__", lambda self: calls.append(1) or plain(self))
    _split([tmp_path])
    assert len(calls) < 10 * 200


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_images_are_read_as_training_reads_them(tmp_path, suffix, bits):
    if bits == 16 and suffix in (".jpg", ".bmp"):
        pytest.skip("no 16 bits in this format")
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30)).astype(np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / f"one{suffix}"
    Image.fromarray(values).save(path)
    ((series,), problems) = _split([path])
    assert series.identifier == "one" and not problems
    expected = network_input(read_slice(path), 32, 64)
    assert network_input(series.gray(0, -600, 1500), 32, 64).equal(expected)


def _save_16_bit(path, highest: int, lowest: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.linspace(lowest, highest, 120).astype(np.uint16).reshape(10, 12)).save(path)
    return path


def test_images_that_would_be_nearly_black_are_said(tmp_path):
    for number, highest in enumerate([2000, 3000, 65535, 4095]):
        _save_16_bit(tmp_path / f"{number}.png", highest)
    (series,), problems = _split([tmp_path])
    (warning,) = series.warnings
    assert "0.png has more than 8 bits a pixel and no value above 2000" in warning and "8-bit" in warning
    assert not problems and "3 of the 4 images looked at" in warning
    ((series,), _) = _split([_save_16_bit(tmp_path / "one" / "a.tif", 4095)])
    assert len(series.warnings) == 1 and "looked at" not in series.warnings[0]


def test_images_of_values_with_an_offset_are_said_apart_from_dark_ones(tmp_path):
    for number, (lowest, highest) in enumerate([(0, 65535), (31700, 36900), (0, 4095), (32000, 36000), (40000, 40000)]):
        _save_16_bit(tmp_path / f"{number}.png", highest, lowest)
    (series,), _ = _split([tmp_path])
    narrow, dark = series.warnings
    assert "1.png has more than 8 bits a pixel and only values from 31700 to 36900" in narrow
    assert "is gray 123 to 144 of 255" in narrow and "2 of the 5 images looked at" in narrow
    assert "2.png" in dark and "1 of the 5 images looked at" in dark


def test_looking_for_dark_images_reads_a_few_and_only_those_of_16_bits(tmp_path, monkeypatch):
    from d2_covid.data import preprocessing

    for number in range(40):
        _save_16_bit(tmp_path / f"{number}.png", 65535) if number % 2 else _png(tmp_path / f"{number}.png")
    path = _save_16_bit(tmp_path / "39.png", 65535)
    path.write_bytes(path.read_bytes()[:60])  # its header is whole
    read, plain = [], preprocessing.open_image
    monkeypatch.setattr(preprocessing, "open_image", lambda path: read.append(path.name) or plain(path))
    (series,), problems = _split([tmp_path])
    assert not series.warnings and not problems and len(read) <= 5 and "39.png" in read and "0.png" not in read
    with pytest.raises(UserError, match=r"39\.png is damaged"):
        series.slice(39)


def test_renamed_files_are_told_by_content(scans, tmp_path):
    volume = scans.body()
    scans.dicom_series(tmp_path / "d", volume)
    for path in (tmp_path / "d").iterdir():
        path.rename(path.with_suffix(".png"))
    scans.nifti(tmp_path / "x.nii.gz", volume).rename(tmp_path / "x.dcm")
    scans.itk(tmp_path / "y.nrrd", volume).rename(tmp_path / "y.mha")
    scans.itk(tmp_path / "z.mha", volume).rename(tmp_path / "z.nii")
    _png(tmp_path / "p.png").rename(tmp_path / "p.nii.gz")
    series, problems = _split([tmp_path])
    assert not problems
    assert sorted(s.kind for s in series) == ["dicom", "images", "volume", "volume", "volume"]


def test_other_names_of_one_file_are_read_once_and_said(scans, tmp_path):
    """A folder of a thousand links to ten slices has ten; nobody is to take it for a thousand."""
    root = tmp_path / "root"
    for number in (1, 2):
        _png(root / "pictures" / f"{number}.png", number)
    os.link(root / "pictures" / "1.png", root / "pictures" / "3.png")
    (root / "pictures" / "4.png").symlink_to(root / "pictures" / "2.png")
    (root / "again").mkdir()
    (root / "again" / "1.png").symlink_to(root / "pictures" / "1.png")  # the same name: one file, in two places
    scans.nifti(root / "a.nii.gz", scans.body())
    os.link(root / "a.nii.gz", root / "b.nii.gz")
    for inputs in ([root], [root, root / "pictures", root / "**"]):
        series, problems = _split(inputs)
        assert sum(one.num_slices for one in series) == 8 + 2
        said = {os.path.basename(one.path): one.message for one in problems}
        assert len(problems) == 2 and not any(one.failed for one in problems)
        assert "each file is read once (2 files, the first 3.png)" in said["pictures"]
        assert "another name of a file that was met before" in said["root"] and "(b.nii.gz)" in said["root"]


def test_symlinks_are_followed_and_loops_are_not(scans, tmp_path):
    scans.dicom_series(tmp_path / "elsewhere", scans.body())
    root = tmp_path / "root"
    _png(root / "a.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    (root / "x").mkdir()
    (root / "x" / "y").symlink_to(root / "x")
    (root / "x" / "z").symlink_to(root)
    (root / "self.dcm").symlink_to(root / "self.dcm")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    series, problems = _split([root, str(root / "**" / "*.png")])
    assert [(s.kind, s.num_slices) for s in series] == [("dicom", 8), ("images", 1)]
    assert {os.path.basename(p.path) for p in problems} == {"self.dcm", "gone.png"}


def test_folders_that_cannot_be_read_and_pipes(tmp_path, monkeypatch):
    _png(tmp_path / "ok" / "a.png")
    (tmp_path / "locked").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.dcm")
    listdir = os.listdir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    series, problems = _split([tmp_path, tmp_path / "pipe"])
    assert len(series) == 1
    messages = " ".join(p.message for p in problems)
    assert "locked: Permission denied" in messages and messages.count("not a regular file") == 2


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.dcm", b"", "empty file"),
        ("a.nii.gz", b"", "empty file"),
        ("a.png", b"", "empty file"),
        ("a.png", b"no image" * 100, "not an image"),
        ("a.dcm", b"no dicom" * 100, "whatever its name says"),
        ("a.nii", b"\0" * 1000, "whatever its name says"),
        ("a.nii.gz", b"\x1f\x8b" + b"\xff" * 100, "damaged"),
        ("a.nii.gz", b"PK\3\4" + b"\0" * 100, "whatever its name says"),
        ("a.dcm", b"\0" * 128 + b"DICM", "damaged"),
        ("a.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 5000, "damaged"),
        ("a.mha", b"ObjectType = Image\nNDims = 3\n", "damaged"),
        ("a.nrrd", b"NRRD0005\n", "damaged"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "image"),
    ],
)
def test_broken_files_cost_one_line_and_nothing_else(scans, tmp_path, capfd, name, content, message):
    (tmp_path / name).write_bytes(content)
    scans.dicom_series(tmp_path / "good", scans.body())
    series, problems = _split([tmp_path])
    assert len(series) == 1 and series[0].num_slices == 8
    assert len(problems) == 1 and problems[0].failed
    assert message in problems[0].message and name in problems[0].message
    assert capfd.readouterr().err == ""


def test_a_truncated_dicom_file_is_named_and_the_gap_said(scans, tmp_path):
    path = sorted(scans.dicom_series(tmp_path, scans.body()).iterdir())[3]
    path.write_bytes(path.read_bytes()[:2000])
    (series,), (problem,) = _split([tmp_path])
    assert series.num_slices == 7 and path.name in problem.message and "incomplete" in problem.message


def test_an_image_that_claims_too_much_and_one_of_many_frames(tmp_path):
    data = bytearray(_png(tmp_path / "big.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "big.png").write_bytes(data)
    frames = [Image.new("L", (8, 8), v) for v in (1, 2, 3)]
    frames[0].save(tmp_path / "many.tif", save_all=True, append_images=frames[1:])
    _png(tmp_path / "fine.png")
    series, problems = _split([tmp_path])
    assert series[0].slice_names == ("fine.png",)
    assert sorted(os.path.basename(p.path) for p in problems) == ["big.png", "many.tif"]
    messages = " ".join(p.message for p in problems)
    assert "60000 x 60000" in messages or "decompression bomb" in messages
    assert "holds 3 frames" in messages


@pytest.mark.parametrize(
    "item, message",
    [
        ("no/such/file.dcm", "no such file"),
        ("no/such/*.dcm", "matches no file"),
        ("", "holds no CT"),
        ("bad\0name.png", "no path"),
        ("x" * 5000, "damaged or unreadable"),
    ],
)
def test_inputs_that_name_nothing(tmp_path, monkeypatch, item, message):
    monkeypatch.chdir(tmp_path)
    _png(tmp_path / "sub" / "a.png")
    shutil.move(tmp_path / "sub", tmp_path.parent / f"{tmp_path.name}_elsewhere")
    series, problems = _split([item, tmp_path.parent / f"{tmp_path.name}_elsewhere"])
    assert len(series) == 1 and len(problems) == 1 and problems[0].failed
    assert message in problems[0].message


def test_a_file_of_no_interest_is_a_problem_only_when_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    _png(tmp_path / "a.png")
    assert not _split([tmp_path])[1]
    assert "is no image, DICOM file" in _split([tmp_path / "notes.txt"])[1][0].message


@pytest.mark.parametrize("text", ["BMI,age\n22.5,61\n", "BM", "BMI," * 300])
def test_a_text_that_begins_like_a_bmp_is_none(tmp_path, text):
    (tmp_path / "clinical.csv").write_text(text)
    _png(tmp_path / "a.bmp").rename(tmp_path / "a.png")
    (series,), problems = _split([tmp_path])
    assert series.slice_names == ("a.png",) and not problems
    (problem,) = _split([tmp_path / "clinical.csv"])[1]
    assert "is no image, DICOM file" in problem.message


def test_names_that_are_no_utf8_or_hold_line_breaks(tmp_path):
    for name in (b"caf\xe9.png", b"two\nlines.png", b"bell\x07.dcm"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"nothing" * 30)
    _, problems = _split([tmp_path])
    assert len(problems) == 3
    for problem in problems:
        problem.message.encode("utf-8")


@pytest.mark.parametrize("uid, expected", [("../../etc/passwd", "etc_passwd"), ("", "folder"), (".", "series")])
def test_identifiers_are_safe_file_names(scans, tmp_path, uid, expected):
    scans.save(tmp_path / "folder" / "x.dcm", scans.dicom(scans.body()[0], series="1", SeriesInstanceUID=uid))
    (series,), _ = _split([tmp_path])
    assert series.identifier == expected


def test_a_series_that_cannot_be_hounsfield_costs_itself_only(scans, tmp_path):
    scans.nifti(tmp_path / "labels.nii", (scans.body() > 0).astype(np.uint8))
    scans.nifti(tmp_path / "scan.nii", scans.body())
    (series,), (problem,) = _split([tmp_path])
    assert series.identifier == "scan" and "can't be Hounsfield units" in problem.message
    assert len(_split([tmp_path], assume_window=True)[0]) == 2


def test_memory_stays_flat_with_slices(scans, tmp_path):
    """64 times 1 MB of pixels in DICOM, never more than a few slices held."""
    values = scans.body(1, 512, 512)[0]
    data = bytearray(scans.dicom_bytes(scans.dicom(values, (0, 0, 1000))))
    place = data.index(b"1000.0") if b"1000.0" in data else data.index(b"1000")
    for k in range(64):
        data[place : place + 4] = str(1000 + k).encode()
        scans.save(tmp_path / f"{k}.dcm", bytes(data))
    next(discover([tmp_path])).slice(0)  # what is imported at first use is not counted
    tracemalloc.start()
    for series in discover([tmp_path]):
        assert series.num_slices == 64
        for k in range(64):
            series.gray(k, -600, 1500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
