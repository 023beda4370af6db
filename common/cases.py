"""The cases of a Decathlon folder: what is listed, what is wrong with it, reading it checked."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from common.files import UserError, read_json, shown
from common.organs import on_the_left
from common.volumes import Volume, read_volume, stem

AIR_HU = -300  # below it is air, in the lungs or around the patient
PLAUSIBLE_HU = (-2000, 5000)
MAX_SPACING_MM = 10
PAIR = {"image", "label"}
ONE_ORGAN = (0, 1)  # what a label holds where no organs are named


@dataclass(frozen=True)
class Case:
    """One labelled volume: its name, image file, label file."""

    name: str
    image: Path
    label: Path


def listing(folder: Path) -> tuple[list[Case], list[tuple[str, str]]]:
    """The labelled cases of a folder's dataset.json, sorted by name, and what is wrong with it.

    They are those of the list "training" and, where there is one, those of the list "validation"
    that have a label. A problem is the case's name and a text: a file that is listed and missing,
    listed outside the folder, listed twice. UserError if there is no such list.
    """
    index = folder / "dataset.json"
    hint = (
        "A folder in Decathlon layout holds dataset.json, imagesTr/ and labelsTr/. "
        "Without one, `python data_prep/make_phantom.py` makes a synthetic one."
    )
    listed = read_json(index, hint)
    try:
        pairs = [(str(entry["image"]), str(entry["label"])) for entry in listed["training"]]
        more = listed.get("validation")
        more = more if isinstance(more, list) else ()
        more = [entry for entry in more if isinstance(entry, dict) and entry.keys() >= PAIR]
        pairs += [(str(entry["image"]), str(entry["label"])) for entry in more]
    except (KeyError, TypeError):
        raise UserError(f'{shown(index)} has no list "training" of image and label.') from None
    if not pairs:
        raise UserError(f"{shown(index)} lists no training volumes.")
    cases = [Case(stem(Path(image)), folder / image, folder / label) for image, label in pairs]
    problems = []
    for case in sorted(cases, key=lambda case: case.name):
        for path in (case.image, case.label):
            # By its name: a link that the user has made may lead to another disk.
            if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
                problems.append((case.name, f"{path} is listed, outside its folder"))
            elif not _is_file(path):
                problems.append((case.name, f"{shown(path)} is listed and missing"))
    names = [case.name for case in cases]
    problems += [(n, "listed twice") for n in sorted({n for n in names if names.count(n) > 1})]
    tests = listed.get("test") if isinstance(listed.get("test"), list) else []
    tests = {stem(Path(str(t.get("image") if isinstance(t, dict) else t))) for t in tests}
    problems += [(n, "listed for training and for test") for n in sorted(tests & {*names})]
    return sorted(set(cases), key=lambda case: case.name), problems


def _is_file(path: Path) -> bool:
    """Whether it is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def problems_of(
    image: Volume, label: Volume, allowed: Iterable[int] | None = ONE_ORGAN
) -> list[str]:
    """Why an image and its label cannot be used together; empty if they can.

    `allowed` are the values that the label may hold; None: any whole number from 0 on.
    """
    found = []
    if image.stored_shape != label.stored_shape:
        found.append(f"the label's shape is {label.stored_shape}, its image's {image.stored_shape}")
    shift = np.abs(image.stored_affine - label.stored_affine).max()
    if shift > 1e-3:
        found.append(f"the label's affine differs from its image's by {shift:g} (mm)")
    if not np.isfinite(image.voxels).all():
        found.append("the image holds NaN or infinite voxels")
    return found + _odd_values(label.voxels, allowed)


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
    listed = ", ".join(f"{v:g}" for v in np.unique(label[~good])[:8])
    hint = " (several organs: see --organs)" if allowed is ONE_ORGAN else ""
    return [f"the label holds the values {listed} beside {usual}{hint}"]


def image_doubts(image: Volume, hu: bool = True) -> list[str]:
    """What is odd about an image, and may be meant; without `hu` it is no CT."""
    found = []
    low, high = float(image.voxels.min()), float(image.voxels.max())
    if low == high:
        found.append("the image is constant")
    elif hu and (low < PLAUSIBLE_HU[0] or high > PLAUSIBLE_HU[1]):
        found.append(f"{low:g}..{high:g} is no range of a CT in HU")
    elif hu and low > AIR_HU:
        found.append(f"nothing is below {low:g}: no air, or not in HU")
    if max(image.spacing) > MAX_SPACING_MM:
        found.append(f"a spacing of {max(image.spacing):g} mm")
    forms = [form(coded=True)[0] for form in (image.header.get_qform, image.header.get_sform)]
    if all(form is None for form in forms):
        found.append(f"the header states no orientation; taken as {image.stored_orientation}")
    if all(form is not None for form in forms) and not _same_axes(*forms):
        found.append("qform and sform turn it differently; sform is followed")
    return found


def _same_axes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two affines call the axes the same."""
    return nib.aff2axcodes(a) == nib.aff2axcodes(b)


def side_doubts(image: Volume, organ: np.ndarray) -> list[str]:
    """Whether an organ, a mask of the canonical voxels, lies on the patient's right: a spleen
    should not."""
    body = image.voxels > AIR_HU
    if organ.any() and body.any():
        x, middle = (float(np.argwhere(m.any((1, 2))).mean()) for m in (organ, body))
        if x > middle:
            return ["the organ lies on the patient's right: no spleen, or a wrong header"]
    return []


def doubts(
    image: Volume,
    label: Volume,
    labels: Mapping[str, tuple[int, ...]],
    hu: bool = True,
) -> list[str]:
    """What is odd about an image with its label, and may be meant: the spleen's side, too.

    `labels` are the values of each organ. Without `hu` the image is no CT.
    """
    each = [np.isin(label.voxels, values) for values in labels.values()]
    found = [] if any(organ.any() for organ in each) else ["the label is empty"]
    found += image_doubts(image, hu)
    left = on_the_left([*labels]) if hu else None
    return found + (side_doubts(image, each[left - 1]) if left else [])


def read_case(
    case: Case, allowed: Iterable[int] | None = ONE_ORGAN, channel: int | None = None
) -> tuple[Volume, Volume]:
    """Image and label of one case, checked against each other. UserError says what is wrong.

    `allowed` are the values of the label (see `problems_of`), `channel` that of a 4D image.
    """
    image, label = read_volume(case.image, channel), read_volume(case.label)
    if found := problems_of(image, label, allowed):
        raise UserError(f"{shown(case.label)}: {'; '.join(found)}.")
    return image, label


def fingerprint(image: Volume) -> str:
    """A hash of the voxels, whatever name, header or packing they come with."""
    digest = hashlib.sha256(str(image.voxels.shape).encode())
    digest.update(np.ascontiguousarray(image.voxels, dtype=np.float32))
    return digest.hexdigest()


def twins(prints: dict[str, str]) -> list[list[str]]:
    """Cases that hold the same image, from each one's fingerprint: a leak that no split mends."""
    same: dict[str, list[str]] = {}
    for name, found in prints.items():
        same.setdefault(found, []).append(name)
    return [names for names in same.values() if len(names) > 1]
