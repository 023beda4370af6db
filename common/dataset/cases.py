"""The cases of a Decathlon folder: what is listed, what is wrong with it, reading it checked."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from common.dataset.formats import foreign_files, plain, stem
from common.dataset.geometry import displacement
from common.dataset.nifti import Volume, read_volume
from common.errors import UserError
from common.files import read_json, shown

PAIR = {"image", "label"}
ONE_CLASS = (0, 1)  # what a label holds where no classes are named
ROUNDING = 1e-3  # a label's value this close to a whole number is meant as one
RESAMPLE = "resample it on its image (nibabel.processing.resample_from_to(label, image, order=0))"
APART = 0.5  # voxels between a label and its image; from there on another voxel is nearer


@dataclass(frozen=True)
class Case:
    """One labelled volume: its name, image file, label file."""

    name: str
    image: Path
    label: Path


def listing(folder: Path, channel: int | None = None) -> tuple[list[Case], list[tuple[str, str]]]:
    """The labelled cases of a folder's dataset.json, sorted by name, and what is wrong with it.

    They are those of the list "training" and, where there is one, those of the list "validation"
    that have a label. Images that are listed as NAME and stored as NAME_0000 (nnU-Net) are
    found; `channel` chooses one of several. A problem is the case's name and a text: a file that
    is listed and missing, listed outside the folder, listed twice. UserError if there is no such
    list.
    """
    index = folder / "dataset.json"
    hint = (
        "A folder in Decathlon layout holds dataset.json, imagesTr/ and labelsTr/. "
        "Without one, `python data_prep/make_phantom.py` makes a synthetic one."
    )
    listed = read_json(index, hint)
    try:
        entries = [{key: entry[key] for key in PAIR} for entry in listed["training"]]
    except (KeyError, TypeError):
        raise UserError(f'{shown(index)} has no list "training" of image and label.') from None
    more = listed.get("validation")
    more = more if isinstance(more, list) else ()
    entries += [entry for entry in more if isinstance(entry, dict) and entry.keys() >= PAIR]
    if not entries:
        raise UserError(f"{shown(index)} lists no training volumes.")
    pairs = [tuple(_listed(folder, entry[key]) for key in ("image", "label")) for entry in entries]
    tests = listed.get("test") if isinstance(listed.get("test"), list) else []
    tests = [_listed(folder, t.get("image") if isinstance(t, dict) else t) for t in tests]
    names = names_of(folder, [image for image, _ in pairs])
    by_path = {image: name for (image, _), name in zip(pairs, names, strict=True)}
    tests = {by_path.get(path, stem(path)) for path in tests}
    problems, cases = [], set()
    for name, (image, label) in zip(names, pairs, strict=True):
        file, text = with_channel(image, channel)
        problems += [(name, text)] if text else []
        cases.add(Case(name, file, label))
        for path in () if text else (file, label):
            # By its name: a link that the user has made may lead to another disk.
            if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
                problems.append((name, f"{path} is listed, outside its folder"))
            elif not is_file(path):
                problems.append((name, f"{shown(path)} {_why_not(path)}"))
    problems = sorted(problems, key=lambda problem: problem[0])
    problems += [(n, "listed twice") for n in sorted({n for n in names if names.count(n) > 1})]
    problems += [(n, "listed for training and for test") for n in sorted(tests & {*names})]
    return sorted(cases, key=lambda case: case.name), problems


def _why_not(path: Path) -> str:
    """Why a path that is listed is not a file."""
    try:
        inside = sorted(path.rglob("*")) if path.is_dir() else None
    except (OSError, ValueError):
        inside = None
    if inside is None:
        return "is listed and missing"
    return f"is a folder; a .nii or .nii.gz is expected. {foreign_files(inside)}".strip()


def _listed(folder: Path, text) -> Path:
    """A file that dataset.json lists; backslashes, as Windows writes them, separate folders."""
    path = folder / str(text)
    return path if is_file(path) else folder / str(text).replace("\\", "/")


def names_of(folder: Path, images: list[Path]) -> list[str]:
    """The name of each image: its file's or, where files in several folders are called the same,
    the parts of its path in which they differ."""
    if len({stem(path) for path in images}) == len({*images}):
        return [stem(path) for path in images]
    folders = [Path(os.path.relpath(path.parent, folder)).parts for path in images]
    parts = [(*map(plain, p), stem(path)) for p, path in zip(folders, images, strict=True)]
    if len({len(each) for each in parts}) > 1:
        return ["_".join(each) for each in parts]
    kept = [place for place, texts in enumerate(zip(*parts, strict=True)) if len({*texts}) > 1]
    return ["_".join(each[place] for place in kept) for each in parts]


def with_channel(image: Path, channel: int | None) -> tuple[Path, str]:
    """The file of an image as dataset.json lists it, and what is wrong with that: nnU-Net's files
    are called NAME_0000, NAME_0001, one for each channel, and listed as NAME."""
    if is_file(image):
        return image, ""
    name, ending = re.fullmatch(r"(.*?)((?:\.nii)?(?:\.gz)?)", image.name, re.I | re.S).groups()
    files = [image.with_name(f"{name}_{number:04d}{ending}") for number in range(100)]
    files = [path for path in files if is_file(path)]
    if len(files) == 1 and channel is None:
        return files[0], ""
    if not files:
        return image, ""
    if channel is None:
        return image, f"{shown(image)} has {len(files)} channels; choose one with --channel"
    chosen = image.with_name(f"{name}_{channel:04d}{ending}")
    return (chosen, "") if chosen in files else (image, f"{shown(chosen)} is missing")


def is_file(path: Path) -> bool:
    """Whether it is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_label(path: Path, image: Volume | None = None) -> Volume:
    """A label, on its image's axes: what other programs store in another order of axes, at the same
    place in the patient, is turned; values that rounding has made 0.99998 become whole.

    UserError as in `read_volume`.
    """
    label = read_volume(path, label=True)
    if image is not None:
        label = _on_axes_of(image, label)
    if label.voxels.dtype.kind == "f":
        whole = np.rint(label.voxels)
        if np.nanmax(np.abs(label.voxels - whole), initial=0) <= ROUNDING:
            label = replace(label, voxels=whole)
    return label


