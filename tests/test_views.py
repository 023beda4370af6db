import json

import numpy as np
import pytest
import torch
from test_segment import save

from common.views import from_square, from_views, stack, to_square
from common.volumes import read_volume


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
