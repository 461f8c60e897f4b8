"""Runs that are not gone on with are kept."""

from d2_covid.engine.aside import set_aside


def test_nothing_is_thrown_away(tmp_path):
    folder = tmp_path / "seed_0"
    assert set_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "model.pth").write_text(str(number))
        assert set_aside(folder) == tmp_path / f"seed_0.before_{number}"
    assert (tmp_path / "seed_0.before_1" / "model.pth").read_text() == "1" and not folder.exists()
