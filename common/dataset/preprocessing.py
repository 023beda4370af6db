"""From CT volumes to the square slices that the networks see, and back.

Voxel arrays are `(x, y, z)` in canonical orientation (see `common.dataset.nifti`). Views are
`(row, column)` as a radiologist looks at them: axial with the front on top and the patient's right
side on the left, coronal with the head on top and the right side on the left, sagittal with the
head on top and the front on the left. Squares are views with pixels of equal height and width,
padded and resized.
"""

from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from common.errors import UserError

# The abdominal soft-tissue window (centre 40, width 400): fat is -100, organs 30..200 HU.
HU_WINDOW = (-160, 240)
# The least share of a pixel that keeps a thin structure: what a vessel of two pixels covers at
# worst when it is made eight times smaller.
THIN = 1 / 8
NARROW = 1.5  # pixels: what is thinner than a pixel covers no more of five in a row across it
AROUND = np.ones((3, 3))  # a pixel and its eight neighbours
ROUNDING = 1e-9  # shares this close are equal
# Counts up when this module makes other slices from the same volumes, so that older ones are made
# again instead of being reused.
VERSION = 3
# The voxel axes of each slice plane: across the slices, down the rows, along the columns.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def window(hu: np.ndarray, low: float = HU_WINDOW[0], high: float = HU_WINDOW[1]) -> np.ndarray:
    """HU to uint8: `low` and below become 0, `high` and above 255, linear between, rounded."""
    scaled = (np.asarray(hu, np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def bounds_of(voxels: np.ndarray, window) -> tuple[float, float]:
    """The values of a volume that are shown as 0 and 255, by a data set's "window": two numbers, or
    `{"percentiles": [low, high]}`. UserError if it is neither.

    Percentiles are those of the voxels above the volume's minimum. The minimum is what lies outside
    the patient wherever that was set to one value (skull-stripped heads, padded volumes): if it
    were counted, the bounds would depend on how much of the volume is empty, not on how bright the
    patient is.
    """
    try:
        if not isinstance(window, dict):
            low, high = map(float, window)
            return low, high
        shares = [float(share) for share in window["percentiles"]]
        inside = voxels[voxels > voxels.min()]
        low, high = np.percentile(inside if inside.size else voxels, shares).tolist()
    except (TypeError, ValueError, KeyError):
        raise UserError(
            f'The window {window!r} is neither two numbers nor {{"percentiles": [low, high]}}.'
        ) from None
    return low, high if high > low else low + 1  # nearly constant: one step from black to white


def view_of(voxels: np.ndarray, index: int, plane: str) -> np.ndarray:
    """Slice `index` of canonical voxels in a plane, in radiological view `(row, column)`.

    Slices count from the feet (axial), the back (coronal), the patient's left (sagittal).
    """
    across, rows, columns = PLANES[plane]
    return voxels.transpose(rows, columns, across)[::-1, ::-1, index]


def pixel_spacing(spacing: tuple[float, float, float], plane: str) -> tuple[float, float]:
    """The (row, column) spacing in mm of a plane's views, from that of the voxels `(x, y, z)`."""
    _, rows, columns = PLANES[plane]
    return spacing[rows], spacing[columns]


def axial_view(voxels: np.ndarray, index: int) -> np.ndarray:
    """Slice `index` of canonical voxels `(x, y, z)` in radiological view `(row, column)`."""
    return view_of(voxels, index, "axial")


def from_views(views: np.ndarray) -> np.ndarray:
    """Axial views `(z, row, column)` of all slices as canonical voxels `(x, y, z)`."""
    return views.transpose(2, 1, 0)[::-1, ::-1]


class Place(NamedTuple):
    """Where a view lies in its square: its size there, and the padding above and left of it."""

    rows: int
    columns: int
    top: int
    left: int


def place(shape: tuple[int, int], spacing: tuple[float, float], size: int) -> Place:
    """The place of a view of `shape` (rows, columns) and `spacing` in mm in a square of `size`."""
    heights, widths = shape[0] * spacing[0], shape[1] * spacing[1]
    side = max(heights, widths)
    rows = max(1, round(size * heights / side))
    columns = max(1, round(size * widths / side))
    return Place(rows, columns, (size - rows) // 2, (size - columns) // 2)


def to_square(image: np.ndarray, spacing: tuple[float, float], size: int, mask: bool) -> np.ndarray:
    """A 2D uint8 image as `(size, size)`: pixels made square, padded with 0, resized.

    `spacing` is (row, column) in mm; equal numbers leave the aspect as it is. Images are resized
    bicubically with antialiasing, masks by area (`resize_labels`): both with the same pixel
    centres.
    """
    rows, columns, top, left = place(image.shape, spacing, size)
    if mask:
        resized = resize_labels(image, (rows, columns))
    else:
        picture = Image.fromarray(np.ascontiguousarray(image))
        if picture.size != (columns, rows):
            picture = picture.resize((columns, rows), Image.Resampling.BICUBIC)
        resized = np.asarray(picture)
    if (rows, columns) == (size, size):
        return resized
    square = np.zeros((size, size), np.uint8)
    square[top : top + rows, left : left + columns] = resized
    return square


def resize_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels, uint8 `(H, W)` with 0 as background, resized to `shape` (rows, columns) by area.

    A pixel gets the label, or the background, that covers most of it. Equal shares are broken
    alternately, in a chessboard pattern, so that borders do not move on average. A structure too
    thin to win pixels keeps those that it covers best in their row or column, from `THIN` on. So a
    vessel does not vanish, but is drawn one pixel wide however narrow it is; a speck gets the
    pixels of its area, at least one. Thin structures that lie on the same pixels share them: none
    is taken from a label that would have no other within two pixels. What is round and two pixels
    wide loses a fifth of its area on average.
    """
    labels = np.ascontiguousarray(labels)
    values = np.union1d(labels, [0]).astype(np.uint8)
    if labels.shape == tuple(shape) or len(values) == 1:
        return labels if labels.shape == tuple(shape) else np.zeros(shape, np.uint8)
    overlaps = tuple(map(_overlaps, labels.shape, shape))
    shares = np.stack([np.zeros(shape), *(_share(labels == v, *overlaps) for v in values[1:])])
    shares[0] = 1 - shares.sum(0)
    diagonals = np.add.outer(*map(np.arange, shape))
    turns = np.where(diagonals % 2, -ROUNDING, ROUNDING)
    winner = (shares + turns * np.arange(len(values))[:, None, None]).argmax(0)
    second, first = np.sort(shares, axis=0)[-2:]
    clear = first > second + ROUNDING
    thin = {n: _thin(shares[n], winner == n, clear) for n in range(1, len(values))}
    for spread in (1, 2, 4):
        for n, wanted in thin.items():
            wanted = wanted & (diagonals % spread == 0)
            wanted &= ~ndimage.maximum_filter(winner == n, 2 * spread - 1)
            for owner in np.unique(winner[wanted]):
                others = (winner == owner) & ~wanted
                spare = wanted & ndimage.maximum_filter(others, 5) if owner else wanted
                winner[spare & (winner == owner)] = n
    return values[winner]


def _thin(share: np.ndarray, won: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """The pixels that a label needs where it is too thin to win any, bool.

    `share` is how much of each pixel it covers, `won` the pixels that it has, `clear` where the win
    is not a tie. Needed are pixels on the ridges of `share` that have no won pixel next to them,
    and those that close a gap in a line.
    """
    thin, narrow = np.zeros(share.shape, bool), np.zeros(share.shape, bool)
    for axis in (0, 1):
        before, after = (np.roll(np.pad(share, 1), step, axis)[1:-1, 1:-1] for step in (1, -1))
        ridge = (share > before + ROUNDING) & (share >= after - ROUNDING)
        ridge &= (share >= THIN - ROUNDING) & ~won
        thin |= ridge & ~ndimage.maximum_filter1d(won, 3, axis)
        narrow |= ridge & (5 * ndimage.uniform_filter1d(share, 5, axis, mode="constant") < NARROW)
    thin &= ~ndimage.maximum_filter(won & clear, 3)
    parts, _ = ndimage.label(thin, AROUND)
    for n, box in enumerate(ndimage.find_objects(parts), 1):
        if max(parts[box].shape) <= 2:  # a speck
            rows, columns = np.nonzero(parts == n)
            area = max(1, round(share[rows, columns].sum()))
            lesser = np.argsort(-share[rows, columns], kind="stable")[area:]
            thin[rows[lesser], columns[lesser]] = False
    parts, _ = ndimage.label(won | thin, AROUND)
    gaps, count = ndimage.label(narrow & ~thin, AROUND)
    for n in range(1, count + 1):
        gap = gaps == n
        ends = np.unique(parts[ndimage.binary_dilation(gap, AROUND)])
        thin |= gap & (np.count_nonzero(ends) > 1)
    return thin


def _overlaps(pixels: int, parts: int) -> np.ndarray:
    """How much of each of `parts` equal parts of a line each of its `pixels` covers, float64
    `(parts, pixels)`; rows add up to 1."""
    edges = np.arange(parts + 1)[:, None] * (pixels / parts)
    low, high, place = edges[:-1], edges[1:], np.arange(pixels)
    covered = np.minimum(high, place + 1) - np.maximum(low, place)
    return covered.clip(0) * (parts / pixels)


def _share(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The share of each resized pixel that a bool mask covers; only its bounding box is read."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return rows[:, box[0]] @ mask[box].astype(float) @ columns[:, box[1]].T


def from_square(maps: Tensor, shape: tuple[int, int], spacing: tuple[float, float]) -> Tensor:
    """Probability maps `(N, C, size, size)` of squares as maps `(N, C, *shape)` of their views.

    The padding is cut off, the rest resized linearly, with antialiasing where it shrinks.
    """
    rows, columns, top, left = place(shape, spacing, maps.shape[-1])
    maps = maps[..., top : top + rows, left : left + columns]
    if (rows, columns) == tuple(shape):
        return maps
    return F.interpolate(maps, shape, mode="bilinear", antialias=True)


def stack(geometry: dict, size: int) -> tuple[int, tuple[float, float, float]]:
    """The number of slices of a data set's patient, and the size of its voxels in mm: the distance
    of the slices, and a square's pixel, twice.

    `geometry` is the patient's entry in dataset.json: `shape`, `affine` and `spacing` as stored,
    and `axis`, the slices' plane, where it is not axial. KeyError, ValueError or IndexError if it
    is broken.
    """
    order = nib.io_orientation(np.array(geometry["affine"], float))[:, 0].astype(int)
    shape, spacing = np.zeros(3), np.zeros(3)
    shape[order], spacing[order] = geometry["shape"][:3], geometry["spacing"][:3]
    across, *inside = PLANES[geometry.get("axis", "axial")]
    pixel = float((shape * spacing)[inside].max()) / size
    return int(shape[across]), (float(spacing[across]), pixel, pixel)
