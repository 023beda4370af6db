"""The tables and figures of a study's runs."""

from pathlib import Path

import numpy as np
import torch

from common.dataset.slices import SliceSet
from common.errors import UserError
from common.evaluation import embedding, figures
from common.evaluation.comparison import by_patient, dice_interval, is_summary
from common.evaluation.error_types import error_pixels, error_shares, of_each_class, repaired_pixels
from common.evaluation.metrics import count, overlap_scores
from common.files import read_csv, read_json, shown
from common.study import charts
from common.study.tables import write_study

PICTURES = (
    *("gains", "patients", "curves", "terms", "cost", "errors", "repairs", "embedding", "labels"),
    "comparison",
)


def add_up(
    folder: Path,
    runs: dict[str, dict[tuple, Path]],
    bases: dict[str, str],
    data: SliceSet,
    points: dict[str, tuple[str, int]] | None = None,
    kind: tuple[str, str] = ("test", "best"),
) -> str:
    """Write a study's tables and figures into `folder`; returns table.md.

    `runs` holds each model's scored run folders by (fold, seed); `bases` names for some models the
    one that they are compared with; `points` puts some on a line of labels.png: (line, percent).
    Figures: gains.png (intervals), patients.png (each patient before and after), cost.png (Dice
    against parameters and latency), curves.png, terms.png (the distilled models' losses),
    errors.png (kinds of errors), repairs.png (errors fixed and introduced relative to its
    base), embedding.png (the last features, first runs), labels.png (Dice against labels),
    comparison.png (masks of the first run of each model on its best, median and worst patient).
    `kind` is the subset and the weights that all runs must have been scored with, or UserError.
    """
    summaries = {m: {k: _scored(r, kind) for k, r in each.items()} for m, each in runs.items()}
    gains = write_study(folder, summaries, bases)
    for name in PICTURES:  # a smaller study leaves no picture of a larger one behind
        (folder / f"{name}.png").unlink(missing_ok=True)
    results = {model: list(each.values()) for model, each in summaries.items()}
    first = {model: next(iter(each.values())) for model, each in runs.items()}
    if gains:
        charts.gains(folder / "gains.png", {m: (bases[m], gained) for m, gained in gains.items()})
        pairs = {(bases[m], m): [by_patient(results[x]) for x in (bases[m], m)] for m in gains}
        charts.patients(folder / "patients.png", pairs)
    _draw_trainings(folder, runs, [*gains])
    charts.cost(folder / "cost.png", {m: _cost(each) for m, each in results.items()})
    _draw_errors(folder, runs, {m: bases[m] for m in gains}, data)
    _draw_embedding(folder / "embedding.png", first)
    if points:
        _draw_labels(folder / "labels.png", summaries, points)
    judges = [next(iter(summaries[model].values())) for model in [*gains] or [*runs]]
    _compare_masks(folder / "comparison.png", first, by_patient(judges), data)
    return (folder / "table.md").read_text(encoding="utf-8")


def _draw_trainings(folder: Path, runs: dict[str, dict], compared: list[str]) -> None:
    """curves.png, and terms.png of those `compared` models that have more than one loss."""
    logs = {m: [read_csv(r / "log.csv") for r in folders.values()] for m, folders in runs.items()}
    charts.curves(folder / "curves.png", logs)
    distilled = {m: logs[m] for m in compared if len(figures.losses(logs[m][0][0])) > 1}
    if distilled:
        charts.terms(folder / "terms.png", distilled)


def _draw_embedding(path: Path, runs: dict[str, Path]) -> None:
    """embedding.png of the runs that have features.npz."""
    drawn = {m: r / "features.npz" for m, r in runs.items() if (r / "features.npz").exists()}
    for model in (m for m in runs if m not in drawn):
        print(f"{shown(runs[model])} has no features.npz: {model} is not in {path.name}")
    if drawn:
        charts.embeddings(path, {m: embedding.load(file) for m, file in drawn.items()})


