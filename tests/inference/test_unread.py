"""Which of the files that can't be read are a matter of which series."""

from d2_covid.data.discovery import discover
from d2_covid.data.volumes import Problem
from d2_covid.inference.unread import in_folders_of, with_unread

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize("top", ["", "x"])
def test_a_series_is_warned_of_what_failed_in_its_own_folders(top, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / top / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(tmp_path / top / "a.png")
    (series,) = discover([top or "."])
    names = ("bad.png", "sub", "sub/bad.png", "../bad.png")
    problems = [Problem(f"{top}/{name}".lstrip("/"), name) for name in names]
    problems.append(Problem(f"{top}/scout.dcm".lstrip("/"), "left out", failed=False))
    assert with_unread(series, in_folders_of(series, problems)).warnings == ("bad.png",)
