"""The kinds of errors in a mask: an island where nothing is, a border in the wrong place, ...

Components are 8-connected. `KINDS` are in the order of the figures: false pixels, then missed ones.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

KINDS = ("false island", "beyond the border", "short of the border", "missed island")
TOUCHING = np.ones((3, 3), dtype=bool)


def untouched(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The components of a bool mask `(H, W)` that do not overlap `other`."""
    parts, count = ndimage.label(mask, TOUCHING)
    met = np.zeros(count + 1, dtype=bool)
    met[np.unique(parts[other])] = True
    return mask & ~met[parts]


def error_maps(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Where each kind of error lies on one slice: two masks `(H, W)` -> bool maps `(H, W)`.

    `false island`: predicted components that touch no class. `beyond the border`: other false
    pixels. `short of the border`: missed pixels of a class that is partly found. `missed island`:
    components of the class that are missed entirely.
    """
    predicted, truth = np.asarray(predicted) > 0, np.asarray(truth) > 0
    invented, missed = untouched(predicted, truth), untouched(truth, predicted)
    return {
        "false island": invented,
        "beyond the border": predicted & ~truth & ~invented,
        "short of the border": truth & ~predicted & ~missed,
        "missed island": missed,
    }


def error_pixels(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Pixels of each kind of error of one slice."""
    return {kind: int(where.sum()) for kind, where in error_maps(predicted, truth).items()}


def repaired_pixels(before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Pixels of each kind of error in the mask `before` that are right in `after`.

    With the masks exchanged: the errors that `after` introduces.
    """
    right = (np.asarray(after) > 0) == (np.asarray(truth) > 0)
    return {kind: int((where & right).sum()) for kind, where in error_maps(before, truth).items()}


def of_each_class(
    count: Callable[..., dict[str, int]], classes: int, *masks: np.ndarray
) -> dict[str, int]:
    """The sum of `count(*masks)` over the classes' masks in class indices `(H, W)`."""
    counts = [count(*(mask == k for mask in masks)) for k in range(1, classes + 1)]
    return {kind: sum(errors[kind] for errors in counts) for kind in KINDS}


def error_shares(rows: list[tuple[str, int, dict[str, int]]]) -> dict[str, float]:
    """Each kind of error in percent of the foreground pixels: per patient first, then the mean.

    A row is a slice: patient, true pixels, `error_pixels`. Patients without foreground do not
    count; the same slice may come from several runs.
    """
    truth: dict[str, int] = {}
    of_model: dict[str, dict[str, int]] = {}
    for case, pixels, errors in rows:
        truth[case] = truth.get(case, 0) + pixels
        sums = of_model.setdefault(case, dict.fromkeys(KINDS, 0))
        for kind in KINDS:
            sums[kind] += errors[kind]
    shown = [case for case in truth if truth[case]]
    return {
        kind: float(np.mean([100 * of_model[c][kind] / truth[c] for c in shown])) if shown else 0.0
        for kind in KINDS
    }
