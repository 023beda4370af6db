"""Check a folder of labelled volumes: every finding in one table, exit 1 on errors.

    python check_volumes.py                              data/Task09_Spleen
    python check_volumes.py --input ../data/phantom
    python check_volumes.py --input BTCV --images "img/img*.nii.gz" --masks "label/label*.nii.gz" \\
        --classes spleen=1 kidneys=2,3

Reads every volume to its checksum and prints one line per case: shape, spacing in mm, stored
orientation, range of values, class volume in ml; then the findings. Errors, which slice_nifti.py
refuses too: files that are listed and missing, damaged, shorter than their header claims, not 3D;
image and label of different shape, or half a voxel and more apart; NaN; an image under two names;
label values beside 0 and those that dataset.json names (0 and 1 if it names none; any, with
--classes). Warnings, which may be intended: an empty label, one that lies slightly off its image, a
constant image, implausible HU, values of which the window shows nothing, implausible spacing,
sheared or oblique axes, an affine that states nothing, the spleen on the patient's right, a class
that no label shows, regions that overlap, files that dataset.json does not list, macOS's `._`
files. Images whose "modality" (or "channel_names") in dataset.json is not CT need not be in HU.
Lengths are in mm, whatever unit a header states; ml are voxels times |det| of the affine.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.config import launch, option
from common.dataset.cases import ONE_CLASS, Case, fingerprint, problems_of, read_label, twins
from common.dataset.checks import doubts, image_doubts
from common.dataset.classes import USUAL, count_values, overlapping, parse_classes, remarks
from common.dataset.formats import is_nifti_name, stem, without_channel
from common.dataset.layouts import VolumesConfig, find_cases, is_ct, is_nnunet, named_classes
from common.dataset.nifti import Volume, read_volume
from common.dataset.preprocessing import HU_WINDOW
from common.dataset.processes import run_all, unforeseen
from common.dataset.splits import alike
from common.errors import UserError
from common.files import shown


@dataclass
class Config(VolumesConfig):
    """What to check."""

    workers: int = option(2, "processes; each holds one volume in memory", low=1)


class Rules(NamedTuple):
    """What a case is checked for: its classes' values; whether these are several classes, or one of
    another value than 1; what its label may hold (None: anything); the channel of a 4D image;
    whether it is CT."""

    classes: dict[str, tuple[int, ...]]
    several: bool
    allowed: tuple[int, ...] | None
    channel: int | None
    hu: bool


class Checked(NamedTuple):
    """One case: the line that describes it, its image's fingerprint, errors, warnings, and the ml
    of each label value."""

    line: str | None
    fingerprint: str | None
    errors: list[str]
    warnings: list[str]
    ml: dict[int, float]


def rules_of(config: Config) -> Rules:
    """What the flags and the folder's dataset.json ask for."""
    named = named_classes(config.input)
    classes = parse_classes(config.classes, named) if config.classes else named
    classes = {name: values for name, values in classes.items() if values}
    allowed = (0, *(v for values in named.values() for v in values)) if named else ONE_CLASS
    return Rules(
        classes or USUAL,
        bool(classes) and {v for values in classes.values() for v in values} != {1},
        None if config.classes else allowed,
        config.channel,
        is_ct(config.input, config.channel),
    )


def check(case: Case, rules: Rules) -> Checked:
    """Read a case and look for all that is wrong with it; also what cannot be foreseen."""
    try:
        return _check(case, rules)
    except Exception as error:  # whatever a library raises for an unforeseen file
        return Checked(None, None, [f"{shown(case.image)}: {unforeseen(error)}"], [], {})


def _check(case: Case, rules: Rules) -> Checked:
    """Read a case and look for all that is wrong with it."""
    image, label, unread = None, None, []
    try:
        image = read_volume(case.image, rules.channel)
    except UserError as error:
        unread.append(str(error))
    try:
        label = read_label(case.label, image)
    except UserError as error:
        unread.append(str(error))
    if unread:
        return Checked(None, None, unread, [], {})
    errors = problems_of(image, label, rules.allowed)
    how = rules.hu, HU_WINDOW if rules.hu else None
    odd = image_doubts(image, *how) if errors else doubts(image, label, rules.classes, *how)
    each = label.voxel_ml
    ml = {} if errors else {v: n * each for v, n in count_values(label.voxels).items()}
    return Checked(describe(case.name, image, label), fingerprint(image), errors, odd, ml)


