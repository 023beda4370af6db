"""What a study consists of: the steps that make its data, its trainings, and the steps of each.

`config` is reproduce.py's: its `name`, its data, folds and seeds, and the flags that it passes on.
"""

import argparse
import shlex
from itertools import product
from pathlib import Path
from typing import NamedTuple

from common.dataset.classes import WHICH
from common.dataset.layouts import study_classes
from common.dataset.splits import split_name
from common.errors import UserError
from common.files import ROOT, read_json, shown
from common.settings import StudentConfig, TrainConfig
from common.study.arms import TEACHERS, Arm
from common.study.steps import Step, flags

TASK09 = ROOT / "data" / "Task09_Spleen"


def data_steps(config) -> tuple[Path, list[Step]]:
    """The slice data set, and the steps that make it.

    UserError if the volumes that the slices came from are gone; the slices can still be used.
    """
    if config.data:
        return config.data, []
    data, steps = ROOT / "data" / f"slices_{config.name}", ()
    record = data.with_name(f"{data.name}.json")
    classes = None if config.classes == WHICH[0] else config.classes
    synthetic = config.quick or (config.patients, config.thickness) != (None, None)
    volumes = config.input or (TASK09 if TASK09.exists() and not synthetic else None)
    if volumes is None:
        volumes = ROOT / "data" / f"phantom_{config.name}"
        made = flags(output=volumes, patients=config.patients, thickness=config.thickness)
        made += flags(classes=classes)
        steps += (Step(("data_prep/make_phantom.py", *made), volumes / "dataset.json", record),)
    else:
        classes = study_classes(volumes, classes)
    index = (volumes / "dataset.json",)
    cut = read_json(data / "dataset.json") if (data / "dataset.json").exists() else {}
    of_these_volumes = record.exists() and cut.get("name") == volumes.name
    if of_these_volumes and not index[0].exists() and not config.overwrite:
        raise UserError(
            f"{shown(volumes)} is gone, of which {shown(data)} was made. Go on with the slices "
            f"themselves, --data {shown(data)} --name {config.name} instead of the flags on "
            "data, or rebuild everything with --overwrite."
        )
    if config.input and not config.input.is_dir():
        raise UserError(f"--input {shown(config.input)} does not exist.")
    check = ("data_prep/check_volumes.py", *flags(input=volumes))
    steps += (Step(check, *index, record, index, steps),)
    made = flags(input=volumes, output=data, size=config.size, classes=classes)
    slicing = ("data_prep/slice_nifti.py", *made)
    steps += (Step(slicing, data / "dataset.json", record, index, steps),)
    return data, list(steps)


def epochs_for(arm: Arm, words: list[str]) -> tuple[str, ...]:
    """Epochs that give an arm with more or fewer labels about the usual number of steps."""
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


def training_of(arm: Arm, fold: int | None, seed: int, config) -> Training:
    """An arm's training; a teacher that several seeds share has the first seed."""
    shared = config.share_teachers and arm.stage in TEACHERS
    return Training(arm, fold, config.seeds[0] if shared else seed)


def folder_of(training: Training, config) -> Path:
    """Its run folder, named after study, fold, seed and variant."""
    arm, fold, seed = training
    part = "" if fold is None else f"f{fold}of{config.num_folds}"
    name = "-".join(filter(None, (config.name, part, f"s{seed}", arm.name)))
    return ROOT / arm.stage / "runs" / name


def steps_of(training: Training, config, data: Path) -> list[Step]:
    """Training, inference and scoring of one run."""
    arm, fold, seed = training
    folder = folder_of(training, config)
    record, aside = folder.parent / f"{folder.name}.json", flags(device=config.device)
    splits = split_name(fold, config.num_folds, arm.labels)
    inputs = tuple(data / name for name in ("dataset.json", "manifest.csv", splits))
    common = flags(data=data, name=folder.name)
    group = TEACHERS.get(arm.stage, "students").lower()
    train = [f"{arm.stage}/train.py", *common, *flags(splits=splits, seed=seed)]
    train += shlex.split(getattr(config, group))
    taught, scored, against = (), (), ()
    if arm.teacher:
        references = [
            steps_of(training_of(other, fold, seed, config), config, data)
            for other in (arm.teacher, arm.plain)
        ]
        taught, scored = references[0][:1], (references[0][-1], references[1][-1])
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


def trainings_of(config) -> list[Training]:
    """All trainings of the study: every arm of every fold and seed."""
    units = product(config.folds or (None,), config.seeds)
    trainings = [training_of(arm, *unit, config) for unit in units for arm in config.arms()]
    return [*dict.fromkeys(trainings)]  # a teacher that several seeds share appears once
