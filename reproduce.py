"""The whole study in one command: data -> T1 -> S1 -> KD(T1,S1) -> masks -> scores -> table.

    python reproduce.py --quick               synthetic CT, small and short: minutes on a laptop
    python reproduce.py                       data/Task09_Spleen if it is there, else the phantom
    python reproduce.py --input ~/Task09_Spleen
    python reproduce.py --data data/mine --name mine          slices made by import_pairs.py

Runs the same scripts that one would run by hand, and prints each command. Stopped and started
again it takes up where it was; finished steps are skipped. Writes results/NAME/: table.md,
table.csv, curves.png (validation Dice of the three runs) and comparison.png (test patients, one
a row: CT, truth, what each model found).
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import figures
from common.config import check_name, launch, option
from common.files import (
    ROOT,
    UserError,
    read_csv,
    read_json,
    shown,
    write_csv,
    write_json,
    write_text,
)
from common.scores import SCORES, difference, number, overlap_scores, with_spread
from common.slices import SliceSet, read_image, read_mask, read_set

MODELS = {"T1": "teacher_t1_unet", "S1": "student_s1", "KD(T1,S1)": "kd_t1_s1"}
TASK09 = ROOT / "data" / "Task09_Spleen"
# What --quick changes, unless a flag says otherwise: sized for 10 minutes on two CPU cores
# without bf16. T1 at a quarter of its width (2.7 million parameters) takes a twelfth of the time.
QUICK = {
    "patients": 20,
    "size": 96,
    "thickness": 8.0,
    "width": 16,
    "teacher_epochs": 8,
    "student_epochs": 12,
    "batch_size": 4,
}


@dataclass
class Config:
    """What to run on. A value that is left out is the stage's own default."""

    quick: bool = option(False, "small and short, on the phantom")
    input: Path | None = option(None, "CT volumes, a folder in Decathlon layout")
    data: Path | None = option(None, "an existing slice data set, instead of volumes")
    name: str | None = option(None, "name of the runs and of the folder in results/")
    patients: int | None = option(None, "patients of the phantom")
    thickness: float | None = option(None, "slice thickness of the phantom in mm")
    size: int | None = option(None, "height and width of the slices")
    width: int | None = option(None, "channels of T1's first level")
    teacher_epochs: int | None = option(None, "epochs of T1")
    student_epochs: int | None = option(None, "epochs of S1 and of KD(T1,S1)")
    batch_size: int | None = option(None, "slices per step")
    seed: int = option(0, "seed of the trainings")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self):
        """Fill in what --quick means."""
        if self.input and self.data:
            raise UserError("--input (volumes) and --data (slices) exclude each other.")
        if self.quick:
            for name, value in QUICK.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        self.name = self.name or ("quick" if self.quick else "study")
        check_name(self.name)


def flags(**values) -> list[str]:
    """`width=32` -> `--width 32`; None is left out."""
    pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in values.items() if v is not None)
    return [part for pair in pairs for part in pair]


def plan(config: Config) -> tuple[Path, list[tuple[list[str], Path]]]:
    """The slice data set and the steps: (script and flags, the file that it leaves when done)."""
    steps, data = [], config.data
    if data is None:
        volumes = config.input or (TASK09 if TASK09.exists() and not config.quick else None)
        if volumes is None:
            volumes = ROOT / "data" / f"phantom_{config.name}"
            made = flags(output=volumes, patients=config.patients, thickness=config.thickness)
            steps.append((["data_prep/make_phantom.py", *made], volumes / "dataset.json"))
        steps.append((["data_prep/check_volumes.py", *flags(input=volumes)], volumes))
        data = ROOT / "data" / f"slices_{config.name}"
        sliced = flags(input=volumes, output=data, size=config.size)
        steps.append((["data_prep/slice_nifti.py", *sliced], data / "dataset.json"))
    common = flags(data=data, name=config.name, device=config.device)
    recipe = flags(batch_size=config.batch_size, seed=config.seed)
    for stage in MODELS.values():
        run = ROOT / stage / "runs" / config.name
        teacher = stage == "teacher_t1_unet"
        own = flags(epochs=config.teacher_epochs if teacher else config.student_epochs)
        if teacher:
            own += flags(width=config.width)
        if stage == "kd_t1_s1":
            own += flags(teacher=ROOT / MODELS["T1"] / "runs" / config.name / "best.pt")
        train = [f"{stage}/train.py", *common, *recipe, *own, "--resume"]
        steps.append((train, run / "best.pt"))
        steps.append(([f"{stage}/inference.py", *common], run / "inference.json"))
        scored = flags(data=data, name=config.name)
        if stage == "kd_t1_s1":
            for arm, model in (("plain", "S1"), ("teacher", "T1")):
                summary = ROOT / MODELS[model] / "runs" / config.name / "summary.json"
                scored += flags(**{arm: summary})
        steps.append(([f"{stage}/metrics.py", *scored], run / "summary.json"))
    return data, steps


