"""One training step of every stage, in a plain form and in the default one, and the machine's peak.

    python training.py                                   all stages, 256 pixels, batch 4
    python training.py --models teacher_t1_unet kd_t1_s1 --rounds 9
    python training.py --size 128 --batch-size 16 --device cuda
    python training.py --no-amp                          as on hardware without bf16

*Plain* is what one would write first: float32, channels first, and in a distillation the whole
teacher, reconstruction decoder and all. *Default* is what train.py does: bf16 autocast where the
hardware computes it, channels last, a teacher without the decoder that nobody asks for, its
BatchNorm folded into its convolutions. The two take turns, so that a busy machine slows both;
medians over the rounds. Random images: nothing is loaded.

The share of the peak is the step's floating-point operations (convolutions and matrix products,
counted by PyTorch) a second, over those of a large matrix product or a wide convolution, whichever
is faster, in bf16 (default) or float32 (plain), measured in the same run. Writes
results/benchmarks/training.json.
"""

import copy
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401  how threads wait is settled before torch is imported

# isort: split
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import config as base
from common.config import launch, option
from common.device import autocast, half_type, layout, pick_device
from common.files import ROOT, shown, write_json
from common.losses.distillation import Distiller
from common.losses.segmentation import MultiTaskObjective, SegmentationObjective
from common.models import unet
from common.models.transunet import teacher_t2
from common.settings import DistillationConfig
from common.study.arms import PAIRS, STAGES, STUDENTS
from common.study.tables import markdown

NETWORKS = {"teacher_t1_unet": unet.teacher_t1, "teacher_t2_transunet": teacher_t2}
NETWORKS |= {name: getattr(unet, name) for name in STUDENTS}  # functions of their stages' names


@dataclass
class Config(base.Config):
    """What to measure."""

    models: tuple[str, ...] = option(STAGES, "stages", choices=STAGES, least=1)
    size: int = option(256, "height and width of the images", low=16)
    batch_size: int = option(4, "images a step", low=1)
    rounds: int = option(5, "measured steps of each form, after one to warm up", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: bool = option(True, "16-bit autocast in the default form, where the hardware has it")
    output: Path = option(ROOT / "results/benchmarks/training.json", "JSON file to write")


class Whole(nn.Module):
    """A teacher that computes its reconstruction whether it is asked to or not."""

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher = teacher

    def forward(self, images, reconstruct=True):
        """All outputs."""
        return self.teacher(images)


class Step:
    """A stage's training step in one of the two forms."""

    def __init__(self, stage: str, plain: bool, config: Config, device: torch.device):
        self.device, self.amp = device, config.amp and not plain
        torch.manual_seed(0)
        order = layout(not plain)
        self.objective = objective_of(stage, plain, config.size, device, order)
        self.objective.to(device, memory_format=order).train()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.objective.parameters() if p.requires_grad], 1e-3, fused=not plain
        )
        images = torch.rand(config.batch_size, 1, config.size, config.size, device=device)
        middle = slice(config.size // 4, config.size // 2)
        mask = torch.zeros(images.shape[0], config.size, config.size, dtype=torch.long)
        mask[:, middle, middle] = 1
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=order)
        self.batch = {"image": images, "mask": mask.to(device)}

    def __call__(self) -> None:
        """Forward, backward, update."""
        with autocast(self.device, self.amp):
            losses = self.objective(self.batch)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()

    def operations(self) -> int:
        """Floating-point operations of one step."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def objective_of(stage: str, plain: bool, size: int, device, order) -> nn.Module:
    """What the stage's train.py optimises, with random weights."""
    if stage not in PAIRS:
        network = NETWORKS[stage]()
        teaches = stage.startswith("teacher")
        return MultiTaskObjective(network) if teaches else SegmentationObjective(network)
    teacher, student = (NETWORKS[name]() for name in PAIRS[stage])
    teacher.to(device, memory_format=order)
    whole = copy.deepcopy(teacher).eval().requires_grad_(False) if plain else None
    objective = Distiller(student.to(device), teacher, size, DistillationConfig())
    if plain:
        objective._teacher = (Whole(whole),)  # the Distiller has folded its own
    return objective


