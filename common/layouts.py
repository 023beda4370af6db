"""Where a data set keeps its volumes: Decathlon's dataset.json, or a pattern for images and masks.

    --images "img/img*.nii.gz" --masks "label/label*.nii.gz"                  Synapse, BTCV
    --images "*/*_frame*.nii.gz" --masks "*/*_frame*_gt.nii.gz" --patient "^(patient[0-9]+)"   ACDC

A star stands for any text inside one folder or file name, a question mark for one character; an
image and its mask have the same texts in their places.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import config as base
from common.cases import Case, listing
from common.config import option
from common.files import ROOT, UserError, bullets, read_json, shown
from common.organs import USUAL, named_in
from common.volumes import stem


@dataclass
class VolumesConfig(base.Config):
    """Which volumes."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout, or any")
    images: str | None = option(None, "pattern of the images in it, where it has no dataset.json")
    masks: str | None = option(None, "pattern of the masks in it; the same stars as in --images")
    organs: tuple[str, ...] = option(
        (),
        "organs as NAME=VALUE[,VALUE] of the labels, NAME as in dataset.json, or all; without it "
        "label 1 is the spleen",
    )
    channel: int | None = option(None, "which of a 4D image's channels, from 0", low=0)


def find_cases(config: VolumesConfig) -> tuple[list[Case], list[tuple[str, str]]]:
    """The labelled volumes, sorted by name, and what is wrong with them: name and text.

    UserError if there are none.
    """
    if config.images is None and config.masks is None:
        if config.input.is_dir() and not (config.input / "dataset.json").exists():
            raise UserError(
                f"{shown(config.input)} holds no dataset.json. Of a folder in another layout name "
                'the files: --images "img/img*.nii.gz" --masks "label/label*.nii.gz".'
            )
        return listing(config.input)
    if None in (config.images, config.masks):
        raise UserError("--images and --masks belong together; give both.")
    return _by_pattern(config.input, config.images, config.masks)


def list_all(config: VolumesConfig) -> list[Case]:
    """The labelled volumes, sorted by name. UserError naming all that is wrong with them."""
    cases, problems = find_cases(config)
    if problems:
        where = config.input / "dataset.json" if config.images is None else config.input
        lines = [f"{name}: {text}" for name, text in problems]
        raise UserError(f"{shown(where)}:{bullets(lines, 200)}")
    return cases


def _by_pattern(folder: Path, images: str, masks: str) -> tuple[list[Case], list[tuple[str, str]]]:
    """The pairs of two patterns, and the files that have no partner."""
    first, second = _matches(folder, images, "--images"), _matches(folder, masks, "--masks")
    if len(next(iter(first))) != len(next(iter(second))):
        raise UserError(
            f"--images {images!r} and --masks {masks!r} have different numbers of stars; each "
            "star stands for the same text in both."
        )
    truths = set(second.values())  # `x*.nii` finds the masks `x*_gt.nii` too: they are no images
    first = {key: path for key, path in first.items() if path not in truths}
    if not first:
        raise UserError(f"--images {images!r} finds the masks alone in {shown(folder)}.")
    stems = [stem(path) for path in first.values()]
    unique = len({*stems}) == len(stems)  # not so where every folder holds `image.nii.gz`
    names = {key: stem(path) if unique else "_".join(key) for key, path in first.items()}
    problems = [
        (stem(paths[key]), f"{shown(paths[key])} has no {partner}")
        for paths, others, partner in ((first, second, "mask"), (second, first, "image"))
        for key in paths.keys() - others.keys()
    ]
    pairs = first.keys() & second.keys()
    taken = [names[key] for key in pairs]
    problems += [(n, "two volumes of this name") for n in {*taken} if taken.count(n) > 1]
    cases = [Case(names[key], first[key], second[key]) for key in pairs]
    return sorted(cases, key=lambda case: case.name), sorted(problems)


def _matches(folder: Path, pattern: str, flag: str) -> dict[tuple[str, ...], Path]:
    """The files that a pattern finds, by the texts in its stars' places. UserError if none."""
    parts = Path(pattern).parts
    if Path(pattern).is_absolute() or ".." in parts or "**" in pattern or "[" in pattern:
        raise UserError(
            f"{flag} {pattern!r}: name files below --input, with * and ? alone, a star for each "
            "folder."
        )
    words = re.split(r"([*?])", "/".join(parts))
    groups = {"*": "([^/]*)", "?": "([^/])"}
    regex = re.compile("".join(groups.get(word, re.escape(word)) for word in words))
    found = {}
    for path in sorted(folder.glob(pattern)) if pattern else ():
        match = regex.fullmatch(path.relative_to(folder).as_posix())
        # macOS's shadow files `._x.nii.gz` are no volumes.
        if match and path.is_file() and not path.name.startswith("."):
            found[match.groups()] = path
    if not found:
        raise UserError(f"{flag} {pattern!r} finds no file in {shown(folder)}.")
    return found


def named_organs(folder: Path) -> dict[str, tuple[int, ...]]:
    """The organs that the folder's dataset.json names, if it has one."""
    index = folder / "dataset.json"
    return named_in(read_json(index)) if index.exists() else {}


def is_ct(folder: Path) -> bool:
    """Whether the volumes are CT, in HU: they are unless the folder's dataset.json says "MRI"."""
    index = folder / "dataset.json"
    listed = read_json(index) if index.exists() else {}
    kind = str(listed.get("modality") or "CT") if isinstance(listed, dict) else "CT"
    return "CT" in kind.upper()


def study_organs(volumes: Path, wanted: str | None) -> str | None:
    """The organs that reproduce.py cuts out of volumes that name theirs: those `wanted`, else the
    spleen, else the only one; None where that is the usual label alone.

    UserError where there are several and none is the spleen, and of volumes that are no CT.
    """
    if not is_ct(volumes):
        raise UserError(
            f"{shown(volumes)} holds no CT: make a data set with slice_nifti.py --percentiles, and "
            "name it with --data."
        )
    if wanted:
        return wanted
    named = named_organs(volumes)
    if not named or {name.lower(): values for name, values in named.items()} == USUAL:
        return None
    spleen = next((name for name in named if name.lower() == "spleen"), None)
    if spleen is None and len(named) > 1:
        raise UserError(
            f"{shown(volumes)} names {', '.join(named)}, no spleen: --organs all takes them "
            "all; of some make a data set with slice_nifti.py, and name it with --data."
        )
    return spleen or next(iter(named))


def patient_rule(pattern: str) -> re.Pattern:
    """`--patient` as a regular expression. UserError if it is none, or has no group."""
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--patient {pattern!r}: {error}.") from None
    if not rule.groups:
        raise UserError(f"--patient {pattern!r} has no group in parentheses.")
    return rule


def patient_of(names: Sequence[str], pattern: str | None) -> dict[str, str]:
    """The patient of each volume, by its name: group 1 of the rule, or, without one, itself."""
    if pattern is None:
        return {name: name for name in names}
    rule = patient_rule(pattern)
    found = {name: match[1] for name in names if (match := rule.search(name)) and match[1]}
    if missed := [name for name in names if name not in found]:
        raise UserError(
            f"--patient {pattern!r} gives no patient for {len(missed)} volumes:{bullets(missed)}"
        )
    return found


def looks_grouped(names: Iterable[str]) -> int:
    """As how many patients with several images or volumes each the names look; 0 if as none."""
    names = list(names)
    stems = {re.sub(r"[_-]?\d+$", "", name) for name in names}
    return len(stems) if "" not in stems and 1 < len(stems) < len(names) else 0
