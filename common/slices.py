"""The slice data set: files on disk, splits by patient, the torch Dataset and its loaders.

images/<case>_<slice:03d>.png   8-bit grey
masks/<case>_<slice:03d>.png    {0, 255} for one class, class indices for several
manifest.csv                    case, slice, foreground (pixels), source (file it came from)
dataset.json                    name, source, window, size, classes, cases (geometry)
splits.json                     seed, folds, fold, patients of train / val / test / student
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from common.files import UserError, read_csv, read_json, shown, write_csv, write_json

MAKE_DATA = (
    "Make a data set with data_prep/slice_nifti.py (CT volumes) or data_prep/import_pairs.py "
    "(2D images); `python data_prep/make_phantom.py` makes volumes where there are none."
)
MAX_PIXELS = 8192 * 8192  # a picture that claims more is damaged or a bomb


@dataclass(frozen=True)
class Slice:
    """One row of the manifest. `foreground` is its number of organ pixels."""

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
    def classes(self) -> int:
        """Number of logit channels: 1 for one organ (sigmoid), else organs + background."""
        names = self.info["classes"]
        return 1 if len(names) == 1 else len(names) + 1

    def of(self, cases: list[str]) -> list[Slice]:
        """The slices of these cases."""
        wanted = set(cases)
        return [s for s in self.slices if s.case in wanted]


def read_image(path: Path) -> np.ndarray:
    """An 8-bit grey PNG as uint8 `(H, W)`. UserError if it is missing, damaged or not grey."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"{shown(path)} claims {picture.width}x{picture.height} pixels.")
            if picture.mode != "L":
                raise UserError(f"{shown(path)} has mode {picture.mode}; 8-bit grey is expected.")
            return np.array(picture)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{shown(path)} is damaged or not a picture ({error}).") from None


def read_mask(path: Path, classes: int) -> np.ndarray:
    """A mask PNG as class indices, uint8 `(H, W)`. UserError for any other value."""
    mask = read_image(path)
    allowed = np.array([0, 255]) if classes == 1 else np.arange(classes)
    values = np.unique(mask)
    if not np.isin(values, allowed).all():
        raise UserError(
            f"{shown(path)} holds the values {values[:8].tolist()}; a mask of this data set "
            f"holds {'0 and 255' if classes == 1 else f'0 to {classes - 1}'}."
        )
    return (mask > 0).astype(np.uint8) if classes == 1 else mask


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


def read_set(folder: Path) -> SliceSet:
    """Read dataset.json and manifest.csv. UserError if they are missing, broken or empty."""
    if not (folder / "dataset.json").exists():
        raise UserError(f"No data set in {shown(folder)}. {MAKE_DATA}")
    info = read_json(folder / "dataset.json", MAKE_DATA)
    if not isinstance(info, dict) or not info.get("classes") or "size" not in info:
        raise UserError(f"{shown(folder / 'dataset.json')} lacks size or classes. {MAKE_DATA}")
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
    outside = [s.case for s in slices if Path(s.case).name != s.case]
    if outside:
        raise UserError(f"manifest.csv: the case {outside[0]!r} is not a plain file name.")
    return SliceSet(folder, info, slices)


