"""HU window, planes, squares: there and back."""

import json

import numpy as np
import pytest
import torch
from small_volumes import save

from common.dataset.nifti import read_volume
from common.dataset.preprocessing import (
    PLANES,
    axial_view,
    bounds_of,
    from_square,
    from_views,
    pixel_spacing,
    stack,
    to_square,
    view_of,
)
from common.errors import UserError


def test_views_and_squares_have_their_inverses(tmp_path):
    voxels = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    views = np.stack([voxels[::-1, ::-1, z].T for z in range(6)])
    assert np.array_equal(from_views(views), voxels)
    view = np.zeros((40, 24), np.uint8)
    view[10:30, 6:18] = 200
    square = to_square(view, (1.0, 1.0), 40, mask=True)
    back = from_square(torch.from_numpy(square)[None, None].float(), view.shape, (1.0, 1.0))
    assert np.array_equal(back[0, 0].numpy(), view)
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)  # resized linearly, not by the nearest pixel
    assert len(from_square(ramp, (16, 16), (1.0, 1.0)).unique()) > 12
    path = save(tmp_path / "v.nii.gz", np.zeros((20, 30, 5), np.int16), "PIR")
    geometry = json.loads(json.dumps(read_volume(path).geometry()))
    assert stack(geometry, 10) == (5, pytest.approx((2.5, 2.4, 2.4)))


def test_every_plane_is_seen_as_a_radiologist_sees_it():
    voxels = np.zeros((4, 5, 6))
    voxels[3, :, :] = 1  # the patient's right
    voxels[:, 4, :] += 2  # the front
    voxels[:, :, 5] += 4  # the head
    axial, coronal, sagittal = (view_of(voxels, 1, plane) for plane in PLANES)
    assert axial.shape == (5, 4) and coronal.shape == (6, 4) and sagittal.shape == (6, 5)
    assert np.array_equal(axial, axial_view(voxels, 1))
    assert (axial[0, 1:] == 2).all() and (axial[1:, 0] == 1).all() and not axial[1:, 1:].any()
    assert (coronal[0, 1:] == 4).all() and (coronal[1:, 0] == 1).all()
    assert not coronal[1:, 1:].any() and not sagittal[1:, 1:].any()
    assert (sagittal[0, 1:] == 4).all() and (sagittal[1:, 0] == 2).all()
    assert view_of(voxels, 3, "sagittal").min() == 1  # the slices count towards the right


def test_a_plane_s_stack_has_its_own_spacing(tmp_path):
    path = save(tmp_path / "v.nii.gz", np.zeros((20, 30, 5), np.int16), "PIR")
    volume = read_volume(path)
    sizes = np.array(volume.voxels.shape) * volume.spacing
    for plane, (across, *inside) in PLANES.items():
        count, spacing = stack({**volume.geometry(), "axis": plane}, 10)
        assert count == volume.voxels.shape[across] == len(volume.voxels.swapaxes(0, across))
        pixel = sizes[inside].max() / 10
        assert spacing == pytest.approx((volume.spacing[across], pixel, pixel))
        square = to_square(
            view_of(np.ones(volume.voxels.shape, np.uint8), 0, plane),
            pixel_spacing(volume.spacing, plane),
            10,
            mask=True,
        )
        area = square.sum() * pixel**2  # in mm: that of the volume's own side
        assert area == pytest.approx(np.prod(sizes[inside]), rel=0.2)


def test_bounds_are_numbers_or_percentiles_of_what_is_not_background():
    head = np.zeros((10, 10, 10))
    head[:5].flat = np.arange(1, 501)
    assert bounds_of(head, [-160, 240]) == (-160, 240)
    low, high = bounds_of(head, {"percentiles": [10, 90]})
    assert low == pytest.approx(50.9) and high == pytest.approx(450.1)
    assert bounds_of(head[:5], {"percentiles": [10, 90]}) == pytest.approx((low, high), abs=1)
    shifted = bounds_of(3 * head - 1000, {"percentiles": [10, 90]})
    assert shifted == pytest.approx((3 * low - 1000, 3 * high - 1000))
    for flat in (np.full((3, 3, 3), 7), np.eye(3)[None]):
        low, high = bounds_of(flat, {"percentiles": [1, 99]})
        assert low < high
    for window in (None, [1], {"quantiles": [1, 2]}, {"percentiles": 3}, {"percentiles": [0, 200]}):
        with pytest.raises(UserError, match="neither two numbers nor"):
            bounds_of(head, window)
