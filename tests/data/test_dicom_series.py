"""DICOM: the right slices, in the right order and units, and what is odd about them said."""

import math

from d2_covid.data.dicom_headers import LeftOut, read_frames
from d2_covid.data.dicom_series import assemble
from d2_covid.data.discovery import discover
from d2_covid.data.preprocessing import network_input, window_to_uint8
from d2_covid.data.volumes import Problem, Series
from d2_covid.errors import UserError

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)


def _read(folder, **options) -> list:
    return list(discover([folder], **options))


def _one(folder, **options) -> Series:
    results = _read(folder, **options)
    assert len(results) == 1 and isinstance(results[0], Series), results
    return results[0]


def _voxels(series: Series) -> np.ndarray:
    return np.stack([series.slice(i) for i in range(series.num_slices)])


def _warned(series: Series, *words: str) -> None:
    assert any(all(word in warning for word in words) for warning in series.warnings), series.warnings
    assert not any("\n" in warning for warning in series.warnings)


def test_sorted_by_place_whatever_names_and_numbers_say(scans, tmp_path):
    volume = scans.body()
    series = _one(scans.dicom_series(tmp_path, volume))
    np.testing.assert_array_equal(_voxels(series), volume)
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
    series = _one(scans.dicom_series(tmp_path, scans.body(), slope=0.5, intercept=-1024))
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = SimpleITK.ReadImage(names)
    np.testing.assert_allclose(_voxels(series), SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(series.affine[:3, 3], image.GetOrigin())
    np.testing.assert_allclose(series.spacing[::-1], image.GetSpacing())


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless],
    ids=lambda syntax: syntax.name[:20],
)
def test_transfer_syntaxes_give_the_same_network_input(scans, tmp_path, syntax):
    volume = scans.body(3)
    series = _one(scans.dicom_series(tmp_path, volume, syntax=syntax))
    for k in range(3):
        np.testing.assert_array_equal(series.slice(k), volume[k])
        expected = network_input(window_to_uint8(volume[k], -600, 1500), 64, 128)
        assert network_input(series.gray(k, -600, 1500), 64, 128).equal(expected)


@pytest.mark.parametrize("implicit, little", [(True, True), (False, False)], ids=["implicit", "big endian"])
def test_other_native_encodings(scans, tmp_path, implicit, little):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRBigEndian
        if not little:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(tmp_path / f"{k}", dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    np.testing.assert_array_equal(_voxels(_one(tmp_path)), volume)


def test_without_preamble_and_without_suffix(scans, tmp_path):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        del dataset.file_meta
        pydicom.dcmwrite(tmp_path / f"IM{k}", dataset, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(_voxels(_one(tmp_path)), volume)


def test_slope_and_intercept_of_each_slice(scans, tmp_path):
    volume = scans.body(4)
    for k, (slope, intercept) in enumerate([(1, -1024), (2, -2000), (0.5, -1024), (1, 0)]):
        signed = {"PixelRepresentation": 1}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(volume[k], (0, 0, k), slope=slope, intercept=intercept, **signed))
    np.testing.assert_allclose(_voxels(_one(tmp_path)), volume, atol=1)


@pytest.mark.parametrize("signed, padding", [(True, -2000), (True, 63536), (False, 60000)])
def test_padding_is_air(scans, tmp_path, signed, padding):
    """Even where the padding's own type says unsigned and the pixels are signed."""
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), intercept=0 if signed else -1024, PixelRepresentation=int(signed))
        pixels = np.frombuffer(dataset.PixelData, np.int16 if signed else np.uint16).reshape(40, 48).copy()
        pixels[:5] = -2000 if signed else 60000
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "US" if padding > 0 else "SS", padding)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    volume[:, :5] = -1024
    np.testing.assert_array_equal(_voxels(_one(tmp_path)), volume)


