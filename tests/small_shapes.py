"""Discs, and where a mask lies."""

import numpy as np
from scipy import ndimage


def disc(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    """A bool disc; the centre of pixel (i, j) is (i + 0.5, j + 0.5)."""
    y, x = np.mgrid[:size, :size] + 0.5
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def centroid(weights: np.ndarray) -> np.ndarray:
    """In units of the whole side, 0..1."""
    return (np.array(ndimage.center_of_mass(weights)) + 0.5) / weights.shape
