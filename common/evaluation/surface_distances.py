"""Distances between the surfaces of two masks, in mm: HD95, ASSD, normalised surface Dice.

A surface voxel belongs to the mask and has one of its six neighbours (four in 2D) outside it or
outside the volume. Axes of length 1 are dropped: one slice has the contours of a 2D image. Of all
distances from a surface voxel of either mask to the nearest one of the other:

    HD95  the 95th percentile, the larger one of both directions (Huttenlocher et al., 1993)
    ASSD  the mean over both directions together
    NSD   the share that is at most a tolerance (Nikolov et al., 2018)
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

SKEW = 1e-3  # two axes whose cosine exceeds this are not at right angles
# Each score's title in a table.
SURFACE_SCORES = {
    "hd95_mm": "HD95 mm",
    "assd_mm": "ASSD mm",
    "nsd_1mm": "NSD 1 mm",
    "nsd_2mm": "NSD 2 mm",
}


def surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...] | np.ndarray
) -> dict[str, float | None]:
    """HD95, ASSD (mm) and NSD at 1 and 2 mm (0..1) of two masks of equal shape.

    `spacing` is the voxels' size in mm, one number for each axis, or a matrix whose columns are the
    axes' steps in mm, which need not be at right angles. If one mask is empty, the distances are
    the volume's diagonal and NSD is 0, so that a missed class counts and never drops out of a mean;
    if both are, all are None.
    """
    prediction, truth = np.asarray(prediction) > 0, np.asarray(truth) > 0
    if prediction.shape != truth.shape or len(spacing) != truth.ndim:
        raise ValueError(f"shapes {prediction.shape}, {truth.shape}; spacing {spacing}")
    used = [axis for axis, length in enumerate(truth.shape) if length > 1] or [0]
    steps = (np.diag(spacing) if np.ndim(spacing) == 1 else np.asarray(spacing))[:, used]
    shape = tuple(truth.shape[axis] for axis in used)
    prediction, truth = prediction.reshape(shape), truth.reshape(shape)
    if not prediction.any() and not truth.any():
        return dict.fromkeys(SURFACE_SCORES)
    if not prediction.any() or not truth.any():
        diagonal = float(np.linalg.norm(steps @ shape))
        return _named(diagonal, diagonal, 0.0, 0.0)
    # Both surfaces lie in the box of the union: the rest of a 512x512x129 volume is not touched.
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    surfaces = [_surface(mask[box]) for mask in (prediction, truth)]
    forth, back = (_distances(*pair, steps) for pair in (surfaces, surfaces[::-1]))
    every = np.concatenate([forth, back])
    hd95 = max(np.percentile(way, 95) for way in (forth, back))
    return _named(hd95, every.mean(), (every <= 1).mean(), (every <= 2).mean())


def _distances(own: np.ndarray, other: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """From each voxel of one surface to the nearest of the other, in mm; the columns of `steps` are
    the axes' steps.

    Few voxels in a large box, as far islands make it, are searched with a tree; otherwise a
    distance transform of the box is faster. Both are exact; the transform needs right angles.
    """
    points, other_points = np.argwhere(own) @ steps.T, np.argwhere(other) @ steps.T
    lengths = np.linalg.norm(steps, axis=0)
    askew = np.abs((steps / lengths).T @ (steps / lengths) - np.eye(len(lengths))).max() > SKEW
    if askew or len(points) + len(other_points) < own.size / 20:
        return KDTree(other_points).query(points)[0]
    return ndimage.distance_transform_edt(~other, sampling=lengths)[own]


def _named(*values: float) -> dict[str, float]:
    return dict(zip(SURFACE_SCORES, map(float, values), strict=True))


def _surface(mask: np.ndarray) -> np.ndarray:
    """The surface voxels of a boolean mask; what lies outside the array is outside the class.

    For a mask cut out of a larger one along its own bounding box this changes nothing.
    """
    return mask & ~ndimage.binary_erosion(mask)
