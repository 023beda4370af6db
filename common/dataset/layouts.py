"""Where a data set keeps its volumes: Decathlon's dataset.json, or a pattern for images and masks.

    --images "img/img*.nii.gz" --masks "label/label*.nii.gz"                  Synapse, BTCV
    --images "*/*_frame*.nii.gz" --masks "*/*_frame*_gt.nii.gz" --patient "^(patient[0-9]+)"   ACDC

A star stands for any text inside one folder or file name, a question mark for one character; an
image and its mask have the same texts in their places. The ending .nii or .nii.gz stands for its
capitals, too. nnU-Net's folders, whose dataset.json has no list, are read by these patterns:

    --images "imagesTr/*_0000.nii.gz" --masks "labelsTr/*.nii.gz"
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import config as base
from common.config import option
from common.dataset.cases import Case, listing
from common.dataset.classes import USUAL, named_in
from common.dataset.formats import DICOM, NIFTI, foreign_files, is_nifti_name, plain, stem
from common.errors import UserError, bullets
from common.files import ROOT, read_json, shown

# A word of a "modality" or "channel_names" that stands for CT, in HU.
CT = re.compile(r"(?<![a-z])(CT|CTA|CTP|CECT|NCCT|CCTA|LDCT|HRCT|MDCT)(?![a-z])", re.IGNORECASE)
NNUNET = ("channel_names", "file_ending")  # keys of its dataset.json, which has no "training"


@dataclass
class VolumesConfig(base.Config):
    """Which volumes."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout, or any")
    images: str | None = option(None, "pattern of the images in it, where it has no dataset.json")
    masks: str | None = option(None, "pattern of the masks in it; the same stars as in --images")
    classes: tuple[str, ...] = option(
        (),
        "classes as NAME=VALUE[,VALUE] of the labels, NAME as in dataset.json, or all; without it "
        "label 1 is the spleen",
    )
    channel: int | None = option(None, "which of a 4D image's channels, from 0", low=0)


def find_cases(config: VolumesConfig) -> tuple[list[Case], list[tuple[str, str]]]:
    """The labelled volumes, sorted by name, and what is wrong with them: name and text.

    UserError if there are none.
    """
    if config.images is None and config.masks is None:
        index = config.input / "dataset.json"
        if config.input.is_dir() and not index.exists():
            raise UserError(_without_index(config.input))
        if is_nnunet(config.input):
            return _by_pattern(config.input, *_patterns(config, read_json(index)))
        return listing(config.input, config.channel)
    if None in (config.images, config.masks):
        raise UserError("--images and --masks belong together; give both.")
    return _by_pattern(config.input, config.images, config.masks)


def _without_index(folder: Path) -> str:
    """What to do with a folder that holds no dataset.json."""
    text = f"{shown(folder)} holds no dataset.json. "
    if any(folder.glob("imagesTr/*_0000.nii*")):
        images, masks = "imagesTr/*_0000.nii.gz", "labelsTr/*.nii.gz"
    else:
        images, masks = "img/img*.nii.gz", "label/label*.nii.gz"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        strange = foreign_files(files)
        if strange and (DICOM in strange or not any(map(is_nifti_name, files))):
            return text + strange
    return (
        f"{text}Of a folder in another layout name the files: "
        f'--images "{images}" --masks "{masks}".'
    )


def is_nnunet(folder: Path) -> bool:
    """Whether the folder's dataset.json is nnU-Net's of version 2, which lists no files."""
    index = folder / "dataset.json"
    listed = read_json(index) if index.exists() else {}
    return isinstance(listed, dict) and "training" not in listed and bool({*NNUNET} & {*listed})


