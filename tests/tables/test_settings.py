"""What an output folder remembers of its runs."""

from d2_covid.errors import UserError
from d2_covid.tables.settings import SETTINGS, check_settings, known_departures, note_settings

import pytest


def test_other_settings_are_refused_and_name_both_values(tmp_path):
    note_settings(tmp_path, {"segmentation": {"epochs": None, "recipe": "paper"}}, {})
    check_settings(tmp_path, {"segmentation": {"recipe": "paper", "new": 1}, "classification": {"epochs": 3}})
    with pytest.raises(UserError, match="segmentation runs in .* have epochs None, and now it is 3; give another"):
        check_settings(tmp_path, {"segmentation": {"epochs": 3}})
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(UserError, match="settings.json is damaged"):
        check_settings(tmp_path, {"segmentation": {}})


def test_a_value_in_several_spellings_is_the_same_by_any_of_them(tmp_path):
    note_settings(tmp_path, {"segmentation": {"init": ["a.pth", "/x/a.pth", "sha256 1"], "weights": "zoo"}}, {})
    for same in (["a.pth", "/y/a.pth"], ["b.pth", "/x/b.pth", "sha256 1"], "/x/a.pth"):
        check_settings(tmp_path, {"segmentation": {"init": same, "weights": ["zoo", "/x/zoo"]}})
    with pytest.raises(UserError, match="have init 'a.pth', and now it is 'b.pth'; give another"):
        check_settings(tmp_path, {"segmentation": {"init": ["b.pth", "/x/b.pth", "sha256 2"]}})
    with pytest.raises(UserError, match="have weights 'zoo', and now it is ''; give another"):
        check_settings(tmp_path, {"segmentation": {"weights": ""}})


def test_what_runs_depart_in_is_kept_for_later_commands(tmp_path):
    assert known_departures(tmp_path, "segmentation") is None
    note_settings(tmp_path, {"segmentation": {"epochs": 3}}, {"segmentation": ["epochs: 3"]})
    note_settings(tmp_path, {"classification": {"epochs": 2}}, {"classification": []})
    assert known_departures(tmp_path, "segmentation") == ["epochs: 3"]
    assert known_departures(tmp_path, "classification") == []
    with pytest.raises(UserError, match="have epochs 3"):
        check_settings(tmp_path, {"segmentation": {"epochs": None}})
