"""Trainings of seconds: networks, objectives and batches that several test files use."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.files import read_csv
from common.inference.predict_slices import predict
from common.inference.trained_run import open_run, ready
from common.losses.distillation import Distiller
from common.losses.segmentation import MultiTaskObjective, SegmentationObjective
from common.models.unet import Output, student_s1, teacher_t1
from common.settings import DistillationConfig, InferenceConfig, StudentConfig
from common.training.engine import fit
from common.training.runs import start
from common.training.teachers import add_unlabelled


def batch_of(count, size=32):
    mask = torch.zeros(count, size, size, dtype=torch.long)
    mask[:, 8:20, 10:22] = 1
    mask[count // 2 :] = 0  # some slices have no class
    mask[0, 8:20, 10:22] = 1
    return {"image": torch.rand(count, 3, size, size), "mask": mask}


@dataclass
class Config(DistillationConfig):
    pass


def build(kind, run):
    torch.manual_seed(0)
    if kind == "teacher":
        return MultiTaskObjective(teacher_t1(width=4))
    student = student_s1()
    if kind == "student":
        return SegmentationObjective(student)
    torch.manual_seed(1)
    config = DistillationConfig()
    return Distiller(student, teacher_t1(width=4), run.size, config)


def train(stage, slices, kind="student", **changes):
    settings = {"epochs": 4, "batch_size": 8, "device": "cpu"}
    config = Config(data=slices, **{**settings, **changes})
    run = start(config, str(stage), config.train_on)
    add_unlabelled(run, config)
    objective = build(kind, run)
    fit(objective, run, config)
    return run, objective


class Stopped(Exception):
    pass


def stop_after(monkeypatch, epoch):
    """Let `fit` die right after it has saved an epoch."""
    from common.training import engine

    save = engine.save_epoch

    def save_and_die(objective, optimizer, run, config, log, is_best):
        save(objective, optimizer, run, config, log, is_best)
        if len(log) == epoch:
            raise Stopped

    monkeypatch.setattr(engine, "save_epoch", save_and_die)


@dataclass
class PlainConfig(StudentConfig):
    pass


class Plain(nn.Module):
    """A small network without BatchNorm: of it a batch is the sum of its parts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 1, 1))

    def forward(self, image, reconstruct=True):
        return Output(self.body(image), {}, None)


def train_plain(stage, slices, name, **settings):
    torch.manual_seed(0)
    config = PlainConfig(data=slices, name=name, epochs=2, device="cpu", amp=False, **settings)
    run = start(config, str(stage), "student")
    objective = SegmentationObjective(Plain())
    fit(objective, run, config)
    return objective.state_dict(), read_csv(run.folder / "log.csv")


@pytest.fixture
def finished(stage, slices):
    """A finished short training of S1."""
    torch.manual_seed(0)
    config = PlainConfig(data=slices, epochs=2, batch_size=8, device="cpu", lr=1e-2, amp=False)
    run = start(config, str(stage), "student")
    fit(SegmentationObjective(student_s1()), run, config)
    return stage, slices


def masks_of(stage, **settings):
    config = InferenceConfig(device="cpu", **settings)
    run = open_run(config, str(stage))
    predict(ready(student_s1(), run, config), run, config)
    folder = run.folder / "predictions"
    return {p.stem: np.asarray(Image.open(p)) for p in sorted(folder.iterdir())}
