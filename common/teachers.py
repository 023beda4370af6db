"""The trained teacher of a distillation: read, checked, scored once before it may teach."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from common import checkpoint
from common.config import DistillationConfig
from common.device import layout
from common.engine import evaluate
from common.files import shown
from common.runs import Run
from common.scores import number
from common.slices import check_patients


def load_teacher(
    path: Path, stage: str, build: Callable[[dict], nn.Module], run: Run, config: DistillationConfig
) -> nn.Module:
    """The teacher in `path`, on the run's device; its validation Dice is printed.

    `build(checkpoint)` makes the network. UserError if the checkpoint is missing, of another stage
    than `stage`, or of a training on patients that this run's split keeps for validation or test.
    With the control `random-teacher` the network keeps its random start.
    """
    known = checkpoint.load(path, stage, f"Train it first ({stage}/train.py) or name another.")
    check_patients(known["patients"], run.splits, ("val", "test"), path)
    if known["size"] != run.size:
        run.say(f"note: the teacher was trained on {known['size']}-pixel slices, not {run.size}")
    teacher = build(known)
    if config.control != "random-teacher":
        checkpoint.load_weights(teacher, known["model"], path)
    teacher.to(run.device, memory_format=layout(config.channels_last))
    dice = evaluate(teacher, run.val, run, config)["per_patient"]["dice"]["mean"]
    random = ", its weights left random (a control)" if config.control == "random-teacher" else ""
    run.say(f"teacher {shown(path)}{random}: validation Dice {number(dice)} per patient")
    return teacher