@pytest.mark.parametrize("turned", [False, True])
def test_monochrome1_is_hounsfield_as_stored_or_turned_round(scans, tmp_path, turned):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
        if turned:
            dataset.PixelData = (4095 - np.frombuffer(dataset.PixelData, np.uint16)).astype(np.uint16).tobytes()
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "MONOCHROME1", "turned round" if turned else "as stored")


def test_monochrome1_gray_is_turned_round(scans, tmp_path):
    gray = window_to_uint8(scans.body(3), -600, 1500)
    for k in range(3):
        tags = {"intercept": 0, "PhotometricInterpretation": "MONOCHROME1"}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(255 - gray[k].astype(int), (0, 0, k), **tags))
    (problem,) = _read(tmp_path)
    assert isinstance(problem, Problem) and "--assume-window" in problem.message
    np.testing.assert_array_equal(_voxels(_one(tmp_path, assume_window=True)), gray)


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
    problem, series = _read(tmp_path)
    assert not problem.failed and reason in problem.message and "other.dcm" in problem.message
    np.testing.assert_array_equal(_voxels(series), volume)
    (named,) = discover([path])  # named by the user, it is a failure
    assert named.failed and reason in named.message


def test_a_scout_without_the_label_is_left_out(scans, tmp_path):
    scans.dicom_series(tmp_path, scans.body())
    scans.save(tmp_path / "scout.dcm", scans.dicom(scans.body()[0], (0, 0, 0), orientation=(1, 0, 0, 0, 0, -1)))
    problem, series = _read(tmp_path)
    assert not problem.failed and "scout" in problem.message and series.num_slices == 8


def test_two_sizes_in_one_series_become_two(scans, tmp_path):
    scans.dicom_series(tmp_path / "a", scans.body())
    scans.dicom_series(tmp_path / "b", scans.body(4, 32, 32))
    first, second = _read(tmp_path)
    assert (first.shape, second.shape) == ((8, 40, 48), (4, 32, 32))
    assert first.identifier == "1.2.3" and second.identifier == "1.2.3-2"
    _warned(first, "2 sizes, spacings or orientations")


def test_a_repeated_slice_is_read_once(scans, tmp_path):
    volume = scans.body()
    scans.dicom_series(tmp_path, volume)
    scans.save(tmp_path / "again.dcm", scans.dicom(volume[0], (-20, -30, 14), number=99))
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "1 of 9 slices lie where another one does")


def test_of_several_time_points_the_first_is_read(scans, tmp_path):
    volume = scans.body()
    for time in (2, 1):
        for k in range(8):
            dataset = scans.dicom(volume[k] + 10 * (time - 1), (0, 0, k), number=k, TemporalPositionIdentifier=time)
            scans.save(tmp_path / f"{time}_{k}.dcm", dataset)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "8 of 16", "time points")


def test_a_missing_slice_is_said_and_counted(scans, tmp_path):
    series = _one(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 2, 4, 8, 10]))
    _warned(series, "1 gap(s) of up to 4 mm", "about 1 slice(s) missing")
    assert series.slice_extents_mm.tolist() == [2, 2, 3, 3, 2]


def test_uneven_spacing_is_said_with_numbers(scans, tmp_path):
    series = _one(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 2, 4, 5.5, 7.5]))
    _warned(series, "uneven spacing, 1.5 to 2 mm")
    assert series.slice_extents_mm.tolist() == [2, 2, 1.75, 1.75, 2]


_AVERAGE = "an affine, as of the NIfTI masks, can hold the average only: use the DICOM SEG for places"
_GAP, _UNEVEN = [0, 2, 4, 6, 40, 42, 44, 46], [0, 2, 5, 6, 9, 10]


@pytest.mark.parametrize("zs, counted", [(_GAP, "half of a gap"), (_UNEVEN, "each slice's own")], ids=["gap", "uneven"])
def test_uneven_places_are_those_of_the_segmentation(scans, tmp_path, zs, counted):
    """An affine puts the gap's slices elsewhere, by 14 mm here."""
    series = _one(scans.dicom_series(tmp_path, scans.body(len(zs)), zs=zs))
    assert len(series.warnings) == 1
    _warned(series, counted, f"; {_AVERAGE}.")