def _draw_labels(path: Path, results: dict[str, dict], points: dict[str, tuple]) -> None:
    """labels.png from (line, percent) of each model."""
    curves: dict[str, dict[int, tuple]] = {}
    for model, (line, percent) in points.items():
        if values := dice_interval(results[model]):
            curves.setdefault(line, {})[percent] = values
    charts.labels(path, curves)


def _draw_errors(folder: Path, runs: dict[str, dict], bases: dict[str, str], data) -> None:
    """errors.png of all models, repairs.png of those with a base."""

    def shares(count_errors, *models: str) -> dict[str, float]:
        """What `count_errors(truth, mask of each model)` finds, over the runs of all models."""
        rows = []
        for key in runs[models[0]]:
            folders = [runs[model][key] for model in models]
            for s in data.of(read_json(folders[0] / "inference.json")["cases"]):
                truth, masks = data.truth(s), (data.prediction(run, s) for run in folders)
                errors = of_each_class(count_errors, len(data.classes), truth, *masks)
                rows.append((data.patients[s.case], int((truth > 0).sum()), errors))
        return error_shares(rows)

    alone = {m: shares(lambda truth, mask: error_pixels(mask, truth), m) for m in runs}
    charts.errors(folder / "errors.png", alone)
    pairs = {
        model: (
            base,
            shares(lambda truth, after, before: repaired_pixels(before, after, truth), model, base),
            shares(lambda truth, after, before: repaired_pixels(after, before, truth), model, base),
        )
        for model, base in bases.items()
        if runs[model].keys() == runs[base].keys()
    }
    if pairs:
        charts.repairs(folder / "repairs.png", pairs)


def _scored(run: Path, kind: tuple[str, str]) -> dict:
    """A run's summary."""
    result = read_json(run / "summary.json")
    if not is_summary(result):
        raise UserError(f"{shown(run)} was scored by another version; run metrics.py there again.")
    if (result["subset"], result["weights"]) != kind:
        raise UserError(
            f"{shown(run)} was last scored on {result['subset']} patients, of the "
            f"{result['weights']} epoch; remove its inference.json and summary.json, and run "
            "this again."
        )
    return result


def _cost(results: list[dict]) -> dict:
    """A model's mean Dice over patients, its parameters, its median latency."""
    defined = [dice for dice in by_patient(results).values() if dice is not None]
    return {
        "dice": float(np.mean(defined)) if defined else 0.0,
        "parameters": results[0]["parameters"],
        "latency_ms": float(np.median([result["latency_ms"] for result in results])),
    }


def _compare_masks(path: Path, runs: dict[str, Path], dice: dict, data: SliceSet) -> None:
    """The patients with the highest, the median and the lowest of `dice` (mean of the distilled
    students over all slices), each at the slice where the true class is largest."""
    order = sorted((c for c in dice if dice[c] is not None), key=dice.get, reverse=True)
    if not order:
        print("no test patient shows foreground: no comparison figure")
        return
    seen = {case for run in runs.values() for case in read_json(run / "inference.json")["cases"]}
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    rows = []
    for place, title in places.items():
        of_patient = [s for s in data.of(seen) if data.patients[s.case] == order[place]]
        best = max(of_patient, key=lambda s: s.foreground)
        truth = data.truth(best)
        masks = {m: data.prediction(run, best) for m, run in runs.items()}
        row = {
            "title": f"{title} patient,\nmean Dice {dice[order[place]]:.3f}\n{best.name}",
            "image": data.image(best),
            "truth": truth,
            "masks": masks,
            "dice": {m: slice_dice(mask, truth, len(data.classes)) for m, mask in masks.items()},
        }
        rows.append(row)
    figures.comparison(path, rows, list(runs), figures.legend(data.classes, data.colours))


def slice_dice(mask: np.ndarray, truth: np.ndarray, classes: int = 1) -> float:
    """Dice of one slice, mean over the classes that either mask shows; 1 if both are empty."""
    counts = count(*(torch.from_numpy(m)[None] for m in (mask, truth)), classes)[0].tolist()
    defined = [d for row in counts if (d := overlap_scores(*row)["dice"]) is not None]
    return float(np.mean(defined)) if defined else 1.0
