"""The transcription of the paper's tables: complete, named after configs, and consistent where the paper is."""

from dataclasses import replace

from d2_covid import paper_tables
from d2_covid.config import config_dir
from d2_covid.paper_tables import SIZES, TABLE_2, TABLE_2_NOTES, TABLE_3, TABLE_3_NOTES, VALIDATION_PATIENTS

import pytest


def test_every_row_names_a_config():
    for row in TABLE_2:
        assert (config_dir() / "segmentation" / f"{row.name}.yaml").is_file()
    for row in TABLE_3:
        assert (config_dir() / "classification" / f"{row.name}.yaml").is_file()
        assert paper_tables.segmentation_row(row.detector) is not None
    for row in SIZES:
        assert any((config_dir() / kind / f"{row.name}.yaml").is_file() for kind in ("segmentation", "classification"))
    assert (len(SIZES), len(TABLE_2), len(TABLE_3)) == (14, 8, 8)


def test_rows_are_found_by_name():
    assert paper_tables.segmentation_row("mask_rcnn_R_34_T1_FPN").ap == 44.76
    assert paper_tables.classification_row("covid_ct_mask_net_R_18_T1_FPN").accuracy == 93.95
    assert paper_tables.size_of("mask_rcnn_R_18_T2_FPN").total == 4.02
    assert paper_tables.size_of("mask_rcnn_R_50_FPN_both") is None


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: row.name)
def test_the_overall_accuracy_follows_from_the_class_figures_or_a_note_says_not(row):
    """0.01: the paper rounds each class to a hundredth, and cuts off rather than rounds in places."""
    if abs(row.accuracy - row.accuracy_of_classes) > 0.0105:
        assert any(f"{row.accuracy_of_classes:.2f} %" in note for note in TABLE_3_NOTES)
        assert row.name in ("covid_ct_mask_net_R_34_T2_FPN", "covid_ct_mask_net_R_50_FPN")


def test_the_note_on_the_control_sensitivity_counts_right():
    row = paper_tables.classification_row("covid_ct_mask_net_R_34_T1_FPN")
    note = TABLE_3_NOTES[0]
    assert f"{row.control:.2f} %" in note and f"{row.accuracy_of_classes:.2f} %" in note
    repeated = replace(row, control=row.accuracy)
    assert f"{repeated.accuracy_of_classes:.2f} %" == "92.24 %" and "92.24 %" in note


def test_the_papers_validation_patients():
    assert len(set(VALIDATION_PATIENTS)) == 20 and set(VALIDATION_PATIENTS) <= set(range(150))
    assert sum(paper_tables.TEST_SLICES) == 21191
    assert any("650 slices of 130 patients" in note for note in TABLE_2_NOTES)
