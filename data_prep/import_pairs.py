"""A folder of 2D images and masks -> the slice data set that every stage reads.

    python import_pairs.py --images pictures --masks masks
    python import_pairs.py --images ISIC_images --masks ISIC_truth --mask-suffix _segmentation
    python import_pairs.py --images DRIVE/images --image-suffix _training \\
        --masks DRIVE/1st_manual --mask-suffix _manual1
    python import_pairs.py --images ct/images --masks ct/masks --patient "^(.+)_([0-9]+)$"
    python import_pairs.py --images ct/images --masks ct/classes --classes spleen=1 kidneys=2,3
    python import_pairs.py --images lgg-mri --mask-suffix _mask

png, jpg, tif, gif and bmp are read, grey or colour (colour becomes grey), upright as EXIF says. An
image and its mask share the name before its ending, less --image-suffix and --mask-suffix; with
both kinds in one folder leave --masks out. If a folder holds no pictures, those in its sub-folders
are read; sub-folders called images and masks tell the two apart.

Masks of one class hold black and one other value: 0 and 1, 0 and 255, or, if it is the same in all
files, another value or colour. In a palette the numbers count, not the colours. JPEG masks are cut
half-way between their two values. Others need --threshold. What they show is the spleen, or
--classes NAME.

Masks of several classes hold an index a pixel, grey or as a palette's: --classes A B C names the
values 1, 2, 3, --classes NAME=VALUE[,VALUE] selects and merges. The k-th class becomes mask value
k; what is not named becomes background.

Images of one patient must not fall on both sides of a split: say how the patient is found,
with --patient (a regular expression on the name; its first group is the patient, a second one,
if there is one, the slice number) or --patient-csv (columns file and patient). Without either a
sub-folder counts as a patient or, where there is none, every image.

First the pairing and then all files are checked, before anything is kept; every problem of a kind
is reported at once.
"""

import hashlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.config import launch, option
from common.dataset.cases import twins
from common.dataset.classes import USUAL, count_values, parse_classes, remarks, to_mask, vanished
from common.dataset.mask_checks import (
    contradictions,
    inverted,
    looks_inverted,
    remarks_on,
    turned_alone,
)
from common.dataset.mask_files import Mask, NotTwoValues, read_binary, read_numbers
from common.dataset.pictures import load, to_grey
from common.dataset.preprocessing import to_square
from common.dataset.slices import Slice, check_output, in_short, mask_picture, write_set
from common.dataset.splits import make_splits
from common.errors import UserError, bullets
from common.evaluation import figures
from common.files import lock_folder, printable, replace_folder, shown
from data_prep.image_pairs import Pair, PairsConfig, find_pairs
from data_prep.output_set import SliceSetConfig

ADVICE = (
    "A mask holds 0 and 1, or 0 and 255, or, the same in all files, another value or colour beside "
    "black. Cut others with --threshold (of a colour the brightest channel counts), or say with "
    "--classes which classes their values are: A B C, in order, or NAME=VALUE."
)


@dataclass
class Config(PairsConfig, SliceSetConfig):
    """What to import and what it shows."""

    threshold: int | None = option(
        None, "mask pixels at or above this value are foreground", low=1, high=255
    )
    classes: tuple[str, ...] = option(
        (),
        "what the masks show (without it the spleen): a name; of index masks the names of the "
        "values 1, 2, ..., or NAME=VALUE[,VALUE]",
    )


def classes_of(config: Config) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The classes' names, and their values in index masks; none for a single class without a value,
    whose masks hold two values."""
    words = config.classes or tuple(USUAL)
    if words == ("all",):
        raise UserError("--classes all: pictures do not name their classes; name them here.")
    in_order = all("=" not in word for word in words)
    numbered = [f"{word}={k}" for k, word in enumerate(words, 1)] if in_order else words
    labels = parse_classes(numbered)
    if in_order and len(words) == 1:
        return [*labels], {}
    if config.threshold is not None:
        raise UserError("--threshold has no effect on masks that hold an index; leave it out.")
    return [*labels], labels


class Converted(NamedTuple):
    """A pair as it was written: its manifest row, its image's fingerprint (none of an image of one
    grey), the values in its index mask, its mask's values before and after resizing, whether it
    looks inverted, what is known of its masks' files, and whether EXIF turned its image."""

    row: Slice
    fingerprint: str | None
    values: set[int]
    before: set[int]
    after: set[int]
    inverted: bool
    masks: list[Mask]
    turned: bool


def read_mask(
    pair: Pair, config: Config, labels: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, set[int], list[Mask]]:
    """A pair's mask, uint8 `(H, W)`, its values, if it holds an index, and what is known of its
    files."""
    if labels:
        if len(pair.masks) > 1:
            raise UserError(
                f"{shown(pair.image)} has {len(pair.masks)} masks in its folder, one for each "
                "object, whose values cannot be joined; for one class leave the value out of "
                "--classes."
            )
        numbers, mask = read_numbers(pair.masks[0])
        return to_mask(numbers, labels), {*count_values(numbers)}, [mask]
    read = [read_binary(path, config.threshold) for path in pair.masks]
    if odd := [mask for pixels, mask in read if pixels.shape != read[0][0].shape]:
        raise UserError(f"{shown(odd[0].path)} has another size than the other masks of its image.")
    return np.maximum.reduce([pixels for pixels, _ in read]), set(), [mask for _, mask in read]


