"""Globs: what they match, and what they would match."""

from d2_covid.data.globs import expand, is_glob, reaches

import pytest


@pytest.mark.parametrize(
    "pattern, reached",
    [
        ("**", True),
        ("*", True),
        ("o*", True),
        ("**/*.png", True),
        ("*/*/*.nii.gz", True),
        ("out/*/overlays", True),
        ("out/1.2*", True),
        ("*/s*", True),
        ("*/s*/lesions.*", True),
        ("*/s*/slice*", False),
        ("*.png", False),
        ("*/*.nii.gz", False),
        ("in*", False),
        ("**/*.dcm", False),
    ],
)
def test_a_glob_reaches_what_it_would_match_or_lie_below(tmp_path, pattern, reached):
    files = [[None, "lesions.nii.gz"], [None, "overlays", "0000.png"]]
    assert any(reaches(tmp_path / pattern, tmp_path / "out", file) for file in files) == reached
    assert not reaches(tmp_path / "elsewhere" / pattern, tmp_path / "out", files[0])


def test_hidden_names_are_left_alone_unless_they_are_asked_for(tmp_path):
    for name in ("1.png", "._1.png", "deep/2.png", "deep/.3.png", ".trash/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expand(tmp_path / "*.png") == [tmp_path / "1.png"]
    assert expand(tmp_path / "**" / "*.png") == [tmp_path / "1.png", tmp_path / "deep" / "2.png"]
    assert expand(tmp_path / ".*.png") == [tmp_path / "._1.png"]


def test_a_name_with_brackets_that_is_there_is_no_glob(tmp_path):
    (tmp_path / "scan[1]").mkdir()
    assert not is_glob(tmp_path / "scan[1]") and is_glob(tmp_path / "scan[2]")
    assert expand(tmp_path / "scan[1]") == [tmp_path / "scan[1]"]
