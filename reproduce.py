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

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import config as base
from common import figures
from common.config import launch, option, to_json
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
# without bf16. T1 has a quarter of its width (2.7 million parameters).
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
class Config(base.Config):
    """What to run on. A value that is left out is the stage's own default."""

    quick: bool = option(False, "small and short, on the phantom")
    input: Path | None = option(None, "CT volumes, a folder in Decathlon layout")
    data: Path | None = option(None, "an existing slice data set, instead of volumes")
    name: str | None = option(None, "name of the runs and of the folder in results/")
    patients: int | None = option(None, "patients of the phantom", low=1)
    thickness: float | None = option(None, "slice thickness of the phantom in mm")
    size: int | None = option(None, "height and width of the slices", low=1)
    width: int | None = option(None, "channels of T1's first level", low=1)
    teacher_epochs: int | None = option(None, "epochs of T1", low=1)
    student_epochs: int | None = option(None, "epochs of S1 and of KD(T1,S1)", low=1)
    batch_size: int | None = option(None, "slices per step", low=1)
    seed: int = option(0, "seed of the trainings", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self):
        """Fill in what --quick means."""
        super().__post_init__()
        if self.input and self.data:
            raise UserError("--input (volumes) and --data (slices) exclude each other.")
        # The steps run in the repository's root, wherever this was started.
        self.input, self.data = (p and p.resolve() for p in (self.input, self.data))
        if self.quick:
            for name, value in QUICK.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        self.name = self.name or ("quick" if self.quick else "study")


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
        train = [f"{stage}/train.py", *common, *recipe, *own]
        steps.append((train, run / "best.pt"))
        steps.append(([f"{stage}/inference.py", *common], run / "inference.json"))
        scored = flags(data=data, name=config.name)
        if stage == "kd_t1_s1":
            for arm, model in (("plain", "S1"), ("teacher", "T1")):
                summary = ROOT / MODELS[model] / "runs" / config.name / "summary.json"
                scored += flags(**{arm: summary})
        steps.append(([f"{stage}/metrics.py", *scored], run / "summary.json"))
    return data, steps


def run_steps(steps: list[tuple[list[str], Path]], record: Path, data: Path) -> None:
    """Run each step that is not done; a step after one that ran is run again too.

    A training that was interrupted is resumed; one whose command or data have changed starts
    anew. UserError at the first step that fails: the step has said why.
    """
    known = read_json(record) if record.exists() else {}
    for place, (command, leaves) in enumerate(steps, start=1):
        script = command[0]
        line = " ".join(shown(Path(part)) if part.startswith("/") else part for part in command)
        print(f"\n[{place}/{len(steps)}] python {line}", flush=True)
        now = {"command": command, "data": None if "data_prep" in script else state_of(data)}
        before = known.get(script, {})
        same = all(before.get(key) == value for key, value in now.items())
        if same and before["done"] and leaves.exists():
            print("done before", flush=True)
            continue
        # Whatever comes later was made from what this step is about to change.
        keep = {other[0] for other, _ in steps[:place]}
        known = {name: step for name, step in known.items() if name in keep}
        known[script] = {**now, "done": False}
        write_json(record, known)
        if script.endswith("train.py"):
            begun = same and (leaves.parent / "config.json").exists()
            command = [*command, "--resume" if begun else "--overwrite"]
        began = time.perf_counter()
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        if code:
            raise UserError(f"{script} failed (exit code {code}); mend it and run this again.")
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        known[script]["done"] = True
        write_json(record, known)


def state_of(data: Path) -> str:
    """A hash of the data set's index files, and so of its slices and splits."""
    names = ("dataset.json", "manifest.csv", "splits.json")
    contents = [(data / n).read_bytes() if (data / n).exists() else b"" for n in names]
    return hashlib.sha256(b"\n".join(contents)).hexdigest()


def write_tables(results: dict[str, dict], folder: Path) -> str:
    """table.md and table.csv: a row a model. Returns the Markdown."""
    plain = results["S1"]
    head = ["model", "parameters", *(f"{s} per patient" for s in SCORES), "pooled Dice", "gain"]
    rows, records = [], []
    for model, result in results.items():
        gain = difference(result, plain) if model.startswith("KD") else None
        scores = [with_spread(result["per_patient"][s]) for s in SCORES]
        points = gain and gain["mean"]
        shown_gain = "" if points is None else f"{points:+.1f}"
        pooled = number(result["pooled"]["dice"])
        rows.append([model, f"{result['parameters']:,}", *scores, pooled, shown_gain])
        record = {"model": model, "parameters": result["parameters"]}
        for s in SCORES:
            record[f"{s}_mean"] = result["per_patient"][s]["mean"]
            record[f"{s}_std"] = result["per_patient"][s]["std"]
            record[f"{s}_pooled"] = result["pooled"][s]
        record["dice_gain_points"] = points
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
    """The best, the median and the worst test patient of the last model, by its Dice over all
    slices, each at the slice where the true organ is largest."""
    *_, last = results.values()
    scored = {c: row["dice"] for c, row in last["cases"].items() if row["dice"] is not None}
    order = sorted(scored, key=scored.get, reverse=True)
    if not order:
        print("no test patient shows the organ: no comparison figure")
        return
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
        caption = f"{title} patient ({scored[order[place]]:.3f})\n{best.name}"
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
    run_steps(steps, folder / "steps.json", data_folder)
    runs = {model: ROOT / stage / "runs" / config.name for model, stage in MODELS.items()}
    results = {model: read_json(run / "summary.json") for model, run in runs.items()}
    write_json(folder / "config.json", to_json(config))
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
