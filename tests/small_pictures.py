"""New pictures, and a run whose network finds what is bright in them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.dataset.pictures import load, to_grey
from common.inference.predict_pictures import predict_pictures
from common.inference.trained_run import Trained
from common.models.unet import Output
from common.settings import InferenceConfig

SIZE = 32


class Bright(nn.Module):
    """A network that finds what is brighter than 128, and a second class above 200."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, image, reconstruct=True):
        grey = image[:, :1] * 255
        if self.classes == 1:
            return Output((grey - 128) * 5, features={}, reconstruction=None)
        first = 100 - (grey - 164).abs() * 100 / 36
        logits = torch.cat([torch.zeros_like(grey), first, (grey - 200) * 5], 1)
        return Output(logits, features={}, reconstruction=None)


@pytest.fixture
def trained(tmp_path):
    """A run of one class, whose folder is the test's own."""
    return run_of(tmp_path, ["polyp"])


def run_of(tmp_path, classes, **more):
    about = {"stage": "student_s1", "epoch": 3, "size": SIZE, "classes": classes, **more}
    about["num_classes"] = 1 if len(classes) == 1 else len(classes) + 1
    folder = tmp_path / "student_s1" / "runs" / "a"
    return Trained(folder, folder / "best.pt", about, torch.device("cpu"))


def go(trained, images, **settings):
    config = InferenceConfig(images=images, device="cpu", **{"batch_size": 2, **settings})
    predict_pictures(Bright(len(trained.classes)), trained, config)
    return config.output or trained.folder / "pictures"


def blob(shape=(SIZE, SIZE), value=180):
    """Dark, with a bright block in the second quarter of rows and columns."""
    pixels = np.full(shape, 40, np.uint8)
    pixels[block(shape)] = value
    return pixels


def block(shape):
    return tuple(slice(n // 4, max(n // 2, n // 4 + 1)) for n in shape)


def put(path, pixels, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **keywords)
    return path


def read_grey(path):
    return to_grey(load(path).image, path)


def values(path):
    with Image.open(path) as picture:
        return np.asarray(picture)
