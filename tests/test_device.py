"""The hardware: the device that is asked for, and float16 where there is no bfloat16."""

import pytest
import torch
from conftest import Infinite
from small_trainings import Config, Stopped, build, stop_after, train
from torch.cuda._utils import _get_device_index

from common import device as hardware
from common.device import autocast, grad_scaler, half_type, number_format, pick_device
from common.errors import UserError
from common.files import read_csv
from common.training.engine import fit
from common.training.runs import start

NAMES = ("half", "full")


def test_devices():
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="--device cpu:3 is not supported"):
        pick_device("cpu:3")
    with pytest.raises(UserError, match="unknown"):
        pick_device("gpu")
    with pytest.raises(UserError, match="not supported"):
        pick_device("mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            pick_device("cuda")
    assert half_type(torch.device("cpu")) in (None, torch.bfloat16)


@pytest.fixture
def two_gpus(monkeypatch):
    """What PyTorch is told on a machine with two of them; the current one is put down."""
    told = {"current": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: told["current"])

    def set_device(index):
        told["current"] = _get_device_index(index)  # as PyTorch's: "cuda" alone is refused

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    flags = (torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")
    before = [(*flag, getattr(*flag)) for flag in flags]
    yield told
    for flag in before:
        setattr(*flag)


def test_the_gpu_that_is_named_becomes_the_current_one(two_gpus):
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1) and two_gpus["current"] == 1
    assert pick_device("cuda") == torch.device("cuda", 1)  # the current one, as under torchrun
    assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    pick_device("cuda:0", deterministic=True)
    assert two_gpus["current"] == 0 and not torch.backends.cudnn.benchmark
    with pytest.raises(UserError, match="cuda:2: PyTorch sees 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("bf16", "half"), [(True, torch.bfloat16), (False, torch.float16)], ids=["A100", "T4"]
)
def test_a_gpu_without_bfloat16_computes_in_float16(monkeypatch, bf16, half):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    gpu = torch.device("cuda")
    assert half_type(gpu) is half and number_format(gpu, True) == str(half).split(".")[1]
    assert number_format(gpu, False) == "float32"


@pytest.fixture
def float16(monkeypatch):
    """A CPU that computes as a GPU without bfloat16 does."""
    monkeypatch.setattr(hardware, "half_type", lambda device: torch.float16)


def test_only_float16_is_scaled(float16):
    cpu = torch.device("cpu")
    assert grad_scaler(cpu, True).is_enabled() and not grad_scaler(cpu, False).is_enabled()
    with autocast(cpu, True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float16


def test_float16_trains_as_float32_does_and_resumes_to_the_bit(float16, slices, stage, monkeypatch):
    _, half = train(stage, slices, name="half", epochs=3)
    train(stage, slices, name="full", epochs=3, amp=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(stage, slices, name="parts", epochs=3)
    _, resumed = train(stage, slices, name="parts", epochs=3, resume=True)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in half.state_dict().items())
    runs = stage.parent / "runs"
    losses = [[float(row["segmentation"]) for row in read_csv(runs / n / "log.csv")] for n in NAMES]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    states = [torch.load(runs / n / "last.pt", weights_only=True) for n in ("half", "parts")]
    assert states[0]["scaler"] == states[1]["scaler"] and states[0]["scaler"]["scale"] >= 1
    assert not torch.load(runs / "full" / "last.pt", weights_only=True)["scaler"]


def test_a_step_that_overflows_is_left_out_and_one_that_never_fits_is_an_error(
    float16, slices, stage
):
    config = Config(data=slices, epochs=1, batch_size=8, device="cpu")
    run = start(config, str(stage), config.train_on)
    objective, calls = build("student", run), []
    honest = objective.forward

    def once(batch):
        calls.append(batch)
        losses = honest(batch)
        return (
            {"segmentation": Infinite.apply(losses["segmentation"])} if len(calls) == 1 else losses
        )

    objective.forward = once
    fit(objective, run, config)  # half the scale, one step less, and on
    assert run.scaler.get_scale() == 2.0**11
    objective.forward = lambda batch: {
        "segmentation": Infinite.apply(honest(batch)["segmentation"])
    }
    config = Config(data=slices, epochs=9, batch_size=2, device="cpu", name="never")
    run = start(config, str(stage), config.train_on)
    with pytest.raises(UserError, match="the gradient is not finite.*train with --no-amp"):
        fit(objective, run, config)
