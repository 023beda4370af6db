"""Tables of a study, as Markdown to read and CSV to compute with."""

from pathlib import Path

from common.files import write_csv, write_text
from common.scores import SCORES, mean_and_spread, number, with_spread
from common.statistics import by_patient, gain, in_words, pooled

# arXiv 2406.03173, pooled over slices of a random split by slice. Its released code distils
# nothing (see the README), so these are reference points, not results to reproduce to the digit.
THESIS = {
    "S1": {"iou": 0.557, "dice": 0.715, "recall": 0.685, "precision": 0.749},
    "S2": {"iou": 0.627, "dice": 0.770, "recall": 0.725, "precision": 0.822},
    "KD(T1,S1)": {"iou": 0.629, "dice": 0.772, "recall": 0.721, "precision": 0.831},
    "KD(T1,S2)": {"iou": 0.659, "dice": 0.794, "recall": 0.748, "precision": 0.846},
    "KD(T2,S1)": {"iou": 0.623, "dice": 0.767, "recall": 0.707, "precision": 0.839},
    "KD(T2,S2)": {"iou": 0.658, "dice": 0.793, "recall": 0.750, "precision": 0.841},
}


def markdown(rows: list[dict[str, str]]) -> str:
    """Rows of equal keys as an aligned Markdown table."""
    head = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in head]
    cells = [head, ["-" * w for w in widths], *([row[name] for name in head] for row in rows)]
    lines = (" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells)
    return "".join(f"| {line} |\n" for line in lines)


def write_study(
    folder: Path, results: dict[str, list[dict]], bases: dict[str, str]
) -> dict[str, dict]:
    """table.md and table.csv of a study; returns the gains by model.

    `results` holds each model's summaries, one a run; `bases` names for some models the one that
    they are compared with. table.md has one part a patient, with the gain, and one pooled over
    slices, beside the thesis's figures.
    """
    scores = ("iou", "dice", "recall", "precision")  # the thesis's order
    gains = {model: gain(results[model], results[base]) for model, base in bases.items()}
    gains = {model: found for model, found in gains.items() if found}
    patients, slices, records = [], [], []
    for model, runs in results.items():
        means = {s: mean_and_spread(by_patient(runs, s).values()) for s in scores}
        pool, found = pooled(runs), gains.get(model)
        size = f"{runs[0]['parameters']:,}"
        patients.append(
            {
                "model": model,
                "parameters": size,
                **{_title(s): with_spread(means[s]) for s in scores},
                "gain in Dice points": f"{in_words(found)} over {bases[model]}" if found else "",
                "better": f"{found['better']} of {found['n']}" if found else "",
                "p": f"{found['p']:.2g}" if found and found["p"] is not None else "",
            }
        )
        thesis = THESIS.get(model, {})
        slices.append(
            {
                "model": model,
                **{_title(s): number(pool[s]) for s in scores},
                **{f"{_title(s)} (thesis)": number(thesis.get(s)) for s in scores},
            }
        )
        records.append(_record(model, runs, means, pool, found))
    if not THESIS.keys() & results.keys():
        slices = [{k: v for k, v in row.items() if "(thesis)" not in k} for row in slices]
    write_csv(folder / "table.csv", records)
    runs, cases = (
        max(len(r) for r in results.values()),
        len(by_patient(next(iter(results.values())))),
    )
    text = (
        f"Per patient: mean +- standard deviation over {cases} test patients, each averaged over "
        f"the runs that tested it ({runs} runs a model). Gain: 95 % bootstrap interval over "
        "patients; better: patients that gained; p: paired Wilcoxon test.\n\n"
        f"{markdown(patients)}\nPooled over all slices, as the thesis counts:\n\n{markdown(slices)}"
    )
    write_text(folder / "table.md", text)
    return gains


def _title(score: str) -> str:
    """How a score is written in a table's head."""
    return {"dice": "Dice", "iou": "IoU"}.get(score, score)


def _record(model: str, runs: list[dict], means: dict, pool: dict, found: dict | None) -> dict:
    """A model's row of table.csv."""
    row = {"model": model, "parameters": runs[0]["parameters"], "runs": len(runs)}
    for s in SCORES:
        row |= {f"{s}_mean": means[s]["mean"], f"{s}_std": means[s]["std"], f"{s}_pooled": pool[s]}
    keys = ("mean", "low", "high", "p", "better", "n", "run_std")
    return row | {f"gain_{key}": found[key] if found else None for key in keys}
