"""The check of a data set on real CT; skipped where it is absent."""

import csv

from d2_covid.data.validation import validate

import pytest

# Every n-th slice of a patient, so that the test stays short. Patient 2 has 19 thick slices, each near one of 3's thin.
EVERY = {"1": 4, "2": 2, "3": 2, "4": 3, "6": 1, "9": 6}


@pytest.fixture
def listed(real_data, tmp_path):
    """``listed(train, val)`` writes a list of radiopaedia's slices with that split of patients."""
    images = real_data / "radiopaedia" / "ct_lesion_seg" / "image"

    def make(**splits: list[str]):
        path = tmp_path / "list.csv"
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "patient_id", "split"])
            for split, patients in splits.items():
                for patient in patients:
                    files = sorted((images / patient).iterdir())[:: EVERY[patient]]
                    writer.writerows([f"{patient}/{one.name}", 2, patient, split] for one in files)
        return validate([path], images, max_shown=1000)

    return make


def test_two_reconstructions_of_one_scan_on_two_sides(listed):
    found = listed(train=["3"], val=["2"])
    near = found.findings.kept("near_duplicate")
    assert len(near) == 10 and all("/2/" in one.pictures[0] and "/3/" in one.pictures[1] for one in near)
    assert found.errors == 0


def test_the_split_of_the_readme_raises_no_alarm(listed):
    found = listed(train=["2", "3", "6", "9"], val=["1", "4"])
    assert set(found.findings.counts) <= {"class_missing"}
