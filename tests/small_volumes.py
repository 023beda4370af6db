"""Small CT volumes, and a run whose network finds what is bright in them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from common.inference.segment_volumes import segment
from common.inference.trained_run import Trained
from common.models.unet import Output
from common.settings import InferenceConfig

SIZE = 32


class Bright(nn.Module):
    """A network that finds what is brighter than 60 HU in the usual window."""

    def forward(self, image, reconstruct=True):
        logits = (image[:, :1] * 400 - 160 - 60) * 10
        return Output(logits, features={}, reconstruction=None)


@pytest.fixture
def trained(tmp_path):
    about = {
        "stage": "student_s1",
        "epoch": 3,
        "num_classes": 1,
        "size": SIZE,
        "classes": ["spleen"],
    }
    folder = tmp_path / "student_s1" / "runs" / "a"
    content = {**about, "window": [-160, 240]}
    return Trained(folder, folder / "best.pt", content, torch.device("cpu"))


def ct(shape=(SIZE, SIZE, 9), seed=0):
    """Fat, and a class of 100 HU: a brick from slice 2 to 6, with two single bright voxels."""
    voxels = np.full(shape, -100, np.int16)
    voxels[4:14, 6:20, 2:7] = 100
    voxels[25, 25, 8] = voxels[28, 4, 0] = 150
    return voxels


def save(path, voxels, codes="RAS", affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([0.8, 0.8, 2.5, 1]) if affine is None else affine)
    start, end = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    image.header["descrip"] = b"from the scanner"
    nib.save(image, path)
    return path


def go(trained, volume, **settings):
    settings = {"amp": False, "batch_size": 4, **settings}
    segment(Bright(), trained, InferenceConfig(volume=volume, device="cpu", **settings))
    return trained.folder / "volumes"


def body(seed=0, shape=(16, 16, 6)):
    """A body of 40 HU in air, with noise that makes each patient's image its own."""
    voxels = np.full(shape, -1000.0)
    voxels[2:-2, 2:-2] = 40
    voxels += np.random.default_rng(seed).normal(0, 5, shape)
    return voxels.astype(np.int16)


def spleen(shape=(16, 16, 6), left=True):
    """A spleen on the patient's left: canonical x grows to the right."""
    mask = np.zeros(shape, np.uint8)
    mask[slice(3, 6) if left else slice(10, 13), 4:8, 2:4] = 1
    return mask
