"""A run's predictions scored against the data set: its summary, its table."""

from pathlib import Path

import numpy as np
import torch

from common.dataset.preprocessing import stack
from common.dataset.slices import Slice, SliceSet, check_same_classes, read_set
from common.errors import UserError, bullets
from common.evaluation.metrics import (
    SCORES,
    count,
    each_of_several,
    number,
    per_case,
    per_patient_and_pooled,
    with_spread,
)
from common.evaluation.surface_distances import SURFACE_SCORES, surface_scores
from common.files import known_runs, read_json, shown, write_csv, write_json
from common.settings import DATA


def data_of(folder: Path, given: Path | None) -> SliceSet:
    """The data set that a run is scored on: the one given, else the one its inference read."""
    runs = ", ".join(known_runs(folder.parent, "inference.json"))
    hint = "Run inference.py first."
    if not folder.exists():
        others = f"There are {runs}: choose one with --name."
        hint = others if runs else "Run train.py, then inference.py."
    done = read_json(folder / "inference.json", hint)
    return read_set(given or Path(done.get("data", DATA)), "Name it with --data.")


def score_run(folder: Path, data: SliceSet) -> dict:
    """Score a run's predictions/ against the data set's masks, paired by name.

    Writes metrics_per_case.csv and summary.json into the run folder and returns the summary:
    `subset`, `weights` (best or last), `parameters`, `epoch`, `latency_ms`, `classes` (the classes'
    names), `per_patient` and `pooled` (means over the classes), `per_class` (each one's own),
    `cases` (the scores of each, and of each of its classes the scores and pixels). Of volumes also
    the distances of surfaces in mm (a missed class: the diagonal of the stack of squares).
    UserError if inference has not finished, or naming every slice whose partner is missing.
    """
    done = read_json(folder / "inference.json", "Run inference.py first.")
    if not {"classes", "cases"} <= done.keys():
        raise UserError(f"{shown(folder)}/inference.json is incomplete. Run inference.py again.")
    check_same_classes(done["classes"], data, folder / "predictions")
    if Path(done.get("data", data.folder)).resolve() != data.folder.resolve():
        print(
            f"note: scored by {shown(data.folder)}; inference.py read {shown(Path(done['data']))}"
        )
    slices = data.of(done["cases"])
    check_partners(folder / "predictions", data, slices)
    cases, counts, surfaces = [], [], {}
    for case in dict.fromkeys(s.case for s in slices):
        of_case = [s for s in slices if s.case == case]
        prediction = [data.prediction(folder, s) for s in of_case]
        truth = [data.truth(s) for s in of_case]
        for s, *pair in zip(of_case, prediction, truth, strict=True):
            if pair[0].shape != pair[1].shape:
                raise UserError(f"{s.name}.png: prediction and truth differ in size; predict again")
            counts.append(count(*(torch.from_numpy(m)[None] for m in pair), len(data.classes)))
        cases += [case] * len(of_case)
        if spacing := spacing_of(case, of_case, data):
            pair = np.stack(prediction), np.stack(truth)
            surfaces[case] = {
                class_name: surface_scores(*(mask == k for mask in pair), spacing)
                for k, class_name in enumerate(data.classes, start=1)
            }
    nothing = dict.fromkeys(data.classes, dict.fromkeys(SURFACE_SCORES)) if surfaces else {}
    distances = {case: surfaces.get(case, nothing) for case in cases}
    each = per_case(cases, torch.cat(counts).numpy(), data.classes, distances, data.patients)
    # A mean over only some patients' distances would be misleading.
    measured = (*SCORES, *SURFACE_SCORES) if len(surfaces) == len(each) else SCORES
    result = {
        "stage": folder.parents[1].name,
        "run": folder.name,
        "subset": done["subset"],
        "weights": done["weights"],
        "parameters": done["parameters"],
        "epoch": done["epoch"],
        "latency_ms": done["latency_ms"],
        "classes": data.classes,
        **per_patient_and_pooled(each, data.classes, measured),
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
    """A case's row for a CSV: one class's scores and pixels, or the means over several and each
    one's in columns `score class`."""
    whole = {k: v for k, v in row.items() if k != "per_class"}
    if several := each_of_several(row):
        return whole | {f"{k} {name}": v for name, own in several.items() for k, v in own.items()}
    (only,) = row["per_class"].values()
    return {"slices": row["slices"], **only, **whole}


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


def caution(result: dict) -> str:
    """A warning if patients were scored that the model was trained on; else an empty string."""
    if result["subset"] in ("train", "all"):
        return "these include patients that the model was trained on: not a test"
    return ""


def table(result: dict) -> str:
    """A summary as text: one line per score, mean and spread per patient, and pooled."""
    patients = len({row.get("patient", case) for case, row in result["cases"].items()})
    title = (
        f"{result['stage']} ({result['run']}): {patients} {result['subset']} patients, "
        f"{result['slices']} slices, {result['weights']} epoch, {result['parameters']:,} parameters"
    )
    several = each_of_several(result)
    room = max([10, *map(len, several)])
    lines = [title, f"{'':<{room}} {'per patient':>16} {'pooled':>8}"]
    for score in SCORES:
        mean, pooled = result["per_patient"][score], result["pooled"][score]
        lines.append(f"{score:<{room}} {with_spread(mean):>16} {number(pooled):>8}")
    for score, title in SURFACE_SCORES.items():
        if score in result["per_patient"]:
            lines.append(f"{title:<{room}} {with_spread(result['per_patient'][score]):>16}")
    for class_name, row in several.items():
        dice, pooled = row["per_patient"]["dice"], number(row["pooled"]["dice"])
        cells = f"{class_name:<{room}} {with_spread(dice):>16} {pooled:>8}"
        lines.append(f"{cells}   Dice of {dice['n']} patients")
    if seen := caution(result):
        lines.append(seen)
    if missing := result["per_patient"]["dice"]["undefined"]:
        lines.append(f"{missing} patients without ground truth and without prediction are left out")
    return "\n".join(lines)
