"""The true masks of new pictures: which belongs to which, and what they show."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.dataset.classes import count_values, to_mask
from common.dataset.mask_files import read_binary, read_numbers
from common.dataset.picture_folders import name_of, pictures_in
from common.dataset.slices import check_same_classes, read_mask, read_set
from common.errors import UserError
from common.files import shown
from common.inference.trained_run import Trained


def truths_of(pictures: list[Path], folder: Path, truth: Path) -> list[Path | None]:
    """Each picture's true mask: `truth` itself or, if it is a folder, the picture there of the same
    name below its folder, of the same ending if there are several; None where there is none.

    Folders called images and masks do not count. UserError if `truth` is not there, or if two masks
    fit one picture.
    """
    if not truth.exists():
        raise UserError(f"--ground-truth {shown(truth)} does not exist.")
    if not truth.is_dir():
        return [truth for _ in pictures]
    found: dict[str, list[Path]] = {}
    for path in pictures_in(truth, nested=True):
        found.setdefault(name_of(path, truth, ""), []).append(path)
    chosen = []
    for picture in pictures:
        fitting = found.get(name_of(picture, folder, ""), [])
        if len(fitting) > 1:
            fitting = [p for p in fitting if p.name == picture.name] or fitting
        if len(fitting) > 1:
            raise UserError(
                f"--ground-truth: {shown(fitting[0])} and {shown(fitting[1])} both have the name "
                f"of {shown(picture)}; keep one."
            )
        chosen.append(fitting[0] if fitting else None)
    return chosen


def reader_of(run: Trained, truth: Path) -> Callable[[Path], np.ndarray]:
    """What reads the true masks as class indices, uint8 `(H, W)`.

    Masks of a data set of this repository hold its indices. Others are read as import_pairs.py
    does: those of one class by their two values, or as an index where the training's data were
    made with `--classes NAME=VALUE`, whose values they then hold.
    """
    home = truth.parent if truth.is_dir() else truth.parent.parent
    if (home / "dataset.json").exists() and (home / "manifest.csv").exists():
        data = read_set(home)
        check_same_classes(run.classes, data, run.path)
        return lambda path: read_mask(path, data.num_classes)
    labels = run.checkpoint.get("labels") or {}
    if len(run.classes) == 1:
        values = {value for named in labels.values() for value in named}
        return lambda path: _one_class(path, values)
    labels = labels or {class_name: (k,) for k, class_name in enumerate(run.classes, start=1)}
    return lambda path: to_mask(read_numbers(path)[0], labels)


def _one_class(path: Path, values: set[int]) -> np.ndarray:
    """A mask of one class as {0, 1}, uint8 `(H, W)`; by these values, if it holds an index."""
    if values:
        numbers = read_numbers(path)[0]
        if {*count_values(numbers)} != {255}:
            return np.isin(numbers, [*values]).astype(np.uint8)
    return (read_binary(path, None)[0] > 0).astype(np.uint8)
