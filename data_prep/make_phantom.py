"""Synthetic abdominal CT with labelled organs, in the folder layout of Task09_Spleen.

    python make_phantom.py                            24 patients -> data/phantom
    python make_phantom.py --classes all              eight organs in place of the spleen alone
    python make_phantom.py --patients 200 --seed 1 --output ../data/phantom200

The data of a machine that has none: every stage, the tests and the demo run on it. Organs are
smooth bodies in a common frame, bent by a random field; size, position, body fat, contrast phase,
noise, slice thickness and stored orientation differ from patient to patient. The spleen's HU lie
within those of liver, kidney and stomach, so that texture alone does not tell them apart: a
network must look at where it is. It is a schematic, no substitute for CT: scores on it say
whether code works and rank methods on an ideal task, not how well a real spleen is found.

Writes imagesTr, labelsTr, imagesTs (int16 HU, .nii.gz) and dataset.json, the same bytes for the
same flags.
"""

import gzip
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np

from common import config as base
from common.config import launch, option
from common.dataset.classes import WHICH
from common.dataset.processes import run_all
from common.errors import UserError
from common.files import (
    ROOT,
    lock_folder,
    read_json,
    remove_leftovers,
    shown,
    write_bytes,
    write_json,
)
from data_prep.phantom import ORGANS, make_patient

ORIENTATIONS = ("LAS", "RAS", "LPS", "RPS", "LAI")
FOLDERS = ("imagesTr", "labelsTr", "imagesTs")


@dataclass
class Config(base.Config):
    """How many patients, how large, where."""

    output: Path = option(ROOT / "data" / "phantom", "folder to write")
    patients: int = option(24, "labelled patients (imagesTr, labelsTr)", low=1)
    unlabelled: int = option(2, "patients without label (imagesTs)", low=0)
    classes: str = option("spleen", "organs to label", choices=WHICH)
    size: int = option(192, "voxels across, in both in-plane directions", low=32, high=1024)
    thickness: float = option(
        0.0, "slice thickness in mm; 0: drawn from 3 to 6 for each patient", low=0.0, high=50.0
    )
    seed: int = option(0, "seed of everything", low=0)
    workers: int = option(2, "processes", low=1)
    overwrite: bool = option(False, "replace what the folder holds")


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, orientation: str) -> None:
    """Store canonical voxels in another orientation, as .nii.gz without a time stamp."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    start = nib.io_orientation(affine)
    end = nib.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_patient(number: int, config: Config) -> None:
    """Make and write patient `number`; those past `config.patients` get no label."""
    shape = (config.size, config.thickness, config.classes == "all")
    hu, mask, affine = make_patient(config.seed, number, *shape)
    orientation = ORIENTATIONS[number % len(ORIENTATIONS)]
    labelled = number < config.patients
    folder = "imagesTr" if labelled else "imagesTs"
    write_nifti(config.output / folder / file_name(number), hu, affine, orientation)
    if labelled:
        write_nifti(config.output / "labelsTr" / file_name(number), mask, affine, orientation)


def file_name(number: int) -> str:
    """`phantom_<number>.nii.gz`."""
    return f"phantom_{number:03d}.nii.gz"


def main(config: Config) -> None:
    """Write the folder; dataset.json is written last, so its presence means the rest is
    complete."""
    numbers = range(config.patients + config.unlabelled)
    organs = ORGANS if config.classes == "all" else ORGANS[:1]
    listing = {
        "name": f"{'Spleen' if len(organs) == 1 else 'Abdomen'} phantom",
        "description": "Synthetic abdominal CT, made by data_prep/make_phantom.py",
        "settings": {n: getattr(config, n) for n in ("patients", "size", "thickness", "seed")},
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(k): name for k, name in enumerate(("background", *organs))},
        "numTraining": config.patients,
        "numTest": config.unlabelled,
        "training": [
            {"image": f"./imagesTr/{file_name(n)}", "label": f"./labelsTr/{file_name(n)}"}
            for n in numbers[: config.patients]
        ],
        "test": [f"./imagesTs/{file_name(n)}" for n in numbers[config.patients :]],
    }
    target = config.output / "dataset.json"
    if target.exists():
        earlier = read_json(target)
        if earlier == listing and not config.overwrite:
            print(f"{shown(config.output)} already holds these {config.patients} patients")
            return
        if not isinstance(earlier, dict) or earlier.get("description") != listing["description"]:
            raise UserError(
                f"{shown(target)} is not a phantom's and stays; choose another --output."
            )
        if not config.overwrite:
            raise UserError(
                f"{shown(config.output)} holds a phantom made with other flags. Choose another "
                "--output, or --overwrite it."
            )
    with lock_folder(config.output):
        target.unlink(missing_ok=True)
        remove_leftovers(config.output)
        for folder in FOLDERS:
            remove_leftovers(config.output / folder)
            for path in (config.output / folder).glob("phantom_*.nii.gz"):
                path.unlink()
        run_all(partial(write_patient, config=config), numbers, config.workers, "patients")
        write_json(target, listing)
    print(
        f"{config.patients} labelled and {config.unlabelled} unlabelled patients -> "
        f"{shown(config.output)}"
    )


if __name__ == "__main__":
    launch(main, Config)
