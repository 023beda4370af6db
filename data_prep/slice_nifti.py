"""CT volumes in Decathlon layout -> 2D PNG slices, a manifest, and splits by patient.

    python slice_nifti.py                                       data/Task09_Spleen -> data/spleen2d
    python slice_nifti.py --input ../data/phantom --size 128
    python slice_nifti.py --folds 5 --fold 2                    another split, same slices

Every axial slice of every labelled volume becomes an 8-bit PNG: HU window -160..240, resized to
--size, seen as a radiologist sees it (the patient's right on the left), whatever orientation the
file is stored in. Patients, not slices, are split 70/10/20 into train, val and test; `student`
is a fixed half of train. With --folds every patient is tested in exactly one fold.

Files are read to their checksum; bad volumes are all named in one go. The set is made in
OUTPUT.partial and moved when it is whole, so an earlier one is there until then. Interrupted, it
goes on where it stopped; volumes that have not changed are not sliced again; run twice, it writes
the same bytes.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from common import config as base
from common.cases import Case, doubts, fingerprint, list_cases, read_case, run_all, twins
from common.config import launch, option
from common.files import (
    ROOT,
    UserError,
    lock_folder,
    read_json,
    remove_leftovers,
    replace_folder,
    shown,
    write_json,
)
from common.settings import DATA
from common.slices import Slice, check_output, in_short, make_splits, write_set
from common.views import HU_WINDOW, axial_view, to_square, window


@dataclass
class Config(base.Config):
    """What to slice and how."""

    input: Path = option(ROOT / "data" / "Task09_Spleen", "folder in Decathlon layout")
    output: Path = option(DATA, "data set folder to write")
    size: int = option(256, "height and width of the slices in pixels", low=16, high=4096)
    hu_low: float = option(HU_WINDOW[0], "HU shown as 0")
    hu_high: float = option(HU_WINDOW[1], "HU shown as 255")
    organ: str = option("spleen", "name of what label 1 is")
    seed: int = option(0, "seed of the splits", low=0)
    folds: int = option(0, "cross-validation folds; 0: one 70/10/20 split", low=0)
    fold: int = option(0, "the fold to test on, 0 to folds - 1", low=0)
    workers: int = option(2, "processes; each holds one volume in memory", low=1)
    overwrite: bool = option(False, "slice everything anew, whatever data set is there")


def describe_set(config: Config) -> dict:
    """What dataset.json says of the whole set."""
    return {
        "name": config.input.resolve().name,
        "source": f"axial slices of {config.input.resolve().name}",
        "size": config.size,
        "window": [config.hu_low, config.hu_high],
        "classes": [config.organ],
    }


def partial_folder(config: Config) -> Path:
    """Where the set is made."""
    return config.output.with_name(config.output.name + ".partial")


def slice_case(case: Case, config: Config) -> dict:
    """Write the slices of one volume into the partial folder; its record: geometry and rows.

    The record is kept in `.done/`, written after the last slice. A case that has one there, or in
    an earlier set, made from the same two files with the same settings, is not sliced again.
    """
    home = partial_folder(config)
    made_from = {
        "files": [hashlib.sha256(p.read_bytes()).hexdigest() for p in (case.image, case.label)],
        "set": describe_set(config),
    }
    for folder in (home, config.output):
        if record := finished(folder, case.name, made_from):
            if folder != home:
                for name in pictures(case.name, record["rows"]):
                    shutil.copy2(folder / name, home / name)
                write_json(home / ".done" / f"{case.name}.json", record)
            return record
    image, label = read_case(case)
    spacing = (image.spacing[1], image.spacing[0])  # rows run along y, columns along x
    rows = []
    for index in range(image.voxels.shape[2]):
        grey = window(axial_view(image.voxels, index), config.hu_low, config.hu_high)
        mask = (axial_view(label.voxels, index) > 0).astype("uint8") * 255
        grey = to_square(grey, spacing, config.size, mask=False)
        mask = to_square(mask, spacing, config.size, mask=True)
        rows.append([index, int((mask > 0).sum())])
        for name, pixels in zip(pictures(case.name, rows[-1:]), (grey, mask), strict=True):
            Image.fromarray(pixels).save(home / name, compress_level=4)
    record = {"geometry": image.geometry(), "rows": rows, "made_from": made_from}
    record |= {"fingerprint": fingerprint(image), "doubts": doubts(image, label)}
    write_json(home / ".done" / f"{case.name}.json", record)
    return record


def pictures(case: str, rows: list[list[int]]) -> list[str]:
    """Image and mask file of each row (index, foreground), relative to the set's folder."""
    names = [f"{Slice(case, index, foreground).name}.png" for index, foreground in rows]
    return [f"{kind}/{name}" for name in names for kind in ("images", "masks")]