def run_steps(steps: list[tuple[list[str], Path]], record: Path) -> None:
    """Run each step that is not done; a step after one that ran is run again too.

    UserError at the first step that fails: the step has said why.
    """
    done = read_json(record) if record.exists() else {}
    fresh = False
    for number_, (command, leaves) in enumerate(steps, start=1):
        line = " ".join(shown(Path(p)) if p.startswith("/") else p for p in command)
        print(f"\n[{number_}/{len(steps)}] python {line}", flush=True)
        if not fresh and done.get(command[0]) == command and leaves.exists():
            print("done before", flush=True)
            continue
        fresh = True
        began = time.perf_counter()
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        if code:
            raise UserError(f"{command[0]} failed (exit code {code}); mend it and run this again.")
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        done[command[0]] = command
        write_json(record, done)


def write_tables(results: dict[str, dict], folder: Path) -> str:
    """table.md and table.csv: a row a model. Returns the Markdown."""
    plain = results["S1"]
    head = ["model", "parameters", *(f"{s} per patient" for s in SCORES), "pooled Dice", "gain"]
    rows, records = [], []
    for model, result in results.items():
        gain = difference(result, plain) if model.startswith("KD") else None
        scores = [with_spread(result["per_patient"][s]) for s in SCORES]
        shown_gain = "" if gain is None else f"{gain['mean']:+.1f}"
        pooled = number(result["pooled"]["dice"])
        rows.append([model, f"{result['parameters']:,}", *scores, pooled, shown_gain])
        record = {"model": model, "parameters": result["parameters"]}
        for s in SCORES:
            record[f"{s}_mean"] = result["per_patient"][s]["mean"]
            record[f"{s}_std"] = result["per_patient"][s]["std"]
            record[f"{s}_pooled"] = result["pooled"][s]
        record["dice_gain_points"] = None if gain is None else gain["mean"]
        records.append(record)
    write_csv(folder / "table.csv", records)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    title = " | ".join(h.ljust(w) for h, w in zip(head, widths, strict=True))
    rule = " | ".join("-" * w for w in widths)
    text = "\n".join(f"| {line} |" for line in [title, rule, *lines]) + "\n"
    write_text(folder / "table.md", text)
    return text


def compare_pictures(results: dict[str, dict], data: SliceSet, name: str, path: Path) -> None:
    """The best, the median and the worst test patient of the last model, each at the slice
    where the true organ is largest."""
    *_, last = results.values()
    scored = {c: row["dice"] for c, row in last["cases"].items() if row["dice"] is not None}
    order = sorted(scored, key=scored.get, reverse=True)
    places = {0: "best", len(order) // 2: "median", len(order) - 1: "worst"}
    rows = []
    for place, title in places.items():
        best = max(data.of([order[place]]), key=lambda s: s.foreground)
        file = f"{best.name}.png"
        truth = read_mask(data.folder / "masks" / file, data.classes)
        masks = {
            model: read_mask(ROOT / stage / "runs" / name / "predictions" / file, data.classes)
            for model, stage in MODELS.items()
        }
        dice = {model: slice_dice(mask, truth) for model, mask in masks.items()}
        image = read_image(data.folder / "images" / file)
        caption = f"{title}: {best.name}"
        rows.append(
            {"title": caption, "image": image, "truth": truth, "masks": masks, "dice": dice}
        )
    figures.comparison(path, rows, list(MODELS))


def slice_dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one slice; 1 if both are empty."""
    counts = int(((mask > 0) & (truth > 0)).sum()), int((mask > 0).sum()), int((truth > 0).sum())
    dice = overlap_scores(*counts)["dice"]
    return 1.0 if dice is None else dice


def main(config: Config) -> None:
    """Run what is missing, then write the table and the figures."""
    began = time.perf_counter()
    folder = ROOT / "results" / config.name
    data_folder, steps = plan(config)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    run_steps(steps, folder / "steps.json")
    runs = {model: ROOT / stage / "runs" / config.name for model, stage in MODELS.items()}
    results = {model: read_json(run / "summary.json") for model, run in runs.items()}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    write_json(folder / "config.json", settings)
    text = write_tables(results, folder)
    figures.joint_curves(
        folder / "curves.png", {m: read_csv(r / "log.csv") for m, r in runs.items()}
    )
    compare_pictures(results, read_set(data_folder), config.name, folder / "comparison.png")
    patients = len(results["S1"]["cases"])
    print(
        f"\n{text}\nmean +- standard deviation over {patients} test patients; gain in Dice points"
    )
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes -> {shown(folder)}")


if __name__ == "__main__":
    launch(main, Config)
