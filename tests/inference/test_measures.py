"""Volumes in ml, lengths and scores of a mask."""

import numpy as np

from common.inference.measures import largest_components, measures


def test_measures_and_parts_have_their_closed_forms():
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    mask[3, 3, 3] = 1  # touches by a corner
    mask[7, 7, 7] = 1
    assert largest_components(mask, 1).sum() == 9 and largest_components(mask * 0, 1).sum() == 0
    second = np.where(mask, mask, np.roll(mask, 4, 2) * 2)  # its largest part has 8 voxels, or 9
    kept = largest_components(second, 2)
    assert np.array_equal(kept == 1, largest_components(mask, 1) == 1)
    assert (kept == 2).sum() == largest_components((second == 2) * 1, 1).sum() > 0
    assert measures(mask, (1, 2, 5)) == {
        "slices_with_class": 4,
        "volume_ml": 0.1,
        "length_mm": 35.0,
    }
