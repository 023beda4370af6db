"""A dataclass is a script's configuration: its command line, its printed start, its config.json.

    @dataclass
    class Config(TrainConfig):
        width: int = option(64, "channels of the first level")

    if __name__ == "__main__":
        launch(main, Config)

gives `--width 64`, a `--help` with every default, and one clear line for a user's mistake.
"""

import argparse
import inspect
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

from common.files import ROOT, UserError, shown

DATA = ROOT / "data" / "spleen2d"
SCALES = ("encoder", "bottleneck", "decoder")
WEIGHTS = ("best", "last")
# What `--recipe` sets before the other flags are read. The thesis's terms and weights are those of
# arXiv 2406.03173; 4 and 0.4 are its released code's temperatures.
RECIPES = {
    "best": {},
    "thesis": {
        "segmentation": 0.4,
        "scales": SCALES,
        "contrast": "image",
        "prediction": 0.2,
        "encoder": 0.1,
        "bottleneck": 0.2,
        "decoder": 0.1,
        "channelwise": 0.0,
        "border": 0.0,
        "relation": 0.0,
        "queue": 0,
        "temperature": 4.0,
        "contrast_temperature": 0.4,
    },
}


def option(default, help: str, choices: tuple | None = None, low=None, high=None):
    """A dataclass field with its help text; `choices`, or `low` to `high`, limit the values."""
    limits = {"choices": choices, "low": low, "high": high}
    return field(default=default, metadata={"help": help, **limits})


@dataclass
class Config:
    """The base of every configuration: checks the values against their fields' limits."""

    def __post_init__(self):
        """UserError naming every flag whose value is outside its limits."""
        problems = []
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            above = low is None or value is None or value >= low
            below = high is None or value is None or value <= high
            if not (above and below):
                flag = "--" + f.name.replace("_", "-")
                limit = f"at least {low}" if high is None else f"from {low} to {high}"
                problems.append(f"{flag} is {value}; it must be {limit}")
        if problems:
            raise UserError("; ".join(problems))
        name = getattr(self, "name", None)
        if name is not None and (name in ("", ".", "..") or Path(name).name != name):
            raise UserError(f"--name {name!r} is not a plain folder name.")


