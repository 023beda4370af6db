"""The whole study in one command: data -> teachers -> students -> distilled students -> table.

    python reproduce.py --quick               synthetic CT, small and short: minutes on a laptop
    python reproduce.py                       data/Task09_Spleen if it is there, else the phantom
    python reproduce.py --input ~/Task09_Spleen --folds 0 1 2 3 4 --seeds 0 1 2
    python reproduce.py --data data/mine --name mine          slices made by import_pairs.py
    python reproduce.py --models student_s1 kd_t1_s1          a part of the grid (and its teachers)
    python reproduce.py --study controls --pair kd_t2_s2      an ablation of one pair
    python reproduce.py --t1 "--width 32" --students "--epochs 60 --batch-size 4"

Runs the same scripts that one would run by hand, and prints each command. Stopped and started
again it takes up where it was; finished steps are skipped, and studies of one --name share their
runs. Writes results/NAME/: table.md and table.csv, figures, log.txt with all output; an ablation
writes its own into results/NAME/STUDY/.

Ablations (--study): `scales`, which of the distillation's places help; `contrast`, its form;
`multitask`, the weight of the teacher's reconstruction; `controls`, what must not help: a teacher
with random weights, one that looks at another image, terms of weight 0.
"""

import shlex
import sys
import time
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import NamedTuple

from common import config as base
from common.config import launch, option, parse, to_json
from common.files import ROOT, UserError, shown, write_json
from common.slices import make_splits, read_set
from common.steps import Step, run_steps
from common.study import add_up

TASK09 = ROOT / "data" / "Task09_Spleen"
TEACHERS = {"teacher_t1_unet": "T1", "teacher_t2_transunet": "T2"}
STUDENTS = {"student_s1": "S1", "student_s2": "S2"}
PAIRS = {  # pair: its teacher, its plain student
    f"kd_{t.lower()}_{s.lower()}": (teacher, student)
    for (student, s), (teacher, t) in product(STUDENTS.items(), TEACHERS.items())
}
# What --quick adds to the flags that one gives: sized for 10 minutes on two CPU cores without
# bf16. T1 has a quarter of its width (2.7 million parameters), T2 two narrow layers.
QUICK = {
    "patients": 20,
    "size": 96,
    "thickness": 8.0,
    "t1": "--width 16 --epochs 8 --batch-size 4",
    "t2": "--width 192 --depth 2 --epochs 6 --batch-size 4 --lr 1e-3",
    "students": "--epochs 12 --batch-size 4",
}


@dataclass
class Config(base.Config):
    """What to run, and on what. A value that is left out is the stage's own default."""

    quick: bool = option(False, "small and short, on the phantom")
    study: str = option(
        "grid",
        "all models, or an ablation of one pair",
        choices=("grid", "scales", "contrast", "multitask", "controls"),
    )
    models: tuple[str, ...] = option(
        (*TEACHERS, *STUDENTS, *PAIRS),
        "stages of the grid; a pair brings its teacher and its plain student",
        choices=(*TEACHERS, *STUDENTS, *PAIRS),
    )
    pair: str = option("kd_t1_s1", "the pair of an ablation", choices=tuple(PAIRS))
    seeds: tuple[int, ...] = option((0,), "seeds of the trainings")
    folds: tuple[int, ...] = option((), "folds to test on; none: the data set's own split")
    of: int = option(5, "how many folds the patients are dealt into", low=2)
    share_teachers: bool = option(
        False, "one teacher a fold, of the first seed, for the students of all seeds"
    )
    input: Path | None = option(None, "CT volumes, a folder in Decathlon layout")
    data: Path | None = option(None, "an existing slice data set, instead of volumes")
    name: str | None = option(None, "start of the runs' names, and the folder in results/")
    patients: int | None = option(None, "patients of the phantom", low=1)
    thickness: float | None = option(None, "slice thickness of the phantom in mm")
    size: int | None = option(None, "height and width of the slices", low=1)
    t1: str = option("", 'more flags for T1\'s train.py, in quotes: --t1 "--width 32"')
    t2: str = option("", "more flags for T2's train.py")
    students: str = option("", "more flags for every student's train.py, distilled or not")
    distilled: str = option("", "more flags for the distilled students' train.py")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def __post_init__(self):
        """Fill in what --quick means."""
        super().__post_init__()
        if self.input and self.data:
            raise UserError("--input (volumes) and --data (slices) exclude each other.")
        if not self.seeds or not self.models:
            raise UserError("--seeds and --models need at least one value each.")
        # The steps run in the repository's root, wherever this was started.
        self.input, self.data = (p and p.resolve() for p in (self.input, self.data))
        if self.quick:
            for name, value in QUICK.items():
                given = getattr(self, name)
                if given is None:
                    setattr(self, name, value)
                elif isinstance(value, str):  # of two equal flags the last one counts
                    setattr(self, name, f"{value} {given}".strip())
        self.name = self.name or ("quick" if self.quick else "study")


