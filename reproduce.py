"""The whole study in one command: data -> teachers -> students -> distilled students -> table.

    python reproduce.py --quick               synthetic CT, small and short: minutes on a laptop
    python reproduce.py                       data/Task09_Spleen if it is there, else the phantom
    python reproduce.py --input ~/Task09_Spleen --folds 0 1 2 3 4 --seeds 0 1 2
    python reproduce.py --data data/mine --name mine          slices made by import_pairs.py
    python reproduce.py --study controls --pair kd_t2_s2      an ablation of one pair
    python reproduce.py --t1 "--width 32" --students "--epochs 60 --batch-size 4"

Runs the same scripts that one would run by hand, and prints each command. Stopped and started
again it takes up where it was; finished steps are skipped, and studies of one --name share the runs
they have in common. Writes results/NAME/: table.md and table.csv, figures, log.txt with what the
scripts print; an ablation writes into results/NAME/STUDY_PAIR/.

Ablations (--study): `terms`, each of the distillation's terms alone; `scales`, which of the
thesis's places help; `contrast`, its form; `unlabelled`, the teacher's terms on the patients whose
labels the student does not use; `labels`, the share of patients with labels; `deep`, a student that
sees farther; `multitask`, the weight of the teacher's reconstruction; `controls`, what must not
help: a teacher with random weights, one that looks at another image, the features alone of another
image, no teacher (a contrast by the labels alone), terms of weight 0.
"""

import argparse
import shlex
import time
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

from common import config as base
from common.arms import PAIRS, SHARES, STAGES, STUDIES, TEACHERS, Arm, ablation, grid
from common.config import launch, option, to_json
from common.files import ROOT, UserError, shown, write_json
from common.layouts import study_organs
from common.organs import WHICH
from common.settings import WEIGHTS, StudentConfig, TrainConfig
from common.slices import read_set
from common.splits import split_name, write_splits
from common.steps import (
    Step,
    check_flags,
    check_outdated,
    check_settings,
    check_words,
    flags,
    run_steps,
)
from common.study import add_up

