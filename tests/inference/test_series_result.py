"""From slices to a series: volumes, shares, lesions, classes, and memory that stays flat."""

import tracemalloc

from d2_covid.data.discovery import discover
from d2_covid.data.intensity import Unit
from d2_covid.data.lung import lung_masks
from d2_covid.data.volumes import Series, series_from_array
from d2_covid.inference.batch_run import summary_row
from d2_covid.inference.predictions_json import result_facts
from d2_covid.inference.series_result import SeriesSummary, classes_by_rule
from d2_covid.inference.slice_result import LesionInstance, SliceResult, decode_mask, label_map, paint_labels
from d2_covid.visualization.report_tables import measure_rows

import numpy as np
import pytest

SPACING = (2.0, 1.0, 0.8)


def test_volume_share_and_lesions_of_a_known_body(known, scans):
    volume = scans.body()
    result = known.volume(volume, SPACING)
    ml = np.prod(SPACING) / 1000
    ggo, consolidation = ((volume <= -850) & (volume > -860)), volume == 700
    expected = {"GGO": ggo.sum() * ml, "consolidation": consolidation.sum() * ml}
    assert result.volume_ml_by_class == pytest.approx(expected)
    assert result.lesion_volume_ml == pytest.approx((ggo.sum() + consolidation.sum()) * ml)
    assert result.lesion_count == 2 == len(result.lesions)
    assert {one.lesion for one in result.slices[0].instances} == {1, 2}
    assert result.lesions[0].first_slice == 0 and result.lesions[0].last_slice == len(volume) - 1
    assert not result.lung_is_approximate and 0 < result.lesion_share_of_lung < 1
    assert result.shape == volume.shape and result.spacing_mm == pytest.approx(SPACING)
    first = result.slices[0]
    assert first.instances[0].area_mm2 == pytest.approx(ggo[0].sum() * 0.8)
    lungs = sum(one.lung_area_px for one in result.slices)
    assert result.lung_volume_ml == pytest.approx(lungs * ml)
    both = sum(one.lung_and_lesions_area_px for one in result.slices)
    assert result.lesion_share_of_lung == pytest.approx((ggo.sum() + consolidation.sum()) / both)
    facts = result_facts(result)
    assert facts["lesion_share_of_lung"] == pytest.approx((ggo.sum() + consolidation.sum()) / both, abs=1e-6)
    assert facts["lesion_volume_ml"] == pytest.approx((ggo.sum() + consolidation.sum()) * ml, abs=1e-4)


def test_uneven_slices_count_with_their_own_extent(known, scans, tmp_path):
    volume = scans.body(4)
    folder = scans.dicom_series(tmp_path / "scan", volume, zs=[0.0, 1.0, 2.0, 10.0])
    result = known.series(folder)
    extents = [1.0, 1.0, 4.5, 8.0]
    pixels = [(plane == 700).sum() for plane in volume]
    assert result.volume_ml_by_class["consolidation"] == pytest.approx(np.dot(extents, pixels) * 0.8 / 1000)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)], ids=["coronal", "sagittal"])
def test_uneven_rows_or_columns_count_with_their_own_extent(known, scans, tmp_path, orientation):
    places, extents = [0, 2, 4, 6, 40, 42], [2, 2, 2, 18, 18, 2]
    volume = scans.body(6)
    normal = np.cross(orientation[:3], orientation[3:])
    for k, place in enumerate(places):
        dataset = scans.dicom(volume[k], tuple(map(float, normal * place)), orientation)
        scans.save(tmp_path / f"{k}.dcm", dataset)
    result = known.series(tmp_path)
    found = [((plane <= -850) & (plane > -860) | (plane == 700)).sum() for plane in volume]
    assert result.lesion_volume_ml == pytest.approx(np.dot(extents, found) * 0.8 / 1000)
    assert sum(one.volume_ml for one in result.lesions) == pytest.approx(result.lesion_volume_ml)
    (series,) = discover([tmp_path])
    lungs = series.to_source(np.stack([decode_mask(one.lung_mask) for one in result.slices]))
    assert result.lung_volume_ml == pytest.approx(np.dot(extents, lungs.sum(axis=(1, 2))) * 0.8 / 1000)


