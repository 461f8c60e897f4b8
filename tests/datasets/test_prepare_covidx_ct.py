"""datasets/prepare_covidx_ct.py on tiny lists in COVIDx-CT's format."""

import importlib.util
import json

from d2_covid.data import slice_datasets  # noqa: F401  (registers the names)
from d2_covid.errors import UserError

import pytest
from detectron2.data import DatasetCatalog

FOLDERS = ("Normal", "CP", "NCP")


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "datasets" / "prepare_covidx_ct.py"
    spec = importlib.util.spec_from_file_location("prepare_covidx_ct_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    """Images and lists: 3 patients a class in train, 1 in val, 1 in test, 4 slices each."""
    images = tmp_path / "images"
    images.mkdir()
    patients = {"train": range(3), "val": range(3, 4), "test": range(4, 5)}
    for split, numbers in patients.items():
        names = [f"{f}_{n}_{n + 50}_{i:04d}.png {c}" for c, f in enumerate(FOLDERS) for n in numbers for i in range(4)]
        for name in names:
            (images / name.split()[0]).touch()
        (tmp_path / f"{split}.txt").write_text("".join(f"{name} 0 0 512 512\n" for name in names))
    return tmp_path


def options(source, *splits):
    lists = [item for split in splits for item in (f"--{split}", str(source / f"{split}.txt"))]
    return ["--images", str(source / "images"), *lists]


def test_lists_subset_and_proof(tool, source, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source / "datasets"))
    arguments = [*options(source, "train", "val", "test"), "--subset", "18"]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "train: all 36 images found, 9 patients" in printed
    for pair in ("train and val", "train and test", "val and test"):
        assert f"patients in both {pair}: 0" in printed
    output = source / "datasets" / "covidx_ct"
    record = json.loads((output / "splits.json").read_text())
    assert record["slices"] == {"train": [6, 6, 6], "val": [4, 4, 4], "test": [4, 4, 4]}
    assert record["subset"] == 18 and record["patients"]["val"] == 3
    dicts = DatasetCatalog.get("covidx_ct_train")
    assert len(dicts) == 18 and dicts[0]["patient_id"].startswith("Normal_") and dicts[0]["scan_id"].count("_") == 2
    assert len(DatasetCatalog.get("covidx_ct_test")) == 12
    first = (output / "train.csv").read_bytes()
    assert tool.main(arguments) == 0 and (output / "train.csv").read_bytes() == first
    assert tool.main([*arguments, "--seed", "1"]) == 0 and (output / "train.csv").read_bytes() != first


def test_lists_of_a_former_run_are_named_and_stay(tool, source, capsys):
    output = source / "out"
    every = ("train", "val", "test")
    rest = ["--subset", "0", "--output", str(output)]
    for _ in range(2):
        assert tool.main([*options(source, *every), *rest]) == 0 and capsys.readouterr().err == ""
    assert tool.main([*options(source, "train"), *rest]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {output} keeps") and ": val.csv, test.csv. " in line
    assert (output / "val.csv").is_file()


def test_the_papers_list_finds_covidx_images(tool, source, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source / "datasets"))
    (source / "train.txt").write_text("0_0_50_0001.png\n2_1_51_0002.png\n")
    assert tool.main([*options(source, "train", "val"), "--subset", "0"]) == 0
    dicts = DatasetCatalog.get("covidx_ct_train")
    assert [d["patient_id"] for d in dicts] == ["Normal_0", "NCP_1"]
    assert dicts[1]["file_name"].endswith("NCP_1_51_0002.png")


def test_a_shared_patient_is_named_and_nothing_written(tool, source, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source / "datasets"))
    with open(source / "val.txt", "a") as file:
        file.write("NCP_1_51_0000.png 2 0 0 512 512\n")
    with pytest.raises(UserError, match=r"in two splits \(NCP_1 in train and val\); nothing was written"):
        tool.main([*options(source, "train", "val"), "--subset", "0"])
    assert "patients in both train and val: 1" in capsys.readouterr().out
    assert not (source / "datasets").exists()


def test_names_of_no_known_source_are_not_covered_by_the_proof(tool, source, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source / "datasets"))
    (source / "images" / "mystery.png").touch()
    (source / "val.txt").write_text("mystery.png 1\n")
    assert tool.main([*options(source, "train", "val"), "--subset", "0"]) == 0
    assert "val: all 1 images found, 0 patients; 1 names tell no patient" in capsys.readouterr().out


def test_a_file_of_no_known_source_in_two_lists_is_refused(tool, source, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source / "datasets"))
    (source / "images" / "mystery.png").touch()
    for split in ("train", "val"):
        with open(source / f"{split}.txt", "a") as file:
            file.write("mystery.png 1 0 0 512 512\n")
    with pytest.raises(UserError, match=r"images/mystery.png is in --train and --val; give each slice"):
        tool.main([*options(source, "train", "val"), "--subset", "0"])
    assert not (source / "datasets").exists()


@pytest.mark.parametrize(
    "subset, said", [("3000", "takes 1000 slices of class 0, not 12"), ("10", "can't be shared evenly")]
)
def test_a_subset_that_can_not_be_drawn(tool, source, subset, said):
    with pytest.raises(UserError, match=said):
        tool.main([*options(source, "train"), "--subset", subset, "--output", str(source / "out")])


def test_missing_images_and_a_folder_in_the_way(tool, source):
    (source / "out" / "image").mkdir(parents=True)
    arguments = [*options(source, "train"), "--subset", "0", "--output", str(source / "out")]
    with pytest.raises(UserError, match="is in the way"):
        tool.main(arguments)
    (source / "images" / "CP_0_50_0000.png").unlink()
    with pytest.raises(UserError, match="1 of 36 images .* CP_0_50_0000.png"):
        tool.main(arguments)


def test_a_list_with_splits_is_no_list_of_one(tool, source, tmp_path):
    (source / "slices.csv").write_text("file,label,split\nNormal_0_50_0000.png,0,train\nCP_3_53_0000.png,1,val\n")
    arguments = ["--images", str(source / "images"), "--train", str(source / "slices.csv"), "--subset", "0"]
    with pytest.raises(UserError, match=r"slices\.csv has a column split \(train, val\)"):
        tool.main([*arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_its_own_list_is_not_written_over(tool, source):
    before = (source / "train.txt").read_bytes()
    (source / "train.txt").rename(source / "train.csv")
    arguments = ["--images", str(source / "images"), "--train", str(source / "train.csv"), "--output", str(source)]
    with pytest.raises(UserError, match="is where a prepared list goes"):
        tool.main(arguments)
    assert (source / "train.csv").read_bytes() == before


def test_files_named_by_their_whole_path(tool, source, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(source / "images")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "CP_8_58_0000.png").touch()
    text = f"{source}/images/Normal_0_50_0000.png 0\n{tmp_path}/link/NCP_0_50_0000.png 2\nCP_0_50_0000.png 1\n"
    (source / "train.txt").write_text(text)
    arguments = ["--train", str(source / "train.txt"), "--output", str(tmp_path / "out"), "--subset", "0"]
    monkeypatch.chdir(source)
    assert tool.main(["--images", "images", *arguments]) == 0
    names = [line.split(",")[0] for line in (tmp_path / "out" / "train.csv").read_text().splitlines()[1:]]
    assert names == ["Normal_0_50_0000.png", "NCP_0_50_0000.png", "CP_0_50_0000.png"]
    (source / "train.txt").write_text(f"{tmp_path}/elsewhere/CP_8_58_0000.png 1\n")
    with pytest.raises(UserError, match="elsewhere/CP_8_58_0000.png is not in --images images"):
        tool.main(["--images", "images", *arguments])
