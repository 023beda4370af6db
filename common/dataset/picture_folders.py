"""Folders of 2D pictures: the files in them or their sub-folders, and what is not read."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.dataset.formats import foreign_files
from common.errors import UserError
from common.files import printable, shown

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp")
VOLUMES = "data_prep/slice_nifti.py cuts volumes into slices"
# Other files in a folder that should hold pictures, by their ending, and what to do.
OTHERS = {
    (".dcm", ".ima", ".dicom"): f"DICOM, which dcm2niix converts to NIfTI; {VOLUMES}",
    (".nii", ".nii.gz"): f"NIfTI; {VOLUMES}",
    (".mha", ".mhd"): f"MetaImage, to be saved as NIfTI; {VOLUMES}",
    (".nrrd", ".nhdr"): f"NRRD, to be saved as NIfTI; {VOLUMES}",
    (".mgz", ".img", ".hdr"): f"volumes, to be saved as NIfTI; {VOLUMES}",
    (".svs", ".ndpi", ".czi"): "whole slides, to be cut into tiles that are saved as PNG",
    (".webp", ".heic", ".heif", ".avif", ".svg", ".jp2", ".psd", ".eps", ".pdf", ".ppm", ".pgm"): (
        "a format that is not read; save them as PNG"
    ),
    (".npy", ".npz", ".mat", ".h5", ".exr", ".raw", ".dng", ".zip", ".tfrecord"): (
        "a format that is not read; save the pictures in them as PNG, with 8 bits per channel"
    ),
}
DEEPEST = 4  # levels of sub-folders that are looked into
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label")


def pictures_in(
    folder: Path, other: Path | None = None, hint: str = "", nested: bool = False
) -> list[Path]:
    """The picture files in a folder or, if it holds none, in its sub-folders, sorted; with `nested`
    those in both.

    Prints what is left out, except what lies in the folder `other`. UserError if there are none,
    of an empty folder with a `hint` on what to do.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"The folder {shown(folder)} {state}: name the pictures' with --images, the masks' "
            "with --masks."
        )
    files = list(_files(folder, DEEPEST))
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    direct = {path: True for path in pictures if nested or path.parent == folder}
    if not pictures:
        why = _why(files) if files else f" It is empty. {hint}".rstrip()
        raise UserError(f"{shown(folder)} holds no pictures ({' '.join(ENDINGS)}).{why}")
    others = Counter(ending for path in files if (ending := _other(path)))
    left = [f"{count} {ending}" for ending, count in sorted(others.items())]
    below = [path for path in pictures if path not in direct]
    if direct and (more := [p for p in below if not (other and p.is_relative_to(other))]):
        left.append(f"the pictures in sub-folders ({len(more)}), as there are others next to them")
    if left:
        print(f"note: not read in {shown(folder)}: {', '.join(left)}", flush=True)
    return [*direct] or pictures


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Files below a folder, sorted, but for those that the system or a program hides."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if not path.is_dir():
            yield path
        elif depth:
            yield from _files(path, depth - 1)


def _other(path: Path) -> str:
    """The ending of a file that is a picture or a volume of a format that is not read, or ''."""
    endings = (ending for group in OTHERS for ending in group)
    return next((ending for ending in endings if path.name.lower().endswith(ending)), "")


def _why(files: list[Path]) -> str:
    """What a folder holds instead of pictures, and what to do with that."""
    kinds = Counter(ending for path in files if (ending := _other(path)))
    if kinds:
        ending, count = kinds.most_common(1)[0]
        how = next(advice for endings, advice in OTHERS.items() if ending in endings)
        return f" It holds {count} {ending} files: {how}."
    if kind := foreign_files(files):
        return f" {kind}"
    kinds = Counter(path.suffix.lower() or "files without an ending" for path in files)
    listed = ", ".join(f"{count} {ending}" for ending, count in kinds.most_common(3))
    return f" It holds {listed}."


def name_of(path: Path, folder: Path, suffix: str) -> str:
    """A picture's name: its path below the folder without ending and `suffix`; folders that say
    only `images` or `masks` are left out."""
    parts = path.relative_to(folder).parts[:-1]
    kept = [part for part in parts if part.lower() not in (*IMAGE_FOLDERS, *MASK_FOLDERS)]
    # macOS writes letters and their accents apart.
    return unicodedata.normalize("NFC", "/".join([*kept, path.stem.removesuffix(suffix)]))


def kind_of(path: Path, folder: Path) -> str:
    """`masks` or `images` if a folder above the picture, below `folder`, is called so, else ''."""
    for part in reversed(path.relative_to(folder).parts[:-1]):
        if part.lower() in MASK_FOLDERS:
            return "masks"
        if part.lower() in IMAGE_FOLDERS:
            return "images"
    return ""


def source_of(path: Path, folder: Path) -> str:
    """A picture's path below the folder, as it is written in manifest.csv."""
    return printable(path.relative_to(folder).as_posix())
