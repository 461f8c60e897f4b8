"""DICOM: which objects and frames make a series, and what is left out of it and said."""

from d2_covid.data.discovery import discover
from d2_covid.data.volumes import Series

import numpy as np
import pytest
from pydicom.dataset import Dataset

from .conftest import ROUNDED, one_series, read_all, unplaced_series, voxels, warned


@pytest.mark.parametrize(
    "tags, reason",
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "scout"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary capture"),
        ({"Modality": "MR"}, "modality MR"),
        ({"Modality": "SR", "Rows": None}, "modality SR"),
        ({"SamplesPerPixel": 3}, "colour image"),
        ({"Rows": None}, "without an image"),
    ],
)
def test_what_is_no_slice_is_left_out_and_said(scans, tmp_path, tags, reason):
    volume = scans.body(3)
    scans.dicom_series(tmp_path, volume)
    path = scans.save(tmp_path / "other.dcm", scans.dicom(volume[0], (0, 0, 500), **tags))
    problem, series = read_all(tmp_path)
    assert not problem.failed and reason in problem.message and "other.dcm" in problem.message
    np.testing.assert_array_equal(voxels(series), volume)
    (named,) = discover([path])  # named by the user, it is a failure
    assert named.failed and reason in named.message


def test_a_scout_without_the_label_is_left_out(scans, tmp_path):
    scans.dicom_series(tmp_path, scans.body())
    scans.save(tmp_path / "scout.dcm", scans.dicom(scans.body()[0], (0, 0, 0), orientation=(1, 0, 0, 0, 0, -1)))
    problem, series = read_all(tmp_path)
    assert not problem.failed and "scout" in problem.message and series.num_slices == 8


def test_two_sizes_in_one_series_become_two(scans, tmp_path):
    scans.dicom_series(tmp_path / "a", scans.body())
    scans.dicom_series(tmp_path / "b", scans.body(4, 32, 32))
    first, second = read_all(tmp_path)
    assert (first.shape, second.shape) == ((8, 40, 48), (4, 32, 32))
    assert first.identifier == "1.2.3" and second.identifier == "1.2.3-2"
    warned(first, "2 sizes, spacings or orientations")


def test_a_repeated_slice_is_read_once(scans, tmp_path):
    volume = scans.body()
    scans.dicom_series(tmp_path, volume)
    scans.save(tmp_path / "again.dcm", scans.dicom(volume[0], (-20, -30, 14), number=99))
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "1 of 9 slices lie where another one does")


