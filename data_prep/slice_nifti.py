"""Volumes -> 2D PNG slices, a manifest, and splits by patient.

    python slice_nifti.py                                       data/Task09_Spleen -> data/spleen2d
    python slice_nifti.py --input ../data/phantom --size 128
    python slice_nifti.py --fold 2 --num-folds 5                       another split, same slices
    python slice_nifti.py --input amos --classes spleen kidneys=2,3 liver=6
    python slice_nifti.py --input BTCV --classes spleen=1 kidneys=2,3 \\
        --images "img/img*.nii.gz" --masks "label/label*.nii.gz"

Every axial slice of every labelled volume becomes an 8-bit PNG: HU window -160..240, resized to
--size, seen as a radiologist sees it (the patient's right on the left). Patients, not slices, are
split 70/10/20 into train, val and test; `student` is half of train. Over all --fold of --num-folds
every patient is tested once. Where a patient has several volumes, say how their names give it:
--patient "^(patient[0-9]+)".

Labels hold 0 and 1, and 1 is the spleen. Of others --classes names, selects and merges: the k-th
class named becomes mask value k, what is not named background. A name alone is looked up in the
"labels" of the folder's dataset.json; `all` is all of them.

Volumes are those of dataset.json (Decathlon), or those that --images and --masks find: patterns
below --input, whose wildcards match the same text. MR has no HU: --percentiles 0.5 99.5 takes the
bounds from each volume's voxels above its minimum, which is what lies outside the patient. Of 4D
images (several contrasts) --channel takes one. --axis cuts in another plane; inference.py --volume
then does not take the model.

Missing files are all named at once, then all volumes that cannot be used; files are read
in full and their checksums verified. The set is made in
OUTPUT.partial and moved when it is whole, so an earlier one is there until then. Interrupted, it
resumes where it stopped; volumes that have not changed are not sliced again; run twice, it writes
the same bytes.
"""

import hashlib
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from common.config import launch, option
from common.dataset.cases import ONE_CLASS, Case, fingerprint, read_case, twins
from common.dataset.checks import doubts
from common.dataset.classes import (
    USUAL,
    as_words,
    count_values,
    parse_classes,
    remarks,
    to_mask,
    vanished,
)
from common.dataset.formats import plain
from common.dataset.layouts import (
    VolumesConfig,
    is_ct,
    list_all,
    named_classes,
    patient_of,
    set_doubts,
)
from common.dataset.preprocessing import (
    HU_WINDOW,
    PLANES,
    VERSION,
    bounds_of,
    pixel_spacing,
    to_square,
    view_of,
    window,
)
from common.dataset.processes import run_all
from common.dataset.slices import Slice, check_output, in_short, mask_picture, write_set
from common.dataset.splits import split_patients
from common.errors import UserError
from common.evaluation import figures
from common.files import lock_folder, read_json, remove_leftovers, replace_folder, shown, write_json
from data_prep.output_set import SliceSetConfig, keep_others, known_colours

# What dataset.json says of a set that was not made with the defaults.
SPECIAL = ("labels", "axis", "channel")


@dataclass
class Config(VolumesConfig, SliceSetConfig):
    """What to slice and how."""

    patient: str | None = option(None, "regular expression on a volume's name: group 1 patient")
    hu_low: float = option(HU_WINDOW[0], "HU shown as 0")
    hu_high: float = option(HU_WINDOW[1], "HU shown as 255")
    percentiles: tuple[float, ...] = option(
        (), "two, instead of HU: of each volume's voxels above its minimum, as 0.5 99.5"
    )
    axis: str = option("axial", "plane of the slices", choices=tuple(PLANES))
    workers: int = option(2, "processes; each holds one volume in memory", low=1)


