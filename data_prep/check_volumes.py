"""Check a folder of labelled CT in Decathlon layout: every finding in one table, exit 1 on errors.

    python check_volumes.py                              data/Task09_Spleen
    python check_volumes.py --input ../data/phantom

Reads every volume to its checksum and prints a line a case: shape, spacing in mm, stored
orientation, HU range, organ volume in ml; then the findings. Errors, which slice_nifti.py refuses
too: files that are listed and missing, damaged, shorter than their header claims, not 3D; image and
label of different shape or affine; NaN; label values beside 0 and 1; an image under two names.
Warnings, which may be meant: an empty label, a constant image, HU or spacing out of all proportion,
the organ on the patient's right, files that dataset.json does not list, macOS's `._` files.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common import config as base
from common.cases import Case, doubts, errors, fingerprint, image_doubts, listing, run_all, twins
from common.config import launch, option
from common.files import ROOT, UserError, shown
from common.volumes import Volume, read_volume


@dataclass
class Config(base.Config):
    """What to check."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout")
    workers: int = option(2, "processes; each holds one volume in memory", low=1)


class Checked(NamedTuple):
    """One case: the line that describes it, its image's fingerprint, errors, warnings."""

    line: str | None
    fingerprint: str | None
    errors: list[str]
    warnings: list[str]


def check(case: Case) -> Checked:
    """Read a case and look for all that is wrong with it."""
    volumes, unread = [], []
    for path in (case.image, case.label):
        try:
            volumes.append(read_volume(path))
        except UserError as error:
            unread.append(str(error))
    if unread:
        return Checked(None, None, unread, [])
    found = errors(*volumes)
    odd = image_doubts(volumes[0]) if found else doubts(*volumes)
    return Checked(describe(case.name, *volumes), fingerprint(volumes[0]), found, odd)


def describe(name: str, image: Volume, label: Volume) -> str:
    """A case in a line."""
    low, high = float(image.voxels.min()), float(image.voxels.max())
    volume = np.count_nonzero(label.voxels) * float(np.prod(label.spacing)) / 1000
    return (
        f"{name:<16} {'x'.join(map(str, image.stored_shape)):>13} "
        f"{'x'.join(f'{s:.2f}' for s in image.spacing):>15} {image.stored_orientation} "
        f"{low:>6.0f}..{high:<5.0f} {volume:>7.1f}"
    )


def unlisted(cases: list[Case], sound: list[Case]) -> list[tuple[str, str]]:
    """Volumes beside those listed: the file, and what is odd about it."""
    known = {path for case in cases for path in (case.image, case.label)}
    found = []
    folders = {path.parent for case in sound for path in (case.image, case.label)}
    for path in sorted(p for folder in folders for p in folder.glob("*.nii*")):
        if path.name.startswith("._"):
            found.append((path.name, "a shadow file of macOS, no volume: remove it"))
        elif path not in known:
            found.append((path.name, f"in {shown(path.parent)}, and not in dataset.json"))
    return found


def main(config: Config) -> None:
    """Check all cases, print what they are and what is wrong. UserError if anything is."""
    if not config.input.is_dir():
        raise UserError(f"{shown(config.input)} is no folder that is there; name one with --input.")
    cases, lost = listing(config.input)
    bad = {name for name, _ in lost}
    there = [case for case in cases if case.name not in bad]
    checked = run_all(check, there, config.workers, "checking")
    checked = {case.name: found for case, found in zip(there, checked, strict=True)}
    same = twins({name: case.fingerprint for name, case in checked.items() if case.fingerprint})
    rows = [("error", *problem) for problem in lost]
    rows += [("error", names[0], f"the same image as {', '.join(names[1:])}") for names in same]
    rows += [("error", name, text) for name, case in checked.items() for text in case.errors]
    count = len(rows)
    rows += [("warning", name, text) for name, case in checked.items() for text in case.warnings]
    rows += [("warning", *found) for found in unlisted(cases, there)]
    print(f"{'case':<16} {'shape':>13} {'spacing mm':>15} ori {'HU':>9} {'organ ml':>12}")
    print("\n".join(case.line for case in checked.values() if case.line))
    if rows:
        width = max(len(name) for _, name, _ in rows)
        print("\n" + "\n".join(f"{level:<8} {name:<{width}} {text}" for level, name, text in rows))
    if count:
        wrong = len({name for level, name, _ in rows if level == "error"})
        raise UserError(f"{wrong} of {len(cases)} cases cannot be used; the errors stand above.")
    print(f"{len(cases)} cases are sound; warnings: {len(rows)}")


if __name__ == "__main__":
    launch(main, Config)
