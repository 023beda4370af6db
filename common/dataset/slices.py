"""The slice data set on disk: images, masks, manifest.

images/<case>_<slice:03d>.png   8-bit grey
masks/<case>_<slice:03d>.png    {0, 255} for one class, 8-bit grey; for several the class indices,
                                with a palette of the classes' colours
manifest.csv                    case, slice, foreground (pixels), source (file it came from)
dataset.json                    size; classes: the classes' names in the order of their mask values;
                                perhaps colours (of each), patients (of each case, where one has
                                several cases), cases (geometry of each), name, source, and how it
                                was cut: window, labels, axis, channel
splits.json                     who is in train / val / test / student (see splits.py)
"""

import io
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from common.dataset.classes import check_classes
from common.errors import UserError
from common.files import read_csv, read_json, shown, write_csv, write_json

MAKE_DATA = (
    "Make a data set with data_prep/slice_nifti.py (CT volumes) or data_prep/import_pairs.py "
    "(2D images); `python data_prep/make_phantom.py` makes volumes where there are none."
)
MAX_PIXELS = 8192 * 8192  # a picture that claims more is damaged or a bomb


@dataclass(frozen=True)
class Slice:
    """One row of the manifest. `foreground` is its number of foreground pixels."""

    case: str
    index: int
    foreground: int
    source: str = ""

    @property
    def name(self) -> str:
        """File name, without folder and ending."""
        return f"{self.case}_{self.index:03d}"


@dataclass(frozen=True)
class SliceSet:
    """A data set on disk: its folder, its description, its slices in order."""

    folder: Path
    info: dict
    slices: list[Slice]

    @property
    def num_classes(self) -> int:
        """Number of logit channels: 1 for one class (sigmoid), else classes + background."""
        return 1 if len(self.classes) == 1 else len(self.classes) + 1

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the masks; with several, of the values 1, 2, ..."""
        return self.info["classes"]

    @cached_property
    def patients(self) -> dict[str, str]:
        """The patient of each case; the case itself where dataset.json does not say otherwise."""
        listed = self.info.get("patients", {})
        return {s.case: str(listed.get(s.case, s.case)) for s in self.slices}

    @property
    def colours(self) -> list[str] | None:
        """The classes' colours as #rrggbb, if dataset.json names them."""
        return self.info.get("colours")

    @property
    def size(self) -> int:
        """Height and width of the slices."""
        return self.info["size"]

    def digest(self, cases: list[str]) -> int:
        """A checksum of these cases' rows in the manifest: names, numbers, foreground pixels."""
        rows = [f"{s.name} {s.foreground}" for s in self.of(cases)]
        return zlib.crc32("\n".join(rows).encode())

    def of(self, cases: Iterable[str]) -> list[Slice]:
        """The slices of these cases."""
        wanted = set(cases)
        return [s for s in self.slices if s.case in wanted]

    def patients_of(self, cases: Iterable[str]) -> set[str]:
        """The patients of these cases; a case without slices counts as a patient."""
        return {self.patients.get(case, case) for case in cases}

    def image(self, s: Slice) -> np.ndarray:
        """A slice's image, uint8 `(H, W)`; errors as in `read_image`."""
        return read_image(self.folder / "images" / f"{s.name}.png")

    def truth(self, s: Slice) -> np.ndarray:
        """A slice's mask as class indices, uint8 `(H, W)`; errors as in `read_mask`."""
        return read_mask(self.folder / "masks" / f"{s.name}.png", self.num_classes)

    def prediction(self, run: Path, s: Slice) -> np.ndarray:
        """What the run in that folder predicted for a slice, in the form of `truth`."""
        return read_mask(run / "predictions" / f"{s.name}.png", self.num_classes)


def read_image(path: Path) -> np.ndarray:
    """An 8-bit grey PNG as uint8 `(H, W)`. UserError if it is missing, damaged or not grey."""
    return _pixels(path, {"L": "8-bit grey"})