class Arm(NamedTuple):
    """A model of a study: a stage with flags of its own, and what it is compared with."""

    label: str
    stage: str
    flags: tuple[str, ...] = ()
    name: str = ""  # ends the run's name
    teacher: "Arm | None" = None
    base: "Arm | None" = None


def grid(stages: tuple[str, ...]) -> list[Arm]:
    """The chosen models, teachers first; a pair brings what it needs."""
    wanted = {*stages}.union(*(PAIRS[s] for s in stages if s in PAIRS))
    arms = {stage: Arm(label, stage) for stage, label in TEACHERS.items() if stage in wanted}
    for student, label in STUDENTS.items():
        if student in wanted:
            arms[student] = Arm(label, student)
        for pair in (p for p in PAIRS if p in wanted and PAIRS[p][1] == student):
            teacher, plain = (arms[s] for s in PAIRS[pair])
            label = f"KD({teacher.label},{plain.label})"
            arms[pair] = Arm(label, pair, teacher=teacher, base=plain)
    return list(arms.values())


def ablation(study: str, pair: str) -> list[Arm]:
    """The arms of an ablation of one pair: teacher, plain student, and the student's variants."""
    teacher, plain, whole = grid((pair,))

    def variant(label: str, name: str, *flags: str, teacher: Arm = teacher) -> Arm:
        return Arm(label, pair, flags, name, teacher, plain)

    no_map = ("--prediction", "0")
    map_only = variant("prediction map", "map", "--scales")
    if study == "scales":
        scales = [variant(s, s, "--scales", s, *no_map) for s in base.SCALES]
        maps = variant("the three scales", "scales", *no_map)
        return [teacher, plain, map_only, *scales, maps, whole._replace(label="all four")]
    if study == "contrast":
        images = variant("images (InfoNCE)", "image", "--contrast", "image")
        mse = variant("MSE in its place", "mse", "--contrast", "mse")
        pixels = whole._replace(label="pixels by class")
        return [teacher, plain, map_only._replace(label="no contrast"), images, mse, pixels]
    if study == "multitask":
        arms = [plain]
        for weight in ("0", "0.2", "1"):
            tutor = Arm(
                f"{teacher.label}, reconstruction {weight}",
                teacher.stage,
                ("--reconstruction-weight", weight),
                f"r{weight}",
                base=arms[1] if weight != "0" else None,
            )
            label = f"{plain.label} taught by it ({weight})"
            arms += [tutor, variant(label, f"r{weight}", teacher=tutor)]
        return arms
    random = variant("random teacher", "random", "--control", "random-teacher")
    other = variant("another image", "other", "--control", "other-image")
    zero = variant("weights 0", "zero", *no_map, "--scales")
    return [teacher, plain, whole, random, other, zero]


def flags(**values) -> tuple[str, ...]:
    """`width=32` -> `--width 32`; None is left out."""
    pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in values.items() if v is not None)
    return tuple(part for pair in pairs for part in pair)


def data_steps(config: Config) -> tuple[Path, list[Step]]:
    """The slice data set, and the steps that make it."""
    if config.data:
        return config.data, []
    steps = ()
    volumes = config.input or (TASK09 if TASK09.exists() and not config.quick else None)
    if volumes is None:
        volumes = ROOT / "data" / f"phantom_{config.name}"
        made = flags(output=volumes, patients=config.patients, thickness=config.thickness)
        steps += (Step(("data_prep/make_phantom.py", *made), volumes / "dataset.json"),)
    check = ("data_prep/check_volumes.py", *flags(input=volumes))
    steps += (Step(check, volumes / "dataset.json", needs=steps),)
    data = ROOT / "data" / f"slices_{config.name}"
    cut = ("data_prep/slice_nifti.py", *flags(input=volumes, output=data, size=config.size))
    steps += (Step(cut, data / "dataset.json", needs=steps),)
    return data, list(steps)