def check_config(config: Config) -> dict[str, tuple[int, ...]]:
    """The label values of each class that --classes names, none without it. UserError for
    contradictory flags."""
    if not config.hu_low < config.hu_high:
        raise UserError(f"--hu-low {config.hu_low} must be below --hu-high {config.hu_high}.")
    if config.percentiles:
        shares = config.percentiles
        if len(shares) != 2 or not 0 <= shares[0] < shares[1] <= 100:
            raise UserError("--percentiles takes two numbers from 0 to 100, the lower one first.")
        if (config.hu_low, config.hu_high) != HU_WINDOW:
            raise UserError("--percentiles and --hu-low, --hu-high exclude each other.")
    if not config.input.is_dir():
        raise UserError(
            f"{shown(config.input)} does not exist. Fetch Task09_Spleen with download_task09.py, "
            "name another folder with --input, or make a synthetic one with make_phantom.py."
        )
    named = named_classes(config.input)
    if config.classes:
        classes = parse_classes(config.classes, named)
        for name in (n for n in classes if named.get(n, classes[n]) != classes[n]):
            (listed,) = as_words({name: named[name]})
            print(f"warning: dataset.json says {listed}; what --classes says is taken")
        return classes
    if named and not any(1 in values for values in named.values()):
        raise UserError(
            f"{shown(config.input / 'dataset.json')} names no label 1, which is the spleen without "
            f"--classes. It names {', '.join(as_words(named))}: choose with --classes."
        )
    owner = next((name for name, values in named.items() if 1 in values), "spleen")
    if owner.lower() not in USUAL:
        print(f"note: label 1 is called spleen; dataset.json's name: --classes {owner}=1")
    return {}


def describe_set(config: Config, labels: dict[str, tuple[int, ...]]) -> dict:
    """What dataset.json says of the whole set; `labels` are those of `check_config`."""
    shares = {"percentiles": list(config.percentiles)}
    about = {
        "name": config.input.resolve().name,
        "source": f"{config.axis} slices of {config.input.resolve().name}",
        "size": config.size,
        "window": shares if config.percentiles else [config.hu_low, config.hu_high],
        "classes": [*labels] or [*USUAL],
    }
    special = {
        "labels": {name: list(values) for name, values in labels.items()} or None,
        "axis": None if config.axis == "axial" else config.axis,
        "channel": config.channel,
    }
    return about | {key: value for key, value in special.items() if value is not None}


def slice_case(case: Case, config: Config, labels: dict, about: dict, colours: dict | None) -> dict:
    """Write the slices of one volume into the partial folder, masks of several classes in their
    `colours`; its record: geometry and rows. `about` is the set's description.

    The record is kept in `.done/`, written after the last slice. A case that has one there, or in
    an earlier set, made from the same two files with the same settings, is not sliced again.
    """
    home = config.partial
    made_from = {
        "files": [hashlib.sha256(p.read_bytes()).hexdigest() for p in (case.image, case.label)],
        "set": about | {"version": VERSION},
    }
    for folder in (home, config.output):
        if record := finished(folder, case.name, made_from):
            if folder != home:
                for name in pictures(case.name, record["rows"]):
                    shutil.copy2(folder / name, home / name)
                write_json(home / ".done" / f"{case.name}.json", record)
            return record
    image, label = read_case(case, None if labels else ONE_CLASS, config.channel)
    spacing = pixel_spacing(image.spacing, config.axis)
    bounds = bounds_of(image.voxels, made_from["set"]["window"])
    rows, shown_in, gone_from = [], Counter(), Counter()
    for index in range(image.voxels.shape[PLANES[config.axis][0]]):
        grey = window(view_of(image.voxels, index, config.axis), *bounds)
        mask = to_mask(view_of(label.voxels, index, config.axis), labels or USUAL)
        grey = to_square(grey, spacing, config.size, mask=False)
        seen = {*np.unique(mask).tolist()} - {0}
        mask = to_square(mask, spacing, config.size, mask=True)
        shown_in.update(seen)
        gone_from.update(seen - {*np.unique(mask).tolist()})
        rows.append([index, int((mask > 0).sum())])
        both = Image.fromarray(grey), mask_picture(mask, colours)
        for name, picture in zip(pictures(case.name, rows[-1:]), both, strict=True):
            picture.save(home / name, compress_level=4)
    axis = {} if config.axis == "axial" else {"axis": config.axis}
    record = {"geometry": image.geometry() | axis, "rows": rows, "made_from": made_from}
    hu = not config.percentiles and is_ct(config.input, config.channel)
    record |= {"fingerprint": fingerprint(image)}
    seen = None if config.percentiles else bounds
    record |= {"doubts": doubts(image, label, labels or USUAL, hu, seen)}
    values = [255] if len(about["classes"]) == 1 else range(1, len(about["classes"]) + 1)
    record |= {"gone": [gone_from[v] for v in values], "shown": [shown_in[v] for v in values]}
    if labels:
        record["values"] = [*count_values(label.voxels)]
    write_json(home / ".done" / f"{case.name}.json", record)
    return record


