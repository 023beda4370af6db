"""Results of several runs: averaged over seeds, joined over folds, compared patient by patient.

A result is what metrics.py leaves in summary.json; those of a model come by (fold, seed). A gain is
paired: by patient, and by the training of the same fold and seed.
"""

from dataclasses import fields
from pathlib import Path

from common.evaluation import metrics
from common.evaluation.intervals import Run, estimate, patient_means, wilcoxon
from common.evaluation.metrics import mean_and_spread, over_classes, pool
from common.files import read_json, shown, unfinished
from common.settings import NOT_LEARNED, StudentConfig


def by_patient(
    results: list[dict], score: str = "dice", class_name: str | None = None
) -> dict[str, float | None]:
    """Each patient's mean score over the results that hold it; None where it is undefined.

    The score is a class's, or the mean over the classes.
    """
    rows = (pair for result in results for pair in result["cases"].items())
    return metrics.of_patients(rows, score, class_name)


def pooled(results: list[dict]) -> dict[str, float | None]:
    """Dice, IoU, recall, precision of all pixels of all results, as the thesis counts.

    Means over the classes.
    """
    rows = (row for result in results for row in result["cases"].values())
    return over_classes(pool(rows, results[0]["classes"]))


def is_summary(content: dict) -> bool:
    """Whether a JSON is a summary.json of this version: each class with its own metrics."""
    return {"subset", "weights", "classes", "per_class", "cases"} <= content.keys()


def gain(
    results: dict[Run, dict], base: dict[Run, dict], class_name: str | None = None
) -> dict | None:
    """Paired gain in Dice points (100 x Dice) over `base`, from results by (fold, seed).

    `mean`, `std`, `n` and `better` (how many gained) over patients, each averaged over its runs
    first; `low`, `high` and `p` of `intervals.estimate` (None with fewer than six patients); the
    `wilcoxon` p over patients. None unless both hold the same patients of the same subset and
    classes, after the same epoch: the best or the last.
    """
    every = [*results.values(), *base.values()]
    if len({_kind(result) for result in every}) > 1:
        return None
    patients = [by_patient([*runs.values()], "dice", class_name).keys() for runs in (results, base)]
    if patients[0] != patients[1]:
        return None
    pairs = {run: (results[run], base[run]) for run in results if run in base}
    gains = {
        run: _paired(*(by_patient([r], "dice", class_name) for r in p)) for run, p in pairs.items()
    }
    gains = {run: of_patients for run, of_patients in gains.items() if of_patients}
    means = [*patient_means(gains).values()]
    if not means:
        return None
    sure = estimate(gains)
    return {
        **mean_and_spread(means),
        "better": sum(g > 0 for g in means),
        **{name: getattr(sure, name, None) for name in ("low", "high", "p")},
        "wilcoxon": wilcoxon(means),
    }


def dice_interval(results: dict[Run, dict]) -> tuple[float, float | None, float | None] | None:
    """A model's mean Dice over patients and its 95 % interval, from results by (fold, seed); None
    if no patient has a score."""
    each = {run: by_patient([result]) for run, result in results.items()}
    defined = {run: {p: v for p, v in row.items() if v is not None} for run, row in each.items()}
    defined = {run: row for run, row in defined.items() if row}
    means = [*patient_means(defined).values()]
    if not means:
        return None
    sure = estimate(defined)
    return sum(means) / len(means), getattr(sure, "low", None), getattr(sure, "high", None)


def _kind(result: dict) -> tuple[str, ...]:
    """What two results must have in common to be compared: subset, epoch, classes."""
    return result["subset"], result["weights"], *result["classes"]


def seed_spread(results: dict[Run, dict], base: dict[Run, dict]) -> float | None:
    """Standard deviation over the seeds of the mean gain in points over all folds; None with one
    seed."""
    seeds = sorted({seed for _, seed in results} & {seed for _, seed in base})
    each = [
        [{r: v for r, v in runs.items() if r[1] == s} for runs in (results, base)] for s in seeds
    ]
    gains = [gain(*pair) for pair in each]
    return mean_and_spread(gained["mean"] for gained in gains if gained)["std"]


def _paired(scores: dict, base: dict) -> dict[str, float]:
    """Differences in points of the patients whose scores are defined in both."""
    cases = [c for c in scores if scores[c] is not None and base.get(c) is not None]
    return {c: 100 * (scores[c] - base[c]) for c in cases}


