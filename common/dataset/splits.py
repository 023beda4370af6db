"""Splits by patient, never by slice: made, dealt, read and checked.

splits.json holds lists of cases: `train`, `val`, `test`, and `student`, the part of train whose
labels the students may use; seed, folds and fold say how they were dealt.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.dataset.slices import MAKE_DATA, SliceSet, read_set
from common.errors import UserError
from common.files import read_json, shown, write_json

PARTS = ("train", "val", "test", "student")


def make_splits(cases: list[str], seed: int = 0, folds: int = 0, fold: int = 0) -> dict:
    """Split patients, never slices: 70 % train, 10 % val, 20 % test, at least one in each.

    With `folds` the test patients are fold number `fold` of that many: over all folds every patient
    is tested exactly once. `val` and `student` are drawn from the others anew for each fold; drawn
    once, the folds would train on nearly the same patients. `student` is half of the train patients
    (rounded up). One or two patients cannot be split: they are test patients.
    """
    cases = sorted(set(cases))
    check_capitals(cases)
    if len(cases) < 3:  # too few to train on: a data set to predict
        parts = {"train": [], "val": [], "test": cases, "student": []}
        return {"seed": seed, "folds": 0, "fold": 0, **parts}
    if not folds and fold:
        raise UserError(f"--fold {fold} needs --num-folds, the number of folds.")
    if folds and not (2 <= folds <= len(cases) and 0 <= fold < folds):
        raise UserError(
            f"--fold {fold} --num-folds {folds}: there are from 2 folds to as many as patients "
            f"({len(cases)}), and the first is 0."
        )
    order = np.random.default_rng(seed).permutation(cases).tolist()
    test = order[fold::folds] if folds else order[: max(1, round(0.2 * len(order)))]
    rest = [case for case in order if case not in test]
    if folds:
        rest = _draws(seed, folds, fold).permutation(rest).tolist()
    count = min(max(1, round(0.1 * len(order))), len(rest) - 1)
    if count < 1:
        raise UserError(f"{len(cases)} patients in {folds} folds leave none to validate on.")
    val, train = rest[:count], rest[count:]
    splits = {"train": train, "val": val, "test": test, "student": train[: -(-len(train) // 2)]}
    return {
        "seed": seed,
        "folds": folds,
        "fold": fold,
        **{part: sorted(names) for part, names in splits.items()},
    }


def check_capitals(names: Iterable[str]) -> None:
    """UserError naming patients or cases whose names differ only in capitals or in how accents are
    stored: they may be one, and on some disks their files would be."""
    if groups := alike(names):
        listed = "; ".join(" and ".join(group) for group in groups[:10])
        raise UserError(
            "These names differ only in capitals or in how accents are stored, which some disks do "
            f"not tell apart: {listed}. Are they one patient? Rename one, or give both one name."
        )


def alike(names: Iterable[str]) -> list[list[str]]:
    """The groups of different names that some disks do not tell apart."""
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).lower(), set()).add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def count_of(share: float, patients: int) -> int:
    """How many of so many patients are `share` percent of them: at least one."""
    return max(1, int(patients * share / 100 + 0.5))


def _draws(seed: int, folds: int, fold: int) -> np.random.Generator:
    """The random generator of a split: seeded by its seed and, with folds, its fold."""
    return np.random.default_rng([seed, fold] if folds else seed)


def with_labels(splits: dict, percent: float) -> dict:
    """The same split, with the labels of `percent` of the training patients (at least one).

    Drawn independently in each fold and nested within one: a smaller fraction is a subset of a
    larger one, and half of the patients are the split's own `student`.
    """
    rng = _draws(*(splits.get(name, 0) for name in ("seed", "folds", "fold")))
    half = rng.permutation(splits["student"]).tolist()
    rest = rng.permutation([c for c in splits["train"] if c not in half]).tolist()
    count = count_of(percent, len(splits["train"]))
    return {**splits, "student": sorted((half + rest)[:count])}


def split_patients(patients: Mapping[str, str], seed: int, folds: int, fold: int) -> dict:
    """`make_splits` of the patients, in cases: all of a patient's lie in the same part."""
    check_capitals(patients)
    return _in_cases(make_splits([*patients.values()], seed, folds, fold), patients)


def share_of_labels(splits: dict, percent: float, patients: Mapping[str, str]) -> dict:
    """`with_labels` of the patients, in cases."""
    whole = {part: [*dict.fromkeys(patients[case] for case in splits[part])] for part in PARTS}
    return _in_cases(with_labels({**splits, **whole}, percent), patients)


def _in_cases(splits: dict, patients: Mapping[str, str]) -> dict:
    """A split of patients as one of their cases."""
    cases: dict[str, list[str]] = {}
    for case, patient in sorted(patients.items()):
        cases.setdefault(patient, []).append(case)
    return {**splits, **{p: [c for patient in splits[p] for c in cases[patient]] for p in PARTS}}


