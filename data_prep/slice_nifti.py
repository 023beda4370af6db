"""CT volumes in Decathlon layout -> 2D PNG slices, a manifest, and splits by patient.

    python slice_nifti.py                                       data/Task09_Spleen -> data/spleen2d
    python slice_nifti.py --input ../data/phantom --size 128
    python slice_nifti.py --folds 5 --fold 2                    another split, same slices

Every axial slice of every labelled volume becomes an 8-bit PNG: HU window -160..240, resized to
--size, seen as a radiologist sees it (the patient's right on the left), whatever orientation the
file is stored in. Patients, not slices, are split 70/10/20 into train, val and test; `student`
is a fixed half of train. With --folds every patient is tested in exactly one fold.

Files are read to their checksum; bad volumes are all named in one go. Interrupted, it goes on
where it stopped; run twice, it writes the same bytes; dataset.json comes last and says that the
set is whole.
"""

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from common.config import DATA, launch, option
from common.files import ROOT, UserError, read_json, shown, write_json
from common.slices import Slice, make_splits, write_set
from common.volumes import (
    HU_WINDOW,
    Case,
    axial_view,
    list_cases,
    read_case,
    run_all,
    to_square,
    window,
)


@dataclass
class Config:
    """What to slice and how."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout")
    output: Path = option(DATA, "data set folder to write")
    size: int = option(256, "height and width of the slices in pixels")
    hu_low: float = option(HU_WINDOW[0], "HU shown as 0")
    hu_high: float = option(HU_WINDOW[1], "HU shown as 255")
    organ: str = option("spleen", "name of what label 1 is")
    seed: int = option(0, "seed of the splits")
    folds: int = option(0, "cross-validation folds; 0: one 70/10/20 split")
    fold: int = option(0, "the fold to test on, 0 to folds - 1")
    workers: int = option(2, "processes; each holds one volume in memory")
    overwrite: bool = option(False, "replace a data set made from other files or settings")


def describe_set(config: Config) -> dict:
    """What dataset.json says of the whole set."""
    return {
        "name": config.input.resolve().name,
        "source": f"axial slices of {config.input.resolve().name}",
        "size": config.size,
        "window": [config.hu_low, config.hu_high],
        "classes": [config.organ],
    }


def slice_case(case: Case, config: Config) -> dict:
    """Write the slices of one volume; its record: geometry and manifest rows.

    The record is kept in `.done/`, written after the last slice: a case that has one, made from
    the same two files with the same settings, is not sliced again.
    """
    made_from = {
        "files": [hashlib.sha256(p.read_bytes()).hexdigest() for p in (case.image, case.label)],
        "set": describe_set(config),
    }
    kept = config.output / ".done" / f"{case.name}.json"
    if kept.exists():
        record = read_json(kept)
        if record["made_from"] == made_from:
            return record
    image, label = read_case(case)
    spacing = (image.spacing[1], image.spacing[0])  # rows run along y, columns along x
    rows = []
    for index in range(image.voxels.shape[2]):
        grey = window(axial_view(image.voxels, index), config.hu_low, config.hu_high)
        mask = (axial_view(label.voxels, index) > 0).astype("uint8") * 255
        grey = to_square(grey, spacing, config.size, mask=False)
        mask = to_square(mask, spacing, config.size, mask=True)
        here = Slice(case.name, index, int((mask > 0).sum()), case.image.name)
        for kind, pixels in (("images", grey), ("masks", mask)):
            Image.fromarray(pixels).save(
                config.output / kind / f"{here.name}.png", compress_level=4
            )
        rows.append([here.index, here.foreground])
    record = {"geometry": image.geometry(), "rows": rows, "made_from": made_from}
    write_json(kept, record)
    return record


def prepare_output(config: Config, cases: list[Case]) -> None:
    """Make the output folder ready; nothing in it that these cases would not write again.

    UserError if it holds a data set made otherwise and `--overwrite` was not given.
    """
    index, done = config.output / "dataset.json", config.output / ".done"
    if index.exists() and not config.overwrite:
        found = {k: v for k, v in read_json(index).items() if k != "cases"}
        if found != describe_set(config):
            raise UserError(
                f"{shown(config.output)} holds another data set ({found.get('source')}, size "
                f"{found.get('size')}). Choose another --output, or --overwrite it."
            )
    elif not index.exists() and not done.exists() and any(config.output.glob("*")):
        raise UserError(f"{shown(config.output)} is not empty and holds no data set of ours.")
    index.unlink(missing_ok=True)
    for kind in ("images", "masks", ".done"):
        (config.output / kind).mkdir(parents=True, exist_ok=True)
    names = {case.name for case in cases}
    for kind in ("images", "masks"):
        for path in (config.output / kind).glob("*.png"):
            if path.stem.rpartition("_")[0] not in names:
                path.unlink()


def main(config: Config) -> None:
    """Slice all cases, then write manifest, splits and dataset.json."""
    if not config.hu_low < config.hu_high or config.size < 16:
        raise UserError("--hu-low must be below --hu-high, and --size at least 16.")
    if not config.input.is_dir():
        raise UserError(
            f"{shown(config.input)} does not exist. Unpack Task09_Spleen there, name another "
            "folder with --input, or make a synthetic one with data_prep/make_phantom.py."
        )
    cases = list_cases(config.input)
    names = [case.name for case in cases]
    splits = make_splits(names, config.seed, config.folds, config.fold)
    prepare_output(config, cases)
    records = run_all(partial(slice_case, config=config), cases, config.workers, "volumes")
    slices = [
        Slice(case.name, index, foreground, case.image.name)
        for case, record in zip(cases, records, strict=True)
        for index, foreground in record["rows"]
    ]
    geometry = {c.name: r["geometry"] for c, r in zip(cases, records, strict=True)}
    write_set(config.output, {**describe_set(config), "cases": geometry}, slices, splits)
    parts = ", ".join(f"{len(splits[p])} {p}" for p in ("train", "val", "test"))
    print(
        f"{len(slices)} slices ({sum(s.foreground > 0 for s in slices)} with {config.organ}) of "
        f"{len(cases)} patients: {parts} -> {shown(config.output)}"
    )


if __name__ == "__main__":
    launch(main, Config)
