"""ONNX, compared with PyTorch."""

import sys

import numpy as np
import onnxruntime
import pytest
import torch

from common.device import fuse
from common.errors import UserError
from common.inference import export as module
from common.inference.export import export
from common.inference.trained_run import Trained
from common.models.unet import student_s1
from common.settings import InferenceConfig


@pytest.fixture(scope="module")
def student():
    """S1 with statistics of its own, ready to predict."""
    torch.manual_seed(0)
    model = student_s1()
    for _ in range(3):
        model(torch.rand(4, 3, 32, 32))
    return model.eval().requires_grad_(False)


def trained(tmp_path):
    about = {"size": 32, "num_classes": 1}
    return Trained(tmp_path, tmp_path / "best.pt", about, torch.device("cpu"))


def test_no_file_of_another_kind_is_replaced(student, tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"best.pt: name a file that ends in .onnx"):
        export(student, trained(tmp_path), path)
    assert path.read_bytes() == b"weights"


def test_onnxruntime_gives_what_pytorch_gives_for_any_number_of_images(student, tmp_path):
    expected = {n: torch.rand(n, 3, 32, 32) for n in (1, 5)}
    probabilities = {n: student(images).logits.sigmoid() for n, images in expected.items()}
    fuse(student)
    student.to(memory_format=torch.channels_last)
    export(student, trained(tmp_path), tmp_path / "s1.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "s1.onnx")
    for n, images in expected.items():
        (found,) = session.run(["probability"], {"image": images.numpy()})
        assert found.shape == (n, 1, 32, 32)
        assert np.abs(found - probabilities[n].numpy()).max() < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["s1.onnx"]


def test_what_differs_is_not_kept(student, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", -1)
    with pytest.raises(UserError, match="differs by .* from PyTorch; not kept"):
        export(student, trained(tmp_path), tmp_path / "s1.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed; pip install"):
        export(student, trained(tmp_path), tmp_path / "s1.onnx")


def test_flags_that_do_not_go_with_it(tmp_path):
    with pytest.raises(UserError, match="exclude each other"):
        InferenceConfig(export=tmp_path / "a", volume=tmp_path)
    for flags in ({"probabilities": True}, {"subset": "val"}):
        with pytest.raises(UserError, match="no effect with --export"):
            InferenceConfig(export=tmp_path / "a", **flags)
