"""What is odd about a case but may be intended: values, geometry, the label's place, its side."""

from collections.abc import Mapping

import nibabel as nib
import numpy as np

from common.dataset import geometry
from common.dataset.cases import beside
from common.dataset.classes import on_the_left
from common.dataset.nifti import Volume, in_mm
from common.dataset.preprocessing import HU_WINDOW

AIR_HU = -300  # below it is air, in the lungs or around the patient
LOWEST_HU = -1024  # air; scanners pad outside their circle with less
PLAUSIBLE_HU = (-1100, 5000)  # with room for noise in air
LEAST_SEEN = 0.001  # of the voxels: a window that shows less was meant for other values
PADDINGS = 4  # different values that may pad a volume
SPACING_MM = (0.01, 10)
ROUNDING_MM = 1e-3
MOVED_MM = 1e-3  # less is rounding


def image_doubts(
    image: Volume, hu: bool = True, window: tuple[float, float] | None = HU_WINDOW
) -> list[str]:
    """What looks wrong about an image but may be intended; without `hu` it is not a CT.

    `window` are the values that will be shown as black and white; None where they will be chosen by
    the image's own.
    """
    odd = value_doubts(image.voxels, hu)
    if window and not odd:
        odd = window_doubts(image.voxels, *window)
    used = [s for s, n in zip(image.spacing, image.voxels.shape, strict=True) if n > 1]
    least, most = min(used, default=1), max(used, default=1)
    (low, high), (unit, mm) = SPACING_MM, geometry.unit_of(image.header)
    stated = "" if mm == 1 else f"; the header's unit is {unit}"
    for spacing in [least] * (least < low) + [most] * (most > high + ROUNDING_MM):
        odd.append(f"a spacing of {spacing:g} mm{stated}")
    return odd + _affine_doubts(image)


def value_doubts(voxels: np.ndarray, hu: bool) -> list[str]:
    """What is odd about an image's values; with `hu` they should be those of a CT."""
    low, high = float(voxels.min()), float(voxels.max())
    if low == high:
        return ["the image is constant"]
    if not hu:
        return []
    if high > PLAUSIBLE_HU[1] or low < PLAUSIBLE_HU[0] and not _is_padding(voxels):
        return [f"{low:g}..{high:g} is not a range of a CT in HU"]
    inside = low
    if low < LOWEST_HU:
        inside = float(voxels[voxels >= LOWEST_HU].min(initial=high))
    if inside > AIR_HU:
        padding = "" if inside == low else f" but padding of {low:g}"
        return [f"nothing{padding} is below {inside:g}: no air, or not in HU"]
    return []


def window_doubts(voxels: np.ndarray, low: float, high: float) -> list[str]:
    """Whether next to nothing of a volume is seen through a window: all is black or white."""
    seen = float(((voxels > low) & (voxels < high)).mean())
    if seen >= LEAST_SEEN:
        return []
    return [
        f"almost no voxel ({seen:.2%}) lies between {low:g} (black) and {high:g} (white), so the "
        "image is blank: is this window meant for these values?"
    ]


def _is_padding(voxels: np.ndarray) -> bool:
    """Whether values too low for HU are padding: few distinct values, or few voxels in between, as
    resampling leaves."""
    deep = voxels[voxels < PLAUSIBLE_HU[0]]
    if deep.size < 0.01 * voxels.size:
        return True
    _, counts = np.unique(deep[:: 1 + deep.size // 1_000_000], return_counts=True)
    return np.sort(counts)[-PADDINGS:].sum() > 0.5 * counts.sum()


def _affine_doubts(image: Volume) -> list[str]:
    """What is odd about how an image's voxels lie in the patient."""
    odd, affine = [], in_mm(image.stored_affine, image.header)
    forms = [form(coded=True)[0] for form in (image.header.get_qform, image.header.get_sform)]
    if all(form is None for form in forms):
        odd.append(f"the header states no orientation; taken as {image.stored_orientation}")
    elif geometry.is_none(affine):
        odd.append(
            "the affine states no geometry (cubes of 1 mm from 0 on): left and right, ml and mm "
            "may be wrong"
        )
    if all(form is not None for form in forms) and not _same_axes(*forms):
        odd.append("qform and sform turn it differently; sform is followed")
    if (tilt := geometry.tilt(affine)) > geometry.TILT_DEGREES:
        odd.append(
            f"its axes are sheared by {tilt:.0f} degrees (gantry tilt?); slices are cut along "
            "them, not at right angles"
        )
    if (turn := round(geometry.obliquity(affine), 1)) > geometry.OBLIQUE_DEGREES:
        odd.append(f"its axes are turned by {turn:.0f} degrees: its slices are not axial ones")
    return odd


def _same_axes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two affines call the axes the same."""
    return nib.aff2axcodes(a) == nib.aff2axcodes(b)


def label_doubts(image: Volume, label: Volume) -> list[str]:
    """Whether a usable label lies slightly off its image (see `problems_of`)."""
    distance = beside(image, label)
    if distance * max(image.spacing) <= MOVED_MM:
        return []
    return [f"the label's affine differs from its image's by {distance:.2g} voxels; it is used"]


def side_doubts(image: Volume, foreground: np.ndarray) -> list[str]:
    """Whether the foreground, a mask of the canonical voxels, lies on the patient's right: a spleen
    should not."""
    body = image.voxels > AIR_HU
    if foreground.any() and body.any():
        x, middle = (float(np.argwhere(m.any((1, 2))).mean()) for m in (foreground, body))
        if x > middle:
            return ["the foreground lies on the patient's right: not a spleen, or a wrong header"]
    return []


def doubts(
    image: Volume,
    label: Volume,
    labels: Mapping[str, tuple[int, ...]],
    hu: bool = True,
    window: tuple[float, float] | None = HU_WINDOW,
) -> list[str]:
    """What is odd about an image with its label, but may be intended: the spleen's side, too.

    `labels` are the values of each class. Without `hu` the image is not a CT. `window` is as in
    `image_doubts`.
    """
    each = [np.isin(label.voxels, values) for values in labels.values()]
    odd = [] if any(foreground.any() for foreground in each) else ["the label is empty"]
    odd += label_doubts(image, label) + image_doubts(image, hu, window)
    left = on_the_left([*labels]) if hu else None
    return odd + (side_doubts(image, each[left - 1]) if left else [])