@dataclass
class TrainConfig(Config):
    """What every training has: data, optimisation, hardware, run folder."""

    data: Path = option(DATA, "data set folder, as written by data_prep/")
    splits: str = option("splits.json", "splits file inside the data set folder")
    name: str = option("default", "the run is written to runs/NAME in the stage's folder")
    resume: bool = option(False, "continue the run NAME after its last finished epoch")
    overwrite: bool = option(False, "delete an existing run NAME first")
    epochs: int = option(60, "passes over the training slices", low=1)
    batch_size: int = option(16, "slices per step", low=1)
    lr: float = option(1e-3, "AdamW learning rate after warm-up; then a cosine to 0", low=0.0)
    weight_decay: float = option(1e-2, "AdamW weight decay", low=0.0)
    warmup: float = option(
        0.05, "share of all steps with a linearly rising learning rate", low=0.0, high=1.0
    )
    clip: float = option(1.0, "largest gradient norm; 0 turns clipping off", low=0.0)
    foreground: float = option(
        0.5, "least share of drawn slices that show the organ; 0: as they come", low=0.0, high=1.0
    )
    augment: bool = option(True, "random rotation, scale, shift, brightness, contrast and noise")
    seed: int = option(0, "seed of the weights, the sampling and the augmentation", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    bf16: bool = option(True, "bfloat16 autocast where the hardware has it; losses stay float32")
    channels_last: bool = option(True, "channels-last memory format")
    workers: int = option(-1, "loader processes; -1: none on a CPU, up to 8 on a GPU", low=-1)
    cache_mb: int = option(4096, "decoded slices kept in memory, in MB", low=0)
    save_every: int = option(1, "epochs between two last.pt; the last epoch is always saved", low=1)


@dataclass
class TeacherConfig(TrainConfig):
    """The two tasks of a teacher, equal for both: T1 and T2 differ in their network alone."""

    reconstruction_weight: float = option(
        0.2, "weight of the reconstruction loss (0.2 is the thesis's; 0: no such decoder)", low=0.0
    )
    share: str = option("train", "patients to train on", choices=("student", "train"))
    hidden: float = option(
        0.25, "share of patches hidden from half of each batch", low=0.0, high=1.0
    )


@dataclass
class StudentConfig(TrainConfig):
    """The recipe of a student, with or without a teacher.

    Both arms of the comparison inherit it, so that they can differ in nothing but the
    distillation terms (a test holds them to that).
    """

    epochs: int = option(100, "passes over the training slices", low=1)
    # 1e-3, a teacher's rate, leaves networks as narrow as these far from converged: with 3e-3
    # S1's validation Dice rose from 0.71 to 0.84 on real CT (40 epochs, 3 patients, one run each),
    # and 1e-2 gave 0.71 again.
    lr: float = option(3e-3, "AdamW learning rate after warm-up; then a cosine to 0", low=0.0)
    share: str = option("student", "patients to train on", choices=("student", "train"))
    deep: bool = option(False, "five narrow levels of as many parameters, which see farther")


@dataclass
class DistillationConfig(StudentConfig):
    """What a teacher adds to that recipe.

    The default weights stand to each other, and to the segmentation loss, as in the thesis (0.4
    segmentation, 0.2 prediction map and bottleneck, 0.1 encoder and decoder): of what was tried on
    validation patients nothing was better (RESULTS.md, appendix).
    """

    recipe: str = option(
        "best",
        "best: the defaults below; thesis: the terms and weights of arXiv 2406.03173; flags beside "
        "it change what it sets",
        choices=tuple(RECIPES),
    )
    segmentation: float = option(1.0, "weight of the segmentation loss", low=0.0)
    scales: tuple[str, ...] = option(SCALES, "feature maps with a contrastive term", choices=SCALES)
    contrast: str = option(
        "dense",
        "contrast of pixels, regions or images, or plain regression in its place",
        choices=("dense", "region", "image", "mse"),
    )
    prediction: float = option(0.5, "weight of the prediction-map distillation", low=0.0)
    encoder: float = option(0.25, "weight of the contrastive term at the encoder", low=0.0)
    bottleneck: float = option(0.5, "weight of the contrastive term at the bottleneck", low=0.0)
    decoder: float = option(0.25, "weight of the contrastive term at the decoder", low=0.0)
    channelwise: float = option(0.0, "weight of the channel-wise distillation (CWD)", low=0.0)
    border: float = option(0.0, "weight of the prediction map at the organ's border", low=0.0)
    relation: float = option(0.0, "weight of the pairwise affinities of places", low=0.0)
    temperature: float = option(2.0, "temperature of the prediction maps", low=0.01)
    channel_temperature: float = option(4.0, "temperature of the channel-wise maps", low=0.01)
    contrast_temperature: float = option(0.1, "temperature of the contrast", low=0.01)
    pixels: int = option(128, "pixels a class and step in the dense contrast", low=1)
    queue: int = option(0, "the teacher's pixels kept from earlier steps, dense contrast", low=0)
    unlabelled: bool = option(
        False, "the teacher's terms also see the training patients without labels for the student"
    )
    control: str = option(
        "none",
        "what must not help: a teacher with random weights; its maps and features, or its features "
        "alone, of another image; the student in its place",
        choices=("none", "random-teacher", "other-image", "other-features", "no-teacher"),
    )

    def __post_init__(self):
        """UserError for flags that exclude each other."""
        super().__post_init__()
        if self.unlabelled and self.share == "train":
            raise UserError("--unlabelled: --share train leaves no patient without labels.")
        if self.unlabelled and not self.augment:
            raise UserError("--unlabelled draws by the augmentation's seed: not with --no-augment.")
        if self.queue and self.contrast != "dense":
            raise UserError(f"--queue is for --contrast dense, not for {self.contrast}.")


@dataclass
class InferenceConfig(Config):
    """What every inference.py has."""

    data: Path = option(DATA, "data set folder, as written by data_prep/")
    splits: str | None = option(None, "splits file; without it: the one the run was trained with")
    name: str = option("default", "the run to use: runs/NAME in the stage's folder")
    weights: str = option(
        "best", "of the epoch with the best validation Dice, or of the last", choices=WEIGHTS
    )
    subset: str = option("test", "patients to predict", choices=("test", "val", "train", "all"))
    probabilities: bool = option(False, "also write the probability maps, 16-bit PNG (65535 = 1)")
    overlays: int = option(24, "how many overlay pictures to write; -1: all", low=-1)
    batch_size: int = option(16, "slices per forward pass", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    bf16: bool = option(True, "bfloat16 autocast where the hardware has it")
    channels_last: bool = option(True, "channels-last memory format")
    fuse: bool = option(True, "fold BatchNorm into the convolutions")


@dataclass
class MetricsConfig(Config):
    """What every metrics.py has."""

    data: Path = option(DATA, "data set folder, as written by data_prep/")
    name: str = option("default", "the run to score: runs/NAME in the stage's folder")


def to_json(config) -> dict:
    """A config as plain JSON types: what config.json and checkpoints hold."""
    return {name: plain(value) for name, value in asdict(config).items()}


def plain(value):
    """A setting as JSON gives it back: a path as its text, a tuple as a list."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def parse(cls, argv: list[str] | None = None, description: str | None = None):
    """Build a config of dataclass `cls` from the command line. Unknown flags exit with 2.

    A `--recipe` sets its values first; other flags, wherever they stand, come after it.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = get_type_hints(cls)
    for f in fields(cls):
        _add_flag(parser, f, hints[f.name])
    recipe = getattr(parser.parse_args(argv), "recipe", None)
    parser.set_defaults(**RECIPES.get(recipe, {}))
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _add_flag(parser: argparse.ArgumentParser, f, kind) -> None:
    flag = "--" + f.name.replace("_", "-")
    default = shown(f.default) if isinstance(f.default, Path) else f.default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    help = f.metadata["help"] + ("" if default is None else f" (default: {default})")
    keywords = {"dest": f.name, "default": f.default, "help": help.replace("%", "%%")}
    if get_origin(kind) in (Union, UnionType):  # X | None
        kind = next(a for a in get_args(kind) if a is not type(None))
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        return
    if get_origin(kind) is tuple:
        keywords["nargs"], kind = "*", get_args(kind)[0]
    if f.metadata["choices"]:
        keywords["choices"] = f.metadata["choices"]
    else:
        keywords["metavar"] = kind.__name__.upper()
    parser.add_argument(flag, type=kind, **keywords)


def describe(config, title: str) -> str:
    """The configuration as one aligned block of text, printed at the start of a script."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    width = max(map(len, values))
    lines = (
        f"  {name:<{width}}  {shown(value) if isinstance(value, Path) else value}"
        for name, value in values.items()
    )
    return "\n".join([title, *lines])


def launch(main, cls) -> None:
    """Run `main(config)` as a script: exit code 1 and one line, no traceback, for a UserError."""
    # The manual is the script's docstring; under torchrun only rank 0 speaks.
    script = Path(inspect.getfile(main)).resolve()
    try:
        config = parse(cls, description=inspect.getmodule(main).__doc__)
        if os.environ.get("RANK", "0") == "0":
            print(describe(config, f"{script.parent.name}/{script.name}"), flush=True)
        main(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
