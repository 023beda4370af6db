"""HD95, ASSD and NSD against references."""

import time

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from common.evaluation import surface_distances
from common.evaluation.surface_distances import SURFACE_SCORES, surface_scores


def cube(shift=0, shape=(40, 40, 40)):
    mask = np.zeros(shape, bool)
    mask[5 + shift : 25 + shift, 10:30, 10:30] = True
    return mask


def test_a_shifted_cube_has_its_closed_form():
    scores = surface_scores(cube(), cube(4), (0.8, 0.8, 5))
    assert scores["hd95_mm"] == pytest.approx(3.2)
    assert scores["assd_mm"] == pytest.approx(1.157196, abs=1e-6)
    assert scores["nsd_1mm"] == pytest.approx(0.612546, abs=1e-6)


def test_equal_masks_and_one_voxel_apart():
    equal = surface_scores(cube(), cube(), (1, 2, 3))
    assert equal == {"hd95_mm": 0, "assd_mm": 0, "nsd_1mm": 1, "nsd_2mm": 1}
    a, b = np.zeros((9, 9, 9)), np.zeros((9, 9, 9))
    a[1, 4, 4] = b[4, 4, 4] = 1
    far = surface_scores(a, b, (0.5, 7, 7))
    assert far == {"hd95_mm": 1.5, "assd_mm": 1.5, "nsd_1mm": 0, "nsd_2mm": 1}


def test_a_missed_class_costs_the_diagonal_and_nothing_at_all_is_undefined():
    empty = np.zeros((30, 40, 50))
    solid = empty.copy()
    solid[3:6, 3:6, 3:6] = 1
    for pair in ((empty, solid), (solid, empty)):
        missed = surface_scores(*pair, (1, 1, 2))
        assert missed["hd95_mm"] == missed["assd_mm"] == pytest.approx(np.sqrt(900 + 1600 + 10000))
        assert missed["nsd_1mm"] == missed["nsd_2mm"] == 0
    assert surface_scores(empty, empty, (1, 1, 1)) == dict.fromkeys(SURFACE_SCORES)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_monai(seed):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"))
    masks = []
    for _ in range(2):
        centre, radii = rng.uniform(7, 17, 3), rng.uniform(3, 9, 3)
        inside = (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
        masks.append((inside < 1) ^ (rng.random(grid.shape[1:]) < 0.002))
    spacing = (0.7, 1.3, 2.5)
    ours = surface_scores(*masks, spacing)
    a, b = (torch.from_numpy(mask[None, None]).float() for mask in masks)
    theirs = {
        "hd95_mm": compute_hausdorff_distance(a, b, True, percentile=95, spacing=spacing),
        "assd_mm": compute_average_surface_distance(a, b, True, symmetric=True, spacing=spacing),
        "nsd_1mm": compute_surface_dice(a, b, [1.0], True, spacing=spacing),
        "nsd_2mm": compute_surface_dice(a, b, [2.0], True, spacing=spacing),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value.item(), abs=1e-4), name


def test_far_islands_are_sought_in_a_tree_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    masks = [np.zeros((60, 50, 40), bool) for _ in range(2)]
    for mask in masks:
        mask[20:30, 20:32, 10:18] = True
        mask[tuple(rng.integers(0, s, 6) for s in mask.shape)] = True
    spacing = (0.8, 0.9, 3)
    fast = surface_scores(*masks, spacing)
    monkeypatch.setattr(surface_distances, "KDTree", None)  # would fail if it were asked
    with pytest.raises(TypeError):
        surface_scores(*masks, spacing)
    monkeypatch.undo()
    monkeypatch.setattr(np, "argwhere", lambda a: np.zeros((a.size, a.ndim)))  # always the box
    assert surface_scores(*masks, spacing) == pytest.approx(fast)


def test_a_whole_ct_takes_seconds_and_shapes_must_agree():
    solid = np.zeros((512, 512, 129), bool)
    solid[100:300, 150:330, 20:90] = True
    islands = np.random.default_rng(0).random(solid.shape) < 1e-4
    for found in (np.roll(solid, 3, axis=0), solid | islands):
        began = time.process_time()
        surface_scores(solid, found, (0.8, 0.8, 2.5))
        assert time.process_time() - began < 5
    with pytest.raises(ValueError, match="shapes"):
        surface_scores(solid, solid[1:], (1, 1, 1))


def test_one_slice_has_the_surfaces_of_a_2d_image():
    disk, moved = cube()[..., 15], cube(3)[..., 15]
    flat = surface_scores(disk, moved, (2, 3))
    assert flat["hd95_mm"] == 6 and flat["assd_mm"] > 0
    for axis in range(3):
        spacing = [2, 3]
        spacing.insert(axis, 999)
        slices = (np.expand_dims(mask, axis) for mask in (disk, moved))
        assert surface_scores(*slices, tuple(spacing)) == pytest.approx(flat)
    assert surface_scores(disk[..., None], disk[..., None] * 0, (2, 3, 999))[
        "hd95_mm"
    ] == pytest.approx(np.hypot(80, 120))
    assert surface_scores(np.ones((1, 1, 1)), np.ones((1, 1, 1)), (1, 1, 1))["hd95_mm"] == 0


def test_distances_along_sheared_axes_are_those_in_the_patient():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    straight = surface_scores(cube(), cube(4), (0.8, 0.9, 5))
    assert surface_scores(cube(), cube(4), turn * (0.8, 0.9, 5)) == pytest.approx(straight)
    a, b = np.zeros((9, 9, 9)), np.zeros((9, 9, 9))
    a[4, 4, 4] = b[4, 4, 6] = 1
    steps = np.array([[1, 0, 0], [0, 1, 1.5], [0, 0, 2]])  # two slices up are three pixels back
    assert surface_scores(a, b, steps)["hd95_mm"] == pytest.approx(5)