def per_class(cases: list[Checked], labels: dict[str, tuple[int, ...]]) -> list[str]:
    """One line per class: its values, how many volumes show it, its ml."""
    lines = []
    for name, values in labels.items():
        sums = [sum(case.ml.get(v, 0) for v in values) for case in cases]
        sums = [ml for ml in sums if ml]
        span = f"{min(sums):.1f} to {max(sums):.1f} ml" if sums else ""
        number = ",".join(map(str, values))
        lines.append(f"{name:<24} {number:>8}  in {len(sums)} of {len(cases)} volumes  {span}")
    return [line.rstrip() for line in lines]


def describe(name: str, image: Volume, label: Volume) -> str:
    """A case in one line: shape, spacing and orientation as stored."""
    low, high = float(image.voxels.min()), float(image.voxels.max())
    spacing = "x".join(f"{s:.2f}" for s in image.geometry()["spacing"])
    volume = np.count_nonzero(label.voxels) * label.voxel_ml
    return (
        f"{name:<16} {'x'.join(map(str, image.stored_shape)):>13} "
        f"{spacing:>15} {image.stored_orientation} "
        f"{low:>6.0f}..{high:<5.0f} {volume:>7.1f}"
    )


def unlisted(cases: list[Case], sound: list[Case], index: bool) -> list[tuple[str, str]]:
    """Unlisted files next to the listed volumes. Without an `index` patterns chose the files, and
    may leave some."""
    listed = {path for case in cases for path in (case.image, case.label)}
    odd = []
    folders = {path.parent for case in sound for path in (case.image, case.label)}
    channels = {  # nnU-Net's, of which one was chosen
        (case.image.parent, stem(case.label))
        for case in cases
        if stem(case.image) != stem(case.label) == without_channel(stem(case.image))
    }
    for path in sorted(p for folder in folders for p in folder.iterdir() if is_nifti_name(p)):
        if path.name.startswith("._"):
            odd.append((path.name, "a shadow file of macOS, not a volume; remove it"))
        elif (path.parent, without_channel(stem(path))) in channels:
            continue
        elif index and path not in listed:
            odd.append((path.name, f"in {shown(path.parent)}, and not in dataset.json"))
    return odd


def main(config: Config) -> None:
    """Check all cases, print what they are and what is wrong. UserError if anything is."""
    if not config.input.is_dir():
        raise UserError(
            f"{shown(config.input)} does not exist or is not a folder; name one with --input, "
            "fetch Task09_Spleen with download_task09.py, or make a phantom with make_phantom.py."
        )
    cases, unusable = find_cases(config)
    listed = config.images is None and not is_nnunet(config.input)
    bad, rules = {name for name, _ in unusable}, rules_of(config)
    readable = [case for case in cases if case.name not in bad]
    checked = run_all(partial(check, rules=rules), readable, config.workers, "checking")
    checked = {case.name: result for case, result in zip(readable, checked, strict=True)}
    same = twins({name: case.fingerprint for name, case in checked.items() if case.fingerprint})
    rows = [("error", *problem) for problem in unusable]
    rows += [("error", names[0], f"the same image as {', '.join(names[1:])}") for names in same]
    for first, *others in alike(case.name for case in cases):
        text = f"differs from {', '.join(others)} only in capitals or in how accents are stored"
        rows.append(("error", first, text))
    rows += [("error", name, text) for name, case in checked.items() for text in case.errors]
    count, unit = len(rows), "HU" if rules.hu else "values"
    rows += [("warning", name, text) for name, case in checked.items() for text in case.warnings]
    rows += [("warning", *finding) for finding in unlisted(cases, readable, listed)]
    print(f"{'case':<16} {'shape':>13} {'spacing mm':>15} ori {unit:>9} {'class ml':>12}")
    print("\n".join(case.line for case in checked.values() if case.line))
    if rules.several:
        print("\n" + "\n".join(per_class([*checked.values()], rules.classes)))
        held = {value for case in checked.values() for value in case.ml}
        texts = [line.partition(": ") for line in remarks(rules.classes, held)]
        rows += [(level, "labels", text) for level, _, text in texts]
    if shared := overlapping(rules.classes):
        text = f"regions overlap (values {', '.join(map(str, shared))}): name classes that do not"
        rows.append(("warning", "labels", f"{text}, --classes NAME=VALUE,VALUE"))
    if rows:
        width = max(len(name) for _, name, _ in rows)
        print("\n" + "\n".join(f"{level:<8} {name:<{width}} {text}" for level, name, text in rows))
    if count:
        wrong = len({name for level, name, _ in rows if level == "error"})
        total = len({*bad, *(case.name for case in cases)})
        raise UserError(f"{wrong} of {total} cases cannot be used; the errors stand above.")
    print(f"{len(cases)} cases are sound; warnings: {sum(row[0] == 'warning' for row in rows)}")
    if rules.several and not config.classes and not shared:
        print("several classes: say which with slice_nifti.py --classes, all or by their names")


if __name__ == "__main__":
    launch(main, Config)
