"""Check a folder of labelled CT in Decathlon layout; all bad cases in one go, exit 1 if any.

    python check_volumes.py                              data/Task09_Spleen
    python check_volumes.py --input ../data/phantom

Reads every volume to its checksum and prints a line a case: shape, spacing in mm, stored
orientation, HU range, organ volume in ml. Errors: files that are missing, damaged, not 3D; image
and label of different shape or affine; NaN; label values beside 0 and 1; the same image twice
under two names. An empty label is pointed out: it may be meant.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common import config as base
from common.config import launch, option
from common.files import ROOT, UserError, shown
from common.volumes import Case, list_cases, read_case, run_all


@dataclass
class Config(base.Config):
    """What to check."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout")
    workers: int = option(2, "processes; each holds one volume in memory", low=1)


def check(case: Case) -> tuple[str, str]:
    """The image's hash and the line that describes the case. UserError if it is not sound."""
    image, label = read_case(case)
    low, high = float(image.voxels.min()), float(image.voxels.max())
    volume = np.count_nonzero(label.voxels) * float(np.prod(image.spacing)) / 1000
    line = (
        f"{case.name:<16} {'x'.join(map(str, image.stored_shape)):>13} "
        f"{'x'.join(f'{s:.2f}' for s in image.spacing):>15} {image.stored_orientation} "
        f"{low:>6.0f}..{high:<5.0f} {volume:>7.1f}"
    )
    notes = [note for note, true in (("no organ", not volume), ("constant", low == high)) if true]
    return image.sha256, f"{line}  {', '.join(notes)}".rstrip()


def main(config: Config) -> None:
    """Check all cases."""
    if not config.input.is_dir():
        raise UserError(f"{shown(config.input)} does not exist; name a folder with --input.")
    cases = list_cases(config.input)
    checked = run_all(check, cases, config.workers, "checking")
    print(f"{'case':<16} {'shape':>13} {'spacing mm':>15} ori {'HU':>9} {'organ ml':>12}")
    print("\n".join(line for _, line in checked))
    same: dict[str, list[str]] = {}
    for case, (digest, _) in zip(cases, checked, strict=True):
        same.setdefault(digest, []).append(case.name)
    if twice := [" = ".join(names) for names in same.values() if len(names) > 1]:
        raise UserError(f"The same image under two names, a leak between splits: {twice}")
    print(f"{len(cases)} cases are sound")


if __name__ == "__main__":
    launch(main, Config)
