"""Measures of a whole CT's mask: volume, length and scores of each class, also in words."""

import numpy as np
from scipy import ndimage

from common.dataset.geometry import between_planes, voxel_ml
from common.evaluation.metrics import TITLES, number, over_classes, overlap_scores
from common.evaluation.surface_distances import surface_scores

# The columns of volumes.csv; without a truth the scores are empty.
COLUMNS = ("volume", "class", "volume_ml", "length_mm", "slices_with_class", *TITLES, "doubts")


def largest_components(mask: np.ndarray, classes: int) -> np.ndarray:
    """The largest connected part (by faces, edges or corners) of each class in a mask of class
    indices."""
    kept = np.zeros_like(mask)
    for class_name in range(1, classes + 1):
        parts, count = ndimage.label(mask == class_name, np.ones((3,) * mask.ndim))
        if count:
            kept[parts == np.bincount(parts.flat)[1:].argmax() + 1] = class_name
    return kept


def findings(
    mask: np.ndarray, truth: np.ndarray | None, spacing, classes: list[str], affine=None
) -> dict:
    """For a mask of class indices: its slices, each class's measures (see `measures`) and, with a
    truth, its scores and their means over the classes (else None)."""
    each, steps = {}, spacing if affine is None else affine[:3, :3]
    for value, class_name in enumerate(classes, start=1):
        of_class = mask == value
        scores = None if truth is None else volume_scores(of_class, truth == value, steps)
        each[class_name] = {**measures(of_class, spacing, affine), "scores": scores}
    means = None
    if truth is not None:
        means = over_classes({class_name: row["scores"] for class_name, row in each.items()})
    return {"slices": mask.shape[2], "per_class": each, "scores": means}


def measures(
    mask: np.ndarray, spacing: tuple[float, float, float], affine: np.ndarray | None = None
) -> dict:
    """For a mask in canonical orientation, spacing in mm: the slices with foreground, its volume in
    ml, and its craniocaudal length in mm, from its lowest slice to its highest.

    Where the axes are not at right angles `affine`, from the voxels to mm, gives both: |det| of it
    a voxel's volume, the distance of its planes the slices'.
    """
    affine = np.diag([*spacing, 1]) if affine is None else affine
    present = np.flatnonzero(mask.any((0, 1)))
    between = float(between_planes(affine)[2])
    return {
        "slices_with_class": len(present),
        "volume_ml": float(np.count_nonzero(mask) * voxel_ml(affine)),
        "length_mm": float((present[-1] - present[0] + 1) * between) if len(present) else 0.0,
    }


def volume_scores(mask: np.ndarray, truth: np.ndarray, spacing) -> dict:
    """Overlap and surface scores of a bool mask in the CT's own voxels (see `surface_scores`)."""
    counts = (np.count_nonzero(a) for a in (mask & truth, mask, truth))
    return {**overlap_scores(*counts), **surface_scores(mask, truth, spacing)}


def rows(about: dict) -> list[dict]:
    """A table's row for each class of a volume: its name, measures and scores, if there are any."""
    named = {"volume": about["volume"], "doubts": "; ".join(about["doubts"])}
    of_classes = [
        named | {"class": k} | row | (row["scores"] or {}) for k, row in about["per_class"].items()
    ]
    return [{column: row.get(column) for column in COLUMNS} for row in of_classes]


def in_words(about: dict) -> str:
    """`spleen_8: spleen 115.8 ml, 98 mm long, in 12 of 32 slices`, and the scores if there are.

    For several classes, their volumes.
    """
    each = about["per_class"]
    volumes = {
        class_name: f"{class_name} {row['volume_ml']:.1f} ml" for class_name, row in each.items()
    }
    if len(each) == 1:
        (class_name, row), mean = *each.items(), ""
        parts = (
            f"{volumes[class_name]}, {row['length_mm']:.0f} mm long, "
            f"in {row['slices_with_class']} of {about['slices']} slices"
        )
    else:
        seen, mean = [o for o, row in each.items() if row["slices_with_class"]], "mean "
        parts = ", ".join(volumes[class_name] for class_name in seen) or "nothing"
    text = f"{about['volume']}: {parts}"
    if scores := about["scores"]:
        text += f"; {mean}Dice {number(scores['dice'])}, HD95 {number(scores['hd95_mm'])} mm"
    return "; ".join([text, *about["doubts"]])
