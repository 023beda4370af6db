"""The whole study in one command: data -> teachers -> students -> distilled students -> table.

    python reproduce.py --quick               synthetic CT, small and short: minutes on a laptop
    python reproduce.py                       data/Task09_Spleen if it is there, else the phantom
    python reproduce.py --input ~/Task09_Spleen --folds 0 1 2 3 4 --seeds 0 1 2
    python reproduce.py --data data/mine --name mine          slices made by import_pairs.py
    python reproduce.py --study controls --pair kd_t2_s2      an ablation of one pair
    python reproduce.py --t1 "--width 32" --students "--epochs 60 --batch-size 4"

Runs the same scripts that one would run by hand, and prints each command. Stopped and started
again it resumes where it was; finished steps are skipped, and studies of one --name share the runs
they have in common. Writes results/NAME/: table.md and table.csv, figures, log.txt with what the
scripts print; an ablation writes into results/NAME/STUDY_PAIR/, with `_10-50`, `_val`, `_last` at
its end for --labelled 10 50, --subset val, --weights last.

Ablations (--study): `terms`, each of the distillation's terms alone; `scales`, which of the
thesis's places help; `contrast`, its form; `unlabelled`, the teacher's terms on the patients whose
labels the student does not use; `labels`, the share of patients with labels; `deep`, a student with
a wider receptive field; `multitask`, the weight of the teacher's reconstruction; `controls`,
negative controls: a teacher with random weights, one that looks at another image, the features
alone of another image, no teacher (a contrast by the labels alone), terms of weight 0.
"""

import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

from common import config as base
from common.config import launch, option, to_json
from common.dataset.classes import WHICH
from common.dataset.slices import read_set
from common.dataset.splits import write_splits
from common.errors import UserError
from common.files import ROOT, shown, write_json
from common.settings import WEIGHTS, StudentConfig
from common.study.arms import PAIRS, SHARES, STAGES, STUDIES, Arm, ablation, grid
from common.study.plan import data_steps, folder_of, steps_of, trainings_of
from common.study.results import add_up
from common.study.steps import check_flags, check_outdated, check_settings, check_words, run_steps

# What reproduce.py itself passes to every train.py.
OWN = {"--data", "--splits", "--name", "--seed", "--device", "--teacher", "--resume", "--overwrite"}
# What --quick adds to the flags given: small networks, minutes on two CPU cores.
QUICK = {
    "patients": 16,
    "size": 64,
    "thickness": 10.0,
    "t1": "--width 16 --epochs 7 --batch-size 4 --lr 3e-3",
    "t2": "--width 192 --depth 2 --epochs 5 --batch-size 4 --lr 1e-3",
    "students": "--epochs 11 --batch-size 4",
}