def read_splits(data: SliceSet, name: str, needed: tuple[str, ...]) -> dict[str, list[str]]:
    """The cases of `train`, `val`, `test` and `student`; checked, or UserError.

    Refused: a patient in two of train, val and test, even through two volumes; a student patient
    outside train; a patient without slices; nobody in a part that is `needed`.
    """
    path = data.folder / name
    others = sorted(file.name for file in data.folder.glob("splits*.json"))
    hint = f"There are {', '.join(others)}: see --splits." if others else MAKE_DATA
    splits = read_json(path, hint)
    parts = [splits.get(p) for p in PARTS] if isinstance(splits, dict) else [None]
    if not all(isinstance(p, list) and all(isinstance(c, str) for c in p) for p in parts):
        raise UserError(f"{shown(path)} lacks one of the lists of cases {', '.join(PARTS)}.")
    problems = [f"{part} is empty" for part in needed if not splits[part]]
    with_slices = {s.case for s in data.slices}
    for part in PARTS:
        problems += [f"{part}: {c} has no slices" for c in splits[part] if c not in with_slices]
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        case_of = {data.patients.get(c, c): c for c in splits[b]}
        for case in splits[a]:
            if (patient := data.patients.get(case, case)) in case_of:
                other = "" if case in splits[b] else f"{case_of[patient]}, of the same patient, "
                problems.append(f"{case} is in {a} and {other}in {b}")
    problems += [
        f"student: {c} is not in train" for c in splits["student"] if c not in splits["train"]
    ]
    if problems:
        raise UserError(f"{shown(path)}: " + "; ".join(problems[:10]))
    return {part: splits[part] for part in PARTS}


def check_patients(
    trained: dict, data: SliceSet, splits: dict, subset: Iterable[str], path: Path
) -> None:
    """UserError if the model in `path` has seen patients on whom `subset` is evaluated.

    `trained` is its checkpoint: the cases that it was trained on (`train`, perhaps `unlabelled`,
    and its teacher's, `teacher`) and chosen by (`val`, `teacher_val`), and which patient each case
    belongs to. Scores of a split rebuilt after a training would be scores on training patients,
    even with another volume of theirs.
    """
    parts, patient_of = trained["patients"], trained.get("patient_of") or {}
    learned, chosen = ("train", "unlabelled", "teacher"), ("val", "teacher_val")
    asked = {"test": (*learned, *chosen), "val": learned}
    seen = {p: [c for part in names for c in parts.get(part, ())] for p, names in asked.items()}
    for part in subset:
        cases = seen.get(part, ())
        trained_on = {patient_of.get(case, data.patients.get(case, case)) for case in cases} | {
            *cases
        }
        names_of = {case: {case, data.patients.get(case, case)} for case in splits[part]}
        if leaked := sorted(case for case, names in names_of.items() if names & trained_on):
            raise UserError(
                f"{shown(path)} has been trained or chosen on {part} patients of this split "
                f"({', '.join(leaked[:5])}): the split has changed since, or it is of another data "
                "set. Name the split of that training with --splits, another checkpoint, or train "
                "again."
            )


def split_name(fold: int | None, of: int, labels: int | None) -> str:
    """The splits file of a fold (of `of`) and of a percentage of labels, in the data's folder."""
    parts = ["splits"]
    if fold is not None:
        parts.append(f"fold{fold}of{of}")
    if labels is not None:
        parts.append(f"labels{labels}")
    return "_".join(parts) + ".json"


def write_splits(data: Path, folds: Iterable[int], of: int, shares: set[int]) -> None:
    """The splits files of all folds (none: of the set's own split) and percentages of labels.

    UserError if `shares` cannot be dealt (see `_check_shares`).
    """
    slices = read_set(data)
    patients = slices.patients
    for fold in tuple(folds) or (None,):
        if fold is None:
            splits = read_splits(slices, "splits.json", ("train",))
        else:
            splits = split_patients(patients, 0, of, fold)
            write_json(data / split_name(fold, of, None), splits)
        if shares:
            _check_shares(shares, splits, patients, data)
        for share in shares:
            made = share_of_labels(splits, share, patients)
            write_json(data / split_name(fold, of, share), made)


def _check_shares(shares: set[int], splits: dict, patients: Mapping[str, str], data: Path) -> None:
    """UserError for a share of the training patients that is less than one, as many as another, or,
    below 100 %, all of them; and where `student` is not the half that stands for 50 %."""
    train, student = (len({patients[case] for case in splits[p]}) for p in ("train", "student"))
    counts = {share: count_of(share, train) for share in sorted(shares)}
    where = f"{shown(data)} has {train} training patients"
    if train * (least := min(shares)) < 100:
        raise UserError(
            f"{where}, {least} % of which is less than one: this study needs {-(-100 // least)} of "
            "them, or larger --labelled."
        )
    same = [(a, b) for a, b in pairwise(counts) if counts[a] == counts[b]]
    whole = [share for share in counts if share < 100 and counts[share] == train]
    if same or whole:
        most = (
            f"{whole[0]} % are all of them" if whole else "{} and {} % are as many".format(*same[0])
        )
        raise UserError(f"{where}, of which {most}: choose other --labelled.")
    if student != -(-train // 2):
        raise UserError(
            f"{where} and {student} student patients; half of train is expected in `student`, "
            "which stands for 50 % of the labels."
        )
