"""Train S1 with the help of T1: prediction-map and multi-scale contrastive distillation.

    python train.py                                      T1 from teacher_t1_unet/runs/default
    python train.py --epochs 2 --name check              a quick check that everything works
    python train.py --scales bottleneck --contrast image --name bottleneck-image
    python train.py --resume                             go on after an interruption
    torchrun --nproc-per-node 4 train.py                 several GPUs (--batch-size is for each)

The recipe (StudentConfig) is the one of student_s1, term for term; only the distillation terms
are added. With all weights 0 this is student_s1, weight for weight. Nothing of the teacher is
needed at inference. Writes config.json, log.csv, curves.png, last.pt and best.pt into runs/NAME.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.checkpoint import load_weights
from common.config import StudentConfig, launch, option
from common.device import layout
from common.distillation import SCALES, Distiller
from common.engine import evaluate, fit
from common.files import ROOT, shown
from common.runs import load_teacher, start
from common.scores import number
from common.unet import student_s1, teacher_t1_of


@dataclass
class Config(StudentConfig):
    """The distillation. The default weights stand to each other, and to the segmentation loss,
    as in the thesis (0.4 segmentation, 0.2 prediction map and bottleneck, 0.1 encoder, decoder)."""

    teacher: Path = option(ROOT / "teacher_t1_unet/runs/default/best.pt", "T1's checkpoint")
    scales: tuple[str, ...] = option(SCALES, "feature maps with a contrastive term", choices=SCALES)
    contrast: str = option("dense", "contrast of pixels or of images", choices=("dense", "image"))
    prediction: float = option(0.5, "weight of the prediction-map distillation", low=0.0)
    encoder: float = option(0.25, "weight of the contrastive term at the encoder", low=0.0)
    bottleneck: float = option(0.5, "weight of the contrastive term at the bottleneck", low=0.0)
    decoder: float = option(0.25, "weight of the contrastive term at the decoder", low=0.0)
    temperature: float = option(2.0, "temperature of the prediction maps", low=0.01)
    contrast_temperature: float = option(0.1, "temperature of the contrast", low=0.01)
    pixels: int = option(128, "pixels a class and step in the dense contrast", low=1)


def main(config: Config) -> None:
    """Data, student, teacher and its score, objective, training."""
    run = start(config, __file__, config.share)
    # The student first: with the same seed both arms begin with the same weights.
    student = student_s1(run.classes)
    known = load_teacher(config.teacher, "teacher_t1_unet", run)
    teacher = teacher_t1_of(known)
    load_weights(teacher, known["model"], config.teacher)
    teacher.to(run.device, memory_format=layout(config.channels_last))
    weights = {scale: getattr(config, scale) for scale in config.scales}
    objective = Distiller(
        student,
        teacher,
        run.size,
        {"prediction": config.prediction, **weights},
        config.contrast,
        config.temperature,
        config.contrast_temperature,
        config.pixels,
    )
    dice = evaluate(objective.teacher, run.val, run, config)["per_patient"]["dice"]["mean"]
    run.say(f"teacher {shown(config.teacher)}: validation Dice {number(dice)} per patient")
    fit(objective, run, config)


if __name__ == "__main__":
    launch(main, Config)
