"""Splits by patient where a patient has several volumes, and the splits that a study makes."""

from collections.abc import Mapping
from pathlib import Path

from common.arms import Arm
from common.files import UserError, write_json
from common.slices import make_splits, read_set, read_splits, with_labels

PARTS = ("train", "val", "test", "student")


def split_patients(patients: Mapping[str, str], seed=0, folds=0, fold=0) -> dict:
    """`make_splits` of the patients, in cases: all of a patient's lie in the same part."""
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


def split_name(fold: int | None, labels: int | None, config) -> str:
    """The splits file of a fold (of `config.of`) and a share of labels, in the data's folder."""
    parts = ["splits"]
    if fold is not None:
        parts.append(f"fold{fold}of{config.of}")
    if labels is not None:
        parts.append(f"labels{labels}")
    return "_".join(parts) + ".json"


def write_splits(arms: list[Arm], config, data: Path) -> None:
    """The splits files of all of `config.folds` (of `config.of`) and shares of labels.

    UserError if the smallest share would be less than one patient.
    """
    known = read_set(data)
    patients = known.patients
    shares = {arm.labels for arm in arms if arm.labels}
    for fold in config.folds or (None,):
        if fold is None:
            splits = read_splits(known, "splits.json", ("train",))
        else:
            splits = split_patients(patients, 0, config.of, fold)
            write_json(data / split_name(fold, None, config), splits)
        count = len({patients[case] for case in splits["train"]})
        if shares and count * min(shares) < 100:
            raise UserError(
                f"{min(shares)} % of {count} training patients is less than one: "
                f"this study needs {100 // min(shares)} of them (of the phantom: --patients 30)."
            )
        for share in shares:
            made = share_of_labels(splits, share, patients)
            write_json(data / split_name(fold, share, config), made)
