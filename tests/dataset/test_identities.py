"""What must hold of every score: hypothesis looks for the masks that break it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.evaluation.metrics import overlap_scores
from common.evaluation.surface_distances import surface_scores

MASKS = arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 1))


@st.composite
def pairs(draw):
    """Two masks of one shape, and a voxel size in mm."""
    first = draw(MASKS)
    second = draw(arrays(np.uint8, first.shape, elements=st.integers(0, 1)))
    return first, second, draw(st.tuples(*[st.floats(0.3, 6)] * 3))


def overlap(a, b):
    return overlap_scores(*(int(np.count_nonzero(x)) for x in (a * b, a, b)))


@given(pairs())
def test_overlaps(pair):
    a, b, _ = pair
    scores, swapped = overlap(a, b), overlap(b, a)
    if scores["dice"] is None:
        assert not a.any() and not b.any()
        return
    assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))
    assert (scores["dice"], scores["iou"]) == (swapped["dice"], swapped["iou"])
    if a.any() and b.any():
        assert scores["recall"] == swapped["precision"]
        mean = [scores["recall"], scores["precision"]]
        harmonic = 2 * np.prod(mean) / sum(mean) if sum(mean) else 0
        assert scores["dice"] == pytest.approx(harmonic)
    assert 0 <= scores["iou"] <= scores["dice"] <= 1
    assert overlap(a, a)["dice"] in (1, None)


ROOM = ((2, 1), (0, 3), (1, 1))


@settings(deadline=None)
@given(pairs())
def test_surfaces(pair):
    a, b, spacing = pair
    scores = surface_scores(a, b, spacing)
    assert scores == pytest.approx(surface_scores(b, a, spacing))
    if scores["hd95_mm"] is None:
        return
    diagonal = np.linalg.norm(np.multiply(a.shape, spacing))
    assert 0 <= scores["assd_mm"] <= diagonal + 1e-9 and 0 <= scores["hd95_mm"] <= diagonal + 1e-9
    assert 0 <= scores["nsd_1mm"] <= scores["nsd_2mm"] <= 1
    doubled = surface_scores(a, b, tuple(2 * s for s in spacing))
    assert doubled["assd_mm"] == pytest.approx(2 * scores["assd_mm"])
    assert doubled["nsd_2mm"] == pytest.approx(scores["nsd_1mm"])
    # Where it lies plays no part; an axis of length 1 is none, and has to stay so.
    around = [n if length > 1 else (0, 0) for n, length in zip(ROOM, a.shape, strict=True)]
    moved = [np.pad(m, around) for m in (a, b)]
    if a.any() and b.any():
        assert surface_scores(*moved, spacing) == pytest.approx(scores)
        assert surface_scores(a, a, spacing)["assd_mm"] == 0