def finished(folder: Path, case: str, made_from: dict) -> dict | None:
    """The case's record in `folder`, if it was made from the same and all its files are there."""
    path = folder / ".done" / f"{case}.json"
    if not path.exists():
        return None
    record = read_json(path)
    whole = all((folder / name).exists() for name in pictures(case, record["rows"]))
    return record if whole and record["made_from"] == made_from else None


def prepare(config: Config, cases: list[Case]) -> None:
    """Make the partial folder ready. UserError if the output holds anything but a data set, or
    one made otherwise while `--overwrite` was not given."""
    index, home = config.output / "dataset.json", partial_folder(config)
    ours = False
    if index.exists():
        found = read_json(index)
        ours = isinstance(found, dict) and describe_set(config).items() <= found.items()
    check_output(config.output, config.overwrite or ours)
    if config.overwrite:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(config.output / ".done", ignore_errors=True)
    for kind in ("images", "masks", ".done"):
        (home / kind).mkdir(parents=True, exist_ok=True)
    for folder in (home, home / ".done"):
        remove_leftovers(folder)
    names = {case.name for case in cases}
    for kind in ("images", "masks"):  # what an interrupted run over other volumes left
        for path in (home / kind).glob("*.png"):
            if path.stem.rpartition("_")[0] not in names:
                path.unlink()


def main(config: Config) -> None:
    """Slice all cases, write manifest, splits and dataset.json, move the set to its place."""
    if not config.hu_low < config.hu_high:
        raise UserError(f"--hu-low {config.hu_low} must be below --hu-high {config.hu_high}.")
    if not config.input.is_dir():
        raise UserError(
            f"{shown(config.input)} does not exist. Fetch Task09_Spleen with download_task09.py, "
            "name another folder with --input, or make a synthetic one with make_phantom.py."
        )
    cases = list_cases(config.input)
    names = [case.name for case in cases]
    splits = make_splits(names, config.seed, config.folds, config.fold)
    with lock_folder(config.output):
        prepare(config, cases)
        records = run_all(partial(slice_case, config=config), cases, config.workers, "volumes")
        prints = {c.name: r.get("fingerprint", c.name) for c, r in zip(cases, records, strict=True)}
        if same := twins(prints):
            raise UserError(
                "The same image under two names, a leak between splits: "
                f"{'; '.join(' = '.join(names) for names in same)}. Remove all but one of each "
                "from dataset.json."
            )
        slices = [
            Slice(case.name, index, foreground, case.image.name)
            for case, record in zip(cases, records, strict=True)
            for index, foreground in record["rows"]
        ]
        geometry = {c.name: r["geometry"] for c, r in zip(cases, records, strict=True)}
        info = {**describe_set(config), "cases": geometry}
        write_set(partial_folder(config), info, slices, splits)
        replace_folder(partial_folder(config), config.output)
    for case, record in zip(cases, records, strict=True):
        for doubt in record.get("doubts", ()):
            print(f"warning: {case.name}: {doubt}")
    print(in_short(slices, splits, config.organ, config.output))
    if not splits["train"]:
        print("too few patients to train on: a set to predict")


if __name__ == "__main__":
    launch(main, Config)
