"""Geometry, units and the series of an array."""

import itertools

from d2_covid.data.geometry import Geometry, affine_from_spacing, flip_lps_ras
from d2_covid.data.intensity import Unit
from d2_covid.data.preprocessing import network_input, window_to_uint8
from d2_covid.data.volumes import series_from_array
from d2_covid.errors import UserError

import numpy as np
import pytest

SIGNED_AXES = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def _affine(order, signs, spacing=(0.7, 0.9, 2.5), origin=(-100, -80, -300)) -> np.ndarray:
    """Affine whose column, row and slice run along the patient's axes ``order``, forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(order, signs)):
        affine[axis, column] = sign * spacing[axis]
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("order, signs", SIGNED_AXES)
def test_every_orientation_becomes_axial_and_comes_back(order, signs):
    """A voxel's place in the patient stays what it was, and the three axes run to left, posterior and superior."""
    source = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    geometry = Geometry(source.shape, _affine(order, signs))
    axial = geometry.to_axial(source)
    assert axial.shape == geometry.shape
    np.testing.assert_allclose(geometry.affine[:3, :3], np.diag([0.7, 0.9, 2.5]), atol=1e-12)
    np.testing.assert_array_equal(geometry.to_source(axial), source)
    for k, j, i in itertools.product(*map(range, axial.shape)):
        place = geometry.affine @ [i, j, k, 1]
        i0, j0, k0 = np.rint(np.linalg.solve(geometry.source_affine, place)[:3]).astype(int)
        assert source[k0, j0, i0] == axial[k, j, i]
    for index in range(axial.shape[0]):
        axis, at = geometry.source_index(index)
        np.testing.assert_array_equal(geometry.present_slice(np.take(source, at, axis=axis)), axial[index])


def test_lps_and_ras_turn_into_each_other_exactly():
    affine = _affine((0, 1, 2), (1, -1, 1), spacing=(0.1, 0.3, 0.7))
    np.testing.assert_array_equal(flip_lps_ras(flip_lps_ras(affine)), affine)
    assert flip_lps_ras(affine)[0, 0] == -0.1 and flip_lps_ras(affine)[1, 1] == 0.3


def test_a_tilted_grid_counts_distance_along_the_normal():
    affine = affine_from_spacing((5.0, 1.0, 1.0))
    affine[1, 2] = 2.0
    geometry = Geometry((10, 20, 20), affine)
    assert geometry.spacing == pytest.approx((5.0, 1.0, 1.0))
    assert geometry.slice_extents_mm.sum() * geometry.pixel_area_mm2 == pytest.approx(50)


def test_uneven_slices_stand_for_half_the_way_to_either_neighbour():
    affine = affine_from_spacing((10 / 3, 1.0, 1.0))
    geometry = Geometry((4, 8, 8), affine, slice_offsets=(0, 1, 2, 10))
    assert geometry.slice_extents_mm.tolist() == [1, 1, 4.5, 8]
    backwards = affine @ np.diag([1, 1, -1, 1])
    assert Geometry((4, 8, 8), backwards, (0, 1, 2, 10)).slice_extents_mm.tolist() == [8, 4.5, 1, 1]


@pytest.mark.parametrize("order, signs", SIGNED_AXES)
def test_uneven_slices_count_alike_whichever_axial_axis_they_lie_along(order, signs):
    affine = _affine(order, signs)
    affine[order[0], 2] += 0.3  # a tilted gantry
    geometry = Geometry((4, 3, 5), affine, slice_offsets=(0, 1, 2, 10))
    voxels = geometry.slice_extents_mm[:, None, None] * geometry.pixel_area_mm2 * geometry.pixel_shares
    source = geometry.to_source(np.broadcast_to(voxels, geometry.shape))
    in_plane = np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
    expected = np.array([1, 1, 4.5, 8])[:, None, None] * in_plane
    np.testing.assert_allclose(source, np.broadcast_to(expected, (4, 3, 5)))
    assert (Geometry((4, 3, 5), affine).pixel_shares == 1).all()


@pytest.mark.parametrize(
    "break_it",
    [lambda a: a * np.nan, lambda a: a * 0, lambda a: a * 1e5, lambda a: a[:3, :3], lambda a: a[:, [0, 0, 2, 3]]],
)
def test_an_affine_that_makes_no_volume_is_refused(break_it):
    with pytest.raises(ValueError, match="not an affine"):
        Geometry((2, 2, 2), break_it(np.eye(4)))


def test_an_array_becomes_a_series(scans):
    volume = scans.body()
    series = series_from_array(volume, spacing=(2, 1, 0.8))
    assert (series.num_slices, series.shape, series.hounsfield) == (8, volume.shape, True)
    assert series.spacing == pytest.approx((2, 1, 0.8)) and series.pixel_area_mm2 == pytest.approx(0.8)
    for k in range(8):
        assert series.slice(k).dtype == np.float32
        np.testing.assert_array_equal(series.slice(k), volume[k])
    expected = network_input(window_to_uint8(volume[3], -600, 1500), 64, 128)
    assert network_input(series.gray(3, -600, 1500), 64, 128).equal(expected)
    with pytest.raises(IndexError):
        series.slice(8)


def test_a_single_slice_is_a_series_of_one(scans):
    series = series_from_array(scans.body()[0])
    assert series.num_slices == 1 and "no spacing" in series.warnings[0]


