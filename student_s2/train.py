"""Train S2, the larger student (227,233 parameters), alone: the baseline of the study.

    python train.py                                  the data set in data/spleen2d
    python train.py --epochs 2 --name check          a quick check that everything works
    python train.py --train-on train --name all         on all training patients, not on half
    python train.py --resume                         continue after an interruption
    torchrun --nproc-per-node 4 train.py             several GPUs (--batch-size is for each)

The recipe (StudentConfig) is the one of kd_t1_s2 and kd_t2_s2, term for term: half of the training
patients, the same optimizer, schedule, batch, augmentation, initial weights and order of slices.
Writes config.json, log.csv, curves.png, last.pt and best.pt into runs/NAME.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch
from common.losses.segmentation import SegmentationObjective
from common.models.unet import student_s2
from common.settings import StudentConfig
from common.training.engine import fit
from common.training.runs import start


@dataclass
class Config(StudentConfig):
    """Nothing but the students' common recipe."""


def main(config: Config) -> None:
    """Data, model, objective, training."""
    run = start(config, __file__, config.train_on)
    fit(SegmentationObjective(student_s2(run.num_classes, config.deep)), run, config)


if __name__ == "__main__":
    launch(main, Config)
