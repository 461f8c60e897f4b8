"""DICOM: slices in the right order and place, and what is odd about their places said."""

import math

import numpy as np
import pydicom
import pytest
import SimpleITK

from .conftest import ROUNDED, one_series, read_all, unplaced_series, voxels, warned


def test_sorted_by_place_whatever_names_and_numbers_say(scans, tmp_path):
    volume = scans.body()
    series = one_series(scans.dicom_series(tmp_path, volume))
    np.testing.assert_array_equal(voxels(series), volume)
    assert series.identifier == "1.2.3" and series.modality == "CT" and series.hounsfield and not series.warnings
    assert series.spacing == pytest.approx((2, 1, 0.8))
    np.testing.assert_allclose(series.affine[:3, 3], (-20, -30, 10))
    # The object behind each source slice, for a segmentation that refers to it.
    for k, instance in enumerate(series.instances):
        dataset = pydicom.dcmread(instance.path)
        assert dataset.SOPInstanceUID == instance.sop_instance_uid and instance.frame == 0
        assert dataset.ImagePositionPatient[2] == 10 + 2 * k
        assert series.slice_names[k] == instance.path.name


def test_agrees_with_simpleitk(scans, tmp_path):
    series = one_series(scans.dicom_series(tmp_path, scans.body(), slope=0.5, intercept=-1024))
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = SimpleITK.ReadImage(names)
    np.testing.assert_allclose(voxels(series), SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(series.affine[:3, 3], image.GetOrigin())
    np.testing.assert_allclose(series.spacing[::-1], image.GetSpacing())


def test_a_missing_slice_is_said_and_counted(scans, tmp_path):
    series = one_series(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 2, 4, 8, 10]))
    warned(series, "1 gap(s) of up to 4 mm", "about 1 slice(s) missing")
    assert series.slice_extents_mm.tolist() == [2, 2, 3, 3, 2]


def test_uneven_spacing_is_said_with_numbers(scans, tmp_path):
    series = one_series(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 2, 4, 5.5, 7.5]))
    warned(series, "uneven spacing, 1.5 to 2 mm")
    assert series.slice_extents_mm.tolist() == [2, 2, 1.75, 1.75, 2]


_AVERAGE = "an affine, as of the NIfTI masks, can hold the average only: use the DICOM SEG for places"


_GAP, _UNEVEN = [0, 2, 4, 6, 40, 42, 44, 46], [0, 2, 5, 6, 9, 10]


@pytest.mark.parametrize("zs, counted", [(_GAP, "half of a gap"), (_UNEVEN, "each slice's own")], ids=["gap", "uneven"])
def test_uneven_places_are_those_of_the_segmentation(scans, tmp_path, zs, counted):
    """An affine puts the gap's slices elsewhere, by 14 mm here."""
    series = one_series(scans.dicom_series(tmp_path, scans.body(len(zs)), zs=zs))
    assert len(series.warnings) == 1
    warned(series, counted, f"; {_AVERAGE}.")


def test_left_and_right_are_known_where_positions_are(scans, tmp_path):
    assert one_series(scans.dicom_series(tmp_path / "placed", scans.body(3))).oriented
    assert not unplaced_series(scans, tmp_path / "unplaced", [0.0, 2.0, 4.0]).oriented


def test_uneven_locations_have_no_segmentation(scans, tmp_path):
    """It needs positions."""
    series = unplaced_series(scans, tmp_path, [0.0, 2.0, 4.0, 8.0, 10.0])
    warned(series, "half of a gap", "can hold the average only.")


def test_uneven_places_in_another_plane_say_what_areas_take(scans, tmp_path):
    for k, place in enumerate(_GAP):
        dataset = scans.dicom(scans.body()[k], (0, place, 0), (1, 0, 0, 0, 0, -1))
        scans.save(tmp_path / f"{k}.dcm", dataset)
    warned(one_series(tmp_path), "half of a gap", f"{_AVERAGE}; areas in axial slices take that average.")