def pictures(case: str, rows: list[list[int]]) -> list[str]:
    """Image and mask file of each row (index, foreground), relative to the set's folder."""
    names = [f"{Slice(case, index, foreground).name}.png" for index, foreground in rows]
    return [f"{kind}/{name}" for name in names for kind in ("images", "masks")]


def finished(folder: Path, case: str, made_from: dict) -> dict | None:
    """The case's record in `folder`, if it was made from the same inputs and all its files
    exist."""
    path = folder / ".done" / f"{case}.json"
    if not path.exists():
        return None
    record = read_json(path)
    whole = all((folder / name).exists() for name in pictures(case, record["rows"]))
    return record if whole and record["made_from"] == made_from else None


def prepare(config: Config, cases: list[Case], about: dict) -> None:
    """Make the partial folder ready for the set that `about` describes. UserError if the output is
    not a data set, or was made with other flags and `--overwrite` was not given."""
    index, home = config.output / "dataset.json", config.partial
    earlier = read_json(index) if index.exists() else None
    same_set = isinstance(earlier, dict) and about.items() <= earlier.items()
    same_set = same_set and not any(key in earlier and key not in about for key in SPECIAL)
    check_output(config.output, config.overwrite or same_set)
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


def warn(config: Config, labels: dict, cases: list[Case], records: list[dict]) -> None:
    """Print what looks wrong and may be intended."""
    for case, record in zip(cases, records, strict=True):
        for doubt in record.get("doubts", ()):
            print(f"warning: {case.name}: {doubt}")
    if labels:
        values = {value for record in records for value in record["values"]}
        print("".join(f"{line}\n" for line in remarks(labels, values)), end="")
    gone, shown_in = (np.sum([r[key] for r in records], axis=0) for key in ("gone", "shown"))
    for name, *counts in zip(labels or USUAL, gone, shown_in, strict=True):
        print("".join(f"{line}\n" for line in vanished(name, *counts, config.size)), end="")
    names = None if config.patient else [case.name for case in cases]
    for doubt in set_doubts(config, names, hu=not config.percentiles):
        print(f"warning: {doubt}")


def main(config: Config) -> None:
    """Slice all cases, write manifest, splits and dataset.json, move the set to its place."""
    labels = check_config(config)
    about = describe_set(config, labels)
    cases = list_all(config)
    patients = patient_of([case.name for case in cases], config.patient)
    splits = split_patients(patients, config.seed, config.num_folds, config.fold)
    with lock_folder(config.output):
        prepare(config, cases, about)
        given = known_colours(config, about)
        colours = figures.legend(about["classes"], given.get("colours"))
        work = partial(slice_case, config=config, labels=labels, about=about, colours=colours)
        records = run_all(work, cases, config.workers, "volumes")
        prints = {c.name: r.get("fingerprint", c.name) for c, r in zip(cases, records, strict=True)}
        if same := twins(prints):
            raise UserError(
                "The same image under two names, a leak between splits: "
                f"{'; '.join(' = '.join(names) for names in same)}. Leave all but one of each out."
            )
        slices = [
            Slice(case.name, index, foreground, plain(case.image.name))
            for case, record in zip(cases, records, strict=True)
            for index, foreground in record["rows"]
        ]
        if labels and not any(s.foreground for s in slices):
            raise UserError(f"no label holds any of {', '.join(labels)}: nothing to learn.")
        geometry = {c.name: r["geometry"] for c, r in zip(cases, records, strict=True)}
        info = about | given | ({"patients": patients} if config.patient else {})
        info |= {"cases": geometry}
        write_set(config.partial, info, slices, splits)
        keep_others(config)
        replace_folder(config.partial, config.output)
    warn(config, labels, cases, records)
    print(in_short(slices, splits, info, config.output))
    if (count := len({*patients.values()})) < len(cases):
        print(f"these are {len(cases)} volumes of {count} patients, each patient's in one part")
    if not splits["train"]:
        print("too few patients to train on: this set can only be predicted")


if __name__ == "__main__":
    launch(main, Config)