def make_splits(cases: list[str], seed: int = 0, folds: int = 0, fold: int = 0) -> dict:
    """Split patients, never slices: 70 % train, 10 % val, 20 % test, at least one in each.

    With `folds` the test patients are fold number `fold` of that many: over all folds every
    patient is tested exactly once. `student` is a fixed half of the train patients (rounded up).
    One or two patients cannot be split: they are test patients.
    """
    cases = sorted(set(cases))
    if len(cases) < 3:  # too few to train on: a data set to predict
        parts = {"train": [], "val": [], "test": cases, "student": []}
        return {"seed": seed, "folds": 0, "fold": 0, **parts}
    if folds and not (2 <= folds <= len(cases) and 0 <= fold < folds):
        raise UserError(
            f"--folds {folds} --fold {fold}: folds run from 2 to the number of patients "
            f"({len(cases)}), fold from 0 to folds - 1."
        )
    order = np.random.default_rng(seed).permutation(cases).tolist()
    test = order[fold::folds] if folds else order[: max(1, round(0.2 * len(order)))]
    rest = [case for case in order if case not in test]
    count = min(max(1, round(0.1 * len(order))), len(rest) - 1)
    if count < 1:
        raise UserError(f"{len(cases)} patients in {folds} folds leave none to validate on.")
    val, train = rest[:count], rest[count:]
    splits = {"train": train, "val": val, "test": test, "student": train[: -(-len(train) // 2)]}
    return {
        "seed": seed,
        "folds": folds,
        "fold": fold,
        **{part: sorted(names) for part, names in splits.items()},
    }


def read_splits(data: SliceSet, name: str, needed: tuple[str, ...]) -> dict[str, list[str]]:
    """The patients of `train`, `val`, `test` and `student`; checked, or UserError.

    Refused: a patient in two of train, val and test; a student patient outside train; a patient
    without slices; nobody in a part that is `needed`.
    """
    path = data.folder / name
    splits = read_json(path, MAKE_DATA)
    parts = ("train", "val", "test", "student")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(p), list) for p in parts):
        raise UserError(f"{shown(path)} lacks one of the lists {', '.join(parts)}.")
    problems = [f"{part} is empty" for part in needed if not splits[part]]
    known = {s.case for s in data.slices}
    for part in parts:
        problems += [f"{part}: {c} has no slices" for c in splits[part] if c not in known]
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        problems += [f"{c} is in {a} and in {b}" for c in splits[a] if c in splits[b]]
    problems += [
        f"student: {c} is not in train" for c in splits["student"] if c not in splits["train"]
    ]
    if problems:
        raise UserError(f"{shown(path)}: " + "; ".join(problems[:10]))
    return {part: splits[part] for part in parts}


def augmentation() -> v2.Transform:
    """Rotation, scale, shift, brightness, contrast, noise for a grey image in 0..1 and its mask.

    No flips: they would put the spleen on the wrong side of the body.
    """
    return v2.Compose(
        [
            v2.RandomAffine(
                degrees=15,
                translate=(0.08, 0.08),
                scale=(0.85, 1.15),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
            v2.RandomApply([v2.GaussianNoise(sigma=0.03)], p=0.5),
        ]
    )


class SliceDataset(Dataset):
    """Slices of a set, decoded once into memory up to `cache_mb`, the rest read when asked for.

    `dataset[i]` is a dict: `image` float32 `(1, H, W)` in 0..1, `mask` int64 `(H, W)` of class
    indices, `name`, `case`. `dataset[i, seed]` is the same slice augmented with that seed: what a
    sample looks like does not depend on worker processes or on what was drawn before it.
    Raises UserError, naming all bad files at once, if a file is missing, damaged, or of another
    size than dataset.json says.
    """

    def __init__(self, data: SliceSet, slices: list[Slice], cache_mb: int = 4096):
        self.data, self.slices = data, slices
        self.transform = augmentation()
        size = int(data.info["size"])
        cached = min(len(slices), cache_mb * 10**6 // (2 * size * size))
        self.cache = torch.empty((cached, 2, size, size), dtype=torch.uint8)
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            problems = [p for p in pool.map(self._load, range(len(slices))) if p]
        if problems:
            listed = "\n  ".join(problems[:20])
            raise UserError(f"{len(problems)} of {len(slices)} slices cannot be used:\n  {listed}")

    def _load(self, index: int) -> str | None:
        """Fill the cache, or check that the files are there; the problem as text, if any."""
        try:
            if index < len(self.cache):
                self.cache[index] = self._read(index)
            else:
                for kind in ("images", "masks"):
                    path = self.data.folder / kind / f"{self.slices[index].name}.png"
                    if not path.is_file():
                        return f"{shown(path)} is missing."
        except UserError as error:
            return str(error)
        return None

    def _read(self, index: int) -> Tensor:
        """Image and mask from disk, uint8 `(2, H, W)`."""
        name, size = self.slices[index].name, int(self.data.info["size"])
        path = self.data.folder / "masks" / f"{name}.png"
        image = read_image(self.data.folder / "images" / f"{name}.png")
        mask = read_mask(path, self.data.classes)
        if image.shape != mask.shape:
            raise UserError(f"{shown(path)} is {mask.shape}, its image {image.shape} pixels.")
        if image.shape != (size, size):
            raise UserError(f"{name}.png is {image.shape} pixels; dataset.json says {size}.")
        return torch.from_numpy(np.stack([image, mask]))

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slices)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """A slice, or with `(index, seed)` an augmented one."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        pair = self.cache[index] if index < len(self.cache) else self._read(index)
        image, mask = pair[:1].float() / 255, pair[1:]
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
                image = image.clamp(0, 1)
        here = self.slices[index]
        return {
            "image": torch.Tensor(image),
            "mask": mask[0].as_subclass(Tensor).long(),
            "name": here.name,
            "case": here.case,
        }


class TrainSampler(Sampler):
    """Draws one epoch of training slices: `(index, augmentation seed)`, or plain indices.

    A share `foreground` of the draws shows the organ (most CT slices do not; a tiny organ would
    otherwise be seen a few times an epoch). Within either group every slice is drawn once before
    any is drawn again. With several processes each takes every `world`-th draw of the same order.
    The order is a function of seed and epoch alone.
    """

    def __init__(
        self, slices: list[Slice], foreground: float, augment: bool, seed: int, rank=0, world=1
    ):
        here = [i for i, s in enumerate(slices) if s.foreground]
        rest = [i for i, s in enumerate(slices) if not s.foreground]
        if foreground and here and rest:
            count = round(foreground * len(slices))
            self.groups = [(here, count), (rest, len(slices) - count)]
        else:
            self.groups = [(here + rest, len(slices))]
        self.total, self.augment, self.seed = len(slices), augment, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    def __len__(self) -> int:
        """Draws of this process in an epoch."""
        return len(range(self.rank, self.total, self.world))

    def __iter__(self) -> Iterator:
        """The draws of epoch `self.epoch`."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order: list[int] = []
        for group, count in self.groups:
            while count > 0:
                drawn = rng.permutation(group)[:count].tolist()
                order += drawn
                count -= len(drawn)
        order = rng.permutation(order).tolist()
        seeds = rng.integers(2**62, size=len(order)).tolist()
        draws = list(zip(order, seeds, strict=True)) if self.augment else order
        return iter(draws[self.rank :: self.world])


def loader(dataset: Dataset, batch_size: int, sampler=None, workers: int = 0, pin: bool = False):
    """A DataLoader in the dataset's order or the sampler's. The last batch may be short."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=False,
    )
