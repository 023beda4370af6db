"""The flags that stages share: of every training, of the students, teachers and distilled students,
of inference and of scoring. A stage's own flags are in its script."""

from dataclasses import dataclass
from pathlib import Path

from common.config import Config, option
from common.errors import UserError
from common.files import ROOT

DATA = ROOT / "data" / "spleen2d"
SCALES = ("encoder", "bottleneck", "decoder")
WEIGHTS = ("best", "last")
# Flags that change nothing of what is learned from the same patients.
NOT_LEARNED = {
    *("name", "data", "splits", "resume", "overwrite", "save_every"),
    *("device", "workers", "cache_mb", "deterministic"),
}
# The titles of `--help`.
HARDWARE = ("device", "amp", "channels_last", "deterministic", "workers", "cache_mb", "fuse")
TRAINING = {
    "data": ("data", "splits", "train_on", "foreground_fraction", "augment", "unlabelled"),
    "optimisation": (
        *("epochs", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "clip", "seed"),
    ),
    "hardware": HARDWARE,
    "run": ("name", "resume", "overwrite", "save_every"),
}
INFERENCE = {
    "new volumes and pictures": (
        *("volume", "images", "ground_truth", "ground_truth_threshold", "largest_component"),
        *("hu_low", "hu_high"),
    ),
    "output": ("output", "probabilities", "overlays", "reconstructions", "export"),
    "hardware": (*HARDWARE, "batch_size"),
}


