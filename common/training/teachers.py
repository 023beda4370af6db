"""The trained teacher of a distillation: read, checked, scored once before it may teach."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from common.dataset.loading import SliceDataset, WithUnlabelled, loader
from common.dataset.splits import check_patients
from common.device import layout, to_device
from common.errors import UserError
from common.evaluation.metrics import number
from common.files import shown, unfinished
from common.settings import DistillationConfig
from common.training import checkpoint
from common.training.engine import evaluate
from common.training.runs import Run

USELESS = 0.1  # a validation Dice below it


def load_teacher(
    path: Path, stage: str, build: Callable[[dict], nn.Module], run: Run, config: DistillationConfig
) -> nn.Module | None:
    """The teacher in `path`, on the run's device; its validation Dice is printed.

    `build(checkpoint)` makes the network. UserError if the checkpoint is missing, of another stage
    than `stage`, of other classes or another plane, or of a training on patients that this run's
    split keeps for validation or test.

    The cases that it was trained on and chosen by, and their patients, go into `run.cases` and
    `run.patient_of`: its student may not be scored on them either. With the control
    `random-teacher` the network keeps its random weights, with BatchNorm statistics of the training
    slices; without those its features would nearly vanish, and it would not be a control. With
    `no-teacher` the result is None.
    """
    if config.control == "no-teacher":
        run.say("no teacher: the student's own output instead (a control)")
        return None
    hint = f"Train it first ({stage}/train.py) or name another."
    content = checkpoint.load_trained(path, stage, hint)
    if note := checkpoint.check_fits(content, run.data, path):
        run.say(note)
    check_patients(content, run.data, run.splits, ("val", "test"), path)
    if content["size"] != run.size:
        run.say(f"note: the teacher was trained on {content['size']}-pixel slices, not {run.size}")
    teacher = build(content)
    teacher.to(run.device, memory_format=layout(config.channels_last))
    if config.control == "random-teacher":
        _own_statistics(teacher, run, config)
    else:
        checkpoint.load_weights(teacher, checkpoint.model_weights(content), path)
        _remember(content, run)
    dice = evaluate(teacher, run.val, run, config)["per_patient"]["dice"]["mean"]
    random = ", its weights left random (a control)" if config.control == "random-teacher" else ""
    run.say(f"teacher {shown(path)}{random}: validation Dice {number(dice)} per patient")
    if part := unfinished(path.parent):
        run.say(f"warning: the teacher's training has stopped after {part}")
    if not random and (dice or 0) < USELESS:
        run.say("warning: this teacher finds next to nothing, and has little to teach")
    return teacher


def _remember(content: dict, run: Run) -> None:
    """Count the patients that a teacher has seen among those that its student has."""
    run.cases["teacher"] = content["patients"]["train"]
    run.cases["teacher_val"] = content["patients"]["val"]
    run.patient_of.update(content.get("patient_of") or {})


def add_unlabelled(run: Run, config: DistillationConfig) -> None:
    """With `--unlabelled`, add an image of the other training patients to every labelled one.

    Those are the patients of `train` that the student's share leaves out. UserError if none is.
    """
    if not config.unlabelled:
        return
    others = [case for case in run.splits["train"] if case not in run.splits[config.train_on]]
    slices = run.data.of(others)
    if not slices:
        raise UserError("--unlabelled: every training patient's labels are the student's already.")
    run.train = WithUnlabelled(run.train, SliceDataset(run.data, slices, config.cache_mb))
    run.cases["unlabelled"] = others
    count = len(run.data.patients_of(others))
    run.say(f"and {len(slices)} slices of {count} more patients, without their labels")


@torch.no_grad()
def _own_statistics(teacher: nn.Module, run: Run, config: DistillationConfig) -> None:
    """BatchNorm's statistics of a network as it is, over the training slices, not augmented. A
    last batch of one slice is left out: a map of one pixel would have no spread."""
    batches = loader(run.train, max(2, config.batch_size))
    images = (to_device(b, run.device, config.channels_last)["image"] for b in batches)
    update_bn((batch for batch in images if len(batch) > 1), teacher)