def test_rounded_positions_are_even(scans, tmp_path):
    assert not one_series(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 0.7, 1.4, 2.1001, 2.8])).warnings


def test_a_tilted_gantry_is_said_and_placed(scans, tmp_path):
    """Slices 12 degrees off, moved straight along the table: the affine is sheared, and each voxel where it was."""
    volume = scans.body(6)
    c, s = math.cos(math.radians(12)), math.sin(math.radians(12))
    for k in range(6):
        tilted = scans.dicom(volume[k], (0, 0, 3 * k), orientation=(1, 0, 0, 0, c, -s), GantryDetectorTilt=12)
        scans.save(tmp_path / f"{k}.dcm", tilted)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "displaced by 12 degrees", "tools built on ITK can't open its NIfTI masks: use the DICOM SEG")
    warned(series, "tilt of 12 degrees in the header")
    np.testing.assert_allclose(series.affine @ [0, 0, 5, 1], [0, 0, 15, 1], atol=1e-9)
    assert series.spacing[0] == pytest.approx(3 * c) and series.slice_extents_mm == pytest.approx([3 * c] * 6)


@pytest.mark.parametrize("orientation", [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0)],
                         ids=["sagittal", "coronal", "turned in its plane"])  # fmt: skip
def test_other_planes_are_read_as_axial_and_masks_go_back(scans, tmp_path, orientation):
    axial = scans.body(10, 20, 24)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    # Cut the axial volume, 1 mm in all directions, into files of that plane.
    place = np.indices(axial.shape)[::-1].reshape(3, -1)  # x, y, z
    along = [vector @ place for vector in (row, column, normal)]
    along = [a - a.min() for a in along]
    planes = np.zeros([int(a.max()) + 1 for a in along[::-1]], np.int16)
    planes[along[2], along[1], along[0]] = axial.ravel()
    corner = np.array([0 if v.sum() > 0 else n - 1 for v, n in zip((row + column + normal)[:, None], (24, 20, 10))])
    for k, plane in enumerate(planes):
        dataset = scans.dicom(plane, tuple(map(float, corner + k * normal)), orientation, (1.0, 1.0), SliceThickness=1)
        scans.save(tmp_path / f"{len(planes) - k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), axial)
    np.testing.assert_allclose(series.affine, np.eye(4), atol=1e-9)
    mask = axial < -300
    for k, instance in enumerate(series.instances):
        stored = pydicom.dcmread(instance.path).pixel_array.astype(int) - 1024
        np.testing.assert_array_equal(series.to_source(mask)[k], stored < -300)
    assert bool(series.warnings) == (normal[2] == 0)


@pytest.mark.parametrize("located", [False, True])
def test_without_positions_order_and_warning(scans, tmp_path, located):
    volume = scans.body(12)
    for k in range(12):
        place = {"SliceLocation": float(k)} if located else {}
        dataset = scans.dicom(volume[k], number=12 - k, ImagePositionPatient=None, PixelSpacing=None, **place)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "no usable positions", "slice location" if located else "instance number")
    warned(series, "no usable pixel spacing")


def test_without_positions_the_step_is_that_of_the_locations(scans, tmp_path):
    series = unplaced_series(scans, tmp_path, [-6.0, 0.0, 6.0, 12.0, 18.0], SpacingBetweenSlices=1.5)
    assert series.spacing == pytest.approx((6, 1, 0.8)) and len(series.warnings) == 1
    np.testing.assert_array_equal(voxels(series), scans.body(5))


def test_uneven_locations_and_repeated_files_are_taken_as_positions_are(scans, tmp_path):
    places = [0.0, 2.0, 4.0, 8.0, 10.0]
    unplaced_series(scans, tmp_path, places)
    # The same file twice; and a slice again, under another name and UID.
    scans.save(tmp_path / "again.dcm", (tmp_path / "4.dcm").read_bytes())
    tags = {"SliceLocation": 8.0, "number": 2, "SOPInstanceUID": "1.2.3.4", "ImagePositionPatient": None}
    scans.save(tmp_path / "renamed.dcm", scans.dicom(scans.body(5)[3], **tags))
    series = one_series(tmp_path)
    warned(series, "2 of 7 slices lie where another one does")
    warned(series, "1 gap(s) of up to 4 mm", "about 1 slice(s) missing")
    assert series.slice_extents_mm.tolist() == [2, 2, 3, 3, 2]
    np.testing.assert_array_equal(voxels(series), scans.body(5))


