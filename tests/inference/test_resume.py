"""Resuming: what is whole and up to date is left alone, and nothing else."""

import json

from d2_covid.inference.batch_run import BatchOptions, BatchRun

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def run(known, tmp_path):
    """``run(folder, *save, resume=...)`` gives the exit status, the rows by series, and the lines said."""

    def start(folder, *save, resume=True):
        lines = []
        batch = BatchRun(known, [folder], tmp_path / "out", BatchOptions(save=save, resume=resume), lines.append)
        return batch.run(), {row.series: row for row in batch.rows}, lines

    return start


def test_a_series_of_which_a_slice_failed_is_tried_again(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((40, 48), 84, np.uint8)).save(folder / f"{name}.png")
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:60])
    for _ in range(2):
        status, rows, lines = run(folder, "json")
        assert status == 1 and rows["images"].status == "partly"
        assert any(line.startswith("error: ") and "b.png" in line for line in lines)
    (folder / "b.png").write_bytes(whole)
    assert run(folder, "json")[0] == 0
    status, rows, _ = run(folder, "json")
    assert status == 0 and rows["images"].status == "whole already"


@pytest.mark.parametrize("kind", ["no lesion", "loose images"])
def test_a_series_that_writes_no_files_is_whole(run, scans, tmp_path, kind):
    folder = tmp_path / "in"
    if kind == "no lesion":
        air = np.full((2, 40, 48), -1000, np.int16)
        air[:, 8:-8, 8:-8] = 40
        scans.dicom_series(folder, air)
        save = "dicom-seg"
    else:
        folder.mkdir()
        Image.fromarray(np.full((40, 48), 84, np.uint8)).save(folder / "a.png")
        save = "nifti"
    assert [row.status for row in run(folder, save)[1].values()] == ["done"]
    assert [row.status for row in run(folder, save)[1].values()] == ["whole already"]


def test_a_series_left_alone_is_told_of_as_when_it_was_made(run, scans, tmp_path):
    folder, entries = scans.dicom_series(tmp_path / "in", scans.body(2), FrameOfReferenceUID=None), []
    for status in ("done", "whole already"):
        _, rows, lines = run(folder, "json", "dicom-seg")
        (warning,) = [line for line in lines if "dicom-seg" in line]
        assert rows["1.2.3"].status == status and warning.startswith("warning: 1.2.3: no dicom-seg: its headers")
        (entry,) = json.loads((tmp_path / "out" / "run.json").read_text())["series"]
        entries.append({name: entry[name] for name in ("folder", "warnings", "left_out", "failed_slices")})
    assert entries[0] == entries[1] and "Frame Of Reference" in entries[0]["left_out"]["dicom-seg"]
    assert any("no dicom-seg" in warning for warning in entries[0]["warnings"])


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_beside_their_header_that_were_replaced_are_read_again(run, scans, tmp_path, suffix):
    path = scans.itk(tmp_path / "in" / f"scan{suffix}", scans.body(2))
    assert run(path, "json")[1]["scan"].status == "done"
    assert run(path, "json")[1]["scan"].status == "whole already"
    other = scans.itk(tmp_path / f"other{suffix}", scans.body(2)[::-1].copy())
    path.with_suffix(".raw").write_bytes(other.with_suffix(".raw").read_bytes())
    assert run(path, "json")[1]["scan"].status == "done"
