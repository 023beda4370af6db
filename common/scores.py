"""Segmentation and reconstruction scores, per patient first, pooled over slices as second column.

Overlap scores come from counts of pixels, never from means of batch means. Of a patient (or the
pool) with truth T and prediction P:

    Dice = 2 |P & T| / (|P| + |T|)      IoU       = |P & T| / |P | T|
    recall = |P & T| / |T|              precision = |P & T| / |P|

A missed organ has Dice 0; so has one that is predicted where there is none. Where neither has a
pixel, the scores are undefined (None): such cases are left out of the mean and counted.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.files import UserError, bullets, read_json, shown, write_csv, write_json
from common.settings import DATA
from common.slices import Slice, SliceSet, read_mask, read_set
from common.surfaces import SURFACE_SCORES, surface_scores
from common.views import stack

SCORES = ("dice", "iou", "recall", "precision")


def predicted(logits: Tensor) -> Tensor:
    """Logits `(N, C, H, W)` -> class indices `(N, H, W)`; one channel: probability above 0.5."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def count(prediction: Tensor, truth: Tensor, organ: int = 1) -> Tensor:
    """One class's pixels in class indices `(N, H, W)`: overlap, predicted, true, int64 `(N, 3)`."""
    p, t = prediction == organ, truth == organ
    return torch.stack([(p & t).sum((1, 2)), p.sum((1, 2)), t.sum((1, 2))], dim=-1)


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


def per_case(cases: Iterable[str], counts: np.ndarray) -> dict[str, dict]:
    """Pixel counts and scores of each case from its slices' counts `(slices, 3)`, sorted."""
    cases, counts = np.asarray(list(cases)), np.asarray(counts, dtype=np.int64).reshape(-1, 3)
    rows = {}
    for case in np.unique(cases):
        mine = cases == case
        pixels = counts[mine].sum(0).tolist()
        names = ("overlap_pixels", "predicted_pixels", "true_pixels")
        rows[str(case)] = {
            "slices": int(mine.sum()),
            **dict(zip(names, pixels, strict=True)),
            **overlap_scores(*pixels),
        }
    return rows


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


def summary(cases: list[str], counts: np.ndarray) -> dict:
    """Both views of a set of slices: `per_patient` (mean, std, n) and `pooled` for each score."""
    each = per_case(cases, counts)
    totals = np.asarray(counts, dtype=np.int64).reshape(-1, 3).sum(0).tolist()
    return {
        "per_patient": {s: mean_and_spread(row[s] for row in each.values()) for s in SCORES},
        "pooled": overlap_scores(*totals),
        "slices": len(cases),
    }


