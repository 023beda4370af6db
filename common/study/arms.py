"""The models of a study: which stages it trains, with which flags, compared with what.

`grid` is all models of the thesis; `ablation` varies one pair. reproduce.py turns an arm into
trainings, one per fold and seed.
"""

from itertools import product
from typing import NamedTuple

from common.settings import RECIPES, SCALES, TERMS, DistillationConfig

TEACHERS = {"teacher_t1_unet": "T1", "teacher_t2_transunet": "T2"}
STUDENTS = {"student_s1": "S1", "student_s2": "S2"}
PAIRS = {  # pair: its teacher, its plain student
    f"kd_{t.lower()}_{s.lower()}": (teacher, student)
    for (student, s), (teacher, t) in product(STUDENTS.items(), TEACHERS.items())
}
STAGES = (*TEACHERS, *STUDENTS, *PAIRS)
SHARES = (5, 10, 25, 50, 100)  # percent of the training patients whose labels are used
# Turns every term off, whatever the defaults; then an arm turns its own on.
NO_TERMS = (
    ("--segmentation", "1")
    + tuple(word for name in TERMS for word in (f"--{name}", "0"))
    + ("--scales",)
)
MAP = str(DistillationConfig.prediction)


class Arm(NamedTuple):
    """A model of a study: a stage with flags of its own, its teacher, its plain student."""

    label: str
    stage: str
    flags: tuple[str, ...] = ()
    name: str = ""  # ends the run's name
    teacher: "Arm | None" = None
    plain: "Arm | None" = None
    base: str | None = None  # label of the arm that the tables compare it with
    labels: int | None = None  # percent of labelled training patients; None: the data set's half
    curve: str = ""  # the line on which it is a point, where the study draws Dice against labels
    percent: int = 50  # of labels at which that point lies

    def variant(self, label: str, name: str, *flags: str, **changes) -> "Arm":
        """This arm with other flags, under another label and run name."""
        return self._replace(label=label, name=name, flags=flags, **changes)

    def own(self) -> set[str]:
        """Flags this arm owns; the user may not override them.

        `--prediction` for "prediction map", which turns all terms off (NO_TERMS) and that one on;
        none for "weights 0", which comes last whatever else is given.
        """
        start = len(NO_TERMS) if self.flags[: len(NO_TERMS)] == NO_TERMS else 0
        own = {word for word in self.flags[start:] if word.startswith("--")}
        names = RECIPES["thesis"] if "--recipe" in own else ()
        return own | {f"--{name.replace('_', '-')}" for name in names}


def grid(stages: tuple[str, ...]) -> list[Arm]:
    """The chosen models, teachers first; a pair brings what it needs."""
    wanted = {*stages}.union(*(PAIRS[s] for s in stages if s in PAIRS))
    arms = {stage: Arm(label, stage) for stage, label in TEACHERS.items() if stage in wanted}
    for student, label in STUDENTS.items():
        if student in wanted:
            arms[student] = Arm(label, student)
        for pair in (p for p in PAIRS if p in wanted and PAIRS[p][1] == student):
            teacher, plain = (arms[s] for s in PAIRS[pair])
            name = f"KD({teacher.label},{plain.label})"
            arms[pair] = Arm(name, pair, teacher=teacher, plain=plain, base=plain.label)
    return list(arms.values())