class Run(NamedTuple):
    """One training of an arm: on which split, with which seed."""

    arm: Arm
    fold: int | None
    seed: int

    def folder(self, config: Config) -> Path:
        """Its run folder."""
        fold = "" if self.fold is None else f"f{self.fold}"
        name = "-".join(filter(None, (config.name, fold, f"s{self.seed}", self.arm.name)))
        return ROOT / self.arm.stage / "runs" / name


def run_of(arm: Arm, fold: int | None, seed: int, config: Config) -> Run:
    """An arm's run; a teacher that several seeds share has the first seed."""
    shared = config.share_teachers and arm.stage in TEACHERS
    return Run(arm, fold, config.seeds[0] if shared else seed)


def steps_of(run: Run, config: Config, data: Path, splits: str) -> list[Step]:
    """Training, inference and scoring of one run."""
    arm, folder = run.arm, run.folder(config)
    inputs = tuple(data / name for name in ("dataset.json", "manifest.csv", splits))
    common = flags(data=data, name=folder.name)
    on = flags(device=config.device)
    train = [f"{arm.stage}/train.py", *common, *on, *flags(splits=splits, seed=run.seed)]
    group = TEACHERS.get(arm.stage, "students").lower()
    train += shlex.split(getattr(config, group))
    before, scored, against = (), (), ()
    if arm.teacher:
        teacher, plain = (run_of(a, run.fold, run.seed, config) for a in (arm.teacher, arm.base))
        theirs = [steps_of(other, config, data, splits) for other in (teacher, plain)]
        before, scored = theirs[0][:1], (theirs[0][-1], theirs[1][-1])
        weights, *summaries = (other.leaves for other in (*before, *scored))
        train += [*shlex.split(config.distilled), *flags(teacher=weights)]
        against = flags(teacher=summaries[0], plain=summaries[1])
    train += arm.flags
    training = Step(tuple(train), folder / "best.pt", inputs, tuple(before))
    predict = (f"{arm.stage}/inference.py", *common, *on)
    prediction = Step(predict, folder / "inference.json", inputs, (training,))
    score = (f"{arm.stage}/metrics.py", *common, *against)
    return [
        training,
        prediction,
        Step(score, folder / "summary.json", inputs, (prediction, *scored)),
    ]


def check_flags(steps: list[Step]) -> None:
    """Parse every training's flags now: a mistake shows before the first hour, not after it."""
    for stage in {step.command[0] for step in steps if step.command[0].endswith("train.py")}:
        spec = spec_from_file_location(stage.replace("/", "_"), ROOT / stage)
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up by name
        spec.loader.exec_module(module)
        for step in steps:
            if step.command[0] == stage:
                parse(module.Config, list(step.command[1:]))


def main(config: Config) -> None:
    """Run what is missing, then write the tables and the figures."""
    began = time.perf_counter()
    results = ROOT / "results" / config.name
    arms = grid(config.models) if config.study == "grid" else ablation(config.study, config.pair)
    folds = config.folds or (None,)
    splits = {k: "splits.json" if k is None else f"splits_fold{k}of{config.of}.json" for k in folds}
    data, first = data_steps(config)
    runs = [run_of(arm, k, s, config) for k, s in product(folds, config.seeds) for arm in arms]
    runs = list(dict.fromkeys(runs))  # a teacher that several seeds share appears once
    steps = [step for run in runs for step in steps_of(run, config, data, splits[run.fold])]
    check_flags(steps)
    run_steps(first, results)
    slices = read_set(data)
    for fold in config.folds:
        cases = [s.case for s in slices.slices]
        write_json(data / splits[fold], make_splits(cases, 0, config.of, fold))
    run_steps(steps, results)
    folder = results if config.study == "grid" else results / config.study
    write_json(folder / "config.json", to_json(config))
    folders = {a.label: [r.folder(config) for r in runs if r.arm == a] for a in arms}
    bases = {arm.label: arm.base.label for arm in arms if arm.base}
    print(f"\n{add_up(folder, folders, bases, slices)}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes -> {shown(folder)}")


if __name__ == "__main__":
    launch(main, Config)
