"""What an affine says about a volume's voxels: their size, their axes, how two volumes lie.

Affines are 4x4, from voxel indices to mm.
"""

import itertools

import nibabel as nib
import numpy as np

UNITS_MM = {1: ("metre", 1e3), 3: ("micron", 1e-3)}  # NIfTI's codes; all others are taken as mm
TILT_DEGREES = 0.5  # less is rounding
OBLIQUE_DEGREES = 30
FLAT = 1e-3  # of the product of the axes' lengths: voxels with less volume have none


def unit_of(header) -> tuple[str, float]:
    """The unit of lengths that a NIfTI header states, and what it is in mm."""
    return UNITS_MM.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))


def voxel_ml(affine: np.ndarray) -> float:
    """The volume of a voxel in ml: |det| of the affine, whatever angles its axes have."""
    x, y, z = affine[:3, :3].T
    return float(abs(np.dot(x, np.cross(y, z)))) / 1000  # exact where the axes are the patient's


def is_flat(affine: np.ndarray) -> bool:
    """Whether the voxels have no volume: an axis without length, or all axes in one plane."""
    lengths = np.prod(nib.affines.voxel_sizes(affine))
    return not voxel_ml(affine) * 1000 > FLAT * lengths > 0


def between_planes(affine: np.ndarray) -> np.ndarray:
    """The distance in mm between the planes of voxels across each axis, float64 `(3,)`.

    It is the axis's own step where the axes are at right angles, and less where they are not.
    """
    return 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)


def tilt(affine: np.ndarray) -> float:
    """The largest deviation in degrees from 90 of the angle between two voxel axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(cosines, 1))))


def obliquity(affine: np.ndarray) -> float:
    """The largest angle in degrees between a voxel axis and its closest axis of the patient."""
    return float(np.degrees(nib.affines.obliquity(affine)).max())


def is_none(affine: np.ndarray) -> bool:
    """Whether an affine is the one written when nothing is known: cubes of 1 mm from 0 on, in
    NIfTI's axes or in those of DICOM and ITK."""
    return any(np.array_equal(affine, np.diag([s, s, 1, 1])) for s in (1, -1))


def canonical(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The affine of the closest canonical orientation of an array of this affine and shape."""
    return affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(affine), shape)


def displacement(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance, over a volume's corners, between a voxel's places by `affine` and by
    `other`, in voxels of the former."""
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape))])
    moved = corners @ (np.linalg.inv(affine) @ other).T - corners
    return float(np.linalg.norm(moved[:, :3], axis=1).max())