def test_uneven_locations_have_no_segmentation(scans, tmp_path):
    """It needs positions."""
    series = _unplaced(scans, tmp_path, [0.0, 2.0, 4.0, 8.0, 10.0])
    _warned(series, "half of a gap", "can hold the average only.")


def test_uneven_places_in_another_plane_say_what_areas_take(scans, tmp_path):
    for k, place in enumerate(_GAP):
        dataset = scans.dicom(scans.body()[k], (0, place, 0), (1, 0, 0, 0, 0, -1))
        scans.save(tmp_path / f"{k}.dcm", dataset)
    _warned(_one(tmp_path), "half of a gap", f"{_AVERAGE}; areas in axial slices take that average.")


def test_rounded_positions_are_even(scans, tmp_path):
    assert not _one(scans.dicom_series(tmp_path, scans.body(5), zs=[0, 0.7, 1.4, 2.1001, 2.8])).warnings


def test_a_tilted_gantry_is_said_and_placed(scans, tmp_path):
    """Slices 12 degrees off, moved straight along the table: the affine is sheared, and each voxel where it was."""
    volume = scans.body(6)
    c, s = math.cos(math.radians(12)), math.sin(math.radians(12))
    for k in range(6):
        tilted = scans.dicom(volume[k], (0, 0, 3 * k), orientation=(1, 0, 0, 0, c, -s), GantryDetectorTilt=12)
        scans.save(tmp_path / f"{k}.dcm", tilted)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "displaced by 12 degrees", "tools built on ITK can't open its NIfTI masks: use the DICOM SEG")
    _warned(series, "tilt of 12 degrees in the header")
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
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), axial)
    np.testing.assert_allclose(series.affine, np.eye(4), atol=1e-9)
    mask = axial < -300
    for k, instance in enumerate(series.instances):
        stored = pydicom.dcmread(instance.path).pixel_array.astype(int) - 1024
        np.testing.assert_array_equal(series.to_source(mask)[k], stored < -300)
    assert bool(series.warnings) == (normal[2] == 0)


def test_without_a_series_uid_each_folder_is_a_series(scans, tmp_path):
    counted = []
    for name, slices in (("A/CT", 3), ("B/CT", 4), ("B/CT 2", 2)):
        scans.dicom_series(tmp_path / name, scans.body(slices), SeriesInstanceUID=None)
    found = _read(tmp_path, on_found=counted.append)
    assert [(s.identifier, s.num_slices) for s in found] == [("CT", 3), ("CT-2", 4), ("CT_2", 2)] and counted == [3]
    assert not any(s.warnings for s in found)


def test_enhanced_multiframe(scans, tmp_path):
    volume = scans.body(5)
    path = scans.save(tmp_path / "enhanced", scans.enhanced_dicom(volume, order=[3, 0, 4, 1, 2]))
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    assert series.source_files == (path,) and [i.frame for i in series.instances] == [1, 3, 4, 0, 2]
    assert series.spacing == pytest.approx((2, 1, 0.8))


@pytest.mark.parametrize("frames, message", [(10000, "is incomplete"), (4, "describes 5"), (10**9, "voxels")])
def test_more_frames_claimed_than_there_are(scans, tmp_path, frames, message):
    scans.save(tmp_path / "x.dcm", scans.enhanced_dicom(scans.body(5), NumberOfFrames=frames))
    (problem,) = _read(tmp_path)
    assert problem.failed and message in problem.message


def test_frames_without_description_are_refused(scans, tmp_path):
    dataset = scans.dicom(scans.body()[0], NumberOfFrames=3)
    dataset.PixelData *= 3
    scans.save(tmp_path / "x.dcm", dataset)
    assert "claims 3 frames and describes 0" in _read(tmp_path)[0].message


