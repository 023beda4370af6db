"""Which new pictures are to be predicted, where their files go, and what must not be replaced."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.dataset.formats import is_nifti_name, plain
from common.dataset.picture_folders import ENDINGS, OTHERS, kind_of, pictures_in, source_of
from common.errors import UserError, bullets
from common.evaluation.metrics import SCORES
from common.files import shown
from common.inference.trained_run import Trained
from common.inference.true_masks import truths_of
from common.inference.volume_files import check_outputs, is_own
from common.settings import InferenceConfig

TABLE = "pictures.csv"
# That table's columns; without a truth the scores are empty.
COLUMNS = ("picture", "mask", "class", "pixels", "share", *SCORES, "doubts")


class PictureJob(NamedTuple):
    """One picture to predict: its file, its true mask if there is one, what will be written, and
    as tables have them the paths of picture and mask below their folders."""

    picture: Path
    truth: Path | None
    mask: Path
    name: str
    place: str

    @property
    def record(self) -> Path:
        """The JSON next to the mask: what was found, and which files belong to it."""
        return self.mask.with_name(f"{self.mask.stem}.json")

    @property
    def overlay(self) -> Path:
        """The picture with the outlines on it."""
        return self.mask.parent / "overlays" / self.mask.name

    def maps(self, suffixes: list[str]) -> list[Path]:
        """The classes' probability maps, with what each class's name gets."""
        folder = self.mask.parent / "probabilities"
        return [folder / f"{self.mask.stem}{suffix}.png" for suffix in suffixes]

    def written(self, suffixes: list[str]) -> list[Path]:
        """All files that it will leave, with probability maps of these suffixes."""
        return [self.mask, self.overlay, *self.maps(suffixes), self.record]


def list_pictures(run: Trained, config: InferenceConfig) -> tuple[list[PictureJob], Path | None]:
    """What is to be predicted, and the table to write, if the output is a folder, which is made.

    UserError if there is nothing to do, if a true mask is missing, or if a picture, a true mask, a
    foreign file or another output would be replaced.
    """
    output = config.output or run.folder / "pictures"
    single = not config.images.is_dir()
    named = output.suffix.lower() == ".png" and not output.is_dir()
    other = is_nifti_name(output) or _is_picture(output)
    if not named and (output.is_file() or other and not output.is_dir()):
        raise UserError(f"--output {shown(output)}: name a folder or a .png.")
    if named and not single:
        raise UserError(f"--output {shown(output)} is one file; --images is a folder.")
    files = picture_files(config.images, output, config.ground_truth)
    folder = config.images.parent if single else config.images
    truths = [None] * len(files)
    if config.ground_truth:
        if not single and config.ground_truth.is_file():
            raise UserError("--ground-truth must be a folder where --images is one.")
        truths = truths_of(files, folder, config.ground_truth)
        if without_truth := [
            shown(file) for file, truth in zip(files, truths, strict=True) if not truth
        ]:
            raise UserError(
                f"{shown(config.ground_truth)} holds no true mask of the same name for "
                f"{len(without_truth)} pictures:{bullets(without_truth)}"
            )
    masks = [output] if named else _masks_of(files, folder, output, run.suffixes)
    names = [source_of(file, folder) for file in files]
    places = [source_of(mask, output.parent if named else output) for mask in masks]
    jobs = [PictureJob(*job) for job in zip(files, truths, masks, names, places, strict=True)]
    check_outputs(jobs, run.suffixes if config.probabilities else [])
    try:
        jobs[0].mask.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {shown(output)}: {error.strerror}.") from None
    return jobs, None if named else output / TABLE


def picture_files(path: Path, output: Path, truth: Path | None) -> list[Path]:
    """The picture, or those in the folder and its sub-folders, sorted. UserError if there is none.

    Masks are not pictures: what lies in the folder of the truth, of the output or of an earlier
    output, and in folders called masks if there are others, is left out.
    """
    if not path.exists():
        raise UserError(f"--images {shown(path)} does not exist.")
    if not path.is_dir():
        _check_ending(path)
        return [path]
    home = path.resolve()
    for flag, other in (("--output", output), ("--ground-truth", truth)):
        if other and other.resolve() == home:
            raise UserError(f"{flag} {shown(other)} is the pictures' own folder; name another one.")
    inside = sorted(path.glob("*")) + sorted(path.glob("*/*"))
    if any(map(is_nifti_name, inside)) and not any(map(_is_picture, inside)):
        raise UserError(
            f"--images {shown(path)} holds NIfTI volumes, not pictures: volumes are segmented with "
            "--volume."
        )
    not_pictures = [other.resolve() for other in (output, truth) if other]
    not_pictures = [other for other in not_pictures if other.is_relative_to(home)]
    not_pictures += [
        table.parent.resolve() for table in path.rglob(TABLE) if is_own(table, COLUMNS)
    ]
    files = [file for file in pictures_in(path, nested=True) if file.is_file()]
    pictures = [f for f in files if not any(f.resolve().is_relative_to(a) for a in not_pictures)]
    pictures = [f for f in pictures if kind_of(f, path) != "masks"] or pictures
    if len(pictures) < len(files):
        print(f"note: not read in {shown(path)}: masks ({len(files) - len(pictures)})")
    if not pictures:
        raise UserError(f"--images {shown(path)} holds only masks.")
    return pictures


def _is_picture(path: Path) -> bool:
    """Whether a file's name ends like a picture that can be read."""
    return path.suffix.lower() in ENDINGS


def _check_ending(path: Path) -> None:
    """UserError if a file is not a picture, by its name."""
    if is_nifti_name(path):
        raise UserError(
            f"--images {shown(path)} is a NIfTI volume: volumes are segmented with --volume."
        )
    if not path.is_file() or not _is_picture(path):
        how = [f": {way}" for ends, way in OTHERS.items() if path.name.lower().endswith(ends)]
        raise UserError(
            f"--images {shown(path)} is not a picture ({' '.join(ENDINGS)}){''.join(how)}."
        )


def _masks_of(files: list[Path], folder: Path, output: Path, suffixes: list[str]) -> list[Path]:
    """Where each picture's mask goes: below the output as the picture below its folder, as PNG.

    Where pictures differ in their ending alone, or in capitals, which some disks do not tell apart,
    the ending becomes part of the name; names that still collide get a number.
    """
    bare = {file: _bare(file, folder) for file in files}
    count, taken, masks = Counter(name.lower() for name in bare.values()), set(), {}
    alone = {file: count[name.lower()] == 1 for file, name in bare.items()}
    for file in sorted(files, key=lambda file: not alone[file]):  # these keep their names
        for name in _choices(bare[file], file, alone[file]):
            masks[file] = output / f"{name}.png"
            claimed = PictureJob(file, None, masks[file], "", "").written(suffixes)
            if not taken & (paths := {str(path).lower() for path in claimed}):
                break
        taken |= paths
    return [masks[file] for file in files]


def _bare(file: Path, folder: Path) -> str:
    """A picture's path below its folder, without ending."""
    path = file.relative_to(folder).with_name(file.stem).as_posix()
    return plain(unicodedata.normalize("NFC", path))


def _choices(name: str, file: Path, alone: bool) -> Iterator[str]:
    """Names for a mask, the best one first."""
    if alone:
        yield name
    name = f"{name}_{file.suffix[1:].lower()}"
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1
