"""Segmentation scores, per patient first, pooled over slices as second column.

Overlap scores come from counts of pixels, never from means of batch means. Of a patient (or the
pool) with truth T and prediction P:

    Dice = 2 |P & T| / (|P| + |T|)      IoU       = |P & T| / |P | T|
    recall = |P & T| / |T|              precision = |P & T| / |P|

A missed organ has Dice 0; so has one that is predicted where there is none. Where neither has a
pixel, the scores are undefined (None): such cases are left out of the mean and counted. Of several
organs a patient's score is the mean over those where it is defined; each organ's own is kept.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import UserError, bullets, read_json, shown, write_csv, write_json
from common.settings import DATA
from common.slices import Slice, SliceSet, check_same_organs, read_mask, read_set
from common.surfaces import SURFACE_SCORES, surface_scores
from common.views import stack

SCORES = ("dice", "iou", "recall", "precision")
PIXELS = ("overlap_pixels", "predicted_pixels", "true_pixels")


def predicted(logits: Tensor) -> Tensor:
    """Logits `(N, C, H, W)` -> class indices `(N, H, W)`; one channel: probability above 0.5."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


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
    patient has several. See `over_organs` for the rows.
    """
    cases, counts = np.asarray(list(cases)), np.asarray(counts, dtype=np.int64)
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
        rows[case] = {"slices": int(mine.sum()), **over_organs(each)}
        if patients and patients[case] != case:
            rows[case]["patient"] = patients[case]
    return rows


def by_patient(rows: Iterable[tuple[str, dict]], score: str) -> dict[str, float | None]:
    """Each patient's mean score over its rows (case, row); None where it is undefined in all."""
    values: dict[str, list[float]] = {}
    for case, row in rows:
        known = values.setdefault(row.get("patient", case), [])
        if row[score] is not None:
            known.append(row[score])
    return {patient: float(np.mean(v)) if v else None for patient, v in sorted(values.items())}


def over_organs(each: dict[str, dict]) -> dict:
    """One organ's row is the whole; of several the mean of each score, and the rows as `organs`."""
    first, *others = each.values()
    if not others:
        return first
    scores = [name for name in first if name not in PIXELS]
    means = {s: mean_and_spread(row[s] for row in each.values())["mean"] for s in scores}
    return {**means, "organs": each}


def of_organ(row: dict, organ: str | None) -> dict:
    """An organ's part of a case's row; None: the whole row."""
    if not organ or "organs" not in row:
        return row
    return row["organs"][organ] | ({"patient": row["patient"]} if "patient" in row else {})


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

    `counts` `(slices, organs, 3)`. Of several organs the same of each under `organs`.
    """
    each = per_case(cases, counts, organs, patients=patients)
    return {**views(each, organs), "slices": len(cases)}


def views(each: dict[str, dict], organs: list[str], scores: Iterable[str] = SCORES) -> dict:
    """`per_patient` of these scores and `pooled` of rows by case; of several organs each's too."""
    pools = {}
    for organ in organs:
        rows = [of_organ(row, organ) for row in each.values()]
        pools[organ] = overlap_scores(*(sum(row[name] for row in rows) for name in PIXELS))
    whole = {"per_patient": _means(each, scores), "pooled": over_organs(pools)}
    if len(organs) == 1:
        return whole
    by_organ = {}
    for organ, pool in whole["pooled"].pop("organs").items():
        rows = {case: of_organ(row, organ) for case, row in each.items()}
        by_organ[organ] = {"per_patient": _means(rows, scores), "pooled": pool}
    return {**whole, "organs": by_organ}


def _means(rows: dict[str, dict], scores: Iterable[str]) -> dict[str, dict]:
    """Mean and spread of each score over the patients of rows by case."""
    return {s: mean_and_spread(by_patient(rows.items(), s).values()) for s in scores}


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
    check_same_organs(done.get("classes"), data, folder / "predictions")
    if Path(done.get("data", data.folder)).resolve() != data.folder.resolve():
        print(
            f"note: scored by {shown(data.folder)}; inference.py read {shown(Path(done['data']))}"
        )
    slices = data.of(done["cases"])
    check_partners(folder / "predictions", data, slices)
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
            counts.append(count(*(torch.from_numpy(m)[None] for m in pair), len(data.organs)))
        cases += [case] * len(mine)
        if spacing := spacing_of(case, mine, data):
            pair = np.stack(prediction), np.stack(truth)
            surfaces[case] = {
                organ: surface_scores(*(mask == k for mask in pair), spacing)
                for k, organ in enumerate(data.organs, start=1)
            }
    nothing = dict.fromkeys(data.organs, dict.fromkeys(SURFACE_SCORES)) if surfaces else {}
    distances = {case: surfaces.get(case, nothing) for case in cases}
    each = per_case(cases, torch.cat(counts).numpy(), data.organs, distances, data.patients)
    # A mean of distances over some patients alone would not be one of all.
    measured = (*SCORES, *SURFACE_SCORES) if len(surfaces) == len(each) else SCORES
    result = {
        "stage": folder.parents[1].name,
        "run": folder.name,
        "subset": done["subset"],
        "weights": done["weights"],
        "parameters": done["parameters"],
        "epoch": done["epoch"],
        "latency_ms": done["latency_ms"],
        "classes": data.organs,
        **views(each, data.organs, measured),
        "slices": len(slices),
        "cases": each,
    }
    write_csv(folder / "metrics_per_case.csv", [{"case": c, **flat(r)} for c, r in each.items()])
    write_json(folder / "summary.json", result)
    return result


def check_partners(folder: Path, data: SliceSet, slices: list[Slice]) -> None:
    """UserError naming every prediction without a slice, and every slice without a prediction."""
    expected = {s.name for s in slices}
    present = {path.stem for path in folder.glob("*.png")}
    problems = [f"{name}: predicted, not in the data set" for name in sorted(present - expected)]
    problems += [f"{name}: in the data set, not predicted" for name in sorted(expected - present)]
    if problems:
        raise UserError(
            f"{shown(folder)} and {shown(data.folder)} do not hold the same "
            f"slices: name another --data, or run inference.py again.{bullets(problems)}"
        )


def flat(row: dict) -> dict:
    """A case's row for a CSV: what it holds of an organ becomes columns `score organ`."""
    organs = row.get("organs", {})
    columns = {f"{k} {organ}": v for organ, scores in organs.items() for k, v in scores.items()}
    return {k: v for k, v in row.items() if k != "organs"} | columns


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
    patients = len({row.get("patient", case) for case, row in result["cases"].items()})
    title = (
        f"{result['stage']} ({result['run']}): {patients} {result['subset']} patients, "
        f"{result['slices']} slices, {result['weights']} epoch, {result['parameters']:,} parameters"
    )
    room = max(10, *map(len, result.get("organs", [""])))
    lines = [title, f"{'':<{room}} {'per patient':>16} {'pooled':>8}"]
    for score in SCORES:
        mean, pooled = result["per_patient"][score], result["pooled"][score]
        lines.append(f"{score:<{room}} {with_spread(mean):>16} {number(pooled):>8}")
    for score, title in SURFACE_SCORES.items():
        if score in result["per_patient"]:
            lines.append(f"{title:<{room}} {with_spread(result['per_patient'][score]):>16}")
    for organ, row in result.get("organs", {}).items():
        dice, pooled = row["per_patient"]["dice"], number(row["pooled"]["dice"])
        cells = f"{organ:<{room}} {with_spread(dice):>16} {pooled:>8}"
        lines.append(f"{cells}   Dice of {dice['n']} patients")
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
