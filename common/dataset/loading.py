"""Slices as batches: the torch Dataset, its augmentation, balanced sampling, loaders."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.dataset.slices import Slice, SliceSet, read_image, read_mask
from common.errors import UserError, bullets
from common.files import shown


@cache
def augmentation():
    """Rotation, scale, shift, brightness, contrast, noise for a grey image in 0..1 and its mask.

    No flips: they would put the spleen on the wrong side of the body.
    """
    from torchvision.transforms import v2  # here: 2.5 s to import, and only training needs it

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


def augmented(image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """An image `(1, H, W)` in 0..1 and its mask `(1, H, W)`, augmented together with that seed."""
    from torchvision import tv_tensors

    image, transform = tv_tensors.Image(image), augmentation()
    with seeded(seed):
        if mask.any():
            image, mask = transform(image, tv_tensors.Mask(mask))
        else:  # an empty mask stays empty: nothing of it is to be warped
            image = transform(image)
    return image.as_subclass(Tensor).clamp(0, 1), mask.as_subclass(Tensor)


@contextmanager
def seeded(seed: int):
    """torch's CPU generator with this seed inside the context, as it was after it.

    `torch.manual_seed` would set the GPU's generator too, and not give it back.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


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
        size = data.size
        cached = min(len(slices), cache_mb * 10**6 // (2 * size * size))
        self.cache = torch.empty((cached, 2, size, size), dtype=torch.uint8)
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            problems = [p for p in pool.map(self._load, range(len(slices))) if p]
        if problems:
            raise UserError(
                f"{len(problems)} of {len(slices)} slices cannot be used; data_prep/ makes them "
                f"again with --overwrite.{bullets(problems)}"
            )

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
        name, size = self.slices[index].name, self.data.size
        path = self.data.folder / "masks" / f"{name}.png"
        image = read_image(self.data.folder / "images" / f"{name}.png")
        mask = read_mask(path, self.data.num_classes)
        if image.shape != mask.shape:
            raise UserError(f"{shown(path)} is {mask.shape}, its image {image.shape} pixels.")
        if image.shape != (size, size):
            raise UserError(f"{name}.png is {image.shape} pixels; dataset.json says {size}.")
        if (count := np.count_nonzero(mask)) != (listed := self.slices[index].foreground):
            raise UserError(
                f"{shown(path)} holds {count} foreground pixels; manifest.csv says {listed}."
            )
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
            image, mask = augmented(image, mask, seed)
        slice_ = self.slices[index]
        return {
            "image": image,
            "mask": mask[0].long(),
            "name": slice_.name,
            "case": slice_.case,
        }


class WithUnlabelled(Dataset):
    """`labelled`, each sample with one image more: `unlabelled`, drawn from the slices `others`.

    The labelled samples are those that would come without it. The image is drawn by the sample's
    augmentation seed, each as likely as any other, and its mask is never used: not even the
    fraction of slices with foreground.
    """

    def __init__(self, labelled: SliceDataset, others: SliceDataset):
        self.slices = labelled.slices
        self.labelled, self.others = labelled, others

    def __len__(self) -> int:
        """Number of labelled slices."""
        return len(self.labelled)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """The labelled sample, `unlabelled`, float32 `(1, H, W)` in 0..1, and `unlabelled_name`."""
        rng = np.random.default_rng([key[1], 1])
        other = self.others[int(rng.integers(len(self.others))), int(rng.integers(2**62))]
        more = {"unlabelled": other["image"], "unlabelled_name": other["name"]}
        return {**self.labelled[key], **more}


class TrainSampler(Sampler):
    """Draws one epoch of training slices: `(index, augmentation seed)`, or plain indices.

    At least a share `foreground` of the draws shows foreground (most CT slices do not). Within
    either group every slice is drawn once before any is drawn again. With several processes each
    takes every `world`-th draw of the same order, which is first filled up so that all take as many
    steps. The order is a function of seed and epoch alone.
    """

    def __init__(
        self, slices: list[Slice], foreground: float, augment: bool, seed: int, rank=0, world=1
    ):
        with_foreground = [i for i, s in enumerate(slices) if s.foreground]
        rest = [i for i, s in enumerate(slices) if not s.foreground]
        if foreground and with_foreground and rest:
            count = max(len(with_foreground), round(foreground * len(slices)))
            self.groups = [(with_foreground, count), (rest, len(slices) - count)]
        else:
            self.groups = [(with_foreground + rest, len(slices))]
        self.total, self.augment, self.seed = len(slices), augment, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    def __len__(self) -> int:
        """Draws of this process in an epoch."""
        return -(-self.total // self.world)

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
        order += order[: -len(order) % self.world]
        seeds = rng.integers(2**62, size=len(order)).tolist()
        draws = list(zip(order, seeds, strict=True)) if self.augment else order
        return iter(draws[self.rank :: self.world])


def loader(dataset: Dataset, batch_size: int, sampler=None, workers: int = 0, pin: bool = False):
    """A DataLoader in the dataset's order or the sampler's. The last batch may be short.

    Loader processes live as long as the loader: each that starts has its own share of imports to
    wait for. It draws nothing from torch's generator, so that a resumed training,
    whose processes are new, draws what an uninterrupted one does.
    """
    if workers:
        augmentation()  # imported once, before the processes are forked, not in each of them
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def unbroken(batches: DataLoader) -> Iterator[dict]:
    """The batches; what goes wrong in a loader process comes as one UserError, as without one."""
    try:
        yield from batches
    except UserError as error:  # from a process it comes with that process's traceback before it
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        # Torch says so itself, or the connection to a process that is gone breaks first.
        of_a_worker = str(error).startswith("DataLoader worker (pid")
        if not of_a_worker and (isinstance(error, RuntimeError) or not batches.num_workers):
            raise
        raise UserError(
            "a loader process was ended from outside, most likely for want of memory: try fewer "
            f"--workers or a lower --cache-mb. ({' '.join(str(error).split())[:200]})"
        ) from None