def _pixels(path: Path, modes: dict[str, str]) -> np.ndarray:
    """The numbers in a PNG of one of these modes, also a palette's indices, uint8 `(H, W)`.

    Pillow decodes a bit-flipped PNG silently; `verify` compares its checksums, and has to open the
    file itself.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{shown(path)} claims {picture.width}x{picture.height} pixels, more than "
                    "8192x8192."
                )
            if picture.mode not in modes:
                expected = " or ".join(modes.values())
                raise UserError(f"{shown(path)} has mode {picture.mode}; {expected} is expected.")
            return np.array(picture)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{shown(path)} is damaged or not a picture ({error}).") from None


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """A mask PNG, grey or with a palette, as class indices, uint8 `(H, W)`. UserError for any other
    value."""
    mask = _pixels(path, {"L": "8-bit grey", "P": "a palette"})
    allowed = np.array([0, 255]) if num_classes == 1 else np.arange(num_classes)
    values = np.unique(mask)
    if not np.isin(values, allowed).all():
        raise UserError(
            f"{shown(path)} holds the values {values[:8].tolist()}; a mask of this data set "
            f"holds {'0 and 255' if num_classes == 1 else f'0 to {num_classes - 1}'}."
        )
    return (mask > 0).astype(np.uint8) if num_classes == 1 else mask


def mask_picture(mask: np.ndarray, colours: dict[str, tuple] | None) -> Image.Image:
    """A mask, uint8 `(H, W)`, as the picture to save, of the same values.

    The class indices of several classes get `colours` (see `figures.legend`) as their palette,
    black for the background: in grey a viewer would show nothing but black. Without `colours` it is
    grey.
    """
    picture = Image.fromarray(mask)
    if colours:
        picture.putpalette(bytes([0, 0, 0, *chain.from_iterable(colours.values())]))
    return picture


def write_set(folder: Path, info: dict, slices: list[Slice], splits: dict) -> None:
    """Write the three index files; the images and masks are there already."""
    write_csv(
        folder / "manifest.csv",
        [
            {"case": s.case, "slice": s.index, "foreground": s.foreground, "source": s.source}
            for s in slices
        ],
    )
    write_json(folder / "splits.json", splits)
    write_json(folder / "dataset.json", info)


def in_short(slices: list[Slice], splits: dict, info: dict, folder: Path) -> str:
    """One line about a data set that was just written, with `info` as its dataset.json."""
    classes, patient_of = info["classes"], info.get("patients", {})
    class_name = classes[0] if len(classes) == 1 else f"any of {len(classes)} classes"
    sizes = {p: len({patient_of.get(c, c) for c in splits[p]}) for p in ("train", "val", "test")}
    parts = ", ".join(f"{size} {part}" for part, size in sizes.items())
    return (
        f"{len(slices)} slices ({sum(s.foreground > 0 for s in slices)} with {class_name}) of "
        f"{len({patient_of.get(s.case, s.case) for s in slices})} patients: {parts} -> "
        f"{shown(folder)}"
    )


def read_set(folder: Path, hint: str = MAKE_DATA) -> SliceSet:
    """Read dataset.json and manifest.csv. UserError if they are missing, broken or empty, with
    `hint` if there is none."""
    if not (folder / "dataset.json").exists():
        raise UserError(f"No data set in {shown(folder)}. {hint}")
    info = read_json(folder / "dataset.json", MAKE_DATA)
    check_info(info, folder / "dataset.json")
    rows = read_csv(folder / "manifest.csv", ("case", "slice", "foreground"), MAKE_DATA)
    if not rows:
        raise UserError(f"{shown(folder / 'manifest.csv')} lists no slices. {MAKE_DATA}")
    try:
        slices = [
            Slice(r["case"], int(r["slice"]), int(r["foreground"]), r.get("source", ""))
            for r in rows
        ]
    except ValueError as error:
        raise UserError(f"{shown(folder / 'manifest.csv')}: {error}. {MAKE_DATA}") from None
    outside = sorted({s.case for s in slices if Path(s.case).name != s.case})
    if outside:
        some = ", ".join(map(repr, outside[:5]))
        raise UserError(f"{shown(folder / 'manifest.csv')}: no plain file name: {some}.")
    twice = [name for name, count in Counter(s.name for s in slices).items() if count > 1]
    if twice:
        some = ", ".join(twice[:5])
        raise UserError(f"{shown(folder / 'manifest.csv')} lists slices twice: {some}.")
    if unknown := sorted(info.get("patients", {}).keys() - {s.case for s in slices}):
        some = ", ".join(unknown[:5])
        raise UserError(
            f"{shown(folder / 'dataset.json')}: patients names {some}, of which manifest.csv lists "
            "no slice; a misspelt case would count as a patient of its own."
        )
    return SliceSet(folder, info, slices)


def check_info(info, path: Path) -> None:
    """UserError if the content of a dataset.json, in `path`, lacks what every stage reads, or
    holds it in another form."""
    if not isinstance(info, dict) or not info.get("classes") or "size" not in info:
        raise UserError(f"{shown(path)} lacks size or classes. {MAKE_DATA}")
    check_classes(info["classes"], info.get("colours"), path)
    size, whole = info["size"], int(MAX_PIXELS**0.5)
    if type(size) is not int or not 0 < size <= whole:
        raise UserError(
            f"{shown(path)}: size is {size!r}; it must be a whole number of pixels, 1 to {whole}."
        )
    for name in ("cases", "patients"):
        if not isinstance(info.get(name, {}), dict):
            raise UserError(f'{shown(path)}: {name} must be an object, as in {{"CASE": ...}}.')


def check_same_classes(trained: list[str], data: SliceSet, path: Path) -> None:
    """UserError if `path`, made for the classes `trained`, is used with masks of other classes."""
    if [n.lower() for n in trained] != [n.lower() for n in data.classes]:
        raise UserError(
            f"{shown(path)} is of {', '.join(trained)}; the masks of {shown(data.folder)} hold "
            f"{', '.join(data.classes)}."
        )


def check_same_views(trained: dict, data: SliceSet, path: Path) -> str:
    """A note where what was trained on slices as the checkpoint `trained`, in `path`, says meets
    slices of another window or channel; else nothing. UserError where they lie in another plane.

    Only slices of volumes tell: pictures that were imported have no window.
    """
    before, now = trained.get("window"), data.info.get("window")
    if not before or not now:
        return ""
    planes = [about.get("axis") or "axial" for about in (trained, data.info)]
    if planes[0] != planes[1]:
        raise UserError(
            f"{shown(path)} was trained on {planes[0]} slices; those of {shown(data.folder)} are "
            f"{planes[1]}."
        )
    same = before == now and trained.get("channel") == data.info.get("channel")
    where = f"another window or channel than those of {shown(data.folder)}"
    return "" if same else f"note: {shown(path)} was trained on slices of {where}"


def check_output(folder: Path, overwrite: bool) -> None:
    """UserError if `folder` holds anything that a new data set must not replace.

    `overwrite` allows to replace a data set, never any other folder.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "manifest.csv").exists() or not (folder / "splits.json").exists():
        raise UserError(f"{shown(folder)} is not empty and is not a data set; it is left as it is.")
    if not overwrite:
        raise UserError(
            f"{shown(folder)} holds a data set. Choose another --output, or --overwrite it."
        )