def test_without_lesions_there_are_zeros_not_gaps(known):
    volume = np.full((3, 32, 32), -1000, np.int16)
    volume[:, 8:24, 8:24] = 40
    result = known.volume(volume, SPACING)
    assert (result.lesion_volume_ml, result.lesion_count, result.lesions) == (0.0, 0, ())
    assert result.lesion_share_of_lung is None and result.classes == ()


def test_lesions_without_a_lung_have_no_share(known):
    """The lung touches the border: air outside the body, for all that can be told."""
    volume = np.full((2, 40, 48), 40, np.int16)
    volume[:, :, :20] = -853
    result = known.volume(volume, SPACING)
    assert result.lesion_count == 1 and result.lesion_volume_ml > 0 and result.lung_volume_ml == 0
    assert result.lesion_share_of_lung is None and [one.lung_area_px for one in result.slices] == [0, 0]
    assert result_facts(result)["lesion_share_of_lung"] is None
    (share,) = [row for row in measure_rows(result) if row.name == "Share of the lung"]
    assert (share.value, share.limits) == ("none", "No lung was found.")
    (warning,) = result.warnings
    assert warning.startswith("volume: no lung was found in any slice") and "\n" not in warning


def test_a_lung_in_one_slice_is_a_lung(known, scans):
    volume = scans.body(2)
    volume[0] = -853
    result = known.volume(volume, SPACING)
    first, second = result.slices
    assert first.lung_area_px == 0 and 0 < sum(second.lesion_area_px.values()) < second.lung_and_lesions_area_px
    assert 0 < result.lesion_share_of_lung < 1 and result.warnings == ()


def test_overlaps_go_to_the_higher_score():
    high, low = np.zeros((2, 4, 4), bool)
    high[:2], low[1:3] = True, True
    labels = paint_labels([high, low], [1, 0], 4, 4)
    assert labels.tolist() == [[2] * 4, [2] * 4, [1] * 4, [0] * 4]
    assert not paint_labels([], [], 4, 4).any()


def test_codes_give_the_label_map_back(known, scans):
    volume = scans.body(2)
    result = known.volume(volume, SPACING)
    labels = label_map(result.slices[1], known.lesion_classes)
    assert ((labels == 2) == (volume[1] == 700)).all() and (labels == 1).any()


def _slice(index: int, scores: list[float]) -> SliceResult:
    named = dict(zip(("control", "pneumonia", "COVID-19"), scores, strict=True))
    image_class = max(named, key=named.get)
    return SliceResult(index, str(index), 8, 8, (), None, None, image_class=image_class, image_scores=named)


def test_each_rule_names_the_slices_that_decide():
    scores = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1], [0.1, 0.0, 0.9]]
    slices = [_slice(10 + i, row) for i, row in enumerate(scores)]
    any_k, top, mean = classes_by_rule(slices, ("control", "pneumonia", "COVID-19"), 2)
    assert (any_k.rule, any_k.image_class, any_k.deciding_slices) == ("any_k", "COVID-19", (14, 11, 12))
    assert any_k.slices_by_class == {"control": 2, "pneumonia": 0, "COVID-19": 3}
    assert (top.image_class, top.deciding_slices) == ("COVID-19", (14, 11))
    assert (mean.k, mean.image_class) == (None, "COVID-19")
    control = classes_by_rule(slices, ("control", "pneumonia", "COVID-19"), 4)[0]
    assert (control.image_class, control.deciding_slices) == ("control", (10, 13, 12, 11))


def _many(count: int, side: int = 192) -> Series:
    """A series of ``count`` slices that are made as they are read."""
    template = series_from_array(_chest(side), SPACING)
    geometry = type(template.geometry)((count, side, side), template.geometry.source_affine)
    names = tuple(map(str, range(count)))
    return Series("many", "array", (), names, geometry, Unit(), lambda axis, index: _chest(side))


def _chest(side: int) -> np.ndarray:
    plane = np.full((side, side), -1000, np.float32)
    plane[20:-20, 20:-20] = 40
    plane[50:-50, 40:80] = -853
    return plane


def test_memory_stays_flat_with_the_number_of_slices(known):
    """A kept mask would cost 36 kB a slice, a kept slice 36 kB in gray and 147 kB in Hounsfield units."""
    known.series(_many(4))
    peaks = []
    for count in (20, 120):
        series = _many(count)
        tracemalloc.start()
        result = known.series(series)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(result.slices) == count and result.lesion_count == 1
    assert (peaks[1] - peaks[0]) / 100 < 6_000


