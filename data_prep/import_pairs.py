"""A folder of 2D images and masks -> the slice data set that every stage reads.

    python import_pairs.py --images pictures --masks masks
    python import_pairs.py --images ISIC_images --masks ISIC_truth --mask-suffix _segmentation
    python import_pairs.py --images DRIVE/images --image-suffix _training \\
        --masks DRIVE/1st_manual --mask-suffix _manual1
    python import_pairs.py --images ct/images --masks ct/masks --patient "^(.+)_([0-9]+)$"
    python import_pairs.py --images ct/images --masks ct/organs --organs spleen=1 kidneys=2,3

png, jpg, tif, gif and bmp are read, grey or colour (colour becomes grey). An image and its mask
share the name before its ending, less --image-suffix and --mask-suffix; with both kinds in one
folder leave --masks out. Masks hold 0 and 1, or 0 and 255; JPEG masks are cut at 128, others at
--threshold if it is given. What they show is the spleen, or --organs NAME.

Masks of several organs hold an index a pixel, grey or as a palette's: --organs A B C names the
values 1, 2, 3, --organs NAME=VALUE[,VALUE] selects and merges. The k-th organ becomes mask value k;
what is not named becomes background.

Images of one patient must not fall on both sides of a split: say how the patient is found,
with --patient (a regular expression on the name; its first group is the patient, a second one,
if there is one, the slice number) or --patient-csv (columns file and patient). Without either
every image counts as a patient of its own.

First the pairing and then all files are checked, before anything is kept; every problem of a kind
is reported in one go.
"""

import hashlib
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from tqdm import tqdm

from common.cases import twins
from common.config import launch, option
from common.files import UserError, bullets, lock_folder, read_csv, replace_folder, shown
from common.layouts import looks_grouped, patient_rule
from common.organs import USUAL, count_values, file_name, parse_organs, remarks, to_mask
from common.pictures import NotTwoValues, binary, read_picture
from common.settings import SliceSetConfig
from common.slices import Slice, check_output, in_short, write_set
from common.splits import make_splits
from common.views import to_square

ADVICE = (
    "A mask holds 0 and 1, or 0 and 255. Cut others with --threshold, or say with --organs which "
    "organs their values are: A B C, in order, or NAME=VALUE."
)
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp")


@dataclass
class Config(SliceSetConfig):
    """What to import and how to pair it."""

    images: Path = option(Path("images"), "folder of images")
    masks: Path | None = option(None, "folder of masks; without it: the images' folder")
    image_suffix: str = option("", "end of an image's name that its mask lacks")
    mask_suffix: str = option("", "end of a mask's name that its image lacks")
    patient: str | None = option(None, "regular expression: group 1 patient, group 2 slice")
    patient_csv: Path | None = option(None, "CSV with the columns file and patient")
    threshold: int | None = option(None, "mask pixels at or above this value are organ")
    organs: tuple[str, ...] = option(
        (),
        "what the masks show (without it the spleen): a name; of index masks the names of the "
        "values 1, 2, ..., or NAME=VALUE[,VALUE]",
    )


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and the slice that they become."""

    image: Path
    mask: Path
    case: str
    index: int


def list_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Picture files whose name ends with `suffix`, by name without suffix and ending."""
    if not folder.is_dir():
        raise UserError(f"The folder {shown(folder)} does not exist.")
    files = {}
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower() in ENDINGS and not path.name.startswith(".")
        if known and path.stem.endswith(suffix):
            key = path.stem.removesuffix(suffix)
            if key in files:
                raise UserError(f"{shown(folder)} holds {path.name} and {files[key].name}.")
            files[key] = path
    if not files:
        ending = f" with names ending in {suffix}" if suffix else ""
        raise UserError(f"{shown(folder)} holds no pictures ({' '.join(ENDINGS)}){ending}.")
    return files


