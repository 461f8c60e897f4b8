"""Lesions across slices against SciPy's labels of the whole stack."""

from d2_covid.inference.linking import LesionLinker

import numpy as np
import pytest
from scipy import ndimage


def _link(volume: np.ndarray, voxel: float = 2.0):
    linker = LesionLinker()
    nodes = [linker.add(mask, index, voxel) for index, mask in enumerate(volume)]
    return nodes, *linker.finish()


@pytest.mark.parametrize("share", [0.02, 0.08, 0.15, 0.4])
def test_same_components_as_labelling_the_whole_stack(share):
    volume = np.random.default_rng(int(share * 100)).random((9, 20, 24)) < share
    expected, count = ndimage.label(volume, structure=np.ones((3, 3, 3)))
    nodes, lesions, numbers = _link(volume)
    assert len(lesions) == count
    found = np.vectorize(lambda node: numbers.get(node, 0))(np.stack(nodes))
    pairs = np.unique(np.stack([expected[volume], found[volume]]), axis=1)
    assert pairs.shape[1] == count  # one to one
    assert [lesion.voxels for lesion in lesions] == sorted(np.bincount(expected.ravel())[1:], reverse=True)
    assert [lesion.number for lesion in lesions] == list(range(1, count + 1))
    assert not found[~volume].any()


def test_pixels_count_by_their_share_of_a_voxel():
    linker = LesionLinker()
    linker.add(np.array([[True, False, True]] * 2), 0, 4.0, np.array([[0.5, 1.0, 1.5]]))
    lesions, _ = linker.finish()
    assert [(one.voxels, one.volume_ml) for one in lesions] == [(2, 0.012), (2, 0.004)]


@pytest.mark.parametrize("gap, count", [((1, 1, 1), 1), ((1, 2, 0), 2), ((2, 0, 0), 2)])
def test_corners_touch_and_gaps_part(gap, count):
    volume = np.zeros((4, 8, 8), bool)
    volume[0, 2, 2] = volume[gap[0], 2 + gap[1], 2 + gap[2]] = True
    assert len(_link(volume)[1]) == count


def test_branches_that_meet_later_are_one_lesion():
    volume = np.zeros((3, 5, 9), bool)
    volume[0, 2, 1] = volume[0, 2, 7] = volume[1, 2, 1] = volume[1, 2, 7] = True
    volume[2, 2, 1:8] = True
    _, (lesion,), _ = _link(volume)
    assert (lesion.voxels, lesion.volume_ml, lesion.first_slice, lesion.last_slice) == (11, 0.022, 0, 2)


def test_volumes_follow_each_slices_own_extent():
    linker = LesionLinker()
    mask = np.ones((2, 2), bool)
    linker.add(mask, 5, 1.0)
    linker.add(mask, 6, 10.0)
    (lesion,), _ = linker.finish()
    assert lesion.volume_ml == pytest.approx(0.044) and (lesion.first_slice, lesion.last_slice) == (5, 6)


def test_no_lesion():
    assert _link(np.zeros((3, 4, 4), bool))[1:] == ((), {})


def test_the_largest_is_that_of_the_greatest_volume_not_of_most_voxels():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :3, :3], masks[2, 5:7, 5:7] = True, True
    linker = LesionLinker()
    for index, mask in enumerate(masks):
        linker.add(mask, index, (1.0, 1.0, 10.0)[index])
    lesions, numbers = linker.finish()
    assert [(one.number, one.voxels, one.volume_ml) for one in lesions] == [(1, 4, 0.04), (2, 9, 0.009)]
    assert numbers == {1: 2, 2: 1}