def seconds(work, device: torch.device) -> float:
    """How long `work()` takes."""
    wait = torch.cuda.synchronize if device.type == "cuda" else nullcontext
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def alone(work: Callable, *arguments):
    """What `work(*arguments)` returns in a process of its own, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def peak_memory(device: torch.device) -> float:
    """Largest memory so far, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second that the device reaches, at the best of seven tries.

    Of a large matrix product and of a 3x3 convolution of 256 channels: neither is the faster one
    on every processor.
    """
    n, side = (8192, 128) if device.type == "cuda" else (2048, 32)
    a, b = (torch.rand(n, n, dtype=dtype, device=device) for _ in range(2))
    order = {"dtype": dtype, "device": device}
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False, **order)
    images = torch.rand(4, 256, side, side, **order)
    convolution.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product = min(seconds(lambda: a @ b, device) for _ in range(7))
        convolved = min(seconds(lambda: convolution(images), device) for _ in range(7))
    return max(2 * n**3 / product, 2 * 9 * 256**2 * images[:, 0].numel() / convolved)


def measure(stage: str, config: Config, device: torch.device) -> dict:
    """Medians of one stage's step in both forms, taking turns."""
    steps = {"plain": Step(stage, True, config, device)}
    steps["default"] = Step(stage, False, config, device)
    operations = {form: step.operations() for form, step in steps.items()}  # warms up, too
    times = {form: [] for form in steps}
    for _ in range(config.rounds):
        for form, step in steps.items():
            times[form].append(seconds(step, device))
    medians = {form: float(np.median(taken)) for form, taken in times.items()}
    ratios = np.divide(times["plain"], times["default"])
    return {
        "stage": stage,
        **{f"{form}_ms_an_image": 1000 * t / config.batch_size for form, t in medians.items()},
        "images_a_second": config.batch_size / medians["default"],
        "speed_up": float(np.median(ratios)),
        "speed_up_low": float(ratios.min()),
        "speed_up_high": float(ratios.max()),
        **{f"{form}_flops": operations[form] / medians[form] for form in steps},
    }


def machine(device: torch.device) -> dict:
    """What a table's figures were measured on; printed, too."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def main(config: Config) -> None:
    """Measure all stages, print a table, write the JSON."""
    device = pick_device(config.device)
    half = half_type(device) if config.amp else None
    about = machine(device)
    peaks = {"plain": peak(torch.float32, device)}
    peaks["default"] = peak(half, device) if half else peaks["plain"]
    print(
        f"at best {peaks['plain'] / 1e12:.2f} TFLOP/s float32, "
        + (f"{peaks['default'] / 1e12:.2f} {half}" if half else "no 16-bit format")
    )
    results, rows = [], []
    for stage in config.models:
        result = measure(stage, config, device)
        for form, top in peaks.items():
            result[f"{form}_share_of_peak"] = result[f"{form}_flops"] / top
        results.append(result)
        rows.append(
            {
                "stage": stage,
                "plain, ms an image": f"{result['plain_ms_an_image']:.1f}",
                "default": f"{result['default_ms_an_image']:.1f}",
                "images a second": f"{result['images_a_second']:.1f}",
                "speed-up": f"{result['speed_up']:.1f} ({result['speed_up_low']:.1f} to "
                f"{result['speed_up_high']:.1f})",
                "of the peak (plain form)": f"{100 * result['default_share_of_peak']:.0f} % "
                f"({100 * result['plain_share_of_peak']:.0f} %)",
            }
        )
        print(f"{stage}: {rows[-1]['speed-up']}", flush=True)
    about |= {"size": config.size, "batch_size": config.batch_size, "rounds": config.rounds}
    write_json(config.output, {**about, "peak_flops": peaks, "stages": results})
    print(f"\n{markdown(rows)}\n-> {shown(config.output.resolve())}")


if __name__ == "__main__":
    launch(main, Config)
