"""Folders of 2D images and masks: which belong together, and to which patient."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from common import config as base
from common.config import option
from common.dataset.picture_folders import kind_of, name_of, pictures_in, source_of
from common.errors import UserError, bullets
from common.files import shown
from data_prep.patients import name_slices

NO_MASKS = (
    "Name the masks with --masks or, if they are in the images' folder, by --mask-suffix. New "
    "pictures without masks are predicted by `python inference.py --images FOLDER` in a stage's "
    "folder."
)


@dataclass
class PairsConfig(base.Config):
    """What to pair, and how the patients are found."""

    images: Path = option(Path("images"), "folder of images, or of sub-folders with images")
    masks: Path | None = option(None, "folder of masks; without it: the images' folder")
    image_suffix: str = option("", "end of an image's name that its mask lacks")
    mask_suffix: str = option("", "end of a mask's name that its image lacks")
    patient: str | None = option(
        None,
        "regular expression on the name (with a / in it: on its sub-folders, too): group 1 "
        "patient, group 2 slice",
    )
    patient_csv: Path | None = option(None, "CSV with the columns file and patient")


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and the slice that they become. Several masks, one for each object, are
    one mask together. `source` is the image's path below its folder."""

    image: Path
    masks: tuple[Path, ...]
    case: str
    index: int
    source: str


def find_pairs(config: PairsConfig) -> list[Pair]:
    """The pairs in the two folders, by name. UserError naming every file without a partner, or
    without a patient, or the images that become the same slice."""
    matches = match_names(config)
    names, files = [name for name, _, _ in matches], [image for _, image, _ in matches]
    slices = name_slices(names, files, config.patient, config.patient_csv)
    by_slice = defaultdict(list)
    for file, place in zip(files, slices, strict=True):
        by_slice[place].append(shown(file))
    if same := [f"{' = '.join(files)}" for files in by_slice.values() if len(files) > 1]:
        raise UserError(
            "These images become the same slice, as patient and slice number are the same:"
            + bullets(same)
        )
    return [
        Pair(image, masks, case, index, source_of(image, config.images))
        for (_, image, masks), (case, index) in zip(matches, slices, strict=True)
    ]


def match_names(config: PairsConfig) -> list[tuple[str, Path, tuple[Path, ...]]]:
    """(name, image, masks) of every pair, by name. UserError naming every file without partner."""
    folders = config.images, config.masks or config.images
    joined: dict[str, tuple[Path, ...]] = {}
    if folders[0].resolve() != folders[1].resolve():
        image_files = pictures_in(config.images, config.masks)
        mask_files = pictures_in(folders[1], config.images, NO_MASKS)
        images = _by_name(image_files, folders[0], config.image_suffix)
        masks = _by_name(mask_files, folders[1], config.mask_suffix)
    else:
        files = pictures_in(config.images)
        mask_files = [path for path in files if kind_of(path, folders[0]) == "masks"]
        by_folder = 0 < len(mask_files) < len(files)  # by folders called images and masks
        if not by_folder and config.image_suffix == config.mask_suffix:
            raise UserError(f"{shown(config.images)}: no masks are named. {NO_MASKS}")
        image_files = [path for path in files if path not in {*mask_files}] if by_folder else files
        images = _by_name(image_files, folders[0], config.image_suffix)
        masks = _by_name(mask_files if by_folder else files, folders[0], config.mask_suffix)
        if by_folder:
            joined = _join(images, masks)
        else:  # a mask is not an image, and vice versa
            shorter = len(config.image_suffix) < len(config.mask_suffix)
            both = {*images.values()} & {*masks.values()}
            wrong = images if shorter else masks
            for name in [name for name, path in wrong.items() if path in both]:
                del wrong[name]
    of_image = {name: (path,) for name, path in masks.items()} | joined
    lonely = [f"{shown(images[n])} has no mask" for n in sorted(images.keys() - of_image)]
    lonely += [f"{shown(of_image[n][0])} has no image" for n in sorted(of_image.keys() - images)]
    if lonely:
        nested = [any("/" in name for name in names) for names in (images, masks)]
        uneven = " Only one of the two folders has its pictures in sub-folders." * (
            len({*nested}) > 1
        )
        raise UserError(
            f"{len(lonely)} files have no partner; see --image-suffix and --mask-suffix.{uneven}"
            + bullets(lonely)
        )
    return [(name, images[name], of_image[name]) for name in sorted(images, key=_by_number)]


def _by_name(files: list[Path], folder: Path, suffix: str) -> dict[str, Path]:
    """Of these files those whose names end in `suffix`, by name (see `name_of`). UserError if none
    does, or two have the same name."""
    by_name: dict[str, Path] = {}
    for path in files:
        if path.stem.endswith(suffix):
            name = name_of(path, folder, suffix)
            if name in by_name:
                both = " and ".join(str(source_of(p, folder)) for p in (path, by_name[name]))
                raise UserError(
                    f"{shown(folder)} holds {both}, two pictures of one name: keep one, or tell "
                    "images from masks by --image-suffix and --mask-suffix."
                )
            by_name[name] = path
    if not by_name:
        raise UserError(
            f"{shown(folder)} holds no pictures with names ending in {suffix}. {NO_MASKS}"
        )
    return by_name


def _join(images: dict[str, Path], masks: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """In folders that hold one image and no mask of its name: all their masks, by that image's
    name; they are removed from `masks`."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in images:
        folders[name.rpartition("/")[0]].append(name)
    alone = {folder: names[0] for folder, names in folders.items() if folder and len(names) == 1}
    alone = {folder: name for folder, name in alone.items() if name not in masks}
    joined: dict[str, list[Path]] = defaultdict(list)
    for name in [*masks]:
        if (folder := name.rpartition("/")[0]) in alone:
            joined[alone[folder]].append(masks.pop(name))
    if several := [len(files) for files in joined.values() if len(files) > 1]:
        print(
            f"note: {len(several)} images have several masks in their folder (up to "
            f"{max(several)}), which are joined to one",
            flush=True,
        )
    return {name: tuple(files) for name, files in joined.items()}


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts names naturally: slice_9 before slice_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