@dataclass
class TrainConfig(Config):
    """What every training has: data, optimisation, hardware, run folder."""

    groups = TRAINING
    own = "network and loss"

    data: Path = option(DATA, "data set folder, as written by data_prep/")
    splits: str = option("splits.json", "splits file inside the data set folder")
    name: str = option("default", "the run is written to runs/NAME in the stage's folder")
    resume: bool = option(False, "continue the run NAME after its last finished epoch")
    overwrite: bool = option(False, "delete an existing run NAME first")
    epochs: int = option(60, "passes over the training slices", low=1)
    batch_size: int = option(16, "slices per batch", low=1)
    accumulate: int = option(
        1, "batches per step, as if they were one (BatchNorm and contrasts see each alone)", low=1
    )
    lr: float = option(1e-3, "AdamW learning rate after warm-up; then a cosine to 0", low=0.0)
    weight_decay: float = option(1e-2, "AdamW weight decay", low=0.0)
    warmup: float = option(
        0.05, "fraction of all steps with a linearly rising learning rate", low=0.0, high=1.0
    )
    clip: float = option(1.0, "largest gradient norm; 0 turns clipping off", low=0.0)
    foreground_fraction: float = option(
        0.5,
        "minimum fraction of sampled slices that show foreground; 0: no balancing",
        low=0.0,
        high=1.0,
    )
    augment: bool = option(True, "random rotation, scale, shift, brightness, contrast and noise")
    seed: int = option(0, "seed of the weights, the sampling and the augmentation", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: bool = option(
        True, "16-bit autocast: bfloat16, on older GPUs float16; losses stay float32"
    )
    channels_last: bool = option(True, "channels-last memory format")
    deterministic: bool = option(
        False,
        "on a GPU too, operations that add in a fixed order where PyTorch has them; it names the "
        "others (CPU operations already do)",
    )
    workers: int = option(-1, "loader processes; -1: none on a CPU, up to 8 on a GPU", low=-1)
    cache_mb: int = option(4096, "decoded slices kept in memory, in MB", low=0)
    save_every: int = option(
        1, "epochs between two last.pt; Ctrl-C, SIGTERM and the last epoch write it too", low=1
    )


@dataclass
class TeacherConfig(TrainConfig):
    """The two tasks of a teacher, equal for both: T1 and T2 differ in their network alone."""

    reconstruction_weight: float = option(
        0.2, "weight of the reconstruction loss (0.2 is the thesis's; 0: no such decoder)", low=0.0
    )
    train_on: str = option("train", "patients to train on", choices=("student", "train"))
    mask_ratio: float = option(
        0.25, "fraction of patches masked in half of each batch", low=0.0, high=1.0
    )


@dataclass
class StudentConfig(TrainConfig):
    """The recipe of a student, with or without a teacher.

    Both arms of the comparison inherit it, so that they can differ in nothing but the
    distillation terms (a test enforces this).
    """

    epochs: int = option(100, "passes over the training slices", low=1)
    # 1e-3, a teacher's rate, leaves networks as narrow as these far from converged: with 3e-3
    # S1's validation Dice rose from 0.71 to 0.84 on real CT (40 epochs, 3 patients, one run each),
    # and 1e-2 gave 0.71 again.
    lr: float = option(3e-3, "AdamW learning rate after warm-up; then a cosine to 0", low=0.0)
    train_on: str = option("student", "patients to train on", choices=("student", "train"))
    deep: bool = option(False, "five narrow levels: as many parameters, a wider receptive field")


@dataclass
class MapWeights(StudentConfig):
    """The weights of the terms that compare whole maps, by the terms' names; 0 leaves one out.

    They are the terms of `common.losses.map_terms.MapTerms`.
    """

    prediction: float = option(0.5, "weight of the prediction-map distillation", low=0.0)
    channelwise: float = option(0.0, "weight of the channel-wise distillation (CWD)", low=0.0)
    border: float = option(0.0, "weight of the prediction map at the class's border", low=0.0)
    affinity: float = option(0.0, "weight of the pairwise affinities of positions", low=0.0)


TERMS = tuple(MapWeights.__annotations__)
# What `--recipe` sets before the other flags are read. The thesis's terms and weights are those of
# arXiv 2406.03173; temperatures, encoder maps and the segmentation loss are its released code's.
RECIPES = {
    "best": {},
    "thesis": {
        "segmentation": 0.4,
        "segmentation_loss": "batch-dice",
        "encoder_map": "stride4",
        "scales": SCALES,
        "contrast": "image",
        **dict.fromkeys(TERMS, 0.0),
        "prediction": 0.2,
        "encoder": 0.1,
        "bottleneck": 0.2,
        "decoder": 0.1,
        "temperature": 4.0,
        "contrast_temperature": 0.4,
    },
}


@dataclass
class DistillationConfig(MapWeights):
    """What a teacher adds to that recipe.

    The default weights have the thesis's ratio to each other and to the segmentation loss (0.4
    segmentation, 0.2 prediction map and bottleneck, 0.1 encoder and decoder): nothing tried on
    validation patients was better (docs/LOG.md, appendix).
    """

    recipes = RECIPES
    own = "network and distillation"

    recipe: str = option(
        "best",
        "best: the defaults below; thesis: the terms, weights, feature maps and segmentation loss "
        "of arXiv 2406.03173 (docs/METHOD.md says what is not); further flags override it",
        choices=tuple(RECIPES),
    )
    segmentation: float = option(1.0, "weight of the segmentation loss", low=0.0)
    segmentation_loss: str = option(
        "dice-bce",
        "dice-bce: the plain student's; batch-dice: Dice alone, pooled over the batch",
        choices=("dice-bce", "batch-dice"),
    )
    scales: tuple[str, ...] = option(SCALES, "feature maps with a contrastive term", choices=SCALES)
    contrast: str = option(
        "dense",
        "contrast of pixels or of images, or plain regression instead",
        choices=("dense", "image", "mse"),
    )
    encoder: float = option(0.25, "weight of the contrastive term at the encoder", low=0.0)
    encoder_map: str = option(
        "deepest",
        "the encoder's map: each network's deepest skip, or both at a quarter of the image's size",
        choices=("deepest", "stride4"),
    )
    bottleneck: float = option(0.5, "weight of the contrastive term at the bottleneck", low=0.0)
    decoder: float = option(0.25, "weight of the contrastive term at the decoder", low=0.0)
    temperature: float = option(2.0, "temperature of the prediction maps", low=0.01)
    channel_temperature: float = option(4.0, "temperature of the channel-wise maps", low=0.01)
    contrast_temperature: float = option(0.1, "temperature of the contrast", low=0.01)
    pixels: int = option(128, "pixels per class per step in the dense contrast", low=1)
    unlabelled: bool = option(
        False, "the teacher's terms also see the training patients without labels for the student"
    )
    control: str = option(
        "none",
        "negative control. random-teacher: random weights; other-image: the teacher's output for "
        "another image; other-features: its features alone; no-teacher: the student's own output",
        choices=("none", "random-teacher", "other-image", "other-features", "no-teacher"),
    )

    def __post_init__(self):
        """UserError for flags that exclude each other."""
        super().__post_init__()
        if self.unlabelled and self.train_on == "train":
            raise UserError("--unlabelled: --train-on train leaves no patient without labels.")
        if self.unlabelled and not self.augment:
            raise UserError("--unlabelled draws by the augmentation's seed: not with --no-augment.")
        if self.resume:
            return  # what was allowed when the run was started
        scales = [scale for scale in self.scales if getattr(self, scale)]
        if self.unlabelled and not (scales or any(getattr(self, term) for term in TERMS)):
            raise UserError("--unlabelled has no effect without a distillation term.")


@dataclass
class InferenceConfig(Config):
    """What every inference.py has."""

    groups = INFERENCE
    own = "run and slices"

    data: Path | None = option(None, "data set folder; without it: the one of the training")
    splits: str | None = option(None, "splits file; without it: the one the run was trained with")
    name: str = option("default", "the run to use: runs/NAME in the stage's folder")
    weights: str = option(
        "best", "of the epoch with the best validation Dice, or of the last", choices=WEIGHTS
    )
    subset: str = option("test", "patients to predict", choices=("test", "val", "train", "all"))
    probabilities: bool = option(
        False, "also write probability maps: 16-bit PNG (65535 = 1), for volumes NIfTI (0 to 1)"
    )
    overlays: int = option(24, "how many overlay pictures to write; -1: all", low=-1)
    batch_size: int = option(16, "slices per forward pass", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: bool = option(True, "16-bit autocast: bfloat16, on older GPUs float16")
    channels_last: bool = option(True, "channels-last memory format")
    fuse: bool = option(True, "fold BatchNorm into the convolutions")
    volume: Path | None = option(None, "a CT in NIfTI, or a folder of them, instead of the slices")
    images: Path | None = option(
        None,
        "a new picture (png, jpg, tif, gif, bmp), or a folder of them, with sub-folders; their "
        "masks have their own size",
    )
    output: Path | None = option(
        None,
        "the mask of one volume or picture, or the folder of masks (without it: runs/NAME/volumes "
        "or runs/NAME/pictures)",
    )
    ground_truth: Path | None = option(
        None,
        "the true mask of the volume or picture, or a folder of equally named ones: adds scores",
    )
    ground_truth_threshold: int | None = option(
        None, "true masks of pictures: pixels at or above it are foreground", low=1, high=255
    )
    largest_component: bool = option(
        False, "keep only the largest connected part of each class in a volume or new picture"
    )
    hu_low: float | None = option(None, "HU shown as 0 (without it: as in the training)")
    hu_high: float | None = option(None, "HU shown as 255 (without it: as in the training)")
    export: Path | None = option(None, "write the network as ONNX to this file, and nothing else")

    @property
    def of_slices(self) -> bool:
        """Whether the slices of the data set are to be predicted."""
        return not (self.volume or self.images or self.export)

    def __post_init__(self):
        """UserError for flags without effect."""
        super().__post_init__()
        ways = [f"--{name}" for name in ("volume", "images", "export") if getattr(self, name)]
        if len(ways) > 1:
            raise UserError(f"{ways[0]} and {ways[1]} exclude each other.")
        of_slices = ("data", "splits", "subset", "overlays", "reconstructions")
        scored = self.images and self.ground_truth
        of_files = ("output", "ground_truth", "largest_component")
        useful = {
            **dict.fromkeys(of_slices, (self.of_slices, "")),
            **dict.fromkeys(of_files, (self.volume or self.images, "--volume or --images")),
            **dict.fromkeys(("hu_low", "hu_high"), (self.volume, "--volume")),
            "ground_truth_threshold": (scored, "--images and --ground-truth"),
            "probabilities": (not self.export, ""),
        }
        for name, (used, lacking) in useful.items():
            default = getattr(type(self), name, None)
            if not used and getattr(self, name, None) != default:
                where = f"without {lacking}" if lacking else f"with {ways[0]}"
                raise UserError(f"--{name.replace('_', '-')} has no effect {where}; leave it out.")


@dataclass
class MetricsConfig(Config):
    """What every metrics.py has."""

    data: Path | None = option(None, "data set folder; without it: the one of the inference")
    name: str = option("default", "the run to score: runs/NAME in the stage's folder")