def find_pairs(config: Config) -> list[tuple[str, Path, Path]]:
    """(name, image, mask) of every pair, by name. UserError naming every file without partner."""
    images = list_files(config.images, config.image_suffix)
    masks = list_files(config.masks or config.images, config.mask_suffix)
    if config.masks is None:  # one folder: what is a mask is no image, and the other way round
        if config.image_suffix == config.mask_suffix:
            raise UserError("Images and masks in one folder need --mask-suffix or --masks.")
        both = set(images.values()) & set(masks.values())
        both_kinds = images if len(config.image_suffix) < len(config.mask_suffix) else masks
        for name in [name for name, path in both_kinds.items() if path in both]:
            del both_kinds[name]
    lonely = [f"{shown(images[n])} has no mask" for n in sorted(images.keys() - masks.keys())]
    lonely += [f"{shown(masks[n])} has no image" for n in sorted(masks.keys() - images.keys())]
    if lonely:
        raise UserError(
            f"{len(lonely)} files have no partner; see --image-suffix and --mask-suffix."
            + bullets(lonely)
        )
    return [(name, images[name], masks[name]) for name in sorted(images)]


def name_slices(found: list[tuple[str, Path, Path]], config: Config) -> list[tuple[str, int]]:
    """Patient and slice number of every pair; numbers count up where the rule gives none."""
    if config.patient and config.patient_csv:
        raise UserError("--patient and --patient-csv exclude each other.")
    if config.patient_csv:
        rows = read_csv(config.patient_csv, ("file", "patient"))
        table = {Path(row["file"]).stem: row["patient"] for row in rows}
        named = [(table.get(image.stem) or table.get(name), None) for name, image, _ in found]
        rule = shown(config.patient_csv)
    elif config.patient:
        pattern = patient_rule(config.patient)
        matches = [pattern.search(name) for name, _, _ in found]
        named = [(m and m[1], m[2] if m and pattern.groups > 1 else None) for m in matches]
        rule = f"--patient {config.patient!r}"
    else:
        print("no --patient rule: every image counts as a patient of its own", flush=True)
        if count := looks_grouped(name for name, _, _ in found):
            print(
                f"warning: the names look like {count} patients with several images each; "
                "without a rule one patient can be on both sides of the split. Perhaps: "
                '--patient "^(.+?)[_-]?([0-9]+)$"',
                flush=True,
            )
        return [(file_name(name, "case"), 0) for name, _, _ in found]
    missed = [shown(f[1]) for f, (patient, _) in zip(found, named, strict=True) if not patient]
    if missed:
        raise UserError(f"{rule} gives no patient for {len(missed)} images:{bullets(missed)}")
    counters: dict[str, int] = {}
    owners: dict[str, str] = {}
    result = []
    for patient, number in named:
        case = file_name(patient, "case")
        if owners.setdefault(case, patient) != patient:
            raise UserError(
                f"{rule}: the patients {owners[case]!r} and {patient!r} would both be {case!r}; "
                "give them names of letters A to Z and digits, with --patient-csv perhaps."
            )
        if number is not None and not number.isdecimal():
            raise UserError(f"{rule}: the slice number {number!r} is not a number.")
        counters[case] = counters.get(case, -1) + 1
        result.append((case, counters[case] if number is None else int(number)))
    return result