def test_of_several_time_points_the_first_is_read(scans, tmp_path):
    volume = scans.body()
    for time in (2, 1):
        for k in range(8):
            dataset = scans.dicom(volume[k] + 10 * (time - 1), (0, 0, k), number=k, TemporalPositionIdentifier=time)
            scans.save(tmp_path / f"{time}_{k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "8 of 16", "time points")


def test_without_a_series_uid_each_folder_is_a_series(scans, tmp_path):
    counted = []
    for name, slices in (("A/CT", 3), ("B/CT", 4), ("B/CT 2", 2)):
        scans.dicom_series(tmp_path / name, scans.body(slices), SeriesInstanceUID=None)
    found = read_all(tmp_path, on_found=counted.append)
    assert [(s.identifier, s.num_slices) for s in found] == [("CT", 3), ("CT-2", 4), ("CT_2", 2)] and counted == [3]
    assert not any(s.warnings for s in found)


def test_enhanced_multiframe(scans, tmp_path):
    volume = scans.body(5)
    path = scans.save(tmp_path / "enhanced", scans.enhanced_dicom(volume, order=[3, 0, 4, 1, 2]))
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    assert series.source_files == (path,) and [i.frame for i in series.instances] == [1, 3, 4, 0, 2]
    assert series.spacing == pytest.approx((2, 1, 0.8))


@pytest.mark.parametrize("frames, message", [(10000, "is incomplete"), (4, "describes 5"), (10**9, "voxels")])
def test_more_frames_claimed_than_there_are(scans, tmp_path, frames, message):
    scans.save(tmp_path / "x.dcm", scans.enhanced_dicom(scans.body(5), NumberOfFrames=frames))
    (problem,) = read_all(tmp_path)
    assert problem.failed and message in problem.message


def test_frames_without_description_are_refused(scans, tmp_path):
    dataset = scans.dicom(scans.body()[0], NumberOfFrames=3)
    dataset.PixelData *= 3
    scans.save(tmp_path / "x.dcm", dataset)
    assert "claims 3 frames and describes 0" in read_all(tmp_path)[0].message


def _enhanced_without_positions(scans, path, locations=None) -> Series:
    """Frames from head to feet, in one file, that don't say where they lie."""
    dataset = scans.enhanced_dicom(scans.body(6), order=[5, 4, 3, 2, 1, 0])
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        del group.PlanePositionSequence
        if locations:
            group.FrameContentSequence = [Dataset()]
            group.FrameContentSequence[0].SliceLocation = locations[k]
    return one_series(scans.save(path, dataset))


def test_frames_without_positions_run_from_head_to_feet_as_said(scans, tmp_path):
    series = _enhanced_without_positions(scans, tmp_path / "x.dcm")
    np.testing.assert_array_equal(voxels(series), scans.body(6))
    assert [instance.frame for instance in series.instances] == [5, 4, 3, 2, 1, 0]
    warned(series, "instance number, taken to run from head to feet")


@pytest.mark.parametrize("sign", [1, -1], ids=["falling", "rising"])
def test_frames_at_the_same_location_run_as_the_others(scans, tmp_path, sign):
    series = _enhanced_without_positions(scans, tmp_path / "x.dcm", [sign * z for z in (2.0, 2.0, 1.0, 1.0, 0.0, 0.0)])
    assert [instance.frame for instance in series.instances] == [5, 4, 3, 2, 1, 0][::sign]
    warned(series, "where that repeats, by instance number")


@pytest.mark.parametrize("number", [7, None])
def test_numbers_that_tell_nothing_make_no_slice_a_repeated_one(scans, tmp_path, number):
    tags = {"InstanceNumber": number, "SpacingBetweenSlices": 0.7}
    series = unplaced_series(scans, tmp_path, ROUNDED, **tags)
    assert series.num_slices == 20
    # The same file twice still is.
    scans.save(tmp_path / "again.dcm", (tmp_path / "3.dcm").read_bytes())
    series = one_series(tmp_path)
    assert series.num_slices == 20
    warned(series, "1 of 21 slices lie where another one does")


def test_time_points_at_the_same_locations_are_said(scans, tmp_path):
    for time in (1, 2):
        for k in range(4):
            tags = {"SliceLocation": float(k), "ImagePositionPatient": None, "TemporalPositionIdentifier": time}
            scans.save(tmp_path / f"{time}_{k}.dcm", scans.dicom(scans.body(4)[k], (0, 0, time), number=k, **tags))
    series = one_series(tmp_path)
    assert series.num_slices == 8
    warned(series, "2 acquisitions overlap along the axis")


@pytest.mark.parametrize("lost", [("ImagePositionPatient",), ("ImagePositionPatient", "ImageOrientationPatient")])
def test_a_few_slices_without_a_position_are_left_out(scans, tmp_path, lost):
    volume = scans.body(9)
    scans.dicom_series(tmp_path, volume[:6])
    for k in range(6, 9):
        scans.save(tmp_path / f"lost_{k}.dcm", scans.dicom(volume[k], number=k, **dict.fromkeys(lost)))
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume[:6])
    assert series.spacing[0] == 2 and len(series.warnings) == 1
    warned(series, "3 of 9 slices, the first lost_6.dcm, have no usable position or orientation")
    # Where more of them say nothing, none is left out.
    scans.save(tmp_path / "lost_9.dcm", scans.dicom(volume[0], number=9, ImagePositionPatient=None))
    assert sum(result.num_slices for result in read_all(tmp_path)) == 10


def _acquired(scans, folder, acquisitions: dict[float, int], **tags) -> Series:
    """A slice at each place, of the acquisition that goes with it."""
    for k, (place, number) in enumerate(acquisitions.items()):
        dataset = scans.dicom(scans.body()[k % 8], (0, 0, place), number=k, AcquisitionNumber=number, **tags)
        if "ImagePositionPatient" in tags:
            dataset.SliceLocation = place
        scans.save(folder / f"{k}.dcm", dataset)
    return one_series(folder)


@pytest.mark.parametrize("tags", [{}, {"ImagePositionPatient": None}], ids=["positions", "locations"])
def test_acquisitions_that_overlap_along_the_axis_are_said(scans, tmp_path, tags):
    two_breaths = {0: 1, 2: 1, 4: 1, 6: 1, 1: 2, 3: 2, 5: 2, 7: 2}
    apart = {20: 3, 22: 3}
    message = "2 acquisitions overlap along the axis; their slices are read as one volume in order of place"
    warned(_acquired(scans, tmp_path, two_breaths | apart, **tags), message)


def test_a_time_point_within_another_is_said(scans, tmp_path):
    for k, time in enumerate([1, 1, 2, 1, 1]):
        dataset = scans.dicom(scans.body()[k], (0, 0, k), TemporalPositionIdentifier=time)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    warned(one_series(tmp_path), "2 acquisitions overlap")


@pytest.mark.parametrize("numbers", [[2, 2, 2, 1, 1, 1], [1, 2, 3, 4, 5, 6], [6, 6, 4, 4, 5, 5], [1] * 6])
def test_step_and_shoot_is_not_complained_of(scans, tmp_path, numbers):
    assert not _acquired(scans, tmp_path, {2 * k: number for k, number in enumerate(numbers)}).warnings