def mse(image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error per image of `(N, c, H, W)` in 0..1 -> `(N,)`."""
    return (image - reference).square().mean((1, 2, 3))


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1, per image; equal images give 100."""
    return -10 * mse(image, reference).clamp(min=1e-10).log10()


def ssim(image: Tensor, reference: Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity per image of `(N, c, H, W)` in 0..1 (Wang et al., 2004) -> `(N,)`.

    The paper's form: an 11x11 Gaussian window, constants 0.01 and 0.03, means over all places
    where the window lies inside the image.
    """
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    bell = torch.exp(-(offsets**2) / (2 * sigma**2))
    bell = (bell / bell.sum()).to(image)
    channels = image.shape[1]

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(image), blur(reference)
    var_a = blur(image * image) - mean_a**2
    var_b = blur(reference * reference) - mean_b**2
    covariance = blur(image * reference) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return (top / bottom).mean((1, 2, 3))


def data_of(folder: Path, given: Path | None) -> SliceSet:
    """The data set that a run is scored on: the one given, else the one its inference read."""
    done = read_json(folder / "inference.json", "Run inference.py first.")
    return read_set(given or Path(done.get("data", DATA)), "Name it with --data.")


def score_run(folder: Path, data: SliceSet) -> dict:
    """Score a run's predictions/ against the data set's masks, paired by name.

    Writes metrics_per_case.csv and summary.json into the run folder and returns the summary:
    `subset`, `weights` (best or last), `cases` (counts and scores a patient), `per_patient`,
    `pooled`, `parameters`, `epoch`, `latency_ms`. Of volumes also the distances of surfaces in mm
    (a missed organ: the diagonal of the stack of squares).
    UserError if inference has not finished, or naming every slice whose partner is missing.
    """
    done = read_json(folder / "inference.json", "Run inference.py first.")
    slices = data.of(done["cases"])
    expected = {s.name for s in slices}
    present = {path.stem for path in (folder / "predictions").glob("*.png")}
    problems = [f"{name}: predicted, not in the data set" for name in sorted(present - expected)]
    problems += [f"{name}: in the data set, not predicted" for name in sorted(expected - present)]
    if problems:
        raise UserError(
            f"{shown(folder / 'predictions')} and {shown(data.folder)} do not hold the same "
            f"slices: name another --data, or run inference.py again.{bullets(problems)}"
        )
    cases, counts, surfaces = [], [], {}
    for case in dict.fromkeys(s.case for s in slices):
        mine = [s for s in slices if s.case == case]
        prediction, truth = (
            [read_mask(parent / f"{s.name}.png", data.classes) for s in mine]
            for parent in (folder / "predictions", data.folder / "masks")
        )
        for s, *pair in zip(mine, prediction, truth, strict=True):
            if pair[0].shape != pair[1].shape:
                raise UserError(f"{s.name}.png: prediction and truth differ in size; predict again")
            counts.append(count(*(torch.from_numpy(m)[None] for m in pair)))
        cases += [case] * len(mine)
        if spacing := spacing_of(case, mine, data):
            surfaces[case] = surface_scores(np.stack(prediction), np.stack(truth), spacing)
    table = torch.cat(counts).numpy()
    each, whole = per_case(cases, table), summary(cases, table)
    for case, row in each.items() if surfaces else ():
        row |= surfaces.get(case, dict.fromkeys(SURFACE_SCORES))
    if len(surfaces) == len(each):
        distances = {s: mean_and_spread(row[s] for row in each.values()) for s in SURFACE_SCORES}
        whole["per_patient"] |= distances
    result = {
        "stage": folder.parents[1].name,
        "run": folder.name,
        "subset": done["subset"],
        "weights": done["weights"],
        "parameters": done["parameters"],
        "epoch": done["epoch"],
        "latency_ms": done["latency_ms"],
        **whole,
        "cases": each,
    }
    write_csv(folder / "metrics_per_case.csv", [{"case": c, **row} for c, row in each.items()])
    write_json(folder / "summary.json", result)
    return result


def spacing_of(case: str, slices: list[Slice], data: SliceSet) -> tuple | None:
    """The size of a patient's voxels in mm: between slices, and of their pixels, twice.

    None if the slices are not all of a volume whose geometry dataset.json knows. UserError if that
    geometry is broken.
    """
    geometry = data.info.get("cases", {}).get(case)
    if geometry is None:
        return None
    try:
        count, spacing = stack(geometry, data.size)
    except (KeyError, ValueError, IndexError, TypeError):
        raise UserError(
            f"{shown(data.folder / 'dataset.json')}: the geometry of {case} is broken."
        ) from None
    return spacing if [s.index for s in slices] == [*range(count)] else None


def table(result: dict) -> str:
    """A summary as text: a line a score, per patient mean and spread, and pooled."""
    patients = len(result["cases"])
    title = (
        f"{result['stage']} ({result['run']}): {patients} {result['subset']} patients, "
        f"{result['slices']} slices, {result['weights']} epoch, {result['parameters']:,} parameters"
    )
    lines = [title, f"{'':<10} {'per patient':>16} {'pooled':>8}"]
    for score in SCORES:
        mean, pooled = result["per_patient"][score], result["pooled"][score]
        lines.append(f"{score:<10} {with_spread(mean):>16} {number(pooled):>8}")
    for score, title in SURFACE_SCORES.items():
        if score in result["per_patient"]:
            lines.append(f"{title:<10} {with_spread(result['per_patient'][score]):>16}")
    if missing := result["per_patient"]["dice"]["undefined"]:
        lines.append(f"{missing} patients without organ and without prediction are left out")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three decimals, or a dash where a score is undefined."""
    return "-" if value is None else f"{value:.3f}"


def with_spread(score: dict) -> str:
    """`0.812 +- 0.034`: mean and standard deviation over patients."""
    spread = "" if score["std"] is None else f" +- {score['std']:.3f}"
    return number(score["mean"]) + spread
