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
        ("*.png", False),
        ("*/*.nii.gz", False),
        ("in*", False),
        ("**/*.dcm", False),
    ],
)
def test_a_glob_reaches_what_it_would_match_or_lie_below(tmp_path, pattern, reached):
    files = [tmp_path / "out" / "1.5" / name for name in ("lesions.nii.gz", "overlays/0000.png")]
    assert any(reaches(tmp_path / pattern, file) for file in files) == reached
    assert not reaches(tmp_path / "elsewhere" / pattern, files[0])


def test_a_name_with_brackets_that_is_there_is_no_glob(tmp_path):
    (tmp_path / "scan[1]").mkdir()
    assert not is_glob(tmp_path / "scan[1]") and is_glob(tmp_path / "scan[2]")
    assert expand(tmp_path / "scan[1]") == [tmp_path / "scan[1]"]
