"""Islands, borders and misses, counted."""

import numpy as np
import pytest

from common.evaluation.error_types import KINDS, error_pixels, error_shares, repaired_pixels


def mask(*boxes):
    found = np.zeros((20, 20), dtype=np.uint8)
    for top, left, height, width in boxes:
        found[top : top + height, left : left + width] = 255
    return found


def test_each_kind_of_error_is_counted_where_it_belongs():
    truth = mask((2, 2, 4, 4), (12, 12, 3, 3))
    predicted = mask((2, 3, 4, 4), (15, 2, 2, 2))  # one column to the right, and an island
    found = error_pixels(predicted, truth)
    assert found == {
        "false island": 4,
        "beyond the border": 4,
        "short of the border": 4,
        "missed island": 9,
    }


def test_the_kinds_add_up_to_all_wrong_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, truth = rng.random((2, 20, 20)) > 0.8
        assert sum(error_pixels(predicted, truth).values()) == (predicted != truth).sum()


def test_pixels_that_touch_at_a_corner_are_one_island():
    truth = mask((5, 5, 3, 3))
    assert error_pixels(mask((5, 5, 3, 3), (8, 8, 2, 2)), truth)["false island"] == 0
    assert error_pixels(mask((5, 5, 3, 3), (9, 9, 2, 2)), truth)["false island"] == 4


def test_shares_are_a_patient_s_first_and_patients_without_the_class_do_not_count():
    one = dict.fromkeys(KINDS, 0) | {"false island": 10}
    rows = [("a", 100, one), ("a", 100, one), ("b", 10, one), ("c", 0, one)]
    assert error_shares(rows)["false island"] == pytest.approx((10 + 100) / 2)
    assert error_shares(rows)["missed island"] == 0
    assert error_shares(rows[3:]) == dict.fromkeys(KINDS, 0.0)


def test_repaired_and_new_errors_account_for_the_difference():
    rng = np.random.default_rng(1)
    before, after, truth = rng.random((3, 20, 20)) > 0.7
    repaired = sum(repaired_pixels(before, after, truth).values())
    broken = sum(repaired_pixels(after, before, truth).values())
    assert repaired - broken == (before != truth).sum() - (after != truth).sum()
    assert repaired == ((before != truth) & (after == truth)).sum()


def test_an_island_that_is_gone_is_repaired_as_an_island():
    truth, before = mask((2, 2, 4, 4)), mask((2, 2, 4, 4), (12, 12, 3, 3))
    assert repaired_pixels(before, truth, truth) == dict.fromkeys(KINDS, 0) | {"false island": 9}
    assert repaired_pixels(truth, before, truth) == dict.fromkeys(KINDS, 0)
