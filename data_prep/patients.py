"""Which patient each picture shows, by its name, its folder or a table."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.dataset.classes import file_name
from common.dataset.layouts import looks_grouped, patient_rule
from common.dataset.picture_folders import ENDINGS, IMAGE_FOLDERS, MASK_FOLDERS, OTHERS
from common.errors import UserError, bullets
from common.files import shown
from data_prep.user_tables import read_table

COLUMNS = {"file": ("file", "filename", "image", "name"), "patient": ("patient",)}
A_SPLIT = {"train", "training", "val", "valid", "validation", "test", "testing"}
WITHOUT = "say which patients the pictures show with --patient or --patient-csv"
Listed = dict[str, list[tuple[tuple[str, ...], str]]]  # of patients_listed


def name_slices(
    names: Sequence[str], files: Sequence[Path], rule: str | None, table: Path | None
) -> list[tuple[str, int]]:
    """Case and slice number of every picture; numbers count up if nothing gives them.

    `names` are those of the pictures without ending, with their sub-folders; `files` are shown in
    messages. `rule` is a regular expression, `table` a CSV; without either a sub-folder is a
    patient or, where there is none, each picture. UserError naming every picture without a patient.
    """
    if rule and table:
        raise UserError("--patient and --patient-csv exclude each other.")
    if table:
        source, listed = shown(table), patients_listed(table)
        named = [(_look_up(listed, *pair, table), None) for pair in _both(names, files)]
    elif rule:
        source, pattern = f"--patient {rule!r}", patient_rule(rule)
        # A rule with a / applies to folders, too.
        texts = names if "/" in rule else [name.rpartition("/")[2] for name in names]
        matches = [pattern.search(text) for text in texts]
        named = [(m and m[1], m[2] if m and pattern.groups > 1 else None) for m in matches]
    elif any("/" in name for name in names):
        source, named = "the sub-folders", [(name, None) for name in _folders(names)]
    else:
        source, named = "the file names", [(name, "0") for name in names]
        _each_alone(names)
    missed = [shown(file) for file, (patient, _) in _both(files, named) if not patient]
    if missed:
        raise UserError(f"{source} gives no patient for {len(missed)} images:{bullets(missed)}")
    return _numbered(named, source)


def _both(first: Sequence, second: Sequence) -> Iterator[tuple]:
    return zip(first, second, strict=True)


def _each_alone(names: Sequence[str]) -> None:
    """Say that every picture counts as a patient, and warn if the names look otherwise."""
    print("no --patient rule: every image counts as a patient of its own", flush=True)
    if count := looks_grouped(names):
        print(
            f"warning: the names look like {count} patients with several images each; without a "
            "rule one patient can be on both sides of the split. Perhaps: "
            '--patient "^(.+?)[_-]?([0-9]+)$"',
            flush=True,
        )


def _folders(names: Sequence[str]) -> list[str]:
    """The sub-folder of each picture, as its patient. UserError if it cannot be one."""
    folders = [name.rpartition("/")[0] for name in names]
    if deep := next((folder for folder in folders if "/" in folder), None):
        raise UserError(
            f"The pictures lie several folders deep, as in {deep}: say which folder is the "
            "patient. --patient '^([^/]+)/' takes the first, '([^/]+)/[^/]+$' the last."
        )
    if bare := [name for name, folder in _both(names, folders) if not folder]:
        raise UserError(
            f"{len(bare)} pictures lie next to the folders of others, as {bare[0]}: {WITHOUT}."
        )
    different = sorted(set(folders))
    if split := [folder for folder in different if folder.lower() in A_SPLIT]:
        raise UserError(
            f"The sub-folders {', '.join(split)} are parts of a split, not patients: name one of "
            f"them, or {WITHOUT}."
        )
    some = ", ".join(different[:3]) + (", ..." if len(different) > 3 else "")
    print(
        f"no --patient rule: each of the {len(different)} sub-folders counts as a patient ({some});"
        f" if they are not, {WITHOUT}",
        flush=True,
    )
    return folders


def _numbered(named: Sequence[tuple[str, str | None]], source: str) -> list[tuple[str, int]]:
    """Patients and slice numbers in a form that is safe in file names."""
    counters: dict[str, int] = {}
    owners: dict[str, str] = {}
    result = []
    for patient, number in named:
        case = file_name(patient, "case")
        if owners.setdefault(case, patient) != patient:
            raise UserError(
                f"{source}: the patients {owners[case]!r} and {patient!r} would both be {case!r}; "
                "give them names of letters A to Z and digits, with --patient-csv perhaps."
            )
        if number is not None and not number.isdecimal():
            raise UserError(f"{source}: the slice number {number!r} is not a number.")
        counters[case] = counters.get(case, -1) + 1
        result.append((case, counters[case] if number is None else int(number)))
    return result


def patients_listed(path: Path) -> Listed:
    """What a user's CSV lists, by the files' names without folder and ending: for each the parts of
    its path, the last first, and its patient. UserError for rows without a file, and for a file
    that is listed under two patients."""
    table: Listed = {}
    endings = (*ENDINGS, *(ending for group in OTHERS for ending in group))
    rows = read_table(path, COLUMNS)
    if without_file := [row["patient"] for row in rows if not row["file"]]:
        raise UserError(f"{shown(path)} names no file for {', '.join(without_file[:5])}.")
    for row in rows:
        file = Path(unicodedata.normalize("NFC", row["file"].replace("\\", "/")))
        name = file.stem if file.suffix.lower() in endings else file.name
        parts = (name, *_folders_above(file))
        table.setdefault(name, []).append((parts, row["patient"]))
    contradicting = {
        f"{parts[0]} under {' and under '.join(several)}": None
        for entries in table.values()
        for parts, _ in entries
        if len(several := _patients(entries, parts)) > 1
    }
    _refuse_two_patients([*contradicting], path)
    return table


def _folders_above(file: Path) -> list[str]:
    """The folders of a path, the innermost first, without those that only say what they hold."""
    kinds = (*IMAGE_FOLDERS, *MASK_FOLDERS)
    return [part for part in reversed(file.parts[:-1]) if part.lower() not in kinds]


def _look_up(listed: Listed, name: str, file: Path, path: Path) -> str | None:
    """The patient of a picture, listed by its whole name or without its suffix; None if neither."""
    *folders, short = name.split("/")
    for last in (unicodedata.normalize("NFC", file.stem), short):
        patients = _patients(listed.get(last, ()), (last, *reversed(folders)))
        if len(patients) > 1:
            _refuse_two_patients([f"{last} under {' and under '.join(patients)}"], path)
        if patients and patients[0]:
            return patients[0]
    return None


def _patients(entries: Sequence, parts: tuple[str, ...]) -> list[str]:
    """The different patients of the entries that may be the file with these parts; as many folders
    are compared as both name."""
    fitting = [p for path, p in entries if all(a == b for a, b in zip(path, parts, strict=False))]
    return list(dict.fromkeys(fitting))


def _refuse_two_patients(lines: list[str], path: Path) -> None:
    if lines:
        raise UserError(
            f"{shown(path)} lists {'; '.join(lines[:20])}; give every picture a name of its own, "
            "and one patient."
        )
