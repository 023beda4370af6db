"""Train T2, the multi-task TransUNet teacher: segmentation + reconstruction of the input.

    python train.py                                      the data set in data/spleen2d
    python train.py --epochs 2 --width 192 --depth 2 --name check      a quick check
    python train.py --encoder-weights imagenet           start from ImageNet's ResNet-50, ViT-B/16
    python train.py --resume                             continue after an interruption
    torchrun --nproc-per-node 4 train.py                 several GPUs (--batch-size is for each)

T2 has 109,360,964 parameters (ResNet-50 to stride 16, 12 transformer layers 768 wide, two
decoders) and is trained on all training patients. Writes config.json, log.csv, curves.png,
last.pt and best.pt into runs/NAME; then `python inference.py` and `python metrics.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch, option
from common.losses.segmentation import MultiTaskObjective
from common.models.transunet import load_imagenet, teacher_t2
from common.settings import TeacherConfig
from common.training.engine import fit
from common.training.runs import start


@dataclass
class Config(TeacherConfig):
    """T2's own settings."""

    lr: float = option(
        3e-4,
        "AdamW learning rate; not tuned at the full size, docs/LOG.md has 1e-3 at width 192",
        low=0.0,
    )
    width: int = option(768, "channels of a token; decoders shrink with it", low=192)
    depth: int = option(12, "transformer layers", low=1)
    encoder_weights: str = option(
        "none", "weights to start from", choices=("none", "imagenet-resnet", "imagenet")
    )
    weights_folder: Path | None = option(
        None, "folder of torchvision's weight files; without it: torch.hub's cache, or download"
    )


def main(config: Config) -> None:
    """Data, model, objective, training."""
    run = start(config, __file__, config.train_on)
    model = teacher_t2(
        config.width, config.depth, run.num_classes, config.reconstruction_weight > 0
    )
    if config.encoder_weights != "none" and not run.resumes:
        load_imagenet(model, config.encoder_weights == "imagenet", config.weights_folder)
    fit(MultiTaskObjective(model, config.reconstruction_weight, config.mask_ratio), run, config)


if __name__ == "__main__":
    launch(main, Config)