def _enhanced_without_positions(scans, path, locations=None) -> Series:
    """Frames from head to feet, in one file, that don't say where they lie."""
    dataset = scans.enhanced_dicom(scans.body(6), order=[5, 4, 3, 2, 1, 0])
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        del group.PlanePositionSequence
        if locations:
            group.FrameContentSequence = [Dataset()]
            group.FrameContentSequence[0].SliceLocation = locations[k]
    return _one(scans.save(path, dataset))


def test_frames_without_positions_run_from_head_to_feet_as_said(scans, tmp_path):
    series = _enhanced_without_positions(scans, tmp_path / "x.dcm")
    np.testing.assert_array_equal(_voxels(series), scans.body(6))
    assert [instance.frame for instance in series.instances] == [5, 4, 3, 2, 1, 0]
    _warned(series, "instance number, taken to run from head to feet")


@pytest.mark.parametrize("sign", [1, -1], ids=["falling", "rising"])
def test_frames_at_the_same_location_run_as_the_others(scans, tmp_path, sign):
    series = _enhanced_without_positions(scans, tmp_path / "x.dcm", [sign * z for z in (2.0, 2.0, 1.0, 1.0, 0.0, 0.0)])
    assert [instance.frame for instance in series.instances] == [5, 4, 3, 2, 1, 0][::sign]
    _warned(series, "where that repeats, by instance number")


@pytest.mark.parametrize("located", [False, True])
def test_without_positions_order_and_warning(scans, tmp_path, located):
    volume = scans.body(12)
    for k in range(12):
        place = {"SliceLocation": float(k)} if located else {}
        dataset = scans.dicom(volume[k], number=12 - k, ImagePositionPatient=None, PixelSpacing=None, **place)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "no usable positions", "slice location" if located else "instance number")
    _warned(series, "no usable pixel spacing")


def _unplaced(scans, folder, locations, **tags) -> Series:
    """Slices without a position, numbered from head to feet, each with its location."""
    volume = scans.body(len(locations))
    for k, location in enumerate(locations):
        own = {"SliceLocation": location, "ImagePositionPatient": None, "number": len(locations) - k, **tags}
        scans.save(folder / f"{k}.dcm", scans.dicom(volume[k], **own))
    return _one(folder)


def test_without_positions_the_step_is_that_of_the_locations(scans, tmp_path):
    series = _unplaced(scans, tmp_path, [-6.0, 0.0, 6.0, 12.0, 18.0], SpacingBetweenSlices=1.5)
    assert series.spacing == pytest.approx((6, 1, 0.8)) and len(series.warnings) == 1
    np.testing.assert_array_equal(_voxels(series), scans.body(5))


def test_uneven_locations_and_repeated_files_are_taken_as_positions_are(scans, tmp_path):
    places = [0.0, 2.0, 4.0, 8.0, 10.0]
    _unplaced(scans, tmp_path, places)
    # The same file twice; and a slice again, under another name and UID.
    scans.save(tmp_path / "again.dcm", (tmp_path / "4.dcm").read_bytes())
    tags = {"SliceLocation": 8.0, "number": 2, "SOPInstanceUID": "1.2.3.4", "ImagePositionPatient": None}
    scans.save(tmp_path / "renamed.dcm", scans.dicom(scans.body(5)[3], **tags))
    series = _one(tmp_path)
    _warned(series, "2 of 7 slices lie where another one does")
    _warned(series, "1 gap(s) of up to 4 mm", "about 1 slice(s) missing")
    assert series.slice_extents_mm.tolist() == [2, 2, 3, 3, 2]
    np.testing.assert_array_equal(_voxels(series), scans.body(5))


_ROUNDED = [float(round(0.7 * k)) for k in range(20)]