@dataclass
class Config(base.Config):
    """What to run, and on what. A value that is left out is the stage's own default."""

    quick: bool = option(False, "small and short, on the phantom if no data are named")
    study: str = option("grid", "all models, or an ablation of one pair", ("grid", *STUDIES))
    models: tuple[str, ...] = option(
        STAGES,
        "stages of the grid; a pair brings its teacher and its plain student",
        choices=STAGES,
        least=1,
    )
    pair: str | None = option(
        None, "the pair of an ablation (without it: kd_t1_s1)", choices=tuple(PAIRS)
    )
    labelled: tuple[int, ...] = option(
        SHARES,
        "percent of the training patients with labels, in --study labels",
        low=1,
        high=100,
        least=1,
    )
    seeds: tuple[int, ...] = option((0,), "seeds of the trainings", low=0, least=1)
    folds: tuple[int, ...] = option((), "folds to test on; none: the data set's own split")
    num_folds: int = option(5, "how many folds the patients are dealt into", low=2)
    subset: str = option(
        "test", "patients to score on; val: to choose by, test: to report", choices=("test", "val")
    )
    weights: str = option(
        "best",
        "which of a run are scored: those of the epoch with the best validation Dice, or the last "
        "(with few validation patients the best is luck)",
        choices=WEIGHTS,
    )
    teacher_weights: str = option("best", "those that a teacher teaches with, as above", WEIGHTS)
    share_teachers: bool = option(False, "one teacher a fold, of the first seed, for all seeds")
    input: Path | None = option(None, "CT volumes, a folder in Decathlon layout")
    data: Path | None = option(None, "an existing slice data set, instead of volumes")
    name: str | None = option(None, "start of the runs' names, and the folder in results/")
    classes: str = option(
        "spleen", "classes: the spleen, or all that the volumes' dataset.json names", WHICH
    )
    patients: int | None = option(
        None, "take the phantom, of so many patients (--quick: 16)", low=1
    )
    thickness: float | None = option(None, "take the phantom, with slices so thick, in mm")
    size: int | None = option(None, "height and width of the slices", low=1)
    t1: str = option("", "more flags for T1's train.py, as in --t1='--width 32'")
    t2: str = option("", "more flags for T2's train.py")
    students: str = option("", "more flags for every student's train.py, distilled or not")
    distilled: str = option("", "more flags for the distilled students' train.py")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    overwrite: bool = option(False, "replace runs of this --name that were made with other flags")

    def __post_init__(self):
        """Fill in what --quick means."""
        super().__post_init__()
        self.labelled = tuple(sorted({*self.labelled}))
        self.pair = self.pair or (None if self.study == "grid" else "kd_t1_s1")
        self._check()
        # Resolved: the steps' keys are of the data, however they were spelt.
        self.input, self.data = (p and p.resolve() for p in (self.input, self.data))
        if self.quick:
            for name, value in QUICK.items():
                given = getattr(self, name)
                if given is None:
                    setattr(self, name, value)
                elif isinstance(value, str):  # of two equal flags the last one counts
                    setattr(self, name, f"{value} {given}".strip())
        several = "" if self.classes == Config.classes else f"-{self.classes}"
        self.name = self.name or ("quick" if self.quick else "study") + several

    def _check(self) -> None:
        """UserError for contradictory flags."""
        if self.input and self.data:
            raise UserError("--input (volumes) and --data (slices) exclude each other.")
        if bad := [k for k in self.folds if not 0 <= k < self.num_folds]:
            raise UserError(
                f"--folds {bad[0]}: with --num-folds {self.num_folds} they run from 0 to "
                f"{self.num_folds - 1}."
            )
        ablation, few = self.study != "grid", self.study == "labels"
        volumes = self.data or self.input
        for name, useless, where in (
            ("models", ablation and self.models != STAGES, "with --study"),
            ("pair", not ablation and self.pair, "without --study"),
            ("labelled", not few and self.labelled != SHARES, "without --study labels"),
            ("num_folds", not self.folds and self.num_folds != Config.num_folds, "without --folds"),
            ("size", self.data and self.size, "with --data"),
            ("classes", self.data and self.classes != Config.classes, "with --data"),
            ("patients", volumes and self.patients, "with --data or --input"),
            ("thickness", volumes and self.thickness is not None, "with --data or --input"),
        ):
            if useless:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} has no effect {where}; leave it out.")
        reserved = OWN.union(*(arm.own() for arm in self.arms()))
        reserved |= {"--train-on"} if any(arm.labels for arm in self.arms()) else set()
        for group in ("t1", "t2", "students"):
            check_words(f"--{group}", getattr(self, group), reserved)
        # What both arms share is a student's: given to one of them it would end the comparison.
        names = [f.name.replace("_", "-") for f in fields(StudentConfig)]
        shared = {f"--{no}{name}" for name in names for no in ("", "no-")}
        check_words("--distilled", self.distilled, shared, "is for both arms: see --students")
        why = "makes another model of it: see --study"
        check_words("--distilled", self.distilled, {"--control", "--unlabelled"}, why)
        check_words("--distilled", self.distilled, reserved)

    def arms(self) -> list[Arm]:
        """The models of the study."""
        if self.study == "grid":
            return grid(self.models)
        return ablation(self.study, self.pair, self.labelled)

    def part(self) -> str:
        """The results' sub-folder: none for all models. Its tables are of the folds and seeds that
        were asked for last."""
        models = "" if {*self.models} == {*STAGES} else "-".join(sorted({*self.models}))
        name = models if self.study == "grid" else f"{self.study}_{self.pair}"
        unusual = [v for v in (self.subset, self.weights) if v not in ("test", "best")]
        shares = "" if self.labelled == SHARES else "-".join(map(str, self.labelled))
        return "_".join(filter(None, (name, shares, *unusual)))


def main(config: Config) -> None:
    """Run what is missing, then write the tables and the figures."""
    began = time.perf_counter()
    results, arms = ROOT / "results" / config.name, config.arms()
    if config.quick:
        # Networks this small gain little from more threads, which other work makes expensive.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    data, first = data_steps(config)
    trainings = trainings_of(config)
    steps = [step for t in trainings for step in steps_of(t, config, data)]
    check_flags(steps)
    check_outdated(first, config.overwrite, steps)
    run_steps(first, results / "log.txt", config.overwrite)
    write_splits(data, config.folds, config.num_folds, {arm.labels for arm in arms if arm.labels})
    check_settings(steps, config.overwrite)
    run_steps(steps, results / "log.txt", config.overwrite)
    folder = results / config.part()
    write_json(folder / "config.json", to_json(config))
    runs = {arm.label: {} for arm in arms}
    for t in trainings:
        runs[t.arm.label][t.fold, t.seed] = folder_of(t, config)
    bases = {arm.label: arm.base for arm in arms if arm.base}
    points = {arm.label: (arm.curve, arm.percent) for arm in arms if arm.curve}
    kind = config.subset, config.weights
    print(f"\n{add_up(folder, runs, bases, read_set(data), points, kind)}")
    now = (time.perf_counter() - began) / 60
    ever = sum(step.known().get("seconds", 0) for step in (*first, *steps)) / 60
    print(f"{now:.1f} minutes (all steps: {ever:.1f}) -> {shown(folder)}")


if __name__ == "__main__":
    launch(main, Config)
