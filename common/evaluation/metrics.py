"""Segmentation scores: per patient first, pooled over slices in a second column.

Overlap scores come from counts of pixels, never from means of batch means. Of a patient (or the
pool) with truth T and prediction P:

    Dice = 2 |P & T| / (|P| + |T|)      IoU       = |P & T| / |P | T|
    recall = |P & T| / |T|              precision = |P & T| / |P|

A missed class has Dice 0; so has one that is predicted where there is none. Where neither has a
pixel, the scores are undefined (None): such cases are left out of the mean and counted. A patient's
score is the mean over the classes where it is defined; each class's own score is kept as well.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from common.evaluation.surface_distances import SURFACE_SCORES

SCORES = ("dice", "iou", "recall", "precision")
TITLES = {s: s.replace("dice", "Dice").replace("iou", "IoU") for s in SCORES} | SURFACE_SCORES
PIXELS = ("overlap_pixels", "predicted_pixels", "true_pixels")


def count(prediction: Tensor, truth: Tensor, classes: int = 1) -> Tensor:
    """Pixels of each class in class indices `(N, H, W)`: int64 `(N, classes, 3)`, as in PIXELS."""
    masks = [(prediction == k, truth == k) for k in range(1, classes + 1)]
    counts = [torch.stack([p & t, p, t], dim=1).sum((2, 3)) for p, t in masks]
    return torch.stack(counts, dim=1)


def overlap_scores(overlap: int, predicted: int, true: int) -> dict[str, float | None]:
    """Dice, IoU, recall and precision from three counts.

    A missed class is 0 in all four, precision included: left out, the misses would raise its
    mean. Without truth recall is None; without truth and prediction all four are.
    """
    if not true and not predicted:
        return dict.fromkeys(SCORES)
    return {
        "dice": 2 * overlap / (predicted + true),
        "iou": overlap / (predicted + true - overlap),
        "recall": overlap / true if true else None,
        "precision": overlap / predicted if predicted else 0.0,
    }


def per_case(
    cases: Iterable[str],
    counts: np.ndarray,
    classes: list[str],
    surfaces: dict | None = None,
    patients: dict[str, str] | None = None,
) -> dict[str, dict]:
    """Counts and scores of each case, sorted, from its slices' counts `(slices, classes, 3)`.

    `surfaces` may hold surface scores by case and class, `patients` whose the case is, where a
    patient has several. A row holds the means over the classes, and each one's own under
    `per_class`.
    """
    cases, counts = np.asarray(list(cases)), np.asarray(counts, dtype=np.int64)
    several = any(patients[case] != case for case in cases) if patients else False
    rows = {}
    for case in map(str, np.unique(cases)):
        of_case = cases == case
        each = {
            class_name: {
                **dict(zip(PIXELS, pixels, strict=True)),
                **overlap_scores(*pixels),
                **(surfaces or {}).get(case, {}).get(class_name, {}),
            }
            for class_name, pixels in zip(classes, counts[of_case].sum(0).tolist(), strict=True)
        }
        rows[case] = {"slices": int(of_case.sum()), **over_classes(each), "per_class": each}
        if several:
            rows[case]["patient"] = patients[case]
    return rows


def of_patients(
    rows: Iterable[tuple[str, dict]], score: str, class_name: str | None = None
) -> dict[str, float | None]:
    """Each patient's mean score over its rows (case, row); None where it is undefined in all.

    The score is a class's, or the mean over the classes.
    """
    values: dict[str, list[float]] = {}
    for case, row in rows:
        of_patient = values.setdefault(row.get("patient", case), [])
        value = (row["per_class"][class_name] if class_name else row)[score]
        if value is not None:
            of_patient.append(value)
    return {patient: float(np.mean(v)) if v else None for patient, v in sorted(values.items())}


def over_classes(each: dict[str, dict]) -> dict[str, float | None]:
    """The mean of each score over the classes whose rows these are."""
    scores = [name for name in next(iter(each.values())) if name not in PIXELS]
    return {s: mean_and_spread(row[s] for row in each.values())["mean"] for s in scores}


def pool(rows: Iterable[dict], classes: list[str]) -> dict[str, dict]:
    """Each class's overlap scores of the pixels of all rows together."""
    each = [row["per_class"] for row in rows]
    counts = {o: [sum(row[o][name] for row in each) for name in PIXELS] for o in classes}
    return {class_name: overlap_scores(*pixels) for class_name, pixels in counts.items()}


def mean_and_spread(values: Iterable[float | None]) -> dict:
    """Mean, standard deviation (n - 1; None for one value), count, and how many were undefined."""
    values = list(values)
    defined = np.array([v for v in values if v is not None], dtype=float)
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "std": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "n": int(defined.size),
        "undefined": len(values) - int(defined.size),
    }


def summary(
    cases: list[str], counts: np.ndarray, classes: list[str], patients: dict | None = None
) -> dict:
    """Both views of a set of slices: `per_patient` (mean, std, n) and `pooled` for each score.

    `counts` `(slices, classes, 3)`. Means over the classes; the same of each under `per_class`.
    """
    each = per_case(cases, counts, classes, patients=patients)
    return {**per_patient_and_pooled(each, classes), "slices": len(cases)}


def per_patient_and_pooled(
    each: dict[str, dict], classes: list[str], scores: Iterable[str] = SCORES
) -> dict:
    """`per_patient` of these scores and `pooled` of rows by case, and each class's own."""

    def means(class_name: str | None = None) -> dict[str, dict]:
        scores_of = {s: of_patients(each.items(), s, class_name).values() for s in scores}
        return {s: mean_and_spread(values) for s, values in scores_of.items()}

    pools = pool(each.values(), classes)
    own = {
        class_name: {"per_patient": means(class_name), "pooled": pools[class_name]}
        for class_name in classes
    }
    return {"per_patient": means(), "pooled": over_classes(pools), "per_class": own}


def each_of_several(summary: dict) -> dict[str, dict]:
    """The classes of a case's row or of a summary; none if there is only one class."""
    return summary["per_class"] if len(summary["per_class"]) > 1 else {}


def number(value: float | None) -> str:
    """Three decimals, or a dash where a score is undefined."""
    return "-" if value is None else f"{value:.3f}"


def with_spread(score: dict) -> str:
    """`0.812 +- 0.034`: mean and standard deviation over patients."""
    spread = "" if score["std"] is None else f" +- {score['std']:.3f}"
    return number(score["mean"]) + spread