@pytest.mark.parametrize("locations", [_ROUNDED, [0.0] * 19 + [5.0]], ids=["rounded", "filled in"])
@pytest.mark.parametrize("rising", [False, True])
def test_locations_that_repeat_lose_no_slice(scans, tmp_path, locations, rising):
    volume = scans.body(20)
    for k, location in enumerate(locations):
        own = {"SliceLocation": location, "ImagePositionPatient": None, "SpacingBetweenSlices": 0.7}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(volume[k], number=k + 1 if rising else 20 - k, **own))
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    assert series.spacing[0] == pytest.approx(0.7) and len(series.warnings) == 1
    _warned(series, "slice location and, where that repeats, by instance number, and 0.7 mm apart, the spacing")


@pytest.mark.parametrize("number", [7, None])
def test_numbers_that_tell_nothing_make_no_slice_a_repeated_one(scans, tmp_path, number):
    tags = {"InstanceNumber": number, "SpacingBetweenSlices": 0.7}
    series = _unplaced(scans, tmp_path, _ROUNDED, **tags)
    assert series.num_slices == 20
    # The same file twice still is.
    scans.save(tmp_path / "again.dcm", (tmp_path / "3.dcm").read_bytes())
    series = _one(tmp_path)
    assert series.num_slices == 20
    _warned(series, "1 of 21 slices lie where another one does")


def test_time_points_at_the_same_locations_are_said(scans, tmp_path):
    for time in (1, 2):
        for k in range(4):
            tags = {"SliceLocation": float(k), "ImagePositionPatient": None, "TemporalPositionIdentifier": time}
            scans.save(tmp_path / f"{time}_{k}.dcm", scans.dicom(scans.body(4)[k], (0, 0, time), number=k, **tags))
    series = _one(tmp_path)
    assert series.num_slices == 8
    _warned(series, "2 acquisitions overlap along the axis")


@pytest.mark.parametrize("location", [0.0, None])
def test_without_positions_and_locations_the_header_says_the_step(scans, tmp_path, location):
    tags = {} if location is None else {"SliceLocation": location}  # careless software gives all the same one
    volume = scans.body(4)
    for k in range(4):
        dataset = scans.dicom(volume[k], number=4 - k, ImagePositionPatient=None, SpacingBetweenSlices=2.5, **tags)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "instance number", "2.5 mm apart, the spacing or thickness in the header")
    assert series.spacing[0] == 2.5


@pytest.mark.parametrize("locations", [[0.0, 5e4, 1e5], [0.0, 5e300, 1e301]])
def test_locations_far_apart_end_in_one_line(scans, tmp_path, locations):
    for k, location in enumerate(locations):
        tags = {"SliceLocation": f"{location:g}", "ImagePositionPatient": None}
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(scans.body(3)[k], number=k, **tags))
    (result,) = _read(tmp_path)
    if locations[-1] > 1e6:  # no place in a body: counts as none
        _warned(result, "instance number")
    else:
        assert "make no volume (step 50000 mm)" in result.message


@pytest.mark.parametrize("lost", [("ImagePositionPatient",), ("ImagePositionPatient", "ImageOrientationPatient")])
def test_a_few_slices_without_a_position_are_left_out(scans, tmp_path, lost):
    volume = scans.body(9)
    scans.dicom_series(tmp_path, volume[:6])
    for k in range(6, 9):
        scans.save(tmp_path / f"lost_{k}.dcm", scans.dicom(volume[k], number=k, **dict.fromkeys(lost)))
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume[:6])
    assert series.spacing[0] == 2 and len(series.warnings) == 1
    _warned(series, "3 of 9 slices, the first lost_6.dcm, have no usable position or orientation")
    # Where more of them say nothing, none is left out.
    scans.save(tmp_path / "lost_9.dcm", scans.dicom(volume[0], number=9, ImagePositionPatient=None))
    assert sum(result.num_slices for result in _read(tmp_path)) == 10


