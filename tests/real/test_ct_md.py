"""Three real DICOM series, JPEG Lossless, their names out of order: read as SimpleITK reads them."""

from d2_covid.data.discovery import discover
from d2_covid.data.lung import lung_masks
from d2_covid.data.volumes import Series, series_from_array

import numpy as np
import pytest
import SimpleITK

SLICES = {"P001": 148, "cap001": 56, "normal001": 52}
# Litres that a grown-up's lung may hold in a CT.
LUNG_LITRES = (2.0, 8.0)


@pytest.fixture(scope="module", params=SLICES)
def scan(request, real_data):
    folder = real_data / "ct_md" / request.param
    results = list(discover([folder]))
    assert len(results) == 1 and isinstance(results[0], Series)
    return request.param, folder, results[0]


def test_is_one_series_without_complaint(scan):
    name, _, series = scan
    assert series.num_slices == SLICES[name] and series.hounsfield and not series.warnings
    assert series.shape == (SLICES[name], 512, 512) and len(series.instances) == SLICES[name]


def test_same_voxels_places_and_order_as_simpleitk(scan):
    _, folder, series = scan
    # The files in the order of their places by SimpleITK's own sorting, and its own decoder.
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    assert [file.rsplit("/", 1)[1] for file in files] == list(series.slice_names)
    for index in range(0, len(files), 7):
        image = SimpleITK.ReadImage(files[index])
        np.testing.assert_array_equal(series.slice(index), SimpleITK.GetArrayFromImage(image)[0])
        np.testing.assert_allclose((series.affine @ [0, 0, index, 1])[:3], image.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(series.spacing[1:], image.GetSpacing()[:2][::-1])


def test_a_jpeg_lossless_bomb_is_refused_before_it_is_decoded(scan, tmp_path):
    """A slice whose compressed stream claims 65,535 x 65,535: libjpeg would take 17 GB for it."""
    _, _, series = scan
    data = bytearray(series.source_files[0].read_bytes())
    at = data.index(b"\xff\xc3", data.index(b"\xe0\x7f\x10\0")) + 5
    data[at : at + 4] = b"\xff" * 4
    (tmp_path / "bomb.dcm").write_bytes(data)
    (problem,) = discover([tmp_path])
    assert "its compressed data 65535 x 65535" in problem.message


def test_lung_volume_is_plausible(scan):
    _, _, series = scan
    step = series.num_slices // 25
    thinned = series_from_array(
        np.stack([series.slice(i) for i in range(series.num_slices - 1, -1, -step)][::-1]),
        spacing=(series.spacing[0] * step, *series.spacing[1:]),
    )
    pixels = np.array([mask.sum() for mask in lung_masks(thinned)])
    litres = pixels * thinned.pixel_area_mm2 * thinned.slice_extents_mm / 1e6
    assert LUNG_LITRES[0] < litres.sum() < LUNG_LITRES[1]
    assert litres[-1] == 0  # the uppermost slice shows the neck
    assert litres.argmax() not in (0, len(litres) - 1)