def convert(
    pair: Pair, config: Config, labels: dict[str, tuple[int, ...]]
) -> Converted | UserError:
    """Write one pair as square PNGs, or return what is wrong with it."""
    try:
        loaded = load(pair.image)
        image = to_grey(loaded.image, pair.image)
        mask, values, masks = read_mask(pair, config, labels)
    except UserError as error:
        return error
    if image.shape != mask.shape:
        turned = ", turned as its EXIF says"
        return UserError(
            f"{shown(pair.masks[0])} is {mask.shape[1]}x{mask.shape[0]} pixels"
            f"{turned * masks[0].turned}, its image {image.shape[1]}x{image.shape[0]}"
            f"{turned * loaded.turned}"
        )
    # Slices of air are alike in all patients.
    fingerprint = hashlib.sha256(image.tobytes()).hexdigest() if image.min() < image.max() else None
    upside_down, before = looks_inverted(mask > 0), {*np.unique(mask).tolist()} - {0}
    mask = to_square(mask, (1, 1), config.size, mask=True)
    after = {*np.unique(mask).tolist()} - {0}
    row = Slice(pair.case, pair.index, int((mask > 0).sum()), pair.source)
    image = to_square(image, (1, 1), config.size, mask=False)
    colours = figures.legend([*labels]) if len(labels) > 1 else None
    pictures = {"images": Image.fromarray(image), "masks": mask_picture(mask, colours)}
    for kind, picture in pictures.items():
        picture.save(config.partial / kind / f"{row.name}.png", compress_level=4)
    return Converted(row, fingerprint, values, before, after, upside_down, masks, loaded.turned)


def convert_all(
    pairs: list[Pair], config: Config, labels: dict[str, tuple[int, ...]]
) -> tuple[list[Slice], list[str]]:
    """Convert all pairs; returns their rows in order, and remarks to print.

    UserError naming every file that cannot be used, or every image that two patients share, or if
    none of the classes that are named by their values is shown.
    """
    with ThreadPoolExecutor() as pool:
        work = pool.map(lambda pair: convert(pair, config, labels), pairs)
        done = list(tqdm(work, total=len(pairs), disable=None, leave=False))
    good = [pair for pair in done if not isinstance(pair, UserError)]
    masks = [mask for pair in good for mask in pair.masks]
    problems = [error for error in done if isinstance(error, UserError)] + contradictions(masks)
    if problems:
        advice = f"\n{ADVICE}" if any(isinstance(p, NotTwoValues) for p in problems) else ""
        lines = bullets([*map(str, problems)])
        raise UserError(f"{len(problems)} of {len(pairs)} pairs cannot be used:{lines}{advice}")
    refuse_leaks(good)
    rows, values = [pair.row for pair in good], set().union(*(pair.values for pair in good))
    if labels and not any(pair.before for pair in good):
        held = ", ".join(map(str, sorted(values))) or "nothing but 0"
        classes = " ".join(config.classes)
        raise UserError(f"no mask holds any of {classes}: nothing to learn; they hold {held}.")
    lines = remarks(labels, values) + remarks_on(masks, config.threshold)
    lines += turned_alone([pair.turned for pair in good], [pair.masks[0].turned for pair in good])
    numbers = {name: k for k, name in enumerate(labels, 1)}
    for name, value in (numbers if len(labels) > 1 else {"the foreground": 255}).items():
        shown_in = [pair.after for pair in good if value in pair.before]
        gone = sum(value not in after for after in shown_in)
        lines += vanished(name, gone, len(shown_in), config.size)
    if len(labels) < 2:
        lines += inverted([pair.inverted for pair in good])
    return sorted(rows, key=lambda row: (row.case, row.index)), lines


def refuse_leaks(done: list[Converted]) -> None:
    """UserError naming every image that two patients share."""
    case_of = {pair.row.source: pair.row.case for pair in done}
    prints = {pair.row.source: pair.fingerprint for pair in done if pair.fingerprint}
    same = [names for names in twins(prints) if len({case_of[name] for name in names}) > 1]
    if same:
        lines = bullets([" = ".join(names) for names in same])
        raise UserError(
            f"The same image of two patients, a leak between splits:{lines}\n"
            "Leave all but one of each out, or name the patients with --patient."
        )


def main(config: Config) -> None:
    """Pair, check, convert into a folder next to the output, and move it there once complete."""
    classes, labels = classes_of(config)
    pairs = find_pairs(config)
    splits = make_splits([pair.case for pair in pairs], config.seed, config.num_folds, config.fold)
    check_output(config.output, config.overwrite)
    for source in {config.images.resolve(), (config.masks or config.images).resolve()}:
        if source.is_relative_to(config.output.resolve()):
            raise UserError(f"{shown(source)} lies in the --output folder; choose another one.")
    info = {
        "name": printable(config.images.resolve().name),
        "source": f"2D pairs from {printable(config.images.resolve().name)}",
        "size": config.size,
        "classes": classes,
        **({"labels": {name: list(of) for name, of in labels.items()}} if labels else {}),
        "cases": {},
    }
    with lock_folder(config.output):
        shutil.rmtree(config.partial, ignore_errors=True)
        for kind in ("images", "masks"):
            (config.partial / kind).mkdir(parents=True)
        try:
            rows, remarks = convert_all(pairs, config, labels)
            write_set(config.partial, info, rows, splits)
            replace_folder(config.partial, config.output)
        finally:
            shutil.rmtree(config.partial, ignore_errors=True)
    print("".join(f"{line}\n" for line in remarks), end="")
    if not config.classes:
        print("note: what the masks show is called spleen; --classes NAME names something else")
    print(in_short(rows, splits, info, config.output))
    if not any(row.foreground for row in rows):
        print("no mask shows anything: this set can only be predicted")
    elif not splits["train"]:
        print("too few patients to train on: this set can only be predicted")


if __name__ == "__main__":
    launch(main, Config)
