"""Train T1, the multi-task U-Net teacher: segmentation + reconstruction of the input.

    python train.py                                      the data set in data/spleen2d
    python train.py --epochs 2 --width 8 --name check    a quick check that everything works
    python train.py --resume                             continue after an interruption
    torchrun --nproc-per-node 4 train.py                 several GPUs (--batch-size is for each)

T1 has 43,236,036 parameters (five levels, 64 to 1024 channels, two decoders) and is trained on
all training patients. Writes config.json, log.csv, curves.png, last.pt and best.pt into
runs/NAME; then `python inference.py` and `python metrics.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch, option
from common.losses.segmentation import MultiTaskObjective
from common.models.unet import teacher_t1
from common.settings import TeacherConfig
from common.training.engine import fit
from common.training.runs import start


@dataclass
class Config(TeacherConfig):
    """T1's own settings."""

    width: int = option(64, "channels of the first level; the four below double them", low=1)


def main(config: Config) -> None:
    """Data, model, objective, training."""
    run = start(config, __file__, config.train_on)
    model = teacher_t1(config.width, run.num_classes, config.reconstruction_weight > 0)
    objective = MultiTaskObjective(model, config.reconstruction_weight, config.mask_ratio)
    fit(objective, run, config)


if __name__ == "__main__":
    launch(main, Config)