@pytest.mark.parametrize("locations", [ROUNDED, [0.0] * 19 + [5.0]], ids=["rounded", "filled in"])
@pytest.mark.parametrize("rising", [False, True])
def test_locations_that_repeat_lose_no_slice(scans, tmp_path, locations, rising):
    volume = scans.body(20)
    for k, location in enumerate(locations):
        own = {"SliceLocation": location, "ImagePositionPatient": None, "SpacingBetweenSlices": 0.7}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(volume[k], number=k + 1 if rising else 20 - k, **own))
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    assert series.spacing[0] == pytest.approx(0.7) and len(series.warnings) == 1
    warned(series, "slice location and, where that repeats, by instance number, and 0.7 mm apart, the spacing")


@pytest.mark.parametrize("location", [0.0, None])
def test_without_positions_and_locations_the_header_says_the_step(scans, tmp_path, location):
    tags = {} if location is None else {"SliceLocation": location}  # careless software gives all the same one
    volume = scans.body(4)
    for k in range(4):
        dataset = scans.dicom(volume[k], number=4 - k, ImagePositionPatient=None, SpacingBetweenSlices=2.5, **tags)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = one_series(tmp_path)
    np.testing.assert_array_equal(voxels(series), volume)
    warned(series, "instance number", "2.5 mm apart, the spacing or thickness in the header")
    assert series.spacing[0] == 2.5


@pytest.mark.parametrize("locations", [[0.0, 5e4, 1e5], [0.0, 5e300, 1e301]])
def test_locations_far_apart_end_in_one_line(scans, tmp_path, locations):
    for k, location in enumerate(locations):
        tags = {"SliceLocation": f"{location:g}", "ImagePositionPatient": None}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(scans.body(3)[k], number=k, **tags))
    (result,) = read_all(tmp_path)
    if locations[-1] > 1e6:  # no place in a body: counts as none
        warned(result, "instance number")
    else:
        assert "make no volume (step 50000 mm)" in result.message


@pytest.mark.parametrize("values", [["nan", "0", "0"], ["1", "2"], ["1e9", "0", "0"]])
def test_nonsense_positions_count_as_none(scans, tmp_path, values):
    dataset = scans.dicom(scans.body()[0])
    dataset.ImagePositionPatient = values if len(values) == 3 else [1, 2]
    scans.save(tmp_path / "x.dcm", dataset)
    warned(one_series(tmp_path), "no usable positions")


def test_several_gaps_are_told_from_the_usual_step(scans, tmp_path):
    series = one_series(scans.dicom_series(tmp_path, scans.body(8), zs=[0.0, 1, 2, 3, 13, 14, 15, 25]))
    warned(series, "2 gap(s) of up to 10 mm between slices 1 mm apart", "about 18 slice(s) missing")
    assert len(series.warnings) == 1 and series.spacing[0] == pytest.approx(25 / 7)


def test_a_table_that_moved_aside_is_said(scans, tmp_path):
    for k, x in enumerate((0, 0, 5, 0)):
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(scans.body(4)[k], (x, 0, 2 * k), number=k))
    warned(one_series(tmp_path), "slices lie up to 5 mm beside the line from first to last")


@pytest.mark.parametrize("thickness", [5.0, None])
def test_one_slice_is_as_thick_as_its_header_says(scans, tmp_path, thickness):
    scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0], SliceThickness=thickness))
    series = one_series(tmp_path)
    assert series.spacing[0] == series.slice_extents_mm.sum() == (thickness or 1.0)
    assert any("no usable slice thickness" in warning for warning in series.warnings) == (thickness is None)
