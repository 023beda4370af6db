"""How well a network's last features separate foreground, border and background: a plot and a
number."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from common.dataset.loading import seeded
from common.files import atomic
from common.losses.contrastive import features_at, pixel_classes, sample_pixels

CLASSES = ("background", "foreground", "border")


class Embedding(NamedTuple):
    """Feature vectors `(M, c)` of drawn pixels, their class (of `CLASSES`) and patient, `(M,)`."""

    features: np.ndarray
    kinds: np.ndarray
    patients: np.ndarray


def draw(features: Tensor, batch: dict, pixels: int = 8) -> Embedding | None:
    """Some pixels of each class from each slice of a batch that shows foreground; None if none
    does.

    `features` `(N, c, h, w)`. The draw depends on the slice's name alone: every network is sampled
    in the same places.
    """
    samples = []
    for feature, mask, name, patient in zip(
        features, batch["mask"], batch["name"], batch["patient"], strict=True
    ):
        if not mask.any():
            continue
        kinds = pixel_classes((mask > 0).long()[None], 2).cpu()
        with seeded(zlib.crc32(name.encode())):
            places = sample_pixels(kinds, len(CLASSES), pixels)
        real = places.classes >= 0
        at = places.positions[real].to(feature.device)
        vectors = features_at(feature[None], at, tuple(kinds.shape[-2:])).float().cpu().numpy()
        patients = np.full(len(vectors), patient)
        samples.append(Embedding(vectors, places.classes[real].numpy(), patients))
    return join(samples)


def join(parts: list[Embedding]) -> Embedding | None:
    """Several draws joined; None for none."""
    return Embedding(*map(np.concatenate, zip(*parts, strict=True))) if parts else None


def save(path: Path, drawn: Embedding) -> None:
    """Write it as a NumPy archive of half-precision features, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        half = drawn.features.astype(np.float16)
        np.savez_compressed(file, features=half, kinds=drawn.kinds, patients=drawn.patients)


def load(path: Path) -> Embedding:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as held:
        return Embedding(held["features"].astype(np.float32), held["kinds"], held["patients"])


def plane(drawn: Embedding) -> np.ndarray:
    """The two directions of largest spread (principal components) of standardised features,
    `(M, 2)`; foreground lies on the right and the border above, so that planes can be compared."""
    x = standard(drawn.features, drawn.features)
    _, directions = np.linalg.eigh(x.T @ x)  # in order of increasing spread
    x = x @ directions[:, :-3:-1]
    for axis, kind in enumerate((1, 2)):
        values, rest = (x[drawn.kinds == k, axis] for k in (kind, 0))
        if len(values) and len(rest) and values.mean() < rest.mean():
            x[:, axis] *= -1
    return x


def standard(features: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Features with mean 0 and spread 1 per channel, by the mean and spread of `of`."""
    return (features - of.mean(0)) / (of.std(0) + 1e-6)


def separation(drawn: Embedding) -> float:
    """Fraction of pixels nearest to their own class's mean: a patient's pixels by the means of all
    others.

    Mean over the classes, so chance is 1/3; in the full space of standardised features. NaN if a
    patient's others do not show every class.
    """
    right = np.zeros(len(drawn.kinds), dtype=bool)
    for patient in np.unique(drawn.patients):
        own = drawn.patients == patient
        others = drawn.features[~own]
        if len(np.unique(drawn.kinds[~own])) < len(CLASSES):
            return float("nan")
        reference, x = standard(others, others), standard(drawn.features[own], others)
        means = np.stack([reference[drawn.kinds[~own] == k].mean(0) for k in range(len(CLASSES))])
        nearest = np.linalg.norm(x[:, None] - means, axis=2).argmin(1)
        right[own] = nearest == drawn.kinds[own]
    return float(np.mean([right[drawn.kinds == k].mean() for k in range(len(CLASSES))]))