def _patterns(config: VolumesConfig, listed: dict) -> tuple[str, str]:
    """The patterns of nnU-Net's images and labels, by its dataset.json; --channel chooses one of
    several channels. UserError if that is not clear, or for files that are not NIfTI."""
    index, ending = config.input / "dataset.json", str(listed.get("file_ending", ".nii.gz"))
    channels = listed.get("channel_names")
    names = list(channels.values()) if isinstance(channels, dict) else ["?"]
    if not ending.lower().endswith(NIFTI):
        raise UserError(
            f"{shown(index)}: its files are {ending}; .nii or .nii.gz is expected. Convert them "
            "and change file_ending."
        )
    if not (config.channel or 0) < len(names) or len(names) > 1 and config.channel is None:
        raise UserError(
            f"{shown(index)} names {len(names)} channels ({', '.join(map(str, names))}); choose "
            f"one with --channel, from 0 to {len(names) - 1}."
        )
    return f"imagesTr/*_{config.channel or 0:04d}{ending}", f"labelsTr/*{ending}"


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
    truths = set(second.values())  # `x*.nii` finds the masks `x*_gt.nii` too, which are not images
    first = {key: path for key, path in first.items() if path not in truths}
    if not first:
        raise UserError(f"--images {images!r} finds only the masks in {shown(folder)}.")
    stems = [stem(path) for path in first.values()]
    unique = len({*stems}) == len(stems)  # not if every folder holds `image.nii.gz`
    names = {key: stem(path) if unique else plain("_".join(key)) for key, path in first.items()}
    both = first.keys() & second.keys()
    if both and all(re.fullmatch(f"{re.escape(stem(second[k]))}_\\d{{4}}", names[k]) for k in both):
        names |= {key: stem(second[key]) for key in both}  # nnU-Net's channel is not part of a name
    problems = [
        (stem(paths[key]), f"{shown(paths[key])} has no {partner}")
        for paths, others, partner in ((first, second, "mask"), (second, first, "image"))
        for key in paths.keys() - others.keys()
    ]
    pairs = first.keys() & second.keys()
    used = [names[key] for key in pairs]
    problems += [(n, "two volumes of this name") for n in {*used} if used.count(n) > 1]
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
    text, ending = re.fullmatch(
        r"(.*?)((?:\.nii(?:\.gz)?)?)", "/".join(parts), re.I | re.S
    ).groups()
    words = re.split(r"([*?])", text)
    groups = {"*": "([^/]*)", "?": "([^/])"}
    regex = "".join(groups.get(word, re.escape(word)) for word in words)
    regex = re.compile(f"{regex}(?i:{re.escape(ending)})")
    either = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)
    paths = {}
    for path in sorted(folder.glob(text + either)) if pattern else ():
        match = regex.fullmatch(path.relative_to(folder).as_posix())
        # macOS's shadow files `._x.nii.gz` are not volumes.
        if match and path.is_file() and not path.name.startswith("."):
            paths[match.groups()] = path
    if not paths:
        raise UserError(f"{flag} {pattern!r} finds no file in {shown(folder)}.")
    return paths


def named_classes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The classes that the folder's dataset.json names, if it has one."""
    index = folder / "dataset.json"
    return named_in(read_json(index)) if index.exists() else {}


def modality(folder: Path, channel: int | None = None) -> str:
    """What the folder's dataset.json calls its images; for several channels, the chosen one:
    Decathlon's "modality" or nnU-Net's "channel_names"; "CT" where it says nothing."""
    index = folder / "dataset.json"
    listed = read_json(index) if index.exists() else {}
    kinds = (listed.get(key) for key in ("modality", "channel_names") if isinstance(listed, dict))
    kind = next((kind for kind in kinds if kind), "CT")
    kind = dict(enumerate(kind)) if isinstance(kind, list) else kind
    if not isinstance(kind, dict):
        return str(kind)
    by_number = {str(number): str(name) for number, name in kind.items()}
    return by_number.get(str(channel)) or ", ".join(by_number.values())


def is_ct(folder: Path, channel: int | None = None) -> bool:
    """Whether the volumes are CT, in HU: they are unless the folder's dataset.json says "MRI"."""
    kind = modality(folder, channel)
    return bool(CT.search(kind) or re.search("computed tomography", kind, re.IGNORECASE))


def study_classes(volumes: Path, wanted: str | None) -> str | None:
    """The classes that reproduce.py uses of volumes that name theirs: those `wanted`, else the
    spleen, else the only one; None where that is the usual label alone.

    UserError where there are several and none is the spleen, and for volumes that are not CT.
    """
    if not is_ct(volumes):
        raise UserError(
            f"{shown(volumes)} holds no CT: make a data set with slice_nifti.py --percentiles, and "
            "name it with --data."
        )
    if wanted:
        return wanted
    named = named_classes(volumes)
    if not named or {name.lower(): values for name, values in named.items()} == USUAL:
        return None
    spleen = next((name for name in named if name.lower() == "spleen"), None)
    if spleen is None and len(named) > 1:
        raise UserError(
            f"{shown(volumes)} names {', '.join(named)}, no spleen: --classes all takes them "
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
    patients = {name: match[1] for name in names if (match := rule.search(name)) and match[1]}
    if missed := [name for name in names if name not in patients]:
        raise UserError(
            f"--patient {pattern!r} gives no patient for {len(missed)} volumes:{bullets(missed)}"
        )
    return patients


def looks_grouped(names: Iterable[str]) -> int:
    """As how many patients with several images or volumes each the names look; 0 if as none."""
    names = list(names)
    stems = {re.sub(r"[_-]?\d+$", "", name) for name in names}
    return len(stems) if "" not in stems and 1 < len(stems) < len(names) else 0


def set_doubts(config: VolumesConfig, names: Sequence[str] | None, hu: bool) -> list[str]:
    """What is odd about a whole set but may be intended: an HU window (`hu`) for images that are
    not CT; volumes whose `names` look like several of one patient each."""
    odd = []
    if hu and not is_ct(config.input, config.channel):
        odd.append(
            f"dataset.json calls the images {modality(config.input, config.channel)}; the window "
            "in HU (-160..240) is meant for CT. For others: --percentiles 0.5 99.5"
        )
    if count := looks_grouped(names or ()):
        odd.append(
            f"the names look like {count} patients with several volumes each; one of them can be "
            'on both sides of the split. Say what a patient is: --patient "^(.+?)_[^_]+$"'
        )
    return odd