def _acquired(scans, folder, acquisitions: dict[float, int], **tags) -> Series:
    """A slice at each place, of the acquisition that goes with it."""
    for k, (place, number) in enumerate(acquisitions.items()):
        dataset = scans.dicom(scans.body()[k % 8], (0, 0, place), number=k, AcquisitionNumber=number, **tags)
        if "ImagePositionPatient" in tags:
            dataset.SliceLocation = place
        scans.save(folder / f"{k}.dcm", dataset)
    return _one(folder)


@pytest.mark.parametrize("tags", [{}, {"ImagePositionPatient": None}], ids=["positions", "locations"])
def test_acquisitions_that_overlap_along_the_axis_are_said(scans, tmp_path, tags):
    two_breaths = {0: 1, 2: 1, 4: 1, 6: 1, 1: 2, 3: 2, 5: 2, 7: 2}
    apart = {20: 3, 22: 3}
    message = "2 acquisitions overlap along the axis; their slices are read as one volume in order of place"
    _warned(_acquired(scans, tmp_path, two_breaths | apart, **tags), message)


def test_a_time_point_within_another_is_said(scans, tmp_path):
    for k, time in enumerate([1, 1, 2, 1, 1]):
        dataset = scans.dicom(scans.body()[k], (0, 0, k), TemporalPositionIdentifier=time)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    _warned(_one(tmp_path), "2 acquisitions overlap")


@pytest.mark.parametrize("numbers", [[2, 2, 2, 1, 1, 1], [1, 2, 3, 4, 5, 6], [6, 6, 4, 4, 5, 5], [1] * 6])
def test_step_and_shoot_is_not_complained_of(scans, tmp_path, numbers):
    assert not _acquired(scans, tmp_path, {2 * k: number for k, number in enumerate(numbers)}).warnings


@pytest.mark.parametrize(
    "tags, message",
    [
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 x 1 voxels; a slice may have 16,777,216 pixels at most"),
        ({"Rows": 4000, "Columns": 4000}, "is incomplete"),
        ({"Rows": 0}, "claims"),
        ({"BitsAllocated": 64}, "64 bits a pixel"),
        ({"RescaleSlope": 0}, "rescale slope 0"),
        ({"ModalityLUTSequence": [Dataset()]}, "by a table"),
        ({"PixelData": None}, "is incomplete"),
    ],
)
def test_bad_headers_are_refused_before_pixels_are_read(scans, tmp_path, tags, message):
    (problem,) = _read(scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0], **tags)))
    assert problem.failed and message in problem.message and "\n" not in problem.message


@pytest.mark.parametrize("window", [["50", "-600"], "", ["x"]])
def test_windows_in_the_header_do_not_matter(scans, tmp_path, window):
    dataset = scans.dicom(scans.body()[0])
    dataset[0x00281050] = pydicom.DataElement(0x00281050, "LO", window)
    scans.save(tmp_path / "x.dcm", dataset)
    assert _one(tmp_path).num_slices == 1


@pytest.mark.parametrize("values", [["nan", "0", "0"], ["1", "2"], ["1e9", "0", "0"]])
def test_nonsense_positions_count_as_none(scans, tmp_path, values):
    dataset = scans.dicom(scans.body()[0])
    dataset.ImagePositionPatient = values if len(values) == 3 else [1, 2]
    scans.save(tmp_path / "x.dcm", dataset)
    _warned(_one(tmp_path), "no usable positions")


def test_a_deflated_bomb_is_refused(scans, tmp_path):
    dataset = scans.dicom(scans.body()[0], syntax=DeflatedExplicitVRLittleEndian)
    dataset.add_new(0x00091001, "OB", b"\0" * (2**26 + 2))
    scans.save(tmp_path / "bomb.dcm", dataset)
    assert (tmp_path / "bomb.dcm").stat().st_size < 2**20
    assert "inflates to more than" in _read(tmp_path)[0].message


