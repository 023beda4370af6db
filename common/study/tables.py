"""Tables of a study, as Markdown to read and CSV to compute with."""

from pathlib import Path

from common.errors import UserError
from common.evaluation.comparison import by_patient, gain, in_words, pooled, seed_spread
from common.evaluation.intervals import LEAST, holm
from common.evaluation.metrics import (
    SCORES,
    TITLES,
    each_of_several,
    mean_and_spread,
    number,
    with_spread,
)
from common.evaluation.surface_distances import SURFACE_SCORES
from common.files import write_csv, write_text

# arXiv 2406.03173, pooled over slices of a random split by slice. Its released code distils
# nothing (docs/METHOD.md), so these are reference points, not results to reproduce to the digit.
THESIS = {
    "S1": {"iou": 0.557, "dice": 0.715, "recall": 0.685, "precision": 0.749},
    "S2": {"iou": 0.627, "dice": 0.770, "recall": 0.725, "precision": 0.822},
    "KD(T1,S1)": {"iou": 0.629, "dice": 0.772, "recall": 0.721, "precision": 0.831},
    "KD(T1,S2)": {"iou": 0.659, "dice": 0.794, "recall": 0.748, "precision": 0.846},
    "KD(T2,S1)": {"iou": 0.623, "dice": 0.767, "recall": 0.707, "precision": 0.839},
    "KD(T2,S2)": {"iou": 0.658, "dice": 0.793, "recall": 0.750, "precision": 0.841},
}

POOLED = "Pooled over all slices, as the thesis counts."
OTHERS = (
    " Its figures are of Task09, split by slice: other data, so compare the order of the models, "
    "not the digits."
)

SURFACES = (
    "Distances of the surfaces per patient, on the slices' own grid: a voxel is as large as a "
    "slice's pixel, and as high as the slices are apart. A missed class counts as the diagonal."
)

ONE_TRAINING = (
    " One training of each model: the interval holds the spread of the patients, not that of the "
    "trainings; more seeds show it."
)

TWO_TRAININGS = (
    " Two trainings of each model in one split are too few to estimate their spread: where it "
    "is large, the interval holds in 88 to 91 % of studies instead of 95 (docs/METHOD.md); a third "
    "seed helps."
)

CHANCES = ("p (Holm)", "Wilcoxon p")