def organs_of(config: Config) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The organs' names, and their values in index masks; none of one organ that is named alone,
    whose masks hold two values."""
    words = config.organs or tuple(USUAL)
    if words == ("all",):
        raise UserError("--organs all: pictures do not name their organs; name them here.")
    in_order = all("=" not in word for word in words)
    numbered = [f"{word}={k}" for k, word in enumerate(words, 1)] if in_order else words
    labels = parse_organs(numbered)
    if in_order and len(words) == 1:
        return [*labels], {}
    if config.threshold is not None:
        raise UserError("--threshold has no effect on masks that hold an index; leave it out.")
    return [*labels], labels


class Converted(NamedTuple):
    """A pair as it was written: its manifest row, its image's fingerprint (none of an image of one
    grey), the values in its index mask."""

    row: Slice
    fingerprint: str | None
    values: set[int]


def convert(
    pair: Pair, config: Config, labels: dict[str, tuple[int, ...]]
) -> Converted | UserError:
    """Write one pair as square PNGs, or say what is wrong with it."""
    try:
        image, values = read_picture(pair.image)[0], set()
        if labels:
            mask = read_picture(pair.mask, indices=True)[0]
            values.update(count_values(mask))
            mask = to_mask(mask, labels)
        else:
            mask = binary(pair.mask, config.threshold)
    except UserError as error:
        return error
    if image.shape != mask.shape:
        return UserError(
            f"{shown(pair.mask)} is {mask.shape[1]}x{mask.shape[0]} pixels, "
            f"its image {image.shape[1]}x{image.shape[0]}"
        )
    # Slices of air are alike in all patients.
    told = hashlib.sha256(image.tobytes()).hexdigest() if image.min() < image.max() else None
    mask = to_square(mask, (1, 1), config.size, mask=True)
    row = Slice(pair.case, pair.index, int((mask > 0).sum()), pair.image.name)
    image = to_square(image, (1, 1), config.size, mask=False)
    for kind, pixels in (("images", image), ("masks", mask)):
        Image.fromarray(pixels).save(config.partial / kind / f"{row.name}.png", compress_level=4)
    return Converted(row, told, values)


def convert_all(
    pairs: list[Pair], config: Config, labels: dict[str, tuple[int, ...]]
) -> tuple[list[Slice], set[int]]:
    """Convert all pairs: their rows in order, all values of index masks. UserError naming every
    file that cannot be used, or every image that two patients share, or if no organ is shown."""
    with ThreadPoolExecutor() as pool:
        work = pool.map(lambda pair: convert(pair, config, labels), pairs)
        done = list(tqdm(work, total=len(pairs), disable=None, leave=False))
    if problems := [found for found in done if isinstance(found, UserError)]:
        advice = f"\n{ADVICE}" if any(isinstance(p, NotTwoValues) for p in problems) else ""
        lines = bullets([*map(str, problems)])
        raise UserError(f"{len(problems)} of {len(pairs)} pairs cannot be used:{lines}{advice}")
    case_of = {found.row.source: found.row.case for found in done}
    prints = {found.row.source: found.fingerprint for found in done if found.fingerprint}
    same = [names for names in twins(prints) if len({case_of[name] for name in names}) > 1]
    if same:
        lines = bullets([" = ".join(names) for names in same])
        raise UserError(
            f"The same image of two patients, a leak between splits:{lines}\n"
            "Leave all but one of each out, or say with --patient whose they are."
        )
    rows, values = [found.row for found in done], set().union(*(found.values for found in done))
    if labels and not any(row.foreground for row in rows):
        held = ", ".join(map(str, sorted(values))) or "nothing but 0"
        organs = " ".join(config.organs)
        raise UserError(f"no mask holds any of {organs}: nothing to learn; they hold {held}.")
    return sorted(rows, key=lambda row: (row.case, row.index)), values


def main(config: Config) -> None:
    """Pair, check, convert into a folder beside the output, and move it there when it is whole."""
    organs, labels = organs_of(config)
    found = find_pairs(config)
    pairs = [
        Pair(image, mask, case, index)
        for (_, image, mask), (case, index) in zip(found, name_slices(found, config), strict=True)
    ]
    names = Counter(f"{pair.case}_{pair.index:03d}" for pair in pairs)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise UserError(f"Two images become the same slice: {', '.join(twice[:10])}.")
    splits = make_splits([pair.case for pair in pairs], config.seed, config.folds, config.fold)
    check_output(config.output, config.overwrite)
    for source in {config.images.resolve(), (config.masks or config.images).resolve()}:
        if source.is_relative_to(config.output.resolve()):
            raise UserError(f"{shown(source)} lies in the --output folder; choose another one.")
    info = {
        "name": config.images.resolve().name,
        "source": f"2D pairs from {config.images.resolve().name}",
        "size": config.size,
        "classes": organs,
        **({"labels": {name: list(of) for name, of in labels.items()}} if labels else {}),
        "cases": {},
    }
    with lock_folder(config.output):
        shutil.rmtree(config.partial, ignore_errors=True)
        for kind in ("images", "masks"):
            (config.partial / kind).mkdir(parents=True)
        try:
            rows, values = convert_all(pairs, config, labels)
            write_set(config.partial, info, rows, splits)
            replace_folder(config.partial, config.output)
        finally:
            shutil.rmtree(config.partial, ignore_errors=True)
    print("".join(f"{line}\n" for line in remarks(labels, values)), end="")
    if not config.organs:
        print("note: what the masks show is called spleen; --organs NAME names something else")
    print(in_short(rows, splits, info, config.output))
    if not any(row.foreground for row in rows):
        print("no mask shows anything: a set to predict")
    elif not splits["train"]:
        print("too few patients to train on: a set to predict")


if __name__ == "__main__":
    launch(main, Config)
