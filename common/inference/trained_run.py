"""A finished training, ready to predict with."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from common.dataset.classes import file_name
from common.dataset.formats import is_nifti_name
from common.dataset.loading import SliceDataset, loader
from common.dataset.picture_folders import ENDINGS
from common.dataset.preprocessing import HU_WINDOW
from common.dataset.slices import Slice, SliceSet, read_set
from common.dataset.splits import check_patients, read_splits
from common.device import autocast, fuse, layout, pick_device, to_device
from common.errors import UserError
from common.files import known_runs, shown, unfinished
from common.models.unet import Output, probabilities
from common.settings import InferenceConfig
from common.training import checkpoint


@dataclass
class Trained:
    """A finished training to predict with: its folder, its checkpoint, the slices to predict.

    There are no slices and no data set if it is to predict volumes or new pictures.
    """

    folder: Path
    path: Path
    checkpoint: dict
    device: torch.device
    data: SliceSet | None = None
    cases: tuple[str, ...] = ()
    dataset: SliceDataset | None = None

    @property
    def slices(self) -> list[Slice]:
        """The slices to predict."""
        return self.dataset.slices

    @property
    def num_classes(self) -> int:
        """Number of logit channels the model was trained with."""
        return self.checkpoint["num_classes"]

    @property
    def classes(self) -> list[str]:
        """The names of its classes."""
        return self.checkpoint["classes"]

    @property
    def suffixes(self) -> list[str]:
        """What each of several classes adds to a file name; nothing for one class."""
        plain = [file_name(name, "class") for name in self.classes]
        unique = len({*plain}) == len(plain)
        names = plain if unique else [f"{k}-{name}" for k, name in enumerate(plain, start=1)]
        return [""] if len(names) == 1 else [f"_{name}" for name in names]

    def setting(self, name: str):
        """A flag's value in its training."""
        return self.checkpoint["config"].get(name)


def open_run(config: InferenceConfig, script: str) -> Trained:
    """Read the run's best.pt, or last.pt, and its slices, where these are to be predicted.

    UserError if either is missing or damaged, if the model was trained on slices of another size
    or plane, or if it was trained or chosen on patients that this split calls test patients.
    """
    stage = Path(script).resolve().parent
    folder = stage / "runs" / config.name
    device = pick_device(config.device)
    path = folder / f"{config.weights}.pt"
    existing = known_runs(folder.parent, path.name)
    choose = f"There are {', '.join(existing)}: choose one with --name"
    hint = choose if existing else f"Run {stage.name}/train.py first"
    if (folder / "config.json").exists() and not path.exists():
        hint = "This run has not finished an epoch: continue it with train.py --resume"
    content = checkpoint.load_trained(path, stage.name, f"{hint}.")
    if part := unfinished(folder):
        print(f"warning: this run has stopped after {part}; train.py --resume continues it")
    if not config.of_slices:
        return Trained(folder, path, content, device)
    place = config.data or Path(content["config"]["data"])
    data = read_set(place, _instead_of_data(place))
    if note := checkpoint.check_fits(content, data, path):
        print(note)
    if data.size != content["size"]:
        raise UserError(
            f"{shown(path)} was trained on {content['size']}-pixel slices; those of "
            f"{shown(data.folder)} have {data.size}. Name another --data, or another run with "
            "--name."
        )
    if config.subset == "all":
        cases = sorted({s.case for s in data.slices})
    else:
        splits = read_splits(data, config.splits or content["config"]["splits"], (config.subset,))
        check_patients(content, data, splits, (config.subset,), path)
        cases = splits[config.subset]
    dataset = SliceDataset(data, data.of(cases))
    return Trained(folder, path, content, device, data, tuple(cases), dataset)


def _instead_of_data(place: Path) -> str:
    """What to do if a folder or file is not a data set."""
    inside = chain(place.glob("*"), place.glob("*/*")) if place.is_dir() else [place]
    for path in inside:
        if is_nifti_name(path):
            return "Volumes are segmented with --volume instead of --data."
        if path.suffix.lower() in ENDINGS:
            return (
                "New pictures without masks are predicted with --images instead of --data; those "
                "with masks become a data set by data_prep/import_pairs.py."
            )
    return "Name it with --data."


def ready(model: nn.Module, run: Trained, config: InferenceConfig) -> nn.Module:
    """The model with the run's weights, on its device, in eval mode, BatchNorm folded in."""
    checkpoint.load_weights(model, checkpoint.model_weights(run.checkpoint), run.path)
    model = model.eval().requires_grad_(False)
    if config.fuse:
        fuse(model)
    return model.to(run.device, memory_format=layout(config.channels_last))


def window_of(run: Trained, config: InferenceConfig):
    """The window, as `views.bounds_of` takes it: the flags' HU, else that of the slices that the
    run was trained on, else, of slices imported without one, the usual one of the abdomen."""
    usual, given = run.checkpoint.get("window") or HU_WINDOW, (config.hu_low, config.hu_high)
    if given == (None, None):
        return usual if isinstance(usual, dict) else tuple(map(float, usual))
    if isinstance(usual, dict):
        raise UserError(f"--hu-low and --hu-high: {shown(run.path)} was not trained on HU.")
    low, high = (u if g is None else g for u, g in zip(usual, given, strict=True))
    if not low < high:  # nan too
        raise UserError(f"--hu-low {low:g} must be below --hu-high {high:g}.")
    return float(low), float(high)


def range_in_words(window) -> str:
    """`HU -160 to 240`, or which percentiles."""
    if isinstance(window, dict):
        shares = map(float, window["percentiles"])
        return "percentiles {:g} to {:g} of each volume".format(*shares)
    return "HU {:g} to {:g}".format(*window)


def forward(
    model: nn.Module,
    run: Trained,
    slices: list[Slice],
    config: InferenceConfig,
    reconstruct: bool = False,
    change=None,
) -> Iterator[tuple[dict, Output]]:
    """Batches of the slices with the model's output; `change(batch)` may alter images."""
    places = {s: place for place, s in enumerate(run.slices)}
    wanted = Subset(run.dataset, [places[s] for s in slices])
    for batch in tqdm(loader(wanted, config.batch_size), disable=None, leave=False):
        batch = to_device(batch, run.device, config.channels_last)
        if change is not None:
            batch["image"] = change(batch)
        with torch.inference_mode(), autocast(run.device, config.amp):
            output = model(batch["image"], reconstruct=reconstruct)
        yield batch, output


@torch.inference_mode()
def maps_of(model: nn.Module, run: Trained, squares: np.ndarray, config: InferenceConfig) -> Tensor:
    """Probabilities, float32 `(N, classes, size, size)`, of grey uint8 squares `(N, size,
    size)`."""
    batch = {"image": torch.from_numpy(squares)[:, None].float() / 255}
    batch = to_device(batch, run.device, config.channels_last)
    with autocast(run.device, config.amp):
        return probabilities(model(batch["image"], reconstruct=False).logits)


def in_16_bits(maps: Tensor) -> np.ndarray:
    """Probabilities as the uint16 values of a 16-bit PNG: 65535 is 1."""
    return (maps * 65535).round().to(torch.int32).cpu().numpy().astype(np.uint16)