EACH_CLASS = (
    "Dice of each class, mean +- standard deviation over the patients where it is true or found; "
    "gains in points over the patients where that holds for both models. A class that the base "
    "alone finds, where there is none, counts in the mean over classes only."
)


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows with equal keys as an aligned Markdown table."""
    head = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in head]
    cells = [head, ["-" * w for w in widths], *([row[name] for name in head] for row in rows)]
    lines = (" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells)
    return "".join(f"| {line} |\n" for line in lines)


def write_study(
    folder: Path, runs: dict[str, dict[tuple, dict]], bases: dict[str, str]
) -> dict[str, dict]:
    """table.md and table.csv of a study; returns the gains by model.

    `runs` holds each model's summaries by (fold, seed); `bases` names for some models the one that
    they are compared with. table.md has one part per patient, with the gains, and one pooled over
    slices, next to the thesis's figures. UserError if models to compare have different patients.
    """
    results = {model: list(each.values()) for model, each in runs.items()}
    for model, base in bases.items():
        if by_patient(results[model]).keys() != by_patient(results[base]).keys():
            raise UserError(f"{model} and {base} were scored on different patients.")
    gains = {model: gain(runs[model], runs[base]) for model, base in bases.items()}
    gains = {model: gained for model, gained in gains.items() if gained}
    corrected = holm({m: g["p"] for m, g in gains.items() if g["p"] is not None})
    gains = {model: {**g, "holm": corrected.get(model)} for model, g in gains.items()}
    # The thesis's figures are of the spleen.
    classes = next(iter(results.values()))[0]["classes"]
    comparable = THESIS.keys() & runs.keys() and classes == ["spleen"]
    patients, slices, records = [], [], []
    for model, each in results.items():
        means = {s: mean_and_spread(by_patient(each, s).values()) for s in SCORES}
        spread = seed_spread(runs[model], runs[bases[model]]) if model in bases else None
        pool, thesis = pooled(each), THESIS.get(model, {})
        patients.append(
            {
                "model": model,
                "parameters": f"{each[0]['parameters']:,}",
                **{TITLES[s]: with_spread(means[s]) for s in SCORES},
                **_gain_cells(gains.get(model), bases.get(model), spread),
            }
        )
        of_thesis = {f"{TITLES[s]} (thesis)": number(thesis.get(s)) for s in SCORES}
        measured = {TITLES[s]: number(pool[s]) for s in SCORES}
        slices.append({"model": model, **measured, **(of_thesis if comparable else {})})
        records.append(_record(model, each, means, pool, gains.get(model), spread))
    for column in (*CHANCES, "spread over seeds"):  # of few patients, of one seed
        if not any(row[column] for row in patients):
            patients = [{k: v for k, v in row.items() if k != column} for row in patients]
    write_csv(folder / "table.csv", records)
    note = POOLED + (OTHERS if comparable else "")
    text = f"{_about(runs)}\n\n{markdown(patients)}\n{note}\n\n{markdown(slices)}"
    if classes := _classes(runs, bases):
        text += f"\n{EACH_CLASS}\n\n{markdown(classes)}"
    if distances := _distances(results):
        text += f"\n{SURFACES}\n\n{markdown(distances)}"
    write_text(folder / "table.md", text)
    return gains


def _about(runs: dict[str, dict[tuple, dict]]) -> str:
    """A description of the first table."""
    keys = {key for of_model in runs.values() for key in of_model}
    folds = sorted({fold for fold, _ in keys if fold is not None})
    seeds = sorted({seed for _, seed in keys})
    results = [result for of_model in runs.values() for result in of_model.values()]
    cases = {row.get("patient", case) for r in results for case, row in r["cases"].items()}
    some = next(iter(next(iter(runs.values())).values()))
    caution = {1: ONE_TRAINING, 2: TWO_TRAININGS}.get(len(seeds), "")
    if len(folds) > 1 or len(cases) < LEAST:  # with too few patients there is no interval
        caution = ""
    where = f"folds {', '.join(map(str, folds))}" if folds else "one split"
    return (
        f"{len(cases)} {some['subset']} patients ({where}; seeds {', '.join(map(str, seeds))}; "
        f"{some['weights']} epoch). Mean +- standard deviation over patients, each averaged over "
        "its seeds first. Gain in Dice points, paired by patient and training: mean and, from six "
        "patients, its 95 % CI, with patients, trainings and folds as random effects "
        f"(docs/METHOD.md); better: patients that gained; {CHANCES[0]}: of the same analysis, "
        f"Holm-corrected over the models of this table; {CHANCES[1]}: signed-rank test over "
        f"patients, not corrected.{caution}"
    )


def _distances(results: dict[str, list[dict]]) -> list[dict[str, str]]:
    """Rows of the surface scores; none unless all patients of all models are whole volumes."""
    means = [result.get("per_patient", {}) for of_model in results.values() for result in of_model]
    if not all(SURFACE_SCORES.keys() <= mean.keys() for mean in means):
        return []
    return [
        {
            "model": model,
            **{
                title: with_spread(mean_and_spread(by_patient(of_model, score).values()))
                for score, title in SURFACE_SCORES.items()
            },
        }
        for model, of_model in results.items()
    ]


def _classes(runs: dict[str, dict[tuple, dict]], bases: dict[str, str]) -> list[dict[str, str]]:
    """One row per class, if there are several: each model's Dice, the gains of those with a
    base."""
    rows = []
    for class_name in each_of_several(next(iter(next(iter(runs.values())).values()))):
        row = {"class": class_name}
        for model, of_model in runs.items():
            values = by_patient([*of_model.values()], class_name=class_name).values()
            row[model] = with_spread(mean_and_spread(values))
        for model, base in bases.items():
            won = gain(runs[model], runs[base], class_name=class_name)
            cell = f"{in_words(won)}, {won['better']} of {won['n']}" if won else ""
            row[f"{model} over {base}"] = cell
        rows.append(row)
    return rows


def _gain_cells(gained: dict | None, base: str | None, spread: float | None) -> dict[str, str]:
    """The cells of a gain; empty for a model without a comparison."""
    if not gained:
        return dict.fromkeys(("gain", "better", *CHANCES, "spread over seeds"), "")
    corrected, patients = (
        "" if None in (gained[name], gained["low"]) else f"{gained[name]:.2g}"
        for name in ("holm", "wilcoxon")
    )  # Wilcoxon's p of fewer than six patients could not fall below 0.06, whatever they show
    return {
        "gain": f"{in_words(gained)} over {base}",
        "better": f"{gained['better']} of {gained['n']}",
        **dict(zip(CHANCES, (corrected, patients), strict=True)),
        "spread over seeds": "" if spread is None else f"{spread:.1f}",
    }


def _record(model, results, means, pool, gained, spread) -> dict:
    """A model's row of table.csv."""
    row = {"model": model, "parameters": results[0]["parameters"], "runs": len(results)}
    for s in SCORES:
        row |= {f"{s}_mean": means[s]["mean"], f"{s}_std": means[s]["std"], f"{s}_pooled": pool[s]}
    keys = ("mean", "low", "high", "p", "holm", "wilcoxon", "better", "n")
    row |= {f"gain_{key}": gained[key] if gained else None for key in keys}
    return {**row, "gain_seed_std": spread}