@pytest.mark.parametrize(
    "syntax, marker, offset, size",
    [(JPEGLSLossless, b"\xff\xf7", 5, 2), (JPEG2000Lossless, b"\xff\x51", 6, 4)],
    ids=["JPEG-LS", "JPEG 2000"],
)
@pytest.mark.parametrize("claim", [65535, 41])
def test_a_compressed_stream_of_another_size_is_refused_before_it_is_decoded(
    scans, tmp_path, syntax, marker, offset, size, claim
):
    data = bytearray(scans.dicom_bytes(scans.dicom(scans.body()[0], syntax=syntax)))
    at = data.index(marker, data.index(b"\xe0\x7f\x10\0")) + offset
    data[at : at + 2 * size] = claim.to_bytes(size, "big") * 2
    (problem,) = _read(scans.save(tmp_path / "bomb.dcm", bytes(data)))
    assert f"its compressed data {claim} x {claim} of 1 component(s)" in problem.message


def _box(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A box of a JP2 file; ``length`` 0: to the end of the file, 1: in 64 bits."""
    if length == 1:
        return b"\0\0\0\1" + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (8 + len(content) if length is None else length).to_bytes(4, "big") + kind + content


def _in_jp2(scans, plane, length: int | None = None, claim: int | None = None) -> bytes:
    """A slice whose code stream lies in a JP2 file's boxes; ``claim`` is the size that the stream says it has."""
    dataset = scans.dicom(plane, syntax=JPEG2000Lossless)
    stream = bytearray(next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
    if claim:
        stream[8:16] = claim.to_bytes(4, "big") * 2
    sizes = b"".join(n.to_bytes(4, "big") for n in plane.shape)
    header = _box(b"ihdr", sizes + bytes([0, 1, 15, 7, 0, 0])) + _box(b"colr", bytes([1, 0, 0, 0, 0, 0, 17]))
    boxes = _box(b"jP  ", b"\r\n\x87\n") + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + _box(b"jp2h", header)
    dataset.PixelData = pydicom.encaps.encapsulate([boxes + _box(b"jp2c", bytes(stream), length)])
    dataset["PixelData"].is_undefined_length = True
    return scans.dicom_bytes(dataset)


@pytest.mark.parametrize("length", [None, 0, 1])
def test_jpeg_2000_in_the_boxes_of_a_jp2_file(scans, tmp_path, length):
    volume = scans.body(1)
    series = _one(scans.save(tmp_path / "x.dcm", _in_jp2(scans, volume[0], length)))
    np.testing.assert_array_equal(_voxels(series), volume)


@pytest.mark.parametrize("length, claim, found", [
    (None, 65535, "65535 x 65535 of 1 component(s)"), (1, 41, "41 x 41 of 1 component(s)"), (7, None, "no size"),
])  # fmt: skip
def test_a_stream_of_another_size_in_a_jp2_file_is_refused(scans, tmp_path, length, claim, found):
    (problem,) = _read(scans.save(tmp_path / "x.dcm", _in_jp2(scans, scans.body()[0], length, claim)))
    assert f"its compressed data {found}; replace or remove it." in problem.message


def test_a_missing_decoder_is_said_with_the_command(scans, tmp_path, monkeypatch):
    from d2_covid.data import dicom_pixels

    scans.dicom_series(tmp_path, scans.body(3), syntax=JPEGLSLossless)
    monkeypatch.setattr(dicom_pixels, "_missing_decoder", lambda syntax: "JPEG-LS Lossless Image Compression")
    (problem,) = _read(tmp_path)
    assert "JPEG-LS" in problem.message and "pip install 'd2_covid[dicom]'" in problem.message


def test_pydicom_missing_is_said_with_the_command(scans, tmp_path, monkeypatch):
    path = scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0]))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(UserError, match=r"needs pydicom.*pip install 'd2_covid\[dicom\]'"):
        read_frames(path)