def _on_axes_of(image: Volume, label: Volume) -> Volume:
    """A label with its image's axes. Both are canonical already, but near 45 degrees a rounded
    affine may choose other axes than its image's."""
    turn = nib.io_orientation(np.linalg.inv(image.affine) @ label.affine)
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return label
    back = nib.orientations.inv_ornt_aff(turn, label.voxels.shape)
    voxels, order = nib.apply_orientation(label.voxels, turn), turn[:, 0].astype(int)
    spacing = tuple(label.spacing[place] for place in np.argsort(order))
    return replace(label, voxels=voxels, affine=label.affine @ back, spacing=spacing)


def problems_of(
    image: Volume, label: Volume, allowed: Iterable[int] | None = ONE_CLASS
) -> list[str]:
    """Why an image and its label cannot be used together; empty if they can.

    `allowed` are the values that the label may hold; None: any whole number from 0 on.
    """
    problems = []
    if image.voxels.shape != label.voxels.shape:
        flat = len(image.header.get_data_shape()) == 2
        text = " (a 2D image is a 3D volume of one slice)" if flat else ""
        problems.append(
            f"the label's shape is {label.stored_shape}, its image's {image.stored_shape}{text}: "
            f"{RESAMPLE}"
        )
    elif (distance := beside(image, label)) > APART:
        problems.append(
            f"the label's affine differs from its image's: it lies up to {distance:.3g} voxels "
            f"beside it: {RESAMPLE}, or, if its header alone is wrong, give it the image's affine"
        )
    if not np.isfinite(image.voxels).all():
        problems.append("the image holds NaN or infinite voxels")
    return problems + _odd_values(label.voxels, allowed)


def beside(image: Volume, label: Volume) -> float:
    """The largest distance in voxels between a label and its image of the same shape."""
    return displacement(image.affine, label.affine, image.voxels.shape)


def _odd_values(label: np.ndarray, allowed: Iterable[int] | None) -> list[str]:
    """Whether a label holds values that are not `allowed` (see `problems_of`)."""
    if allowed is None:
        good, usual = (label >= 0) & (label % 1 == 0), "whole numbers from 0 on"
    else:
        values = np.array(sorted(allowed))
        good = np.isin(label, values)
        gaps = len(values) < 3 or (np.diff(values) != 1).any()
        usual = " and ".join(map(str, values)) if gaps else f"{values[0]} to {values[-1]}"
    if good.all():
        return []
    odd = np.unique(label[~good])
    listed = ", ".join(f"{v:.9g}" for v in odd[:8])
    hint = " (several classes: see --classes)" if allowed is ONE_CLASS else ""
    if (odd[np.isfinite(odd)] % 1 != 0).any():
        hint = ": round them (np.rint), or resample the label without interpolation (order 0)"
    return [f"the label holds the values {listed} beside {usual}{hint}"]


def read_case(
    case: Case, allowed: Iterable[int] | None = ONE_CLASS, channel: int | None = None
) -> tuple[Volume, Volume]:
    """Image and label of one case, checked against each other. UserError says what is wrong.

    `allowed` are the values of the label (see `problems_of`), `channel` that of a 4D image.
    """
    image = read_volume(case.image, channel)
    label = read_label(case.label, image)
    if problems := problems_of(image, label, allowed):
        raise UserError(f"{shown(case.label)}: {'; '.join(problems)}.")
    return image, label


def fingerprint(image: Volume) -> str:
    """A hash of the voxels, whatever name, header or packing they come with."""
    digest = hashlib.sha256(str(image.voxels.shape).encode())
    digest.update(np.ascontiguousarray(image.voxels, dtype=np.float32))
    return digest.hexdigest()


def twins(prints: dict[str, str]) -> list[list[str]]:
    """Cases that hold the same image, by their fingerprints: a leak across any split."""
    same: dict[str, list[str]] = {}
    for name, fingerprint in prints.items():
        same.setdefault(fingerprint, []).append(name)
    return [names for names in same.values() if len(names) > 1]
