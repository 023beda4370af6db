"""Segmentation scores, per patient first, pooled over slices as second column.

Overlap scores come from counts of pixels, never from means of batch means. Of a patient (or the
pool) with truth T and prediction P:

    Dice = 2 |P & T| / (|P| + |T|)      IoU       = |P & T| / |P | T|
    recall = |P & T| / |T|              precision = |P & T| / |P|

A missed organ has Dice 0; so has one that is predicted where there is none. Where neither has a
pixel, the scores are undefined (None): such cases are left out of the mean and counted. A patient's
score is the mean over the organs where it is defined; each organ's own is kept beside it.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from common.evaluation.surface_distances import SURFACE_SCORES

SCORES = ("dice", "iou", "recall", "precision")
TITLES = {s: s.replace("dice", "Dice").replace("iou", "IoU") for s in SCORES} | SURFACE_SCORES
PIXELS = ("overlap_pixels", "predicted_pixels", "true_pixels")


def count(prediction: Tensor, truth: Tensor, organs: int = 1) -> Tensor:
    """Pixels of each organ in class indices `(N, H, W)`: int64 `(N, organs, 3)`, as in PIXELS."""
    masks = [(prediction == k, truth == k) for k in range(1, organs + 1)]
    found = [torch.stack([p & t, p, t], dim=1).sum((2, 3)) for p, t in masks]
    return torch.stack(found, dim=1)


def overlap_scores(overlap: int, predicted: int, true: int) -> dict[str, float | None]:
    """Dice, IoU, recall and precision from three counts.

    A missed organ is 0 in all four, precision included: left out, the misses would raise its
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
    organs: list[str],
    surfaces: dict | None = None,
    patients: dict[str, str] | None = None,
) -> dict[str, dict]:
    """Counts and scores of each case, sorted, from its slices' counts `(slices, organs, 3)`.

    `surfaces` may hold surface scores by case and organ, `patients` whose the case is, where a
    patient has several. A row holds the means over the organs, and each one's own under `organs`.
    """
    cases, counts = np.asarray(list(cases)), np.asarray(counts, dtype=np.int64)
    several = any(patients[case] != case for case in cases) if patients else False
    rows = {}
    for case in map(str, np.unique(cases)):
        mine = cases == case
        each = {
            organ: {
                **dict(zip(PIXELS, pixels, strict=True)),
                **overlap_scores(*pixels),
                **(surfaces or {}).get(case, {}).get(organ, {}),
            }
            for organ, pixels in zip(organs, counts[mine].sum(0).tolist(), strict=True)
        }
        rows[case] = {"slices": int(mine.sum()), **over_organs(each), "organs": each}
        if several:
            rows[case]["patient"] = patients[case]
    return rows


def of_patients(
    rows: Iterable[tuple[str, dict]], score: str, organ: str | None = None
) -> dict[str, float | None]:
    """Each patient's mean score over its rows (case, row); None where it is undefined in all.

    The score is an organ's, or the mean over the organs.
    """
    values: dict[str, list[float]] = {}
    for case, row in rows:
        known = values.setdefault(row.get("patient", case), [])
        value = (row["organs"][organ] if organ else row)[score]
        if value is not None:
            known.append(value)
    return {patient: float(np.mean(v)) if v else None for patient, v in sorted(values.items())}


def over_organs(each: dict[str, dict]) -> dict[str, float | None]:
    """The mean of each score over the organs whose rows these are."""
    scores = [name for name in next(iter(each.values())) if name not in PIXELS]
    return {s: mean_and_spread(row[s] for row in each.values())["mean"] for s in scores}


def pool(rows: Iterable[dict], organs: list[str]) -> dict[str, dict]:
    """Each organ's overlap scores of the pixels of all rows together."""
    each = [row["organs"] for row in rows]
    counts = {o: [sum(row[o][name] for row in each) for name in PIXELS] for o in organs}
    return {organ: overlap_scores(*found) for organ, found in counts.items()}


def mean_and_spread(values: Iterable[float | None]) -> dict:
    """Mean, standard deviation (n - 1; None for one value), count, and how many were undefined."""
    values = list(values)
    known = np.array([v for v in values if v is not None], dtype=float)
    return {
        "mean": float(known.mean()) if known.size else None,
        "std": float(known.std(ddof=1)) if known.size > 1 else None,
        "n": int(known.size),
        "undefined": len(values) - int(known.size),
    }


def summary(
    cases: list[str], counts: np.ndarray, organs: list[str], patients: dict | None = None
) -> dict:
    """Both views of a set of slices: `per_patient` (mean, std, n) and `pooled` for each score.

    `counts` `(slices, organs, 3)`. Means over the organs; the same of each under `organs`.
    """
    each = per_case(cases, counts, organs, patients=patients)
    return {**per_patient_and_pooled(each, organs), "slices": len(cases)}


def per_patient_and_pooled(
    each: dict[str, dict], organs: list[str], scores: Iterable[str] = SCORES
) -> dict:
    """`per_patient` of these scores and `pooled` of rows by case, and each organ's own."""

    def means(organ: str | None = None) -> dict[str, dict]:
        found = {s: of_patients(each.items(), s, organ).values() for s in scores}
        return {s: mean_and_spread(values) for s, values in found.items()}

    pools = pool(each.values(), organs)
    own = {organ: {"per_patient": means(organ), "pooled": pools[organ]} for organ in organs}
    return {"per_patient": means(), "pooled": over_organs(pools), "organs": own}


def each_of_several(found: dict) -> dict[str, dict]:
    """The organs of a case's row or of a summary; none where one organ's scores are the whole's."""
    return found["organs"] if len(found["organs"]) > 1 else {}


def number(value: float | None) -> str:
    """Three decimals, or a dash where a score is undefined."""
    return "-" if value is None else f"{value:.3f}"


def with_spread(score: dict) -> str:
    """`0.812 +- 0.034`: mean and standard deviation over patients."""
    spread = "" if score["std"] is None else f" +- {score['std']:.3f}"
    return number(score["mean"]) + spread
