"""Values of any unit as Hounsfield units or gray."""

from d2_covid.data.intensity import AIR_HU, Unit

import numpy as np
import pytest


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(("kind", "most"), [("unit", 1.0), ("byte", 255.0), ("short", 65535.0)])
def test_what_has_no_value_is_air_in_gray(kind, most, inverted):
    values = np.array([0, most, np.nan, np.inf, -np.inf])
    ends = [255, 0] if inverted else [0, 255]
    assert Unit(kind, inverted).convert(values).tolist() == [*ends, 0, 0, 0]
    assert values[2:].tolist() != [0, 0, 0]  # the values themselves stay


def test_what_has_no_value_is_air_in_hounsfield_units():
    assert Unit().convert(np.array([40.0, np.nan, np.inf])).tolist() == [40, AIR_HU, AIR_HU]


def test_values_keep_their_precision():
    assert Unit().convert(np.array([3071, -1023.5])).tolist() == [3071, -1023.5]
    # As preprocessing.read_slice rounds 16-bit images.
    assert Unit("short").convert(np.array([128, 129, 385, 386])).tolist() == [0, 1, 1, 2]
