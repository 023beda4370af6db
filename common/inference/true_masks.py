"""The true masks of new pictures: which belongs to which picture, and what they show."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.dataset.classes import count_values, remarks, to_mask
from common.dataset.mask_checks import contradictions, inverted, looks_inverted, remarks_on
from common.dataset.mask_files import Mask, NotTwoValues, read_binary, read_numbers
from common.dataset.picture_folders import name_of, pictures_in
from common.dataset.slices import check_same_classes, read_mask, read_set
from common.errors import UserError, bullets
from common.files import shown
from common.inference.trained_run import Trained

THRESHOLD = "--ground-truth-threshold"


def truths_of(pictures: list[Path], folder: Path, truth: Path) -> list[Path | None]:
    """Each picture's true mask: `truth` itself or, if it is a folder, the picture there of the same
    name below its folder, of the same ending if there are several; None where there is none.

    Folders called images and masks are ignored. UserError if `truth` is not there, or if two masks
    fit one picture.
    """
    if not truth.exists():
        raise UserError(f"--ground-truth {shown(truth)} does not exist.")
    if not truth.is_dir():
        return [truth for _ in pictures]
    by_name: dict[str, list[Path]] = {}
    for path in pictures_in(truth, nested=True):
        by_name.setdefault(name_of(path, truth, ""), []).append(path)
    chosen = []
    for picture in pictures:
        fitting = by_name.get(name_of(picture, folder, ""), [])
        if len(fitting) > 1:
            fitting = [p for p in fitting if p.name == picture.name] or fitting
        if len(fitting) > 1:
            raise UserError(
                f"--ground-truth: {shown(fitting[0])} and {shown(fitting[1])} both have the name "
                f"of {shown(picture)}; keep one."
            )
        chosen.append(fitting[0] if fitting else None)
    return chosen


class TrueMask(NamedTuple):
    """A true mask as class indices, uint8 `(H, W)`; the values that its file holds, if these are
    indices; and what is known of the file, unless it is of a data set of this repository."""

    indices: np.ndarray
    values: set[int]
    about: Mask | None

    @property
    def turned(self) -> bool:
        """Whether its EXIF orientation had it turned."""
        return self.about is not None and self.about.turned


def reader_of(run: Trained, truth: Path, threshold: int | None) -> Callable[[Path], TrueMask]:
    """What reads the true masks.

    Masks of a data set of this repository hold its indices. Others are read as import_pairs.py
    does: those of one class by their two values, or cut at `threshold`, or as an index where the
    training's data were made with `--classes NAME=VALUE`, whose values they then hold. UserError
    for a threshold where masks hold indices.
    """
    home = truth.parent if truth.is_dir() else truth.parent.parent
    of_a_set = (home / "dataset.json").exists() and (home / "manifest.csv").exists()
    if threshold is not None and (of_a_set or len(run.classes) > 1):
        raise UserError(f"{THRESHOLD} has no effect on masks that hold an index.")
    if of_a_set:
        data = read_set(home)
        check_same_classes(run.classes, data, run.path)
        return lambda path: TrueMask(read_mask(path, data.num_classes), set(), None)
    labels = run.checkpoint.get("labels") or {}
    if len(run.classes) == 1:
        values = {value for named in labels.values() for value in named}
        return lambda path: _one_class(path, values, threshold)
    return lambda path: _several_classes(path, _labels(run))


def _labels(run: Trained) -> dict[str, tuple[int, ...]]:
    """The values of each class in the masks that the run's data were made from."""
    in_order = {class_name: (k,) for k, class_name in enumerate(run.classes, start=1)}
    return run.checkpoint.get("labels") or in_order


def _several_classes(path: Path, labels: dict[str, tuple[int, ...]]) -> TrueMask:
    numbers, about = read_numbers(path)
    return TrueMask(to_mask(numbers, labels), {*count_values(numbers)}, about)


def _one_class(path: Path, values: set[int], threshold: int | None) -> TrueMask:
    """A mask of one class; by these values, if it holds an index."""
    if values and threshold is None:
        try:
            numbers, about = read_numbers(path)
        except UserError:  # colours, or a format that does not keep values: by two values then
            numbers = None
        if numbers is not None and {*count_values(numbers)} != {255}:
            return TrueMask(np.isin(numbers, [*values]).astype(np.uint8), set(), about)
    pixels, about = read_binary(path, threshold)
    return TrueMask((pixels > 0).astype(np.uint8), set(), about)


def check_truths(
    run: Trained, truths: Sequence[Path], read: Callable[[Path], TrueMask], threshold: int | None
) -> list[str]:
    """What a user should know of the true masks before anything is scored by them, as lines to
    print: the remarks of import_pairs.py.

    UserError naming the masks that contradict the others, or whose foreground cannot be determined.
    A file that cannot be read is reported when its picture is predicted.
    """
    abouts, values, problems, upside_down = [], set(), [], []
    for path in dict.fromkeys(truths):
        try:
            true = read(path)
        except NotTwoValues as error:
            problems.append(str(error))
        except UserError:
            continue
        else:
            values |= true.values
            upside_down.append(looks_inverted(true.indices > 0))
            abouts += [true.about] if true.about else []
    problems += map(str, contradictions(abouts, THRESHOLD))
    if problems:
        raise UserError(
            f"{len(problems)} of {len(truths)} true masks do not say what is foreground:"
            f"{bullets(problems)}\nA mask of one class holds 0 and one other value, the same in "
            f"every file; for soft masks, set {THRESHOLD}."
        )
    if len(run.classes) > 1:
        naming = "the run's classes do not include"
        return remarks(_labels(run), values, naming) if values else []
    return remarks_on(abouts, threshold, THRESHOLD) + inverted(upside_down)
