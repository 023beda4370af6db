"""What the runs of a study add up to: its tables and figures."""

from pathlib import Path

import numpy as np

from common import charts, figures
from common.files import UserError, read_csv, read_json, shown
from common.scores import overlap_scores
from common.slices import SliceSet, read_image, read_mask
from common.statistics import by_patient
from common.tables import write_study

PICTURES = ("gains", "patients", "curves", "cost", "comparison")


def add_up(
    folder: Path, runs: dict[str, dict[tuple, Path]], bases: dict[str, str], data: SliceSet
) -> str:
    """Write a study's tables and figures into `folder`; returns table.md.

    `runs` holds each model's scored run folders by (fold, seed); `bases` names for some models the
    one that they are compared with. Figures: gains.png (intervals), patients.png (each patient
    before and after), cost.png (Dice against parameters and latency), curves.png, comparison.png
    (masks of the first run of each model on its best, median and worst test patient).
    UserError if a run was scored on other than test patients.
    """
    summaries = {m: {k: _tested(r) for k, r in found.items()} for m, found in runs.items()}
    gains = write_study(folder, summaries, bases)
    for name in PICTURES:  # a smaller study leaves no picture of a larger one behind
        (folder / f"{name}.png").unlink(missing_ok=True)
    results = {model: list(found.values()) for model, found in summaries.items()}
    if gains:
        charts.gains(folder / "gains.png", {m: (bases[m], found) for m, found in gains.items()})
        pairs = {(bases[m], m): [by_patient(results[x]) for x in (bases[m], m)] for m in gains}
        charts.patients(folder / "patients.png", pairs)
    logs = {m: [read_csv(r / "log.csv") for r in found.values()] for m, found in runs.items()}
    charts.curves(folder / "curves.png", logs)
    charts.cost(folder / "cost.png", {m: _cost(found) for m, found in results.items()})
    first = {model: next(iter(found.values())) for model, found in runs.items()}
    judges = [next(iter(summaries[model].values())) for model in [*gains] or [*runs]]
    _compare_masks(folder / "comparison.png", first, by_patient(judges), data)
    return (folder / "table.md").read_text(encoding="utf-8")


def _tested(run: Path) -> dict:
    """A run's summary."""
    result = read_json(run / "summary.json")
    if result["subset"] != "test":
        raise UserError(
            f"{shown(run)} was last scored on {result['subset']} patients; run inference.py and "
            f"metrics.py of {run.parents[1].name} with --name {run.name} again."
        )
    return result


def _cost(results: list[dict]) -> dict:
    """A model's mean Dice over patients, its parameters, its median latency."""
    known = [dice for dice in by_patient(results).values() if dice is not None]
    return {
        "dice": float(np.mean(known)) if known else 0.0,
        "parameters": results[0]["parameters"],
        "latency_ms": float(np.median([result["latency_ms"] for result in results])),
    }


def _compare_masks(path: Path, runs: dict[str, Path], dice: dict, data: SliceSet) -> None:
    """The patients with the highest, the median and the lowest of `dice` (mean of the distilled
    students over all slices), each at the slice where the true organ is largest."""
    order = sorted((c for c in dice if dice[c] is not None), key=dice.get, reverse=True)
    if not order:
        print("no test patient shows the organ: no comparison figure")
        return
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    rows = []
    for place, title in places.items():
        best = max(data.of([order[place]]), key=lambda s: s.foreground)
        file = f"{best.name}.png"
        truth = read_mask(data.folder / "masks" / file, data.classes)
        masks = {m: read_mask(r / "predictions" / file, data.classes) for m, r in runs.items()}
        row = {
            "title": f"{title} patient,\nmean Dice {dice[order[place]]:.3f}\n{best.name}",
            "image": read_image(data.folder / "images" / file),
            "truth": truth,
            "masks": masks,
            "dice": {model: slice_dice(mask, truth) for model, mask in masks.items()},
        }
        rows.append(row)
    figures.comparison(path, rows, list(runs))


def slice_dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one slice; 1 if both are empty."""
    counts = int(((mask > 0) & (truth > 0)).sum()), int((mask > 0).sum()), int((truth > 0).sum())
    dice = overlap_scores(*counts)["dice"]
    return 1.0 if dice is None else dice
