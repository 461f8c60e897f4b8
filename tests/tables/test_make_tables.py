"""tools/make_tables.py from end to end, on phantoms in the layouts of CNCB and COVIDx-CT."""

import csv
import json

from d2_covid.errors import UserError
from d2_covid.paper_tables import TABLE_2, TABLE_3
from d2_covid.tables import estimate

import pytest


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_both_tables_on_phantoms(tool, quick, tmp_path, capsys, monkeypatch):
    measure, measured = estimate.measure_speed, {}

    def measure_once(cfg):
        """For real, but once for each kind: this keeps the test short."""
        kind = cfg.MODEL.META_ARCHITECTURE
        if kind not in measured:
            measured[kind] = measure(cfg)
        return measured[kind]

    monkeypatch.setattr(estimate, "measure_speed", measure_once)
    output = tmp_path / "tables"
    command = ["--table", "2", "3", "--output", str(output), "--models", "R18-T2", "--device", "cpu", *quick]

    # What it would do: commands and cost, and nothing written.
    assert tool.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("python tools/train_net.py --config-file configs/") == 2 and "prepare_covidx_ct.py" in said
    assert "2 trainings: about" in said and "on this CPU" in said and "The paper reports 4.0 hours" in said
    assert not output.exists()

    assert tool.main(command) == 0
    said = capsys.readouterr().out
    assert "Not the paper's experiment:" in said and "9 training and 9 validation slices" in said
    for number, paper in ((2, TABLE_2), (3, TABLE_3)):
        measured, *reported = rows_of(output / f"table{number}.csv")
        assert (measured["source"], measured["model"], measured["state"]) == ("measured", "ResNet18-T2+FPN", "done")
        assert [row["model"] for row in reported] == [row.words for row in paper]
        assert {row["source"] for row in reported} == {"paper"}
        page = (output / f"table{number}.md").read_text(encoding="utf-8")
        ours, theirs = page.split("## Reported, not measured")
        assert ours.count("| ResNet18-T2+FPN ") == 2 and "ResNet50" not in ours
        assert "**Not the paper's experiment:**" in ours and "not a medical device" in ours
        assert all(row.words in theirs for row in paper)
    assert float(rows_of(output / "table2.csv")[0]["paper_ap50_low"]) >= 0
    assert rows_of(output / "table2.csv")[0]["slices"] == "9"
    record = json.loads((output / "table3.json").read_text())
    assert record["measured"][0]["facts"]["slices"] == 3 and record["measured"][0]["figures"]["accuracy"]["high"] <= 100
    assert "every resample gave this value" in (output / "table3.md").read_text(encoding="utf-8")
    assert "94.36 %" in (output / "table3.md").read_text(encoding="utf-8")

    # Again: nothing is left to do. Then another model joins the table, and the first keeps its row.
    final = output / "segmentation" / "R18-T2" / "seed_0" / "model_final.pth"
    before = final.stat().st_mtime_ns
    assert tool.main(command) == 0
    said = capsys.readouterr().out
    assert "0 trainings: " in said and said.count("done before") == 4 and final.stat().st_mtime_ns == before
    alone = ["--table", "3", "--output", str(output), "--models", "R18-T2", "--seeds", "0", *quick[4:]]
    assert tool.main(alone) == 0
    assert capsys.readouterr().out.count("done before") == 2
    with pytest.raises(UserError, match="have classifier epochs 1, and now it is 2; give another --output"):
        tool.main([*alone, "--classifier-epochs", "2"])

    # A model that can't start costs the other nothing, and its row says why.
    other = tmp_path / "other"
    two = ["--table", "2", "--output", str(other), "--models", "R18-T1", "R18-T2", "--init", str(final), *quick]
    assert tool.main(two) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out and "1 of 2 trainings failed (Mask R-CNN R18-T1, seed 0)" in said.err
    failed, done = rows_of(other / "table2.csv")[:2]
    assert (failed["state"], failed["coco_mask_ap"]) == ("failed", "") and done["state"] == "done"
    page = (other / "table2.md").read_text(encoding="utf-8")
    assert "Mask R-CNN R18-T1, seed 0 FAILED: " in page and "of truncation T2, the config says of truncation T1" in page
    assert "starting from " + str(final) in page


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "Say which to make: --table 2"),
        (["--table", "2"], "Table 2 trains on lesion masks: give --cncb"),
        (["--table", "3", "--cncb", "{cncb}", "--val-fraction", "0.5"], "Table 3 trains on slices with a class"),
        (["--table", "2", "--cncb", "nowhere"], "nowhere: no such folder; --cncb"),
        (["--table", "2", "--cncb", "{cncb}"], "has none of the paper's 20 validation patients; give --val-fraction"),
        (["--table", "3", "--covidx", "{covidx}"], "has no trained Mask R-CNN R18, seed 0"),
        (["--table", "2", "--models", "R18-T9"], "--models R18-T9: there is no such model"),
    ],
)
def test_what_is_missing_is_one_sentence(tool, phantoms, tmp_path, arguments, said):
    places = {"cncb": phantoms / "cncb", "covidx": phantoms / "covidx_ct"}
    with pytest.raises(UserError, match=said) as stop:
        tool.main(["--output", str(tmp_path / "out"), *(word.format(**places) for word in arguments)])
    assert "\n" not in str(stop.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_key_that_every_training_would_refuse_is_refused_first(tool, quick, tmp_path, capsys, more):
    command = ["--table", "2", "3", "--output", str(tmp_path / "out"), "--models", "R18-T2", *more, *quick]
    with pytest.raises(UserError, match="TEST.EVAL_PERIOD 500 does nothing with SOLVER.EPOCHS 1: TEST.EVAL_EPOCHS"):
        tool.main([*command, "TEST.EVAL_PERIOD", "500"])
    assert not (tmp_path / "out").exists() and capsys.readouterr().out == ""


def test_the_quick_check_makes_phantoms_in_both_layouts(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "costs", lambda runs, on_gpu: {})  # what a run costs is asked above
    assert tool.main(["--quick-check", "--dry-run", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the data are phantoms, generated pictures" in said and said.count("train_net.py") == 2
    assert (tmp_path / "phantoms" / "covidx_ct" / "train_COVIDx-CT.txt").is_file()


def test_a_disk_that_is_too_small_is_told_before(tool, quick, tmp_path, monkeypatch):
    usage = tool.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"has 0.0 GB free, and the runs need 0\.\d GB"):
        tool.main(["--table", "2", "--output", str(tmp_path / "out"), "--models", "R18-T2", *quick])
    assert not (tmp_path / "out").exists()