def test_the_lung_is_that_of_data(known, scans):
    series = series_from_array(scans.body(3), SPACING)
    result = known.series(series)
    for one, lung in zip(result.slices, lung_masks(series), strict=True):
        assert lung.any() and (decode_mask(one.lung_mask) == lung).all() and one.lung_area_px == lung.sum()


def test_uneven_slices_count_with_their_own_extent_in_lung_and_share(known, scans, tmp_path):
    result = known.series(scans.dicom_series(tmp_path / "scan", scans.body(4), zs=[0.0, 1.0, 2.0, 10.0]))
    extents = np.array([1.0, 1.0, 4.5, 8.0])
    lungs = [decode_mask(one.lung_mask) for one in result.slices]
    lesions = [label_map(one, known.lesion_classes) > 0 for one in result.slices]
    volumes = [extents @ [mask.sum() for mask in masks] * 0.8 / 1000 for masks in (lungs, lesions)]
    assert [result.lung_volume_ml, result.lesion_volume_ml] == pytest.approx(volumes)
    both = extents @ [(lung | lesion).sum() for lung, lesion in zip(lungs, lesions)] * 0.8 / 1000
    assert result.lesion_share_of_lung == pytest.approx(volumes[1] / both)
    for one, lung, lesion in zip(result.slices, lungs, lesions):
        assert one.lung_and_lesions_area_px == (lung | lesion).sum() > lung.sum()
        assert one.lesion_area_mm2 == pytest.approx(lesion.sum() * 0.8)


def test_an_instance_in_pieces_belongs_to_the_lesion_that_most_of_it_lies_in(scans):
    series = series_from_array(scans.body(1), SPACING)
    mask = np.zeros(series.shape[1:], bool)
    mask[2:8, 2:8] = mask[20:22, 20:22] = True
    summary = SeriesSummary(series, ("lesion",), (), with_masks=True, k=3)
    instances = (LesionInstance((2, 2, 22, 22), 0.9, "lesion"),)
    summary.add(SliceResult(0, "0", *mask.shape, instances, {"lesion": 40}, 0.8), mask.astype(np.uint8), mask[None])
    result = summary.finish({})
    assert [one.voxels for one in result.lesions] == [36, 4] and result.slices[0].instances[0].lesion == 1


def test_pieces_that_meet_in_another_slice_count_together(scans):
    series = series_from_array(scans.body(2), SPACING)
    whole, pieces = np.zeros((2, *series.shape[1:]), bool)
    whole[2:6, 2:22] = True
    pieces[2:6, 2:12] = pieces[2:6, 14:22] = True  # 40 + 32 pixels of the lesion above
    pieces[10:15, 2:12] = True  # 50 of another
    summary = SeriesSummary(series, ("lesion",), (), with_masks=True, k=3)
    for index, mask in enumerate((whole, pieces)):
        instances = (LesionInstance((2, 2, 22, 15), 0.9, "lesion"),)
        area = {"lesion": int(mask.sum())}
        summary.add(SliceResult(index, "0", *mask.shape, instances, area, 0.8), mask.astype(np.uint8), mask[None])
    result = summary.finish({})
    assert [one.voxels for one in result.lesions] == [152, 50]
    assert [one.instances[0].lesion for one in result.slices] == [1, 1]


@pytest.mark.parametrize("masks, found", [(True, 0), (False, 1)], ids=["mask without a pixel", "no mask head"])
def test_slices_with_a_lesion_are_those_with_a_marked_pixel(scans, masks, found):
    series = series_from_array(scans.body(1), SPACING)
    shape = series.shape[1:]
    instances = (LesionInstance((2, 2, 22, 22), 0.6, "lesion", area_px=0 if masks else None),)
    one = SliceResult(0, "0", *shape, instances, {"lesion": 0} if masks else None, 0.8)
    summary = SeriesSummary(series, ("lesion",), (), with_masks=masks, k=3)
    summary.add(one, *(np.zeros(shape, np.uint8), np.zeros((1, *shape), bool)) if masks else (None, None))
    result = summary.finish({})
    assert summary_row(result).slices_with_lesion == found
    (row,) = [row for row in measure_rows(result) if row.name == "Slices with a lesion"]
    assert row.value == f"{found} of 1" and ("marked pixel" in row.limits) == masks