def scales(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """Which of the thesis's four places help."""
    map_only = whole.variant("prediction map", "map", *NO_TERMS, "--prediction", MAP)
    each = [whole.variant(s, s, *NO_TERMS, "--scales", s) for s in SCALES]
    maps = whole.variant("the three scales", "scales", *NO_TERMS, "--scales", *SCALES)
    return [teacher, plain, map_only, *each, maps, whole._replace(label="all four")]


def contrast(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """Which form of the contrast helps, compared with none."""
    none = whole.variant("no contrast", "none", "--scales")
    forms = (
        ("images", "image", "--contrast", "image"),
        ("MSE instead", "mse", "--contrast", "mse"),
    )
    others = [whole.variant(*form, base=none.label) for form in forms]
    return [teacher, plain, none, *others, whole._replace(label="pixels by class", base=none.label)]


def terms(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """Each term on its own, and the two recipes."""
    alone = [
        whole.variant(label, name, *NO_TERMS, f"--{flag}", weight)
        for label, name, flag, weight in (
            ("prediction map", "map", "prediction", MAP),
            ("channel-wise", "channel", "channelwise", "0.2"),
            ("border", "border", "border", "0.5"),
            ("pairwise affinity", "affinity", "affinity", "2"),
        )
    ]
    three = whole.variant("contrast at three scales", "scales", *NO_TERMS, "--scales", *SCALES)
    thesis = whole.variant("the thesis's recipe", "thesis", "--recipe", "thesis")
    return [teacher, plain, *alone, three, thesis, whole]


def controls(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """Negative controls: the terms with a wrong teacher, with a part of one, or without any."""
    random = whole.variant("random teacher", "random", "--control", "random-teacher")
    other = whole.variant("another image", "other", "--control", "other-image")
    mixed = whole.variant("another image's features", "mixed", "--control", "other-features")
    alone = whole.variant("no teacher", "alone", "--control", "no-teacher")
    zero = whole.variant("weights 0", "zero", *NO_TERMS)
    return [teacher, plain, random, other, mixed, zero, alone, whole]


def unlabelled(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """What images without labels add, with and without the teacher's predictions on them, compared
    with what their labels would add."""
    more = whole.variant(f"{whole.label}, unlabelled too", "unlabelled", "--unlabelled")
    words = ("--unlabelled", "--control", "no-teacher")
    alone = whole.variant("unlabelled too, no teacher", "unlabelledalone", *words)
    everything = plain._replace(
        label=f"{plain.label}, all labels", name="l100", labels=100, base=plain.label
    )
    return [teacher, plain, whole, alone, more, everything]


def deep(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """The student and one with as many parameters with a wider receptive field; that one
    distilled, and with the contrast by the labels alone."""
    far = plain.variant(f"{plain.label} deep", "deep", "--deep", base=plain.label)
    name, both = f"KD({teacher.label},{far.label})", {"plain": far, "base": far.label}
    taught = whole.variant(name, "deep", "--deep", **both)
    words = ("--deep", "--control", "no-teacher")
    alone = whole.variant(f"{far.label}, no teacher", "deepalone", *words, **both)
    return [teacher, plain, whole, far, alone, taught]


def multitask(teacher: Arm, plain: Arm, whole: Arm) -> list[Arm]:
    """The weight of the teacher's second task."""
    arms = [plain]
    for weight, name in (("0", "without"), ("0.2", "0.2"), ("1", "1")):
        # 0.2 is the teachers' default: the grid's own runs. The others are compared with 0.
        own, run = (("--reconstruction-weight", weight), f"r{weight}")
        if weight == "0.2":
            own, run = (), ""
        tutor_base, taught_base = (a.label for a in arms[1:3]) if arms[1:] else (None, plain.label)
        tutor = Arm(f"{teacher.label} {name}", teacher.stage, own, run, base=tutor_base)
        label = f"{plain.label} taught by it ({name})"
        arms += [tutor, whole.variant(label, run, teacher=tutor, base=taught_base)]
    return arms


def labels(teacher: Arm, plain: Arm, whole: Arm, shares: tuple[int, ...] = SHARES) -> list[Arm]:
    """Student, distilled student and teacher with the labels of `shares` percent of the patients.

    Also the student that is distilled on the unlabelled rest, and of both forms the control without
    a teacher. The teacher of all of them is the one with all labels. Every distilled form is
    compared with the plain student of the same labels.
    """
    arms = [teacher._replace(curve=teacher.label, percent=100)]
    for percent in shares:
        # Half of the labels is what the data set's split gives anyway: the grid's own runs.
        its = {"labels": None if percent == 50 else percent, "percent": percent}
        name = "" if percent == 50 else f"l{percent}"
        fewer = plain._replace(
            label=f"{plain.label} {percent} %", name=name, curve=plain.label, **its
        )
        both = {"plain": fewer, "base": fewer.label, **its}
        label = f"{whole.label} {percent} %"
        arms += [fewer, whole._replace(label=label, name=name, curve=whole.label, **both)]
        more = [("without a teacher", f"{name}n" if name else "alone", "--control", "no-teacher")]
        if percent < 100:
            taught = f"{name}u" if name else "unlabelled"
            untaught = f"{name}un" if name else "unlabelledalone"
            words = ("--unlabelled", "--control", "no-teacher")
            more.append(("unlabelled too, without a teacher", untaught, *words))
            more.append((f"{whole.label}, unlabelled too", taught, "--unlabelled"))
        for curve, run, *words in more:
            arms.append(whole.variant(f"{curve} {percent} %", run, *words, curve=curve, **both))
        if percent < 100:
            label = f"{teacher.label} {percent} %"
            point = {"curve": teacher.label, "percent": percent, "labels": percent}
            few = teacher.variant(label, f"l{percent}", "--train-on", "student", **point)
            arms.append(few)
    return arms


STUDIES = {
    f.__name__: f for f in (scales, contrast, terms, multitask, controls, unlabelled, deep, labels)
}


def ablation(study: str, pair: str, shares: tuple[int, ...] = SHARES) -> list[Arm]:
    """The arms of an ablation of one pair: teacher, plain student, the student's variants.

    `shares` of labels are for the study `labels` alone.
    """
    more = (shares,) if study == "labels" else ()
    return STUDIES[study](*grid((pair,)), *more)
