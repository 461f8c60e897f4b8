"""The lung from Hounsfield units: what belongs to it, and what does not."""

from d2_covid.data.lung import lung_mask, lung_masks
from d2_covid.data.preprocessing import window_to_uint8
from d2_covid.data.volumes import series_from_array

import numpy as np
import pytest

SPACING = (5.0, 1.5, 1.5)


def _disc(shape, y, x, ry, rx):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 <= 1


@pytest.fixture
def chest() -> tuple[np.ndarray, np.ndarray]:
    """(10, 160, 220) Hounsfield units of a chest at 1.5 mm, and its lung: two ellipses in slices 2 to 8."""
    shape = (160, 220)
    volume = np.full((10, *shape), -1000.0, np.float32)
    lung = np.zeros(volume.shape, bool)
    right, left = _disc(shape, 80, 65, 45, 32), _disc(shape, 80, 155, 45, 32)
    for k in range(10):
        volume[k][_disc(shape, 80, 110, 65, 100)] = 40
        if 2 <= k <= 8:
            lung[k] = right | left
            volume[k][lung[k]] = -850
    return volume, lung


def _dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def _lung(volume) -> np.ndarray:
    return np.stack(list(lung_masks(series_from_array(volume, SPACING))))


def test_finds_both_lungs_and_nothing_outside_the_body(chest):
    volume, lung = chest
    found = _lung(volume)
    assert found.dtype == bool and _dice(found, lung) > 0.98 and not found[[0, 1, 9]].any()


def test_airways_and_gut_stay_out(chest):
    volume, lung = chest
    shape = volume.shape[1:]
    for k in range(5, 10):
        volume[k][_disc(shape, 75, 110, 6, 6)] = -960  # trachea, 2.5 cm2
    for k in range(4):
        volume[k][_disc(shape, 50, 112, 10, 8)] = -1000  # stomach
    found = _lung(volume)
    assert not (found & _disc(shape, 75, 110, 7, 7)).any() and not (found & _disc(shape, 50, 112, 10, 8)).any()
    assert _dice(found, lung) > 0.98


def test_lesions_inside_and_on_the_pleura_stay_in(chest):
    volume, lung = chest
    shape = volume.shape[1:]
    ggo, nodule = _disc(shape, 90, 60, 15, 15), _disc(shape, 70, 160, 8, 8)
    pleural = _disc(shape, 80, 187, 3, 3) & lung[5]  # a dent 9 mm wide
    for k in range(4, 7):
        volume[k][ggo], volume[k][nodule], volume[k][pleural] = -550, 30, 20
    found = _lung(volume)
    for lesion, share in ((ggo, 1.0), (nodule, 1.0), (pleural, 0.5)):
        assert (found[5] & lesion).sum() >= share * lesion.sum()
    assert _dice(found, lung) > 0.97


def test_a_region_far_from_the_lung_is_not_linked_to_it(chest):
    """As large as 1 cm2 in one slice and as dark as lung, but overlapping nothing of it."""
    volume, _ = chest
    speck = _disc(volume.shape[1:], 80, 110, 5, 5)
    volume[0][speck] = -700
    assert not _lung(volume)[0].any()
    assert lung_mask(volume[0], (1.5, 1.5))[speck].all()  # alone, a slice can't tell


def test_the_mediastinum_between_near_lungs_stays_out(chest):
    volume, lung = chest
    shape = volume.shape[1:]
    near = _disc(shape, 80, 69, 45, 38) | _disc(shape, 80, 151, 45, 38)
    for k in range(2, 9):
        volume[k][near] = -850
        volume[k][:, 108:112] = np.where(volume[k][:, 108:112] == -850, 40, volume[k][:, 108:112])
    assert not _lung(volume)[5][70:90, 108:112].any()


@pytest.mark.parametrize("turned", [False, True], ids=["5 x 0.7 mm", "0.7 x 5 mm"])
def test_dents_are_closed_by_a_disc_in_the_patient_whatever_its_pixels(turned):
    """A lung of 210 x 250 mm with two slits into it: one 8 mm wide, which a disc of 10 mm closes, and one 40 mm wide,
    which it does not."""
    shape = (70, 400)
    values = np.full(shape, 40, np.float32)
    values[10:60, 50:350] = -850
    narrow, wide = np.zeros(shape, bool), np.zeros(shape, bool)
    narrow[30:60, 110:121], wide[31:39, 200:350] = True, True  # 11 x 0.7 mm, 8 x 5 mm
    values[narrow | wide] = 40
    values, spacing = (values.T, (0.7, 5.0)) if turned else (values, (5.0, 0.7))
    (of_series,) = lung_masks(series_from_array(values[None], (2.0, *spacing)))
    for found in (lung_mask(values, spacing), of_series):
        found = found.T if turned else found
        assert found[30:55, 110:121].all() and found[wide].mean() < 0.2


def test_order_of_slices_does_not_matter(chest):
    volume, _ = chest
    np.testing.assert_array_equal(_lung(volume[::-1].copy())[::-1], _lung(volume))


@pytest.mark.parametrize("value", [-1000.0, 40.0])
def test_a_volume_without_lung_has_none(value):
    volume = np.full((3, 40, 40), -1000, np.float32)
    volume[:, 5:35, 5:35] = value
    assert not _lung(volume).any()


def test_gray_slices_are_approximate(chest):
    volume, lung = chest
    gray = window_to_uint8(volume, -600, 1500)
    series = series_from_array(gray, SPACING, assume_window=True)
    assert not series.hounsfield
    found = np.stack(list(lung_masks(series)))
    assert _dice(found, lung) > 0.97


@pytest.mark.parametrize("gray", [np.zeros((30, 30), np.uint8), np.full((30, 30), 255, np.uint8),
                                  np.zeros((1, 1), np.uint8)], ids=["black", "white", "one pixel"])  # fmt: skip
def test_a_gray_slice_without_contrast_has_no_lung(gray):
    assert not lung_mask(gray).any()


@pytest.mark.parametrize("turns", range(4))
def test_air_that_reaches_any_border_is_outside(turns):
    values = np.full((80, 80), 40, np.float32)
    values[:30, 25:55] = -850
    values[45:65, 25:55] = -850
    inside = np.zeros((80, 80), bool)
    inside[45:65, 25:55] = True
    found = np.rot90(lung_mask(np.ascontiguousarray(np.rot90(values, turns)), (2.0, 2.0)), -turns)
    assert found[inside].all() and not found[:40].any()


def test_a_lung_much_smaller_than_the_other_is_lung(chest):
    volume, lung = chest
    small = _disc(volume.shape[1:], 80, 155, 15, 11)  # a tenth
    for k in range(2, 9):
        volume[k][:, 110:][lung[k][:, 110:]] = 40
        volume[k][small] = -850
    assert (_lung(volume)[5] & small).sum() > 0.95 * small.sum()


def test_a_large_region_near_gas_is_lung(chest):
    """Emphysema: as dark as a bronchus, -950 HU, and far larger than one."""
    volume, lung = chest
    volume[lung] = -950
    assert _dice(_lung(volume), lung) > 0.98