def test_a_slice_damaged_inside_costs_itself_only(scans, tmp_path):
    volume = scans.body()
    scans.dicom_series(tmp_path / "good", volume, series="1.1")
    series = _one(scans.dicom_series(tmp_path / "bad", volume, series="1.2", syntax=RLELossless))
    path = series.instances[2].path  # none of those that are looked at to tell the unit
    data = bytearray(path.read_bytes())
    data[-300:-8] = bytes(292)  # within the frame: its end is marked as before
    path.write_bytes(data)
    good, bad = sorted(_read(tmp_path), key=lambda one: one.identifier)
    assert (good.identifier, bad.identifier) == ("1.1", "1.2")
    with pytest.raises(UserError, match=path.name) as error:
        bad.slice(2)
    assert "\n" not in str(error.value)
    for k in (0, 1, 3, 4, 5, 6, 7):
        np.testing.assert_array_equal(bad.slice(k), good.slice(k))


def test_a_file_that_vanishes_or_changes_while_read(scans, tmp_path):
    series = _one(scans.dicom_series(tmp_path, scans.body(3)))
    scans.save(series.source_files[0], scans.dicom(scans.body(1, 8, 8)[0]))
    with pytest.raises(UserError, match="changed while"):
        series.slice(0)
    series.source_files[1].unlink()
    with pytest.raises(UserError, match="no such file"):
        series.slice(1)


def test_headers_are_read_without_pixels(scans, tmp_path):
    frames = read_frames(scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0])))
    assert not isinstance(frames, LeftOut) and len(frames) == 1
    (series,) = assemble(frames)
    assert isinstance(series, Series) and series.num_slices == 1


def test_several_gaps_are_told_from_the_usual_step(scans, tmp_path):
    series = _one(scans.dicom_series(tmp_path, scans.body(8), zs=[0.0, 1, 2, 3, 13, 14, 15, 25]))
    _warned(series, "2 gap(s) of up to 10 mm between slices 1 mm apart", "about 18 slice(s) missing")
    assert len(series.warnings) == 1 and series.spacing[0] == pytest.approx(25 / 7)


def test_a_table_that_moved_aside_is_said(scans, tmp_path):
    for k, x in enumerate((0, 0, 5, 0)):
        scans.save(tmp_path / f"{k}.dcm", scans.dicom(scans.body(4)[k], (x, 0, 2 * k), number=k))
    _warned(_one(tmp_path), "slices lie up to 5 mm beside the line from first to last")


@pytest.mark.parametrize("thickness", [5.0, None])
def test_one_slice_is_as_thick_as_its_header_says(scans, tmp_path, thickness):
    scans.save(tmp_path / "x.dcm", scans.dicom(scans.body()[0], SliceThickness=thickness))
    series = _one(tmp_path)
    assert series.spacing[0] == series.slice_extents_mm.sum() == (thickness or 1.0)
    assert any("no usable slice thickness" in warning for warning in series.warnings) == (thickness is None)


def test_signed_monochrome1_is_turned_round_within_its_bits(scans, tmp_path):
    volume = scans.body(3)
    tags = {"PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME1", "intercept": 0}
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k), **tags)
        dataset.PixelData = (-1 - np.frombuffer(dataset.PixelData, np.int16)).tobytes()
        scans.save(tmp_path / f"{k}.dcm", dataset)
    series = _one(tmp_path)
    np.testing.assert_array_equal(_voxels(series), volume)
    _warned(series, "MONOCHROME1", "turned round")


def test_a_range_of_padding_is_air(scans, tmp_path):
    volume = scans.body(3)
    for k in range(3):
        dataset = scans.dicom(volume[k], (0, 0, k))
        pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(40, 48).copy()
        pixels[:5] = 60000 + np.arange(5)[:, None]
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "US", 60004)
        dataset.add_new(0x00280121, "US", 60000)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    volume[:, :5] = -1024
    np.testing.assert_array_equal(_voxels(_one(tmp_path)), volume)