TASK09 = ROOT / "data" / "Task09_Spleen"
# What reproduce.py itself passes to every train.py.
OWN = {"--data", "--splits", "--name", "--seed", "--device", "--teacher", "--resume", "--overwrite"}
# What --quick adds to the flags given: small networks, minutes on two CPU cores.
QUICK = {
    "patients": 16,
    "size": 80,
    "thickness": 10.0,
    "t1": "--width 16 --epochs 8 --batch-size 4 --lr 3e-3",
    "t2": "--width 192 --depth 2 --epochs 6 --batch-size 4 --lr 1e-3",
    "students": "--epochs 12 --batch-size 4",
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
    pair: str = option("kd_t1_s1", "the pair of an ablation", choices=tuple(PAIRS))
    shares: tuple[int, ...] = option(
        SHARES, "percent of the training patients with labels, in --study labels", None, 1, 100, 1
    )
    seeds: tuple[int, ...] = option((0,), "seeds of the trainings", low=0, least=1)
    folds: tuple[int, ...] = option((), "folds to test on; none: the data set's own split")
    of: int = option(5, "how many folds the patients are dealt into", low=2)
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
    organs: str = option(
        "spleen", "organs: the spleen, or all that the volumes' dataset.json names", WHICH
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
    overwrite: bool = option(False, "replace runs of this --name that were made otherwise")

    def __post_init__(self):
        """Fill in what --quick means."""
        super().__post_init__()
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
        several = "" if self.organs == Config.organs else f"-{self.organs}"
        self.name = self.name or ("quick" if self.quick else "study") + several

    def _check(self) -> None:
        """UserError for what cannot be meant."""
        if self.input and self.data:
            raise UserError("--input (volumes) and --data (slices) exclude each other.")
        if bad := [k for k in self.folds if not 0 <= k < self.of]:
            raise UserError(
                f"--folds {bad[0]}: with --of {self.of} they run from 0 to {self.of - 1}."
            )
        ablation, volumes = self.study != "grid", self.data or self.input
        for name, useless, where in (
            ("models", ablation and self.models != STAGES, "with --study"),
            ("pair", not ablation and self.pair != Config.pair, "without --study"),
            ("shares", self.study != "labels" and self.shares != SHARES, "without --study labels"),
            ("of", not self.folds and self.of != Config.of, "without --folds"),
            ("size", self.data and self.size, "with --data"),
            ("organs", self.data and self.organs != Config.organs, "with --data"),
            ("patients", volumes and self.patients, "with --data or --input"),
            ("thickness", volumes and self.thickness is not None, "with --data or --input"),
        ):
            if useless:
                raise UserError(f"--{name} has no effect {where}; leave it out.")
        taken = OWN.union(*(arm.own() for arm in self.arms()))
        taken |= {"--share"} if any(arm.labels for arm in self.arms()) else set()
        for group in ("t1", "t2", "students"):
            check_words(f"--{group}", getattr(self, group), taken)
        # What both arms share is a student's: given to one of them it would end the comparison.
        names = [f.name.replace("_", "-") for f in fields(StudentConfig)]
        shared = {f"--{no}{name}" for name in names for no in ("", "no-")}
        check_words("--distilled", self.distilled, shared, "is for both arms: see --students")
        why = "makes another model of it: see --study"
        check_words("--distilled", self.distilled, {"--control", "--unlabelled"}, why)
        check_words("--distilled", self.distilled, taken)

    def arms(self) -> list[Arm]:
        """The models of the study."""
        if self.study == "grid":
            return grid(self.models)
        return ablation(self.study, self.pair, self.shares)

    def part(self) -> str:
        """The results' sub-folder: none for all models. Its tables are of the folds and seeds that
        were asked for last."""
        models = "" if {*self.models} == {*STAGES} else "-".join(sorted({*self.models}))
        name = models if self.study == "grid" else f"{self.study}_{self.pair}"
        unusual = [v for v in (self.subset, self.weights) if v not in ("test", "best")]
        return "_".join(filter(None, (name, *unusual)))


def data_steps(config: Config) -> tuple[Path, list[Step]]:
    """The slice data set, and the steps that make it."""
    if config.data:
        return config.data, []
    data, steps = ROOT / "data" / f"slices_{config.name}", ()
    record = data.with_name(f"{data.name}.json")
    organs = None if config.organs == Config.organs else config.organs
    synthetic = config.quick or (config.patients, config.thickness) != (None, None)
    volumes = config.input or (TASK09 if TASK09.exists() and not synthetic else None)
    if volumes is None:
        volumes = ROOT / "data" / f"phantom_{config.name}"
        made = flags(output=volumes, patients=config.patients, thickness=config.thickness)
        made += flags(organs=organs)
        steps += (Step(("data_prep/make_phantom.py", *made), volumes / "dataset.json", record),)
    else:
        organs = study_organs(volumes, organs)
    index = (volumes / "dataset.json",)
    check = ("data_prep/check_volumes.py", *flags(input=volumes))
    steps += (Step(check, *index, record, index, steps),)
    made = flags(input=volumes, output=data, size=config.size, organs=organs)
    cut = ("data_prep/slice_nifti.py", *made)
    steps += (Step(cut, data / "dataset.json", record, index, steps),)
    return data, list(steps)


def epochs_for(arm: Arm, words: list[str]) -> tuple[str, ...]:
    """Epochs with which an arm with more or fewer labels takes about as many steps as without."""
    if arm.labels is None:
        return ()
    teaches = arm.stage in TEACHERS
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--epochs", default=str((TrainConfig if teaches else StudentConfig).epochs))
    usual = parser.parse_known_args(words)[0].epochs
    if not usual.isdecimal() or int(usual) == 0:  # left for train.py to refuse
        return ()
    return flags(epochs=max(1, round(int(usual) * (100 if teaches else 50) / arm.labels)))


class Training(NamedTuple):
    """One training of an arm: on which split, with which seed."""

    arm: Arm
    fold: int | None
    seed: int


def training_of(arm: Arm, fold: int | None, seed: int, config: Config) -> Training:
    """An arm's training; a teacher that several seeds share has the first seed."""
    shared = config.share_teachers and arm.stage in TEACHERS
    return Training(arm, fold, config.seeds[0] if shared else seed)


def folder_of(training: Training, config: Config) -> Path:
    """Its run folder, named after study, fold, seed and variant."""
    arm, fold, seed = training
    part = "" if fold is None else f"f{fold}of{config.of}"
    name = "-".join(filter(None, (config.name, part, f"s{seed}", arm.name)))
    return ROOT / arm.stage / "runs" / name


def steps_of(training: Training, config: Config, data: Path) -> list[Step]:
    """Training, inference and scoring of one run."""
    arm, fold, seed = training
    folder = folder_of(training, config)
    record, aside = folder.parent / f"{folder.name}.json", flags(device=config.device)
    splits = split_name(fold, config.of, arm.labels)
    inputs = tuple(data / name for name in ("dataset.json", "manifest.csv", splits))
    common = flags(data=data, name=folder.name)
    group = TEACHERS.get(arm.stage, "students").lower()
    train = [f"{arm.stage}/train.py", *common, *flags(splits=splits, seed=seed)]
    train += shlex.split(getattr(config, group))
    taught, scored, against = (), (), ()
    if arm.teacher:
        theirs = [
            steps_of(training_of(other, fold, seed, config), config, data)
            for other in (arm.teacher, arm.plain)
        ]
        taught, scored = theirs[0][:1], (theirs[0][-1], theirs[1][-1])
        tutor = taught[0].leaves.with_name(f"{config.teacher_weights}.pt")
        train += [*shlex.split(config.distilled), *flags(teacher=tutor)]
        against = flags(teacher=scored[0].leaves, plain=scored[1].leaves)
    train += [*arm.flags, *epochs_for(arm, train)]
    fit = Step(tuple(train), folder / "best.pt", record, inputs, tuple(taught), aside)
    predict = (f"{arm.stage}/inference.py", *common)
    for name, usual in (("subset", "test"), ("weights", "best")):
        if getattr(config, name) != usual:
            predict += flags(**{name: getattr(config, name)})
    masks = Step(predict, folder / "inference.json", record, inputs, (fit,), aside)
    score = (f"{arm.stage}/metrics.py", *common, *against)
    return [fit, masks, Step(score, folder / "summary.json", record, inputs, (masks, *scored))]


def main(config: Config) -> None:
    """Run what is missing, then write the tables and the figures."""
    began = time.perf_counter()
    results, arms = ROOT / "results" / config.name, config.arms()
    data, first = data_steps(config)
    units = list(product(config.folds or (None,), config.seeds))
    trainings = [training_of(arm, *unit, config) for unit in units for arm in arms]
    trainings = list(dict.fromkeys(trainings))  # a teacher that several seeds share appears once
    steps = [step for t in trainings for step in steps_of(t, config, data)]
    check_flags(steps)
    check_outdated(first, config.overwrite, steps)
    run_steps(first, results / "log.txt", config.overwrite)
    write_splits(data, config.folds, config.of, {arm.labels for arm in arms if arm.labels})
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