def test_voxels_without_a_value_become_air_and_are_counted(scans):
    volume = scans.body().astype(np.float32)
    # The last two fill gaps in volumes of other programs: the largest float32, and netCDF's.
    volume[2, 10, 10:15] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 9.97e36
    series = series_from_array(volume, (2, 1, 1))
    assert series.slice(2)[10, 10:15].tolist() == [-1024] * 5
    assert "5 of 15,360 voxels are not finite" in series.warnings[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_gray_without_a_value_is_black(dtype):
    values = np.array([0.0, 1.0, np.nan, np.inf, np.finfo(dtype).max], dtype)
    expected = [0, 255, 0, 0, 255 if dtype is np.float16 else 0]  # 65504 is a value
    assert Unit("unit").convert(values).tolist() == expected


@pytest.mark.parametrize(
    "scale, expected",
    [
        (lambda gray: gray, lambda gray: gray),
        (lambda gray: gray.astype(np.float64), lambda gray: gray),
        (lambda gray: gray / 255, lambda gray: gray),
        (lambda gray: gray.astype(np.uint16) * 257, lambda gray: gray),
    ],
    ids=["byte", "float byte", "unit", "short"],
)
def test_gray_is_refused_or_taken_as_windowed(scans, scale, expected):
    gray = window_to_uint8(scans.body(), -600, 1500)
    with pytest.raises(UserError, match="can't be Hounsfield units.*--assume-window"):
        series_from_array(scale(gray), (2, 1, 1))
    series = series_from_array(scale(gray), (2, 1, 1), assume_window=True)
    assert not series.hounsfield and "taken as gray" in series.warnings[0]
    np.testing.assert_array_equal(series.slice(4), expected(gray)[4])
    np.testing.assert_array_equal(series.gray(4, -600, 1500), series.slice(4))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("highest, dark", [(255, False), (256, True), (4095, True), (4096, False)])
def test_gray_that_would_be_nearly_black_is_said(dtype, highest, dark):
    values = np.full((2, 4, 4), highest // 2, dtype)
    values[1, 2, 2] = highest
    series = series_from_array(values, (2, 1, 1), assume_window=True)
    assert ["nearly black" in warning for warning in series.warnings] == [False] + [True] * dark


def test_air_in_one_slice_that_was_not_sampled_still_counts():
    volume = np.zeros((40, 8, 8), np.int16)
    volume[1] = -900
    assert series_from_array(volume, (1, 1, 1)).hounsfield


def test_padding_is_no_air(scans):
    """Raw values of a scanner that fills the corners with -2000."""
    raw = scans.body() + 1024
    raw[:, :8, :8] = -2000
    with pytest.raises(UserError, match="values from -2000 .* can't be Hounsfield units"):
        series_from_array(raw, (2, 1, 1))
    padded = scans.body()
    padded[:, :8, :8] = -2000
    assert series_from_array(padded, (2, 1, 1)).hounsfield


def test_assume_window_leaves_hounsfield_units_alone(scans):
    assert series_from_array(scans.body(), (2, 1, 1), assume_window=True).hounsfield


@pytest.mark.parametrize(
    "array, options, message",
    [
        (np.full((2, 4, 4), np.nan), {}, "no voxel has a finite value"),
        (np.full((2, 4, 4), 70000), {"assume_window": True}, "neither Hounsfield units nor gray"),
        (np.full((2, 4, 4), -50), {"assume_window": True}, "neither Hounsfield units nor gray"),
        (np.zeros((2, 2, 4, 4)), {}, "(slices, rows, columns) is needed"),
        (np.zeros((2, 4, 4), complex), {}, "an array of numbers"),
        (np.zeros((0, 4, 4)), {}, "claims 4 x 4 x 0 voxels"),
        (np.zeros((2, 4, 4)), {"spacing": (1, 0, 1)}, "three numbers above 0"),
        (np.zeros((2, 4, 4)), {"spacing": (1, np.nan, 1)}, "three numbers above 0"),
        (np.zeros((2, 4, 4)), {"spacing": (1, 1)}, "three numbers above 0"),
        (np.broadcast_to(np.int16(0), (1, 5000, 5000)), {}, "16,777,216 pixels at most"),
        (np.broadcast_to(np.int16(0), (2**14, 512, 512)), {}, "bytes at most"),
    ],
)
def test_what_is_no_ct_is_refused_in_one_line(array, options, message):
    with pytest.raises(UserError) as error:
        series_from_array(array, **{"spacing": (1, 1, 1), **options})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("degrees, said", [(15, False), (25, True)])
def test_a_grid_far_off_the_patients_axes_is_said(scans, degrees, said):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:2, :2] = [[c, -s], [s, c]]
    warnings = series_from_array(scans.body(), affine=affine).warnings
    assert any("25 degrees off the patient's" in warning for warning in warnings) == said == bool(warnings)


def test_uneven_slices_of_another_plane_leave_the_axial_ones_even():
    coronal = Geometry((4, 8, 5), _affine((0, 2, 1), (1, 1, 1)), slice_offsets=(0, 1, 2, 10))
    assert coronal.shape == (8, 4, 5)
    assert coronal.slice_extents_mm.tolist() == pytest.approx([2.5] * 8)
