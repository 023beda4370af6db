"""Folders of 2D images and masks: which belong together, and to whom."""

from dataclasses import dataclass
from pathlib import Path

from common import config as base
from common.config import option
from common.files import UserError, bullets, read_csv, shown
from common.layouts import looks_grouped, patient_rule
from common.organs import file_name

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp")
OTHERS = (".dcm", ".nii", ".webp", ".npy")  # that a list may name, of what the pictures were


@dataclass
class PairsConfig(base.Config):
    """What to pair, and how the patients are found."""

    images: Path = option(Path("images"), "folder of images")
    masks: Path | None = option(None, "folder of masks; without it: the images' folder")
    image_suffix: str = option("", "end of an image's name that its mask lacks")
    mask_suffix: str = option("", "end of a mask's name that its image lacks")
    patient: str | None = option(None, "regular expression: group 1 patient, group 2 slice")
    patient_csv: Path | None = option(None, "CSV with the columns file and patient")


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
        raise UserError(
            f"The folder {shown(folder)} does not exist: name the pictures' with --images, the "
            "masks' with --masks."
        )
    files = {}
    for path in sorted(folder.iterdir()):
        known = path.suffix.lower() in ENDINGS and not path.name.startswith(".")
        if known and path.stem.endswith(suffix):
            key = path.stem.removesuffix(suffix)
            if key in files:
                raise UserError(
                    f"{shown(folder)} holds {path.name} and {files[key].name}, two pictures of one "
                    "name: keep one, or tell images from masks by --image-suffix and --mask-suffix."
                )
            files[key] = path
    if not files:
        ending = f" with names ending in {suffix}" if suffix else ""
        raise UserError(f"{shown(folder)} holds no pictures ({' '.join(ENDINGS)}){ending}.")
    return files


def match_names(config: PairsConfig) -> list[tuple[str, Path, Path]]:
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


def name_slices(found: list[tuple[str, Path, Path]], config: PairsConfig) -> list[tuple[str, int]]:
    """Patient and slice number of every pair; numbers count up where the rule gives none."""
    if config.patient and config.patient_csv:
        raise UserError("--patient and --patient-csv exclude each other.")
    if config.patient_csv:
        table = patients_listed(config.patient_csv)
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


def patients_listed(path: Path) -> dict[str, str]:
    """The patient of each file in a CSV with the columns file and patient, by the file's name
    without folder and ending. UserError for one that is listed under two patients."""
    table: dict[str, str] = {}
    for row in read_csv(path, ("file", "patient")):
        file = Path(row["file"].replace("\\", "/"))
        name = file.stem if file.suffix.lower() in (*ENDINGS, *OTHERS) else file.name
        if table.setdefault(name, row["patient"]) != row["patient"]:
            raise UserError(
                f"{shown(path)} lists {name} under {table[name]} and under {row['patient']}; give "
                "every picture a name of its own, and one patient."
            )
    return table


def find_pairs(config: PairsConfig) -> list[Pair]:
    """The pairs in the two folders, by name. UserError naming every file without a partner, or
    without a patient."""
    found = match_names(config)
    return [
        Pair(image, mask, case, index)
        for (_, image, mask), (case, index) in zip(found, name_slices(found, config), strict=True)
    ]