def in_words(gained: dict) -> str:
    """`+3.1 [+0.4, +6.0]`: a gain's mean and interval in points."""
    if gained["low"] is None:
        return f"{gained['mean']:+.1f}"
    return f"{gained['mean']:+.1f} [{gained['low']:+.1f}, {gained['high']:+.1f}]"


def reference(folder: Path, stage: str) -> Path:
    """The summary.json of the run of another stage that the run in `folder` is compared with: of
    the teacher that it learned from, else of the run of the same name, else of the one called
    default."""
    about = folder / "config.json"
    config = read_json(about).get("config") if about.exists() else None
    learned_from = config.get("teacher") if isinstance(config, dict) else None
    if learned_from and stage.startswith("teacher"):
        teacher = Path(learned_from).parent
        if teacher.parts[-3:-1] == (stage, "runs") and not teacher.is_dir():
            teacher = folder.parents[2] / stage / "runs" / teacher.name  # the repository has moved
        return teacher / "summary.json"
    runs = folder.parents[2] / stage / "runs"
    return runs / (folder.name if (runs / folder.name).is_dir() else "default") / "summary.json"


def compare(
    result: dict, title: str, path: Path, stage: str = "", folder: Path | None = None
) -> str:
    """One line: this run's Dice against the one of `stage` whose summary.json is `path`.

    It may also be another run of this run's own stage; the line then says so. With `folder`,
    this run's own, it says where their recipes differ.
    """
    if not path.exists():
        return (
            f"{title}: no {shown(path)}; run inference.py and metrics.py there to compare, or name "
            "another run's summary.json (--plain, --teacher)"
        )
    other = read_json(path)
    if not is_summary(other):
        return f"{title}: {shown(path)} is not a summary.json of this version; run metrics.py there"
    other_stage = other.get("stage", stage)
    if stage and other_stage not in (stage, result.get("stage")):
        return f"{title}: not compared; {shown(path)} is of {other_stage}, not of {stage}"
    title = f"gain over {other_stage}" if stage and other_stage != stage else title
    title += f" ({other['run']})" if "run" in other else ""
    run = (None, 0)
    gained = gain({run: result}, {run: other})
    patients = [by_patient([r]).keys() for r in (other, result)]
    if gained is None and patients[0] == patients[1] and _kind(other) == _kind(result):
        return f"{title}: no patient has a score in both, here and in {shown(path)}"
    if gained is None:
        other_classes = result["classes"] != other["classes"]
        of_other, of_this = (
            f"{len(by_patient([r]))} {r['subset']} patients, {r['weights']} epoch"
            + (f", of {', '.join(r['classes'])}" if other_classes else "")
            for r in (other, result)
        )
        return f"{title}: not compared; {shown(path)} is of {of_other}, this run of {of_this}"
    sure = "" if gained["low"] is None else " (95 % CI over patients; one training of each)"
    chance = "" if gained["wilcoxon"] is None else f", Wilcoxon p {gained['wilcoxon']:.2g}"
    unequal = unequal_settings(path.parent, folder) if folder else []
    for of_run, where in ((path.parent, "there"), (folder, "here")):
        if of_run and (part := unfinished(of_run)):
            unequal.append(f"{part} {where}")
    return (
        f"{title}: {in_words(gained)} Dice points per patient{sure}, "
        f"better in {gained['better']} of {gained['n']}{chance}"
        + (f"; NOT ONE RECIPE: {', '.join(unequal)}" if unequal else "")
    )


def unequal_settings(other: Path, own: Path) -> list[str]:
    """Where two runs of students differ in what both arms share: `epochs 100, here 60`.

    That is the recipe, the patients, the slices' size and the number of processes. What a
    config.json does not say (a run older than a flag, a moved summary.json) is left out.
    """
    files = [folder / "config.json" for folder in (other, own)]
    if not all(file.is_file() for file in files):
        return []
    before, now = map(read_json, files)
    recipes = before.get("config", {}), now.get("config", {})
    names = [f.name for f in fields(StudentConfig) if f.name not in NOT_LEARNED]
    pairs = [(name, *(recipe.get(name) for recipe in recipes)) for name in names]
    pairs += [("slices of", *(f"{made.get('size')} pixels" for made in (before, now)))]
    count = (made.get("environment", {}).get("processes") for made in (before, now))
    pairs += [("processes", *count)]
    unequal = [f"{n} {a}, here {b}" for n, a, b in pairs if None not in (a, b) and a != b]
    patients = [made.get("patients", {}).get("train") for made in (before, now)]
    if None not in patients and patients[0] != patients[1]:
        unequal.append(f"{len(patients[0])} training cases, here {len(patients[1])}, not the same")
    return unequal
