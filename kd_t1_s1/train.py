"""Train S1 with the help of T1: prediction-map and multi-scale contrastive distillation.

    python train.py                                      T1 from teacher_t1_unet/runs/default
    python train.py --epochs 2 --name check              a quick check that everything works
    python train.py --scales bottleneck --contrast image --name bottleneck-image
    python train.py --resume                             continue after an interruption
    torchrun --nproc-per-node 4 train.py                 several GPUs (--batch-size is for each)

The recipe (StudentConfig) is the one of student_s1, term for term; only the distillation terms
(DistillationConfig) are added. With the teacher's terms 0 this is student_s1, weight for weight.
The teacher is not needed at inference. Writes config.json, log.csv, curves.png, last.pt and
best.pt into runs/NAME.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import launch, option
from common.files import ROOT
from common.losses.distillation import Distiller
from common.models.unet import student_s1, teacher_t1_of
from common.settings import DistillationConfig
from common.training.engine import fit
from common.training.runs import start
from common.training.teachers import add_unlabelled, load_teacher


@dataclass
class Config(DistillationConfig):
    """Who teaches."""

    teacher: Path = option(ROOT / "teacher_t1_unet/runs/default/best.pt", "T1's checkpoint")


def main(config: Config) -> None:
    """Data, student, teacher and its score, objective, training."""
    run = start(config, __file__, config.train_on)
    # The student first: with the same seed both arms begin with the same weights.
    student = student_s1(run.num_classes, config.deep)
    teacher = load_teacher(config.teacher, "teacher_t1_unet", teacher_t1_of, run, config)
    add_unlabelled(run, config)
    fit(Distiller(student, teacher, run.size, config), run, config)


if __name__ == "__main__":
    launch(main, Config)
