"""MODEL_ZOO.md: other libraries, trained like a row of the zoo for as long."""

import json

from d2_covid.errors import UserError
from d2_covid.zoo.peers import read_peers
from d2_covid.zoo.table import zoo_page

import pytest

TITLE = "### Beside another library"


@pytest.fixture
def peer():
    return {
        "peer": "other",
        "backbone": "ResNet50",
        "like": "tuned-R18-T1-scratch-s1",
        "command": "python tools/train_other.py",
        "device": "NVIDIA X",
        "threads": 1,
        "parameters": 27_006_952,
        "slices": 496,
        "passes": 1.138,
        "seconds": 81.2,
        "versions": {"other": "2.0.1", "torch": "2.0"},
        "metrics": {"segm": {"AP": 1.26, "AP50": 3.0, "AP75": 0.0}, "bbox": {"AP": 2.0}},
    }


def test_a_peer_stands_below_the_training_that_it_followed(record, peer):
    page = zoo_page([record(threads=1), record(seed=2, threads=1)], [peer, {**peer, "backbone": "ResNet101"}])
    section = page.partition(TITLE)[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    ours, theirs, deeper = rows[2:]
    assert ours[:6] == ["d2_covid, `tuned-R18-T1-scratch-s1`", "R18-T1", "6.05 M", "496 × 9", "80", "1"]
    assert ours[6:] == ["NVIDIA X", "10.0", "30.0", "1.0", "9.0"]
    assert theirs[:6] == ["other 2.0.1", "ResNet50", "27.01 M", "496 × 1.14", "81", "1"]
    assert theirs[6:] == ["NVIDIA X", "1.3", "3.0", "0.0", "2.0"] and deeper[1] == "ResNet101"
    assert section.count("python tools/train_other.py") == 1


def test_without_peers_there_is_no_section(record, tmp_path):
    assert TITLE not in zoo_page([record()], read_peers(tmp_path / "none"))


def test_a_peer_of_no_record_or_no_row_is_refused(record, peer, tmp_path):
    with pytest.raises(UserError, match="trained like tuned-R18-T1-scratch-s1"):
        zoo_page([record(seed=2)], [peer])
    (tmp_path / "a.json").write_text(json.dumps(peer))
    assert read_peers(tmp_path) == [peer]
    for bad in (json.dumps({**peer, "like": None}), json.dumps([]), "{"):
        (tmp_path / "a.json").write_text(bad)
        with pytest.raises(UserError, match="a.json"):
            read_peers(tmp_path)
