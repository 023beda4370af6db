"""Where an epoch's time goes: loading, steps, validation, saving; and its peak of memory.

    python epoch.py                                        T1, S1, KD(T1,S1), 64 phantom slices
    python epoch.py --models student_s1 --workers 0 1 2
    python epoch.py --operations 8                         and the operations that take the time

One epoch of the engine's own loop in batches of 16, after one to warm up, in three forms that take
turns: on batches that lie in memory, ready (*steps*: what no loader can beat), from slices decoded
in memory, augmented (*epoch*, with each number of loader processes), and from the PNG files, as
where a data set is larger than --cache-mb (*cold*). Random weights. Every stage is measured in a
process of its own, whose largest memory is that of the epoch, weights and optimizer among it.
Writes results/benchmarks/epoch.json.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401  how threads wait is settled before torch is imported

# isort: split
import numpy as np
import torch
from torch.optim.lr_scheduler import ConstantLR
from training import alone, machine, objective_of, peak_memory, seconds

from common import config as base
from common.config import launch, option
from common.dataset.loading import SliceDataset, TrainSampler, loader
from common.device import layout, loader_workers, pick_device
from common.files import ROOT, shown, write_json
from common.settings import StudentConfig, TeacherConfig
from common.study.arms import STAGES
from common.study.tables import markdown
from common.training.engine import adamw, evaluate, train_one_epoch
from common.training.runs import Run, save_epoch, start


@dataclass
class Config(base.Config):
    """What to measure."""

    models: tuple[str, ...] = option(
        ("teacher_t1_unet", "student_s1", "kd_t1_s1"), "stages", choices=STAGES, least=1
    )
    size: int = option(256, "height and width of the slices", low=16)
    batch_size: int = option(16, "slices a batch", low=1)
    slices: int = option(64, "slices of an epoch, at most", low=1)
    workers: tuple[int, ...] = option(
        (-1,), "loader processes; -1: train.py's default", low=-1, least=1
    )
    rounds: int = option(3, "epochs of each form, after one to warm up", low=1)
    operations: int = option(0, "how many of PyTorch's slowest operations to list", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    output: Path = option(ROOT / "results/benchmarks/epoch.json", "JSON file to write")


class Held(list):
    """Batches that lie in memory, in a DataLoader's place."""

    num_workers = 0

    def __init__(self, batches):
        super().__init__(batches)
        self.sampler = batches.sampler


def phantom(home: Path, config: Config) -> Path:
    """A data set of phantom slices, made by data_prep's own scripts; its folder."""
    patients = max(6, config.slices // 12)
    for script, flags in (
        ("make_phantom.py", ("--output", home / "volumes", "--patients", patients)),
        ("slice_nifti.py", ("--input", home / "volumes", "--output", home / "slices")),
    ):
        command = [sys.executable, ROOT / "data_prep" / script, *flags]
        command += ["--size", config.size]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return home / "slices"


def forms(run: Run, settings, config: Config) -> dict:
    """The sources of an epoch's batches, by name."""
    slices = run.train.slices[: config.slices]
    warm = SliceDataset(run.data, slices)
    draws = TrainSampler(slices, settings.foreground_fraction, settings.augment, seed=0)
    loaders = {"steps": Held(loader(warm, config.batch_size, draws))}
    pin = run.device.type == "cuda"
    for wanted in config.workers:
        workers = loader_workers(wanted, run.device)
        loaders[f"epoch {workers}"] = loader(warm, config.batch_size, draws, workers, pin)
    cold = SliceDataset(run.data, slices, cache_mb=0)
    loaders["cold"] = loader(cold, config.batch_size, draws, workers, pin)
    return loaders


def slowest(epoch: Callable[[], dict], count: int) -> dict[str, float]:
    """PyTorch's operations by their share of the time on the device, in an epoch."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    where = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        where = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profile:
        epoch()
    totals = {event.key: getattr(event, where) for event in profile.key_averages()}
    total = sum(totals.values())
    first = sorted(totals, key=totals.get, reverse=True)[:count]
    return {name: totals[name] / total for name in first}


def measure(stage: str, data: Path, config: Config) -> dict:
    """One stage's seconds and memory. In a process of its own."""
    kind = TeacherConfig if stage.startswith("teacher") else StudentConfig
    settings = kind(
        data=data,
        device=config.device,
        batch_size=config.batch_size,
        foreground_fraction=0.5,
        train_on="train",
    )
    run = start(settings, str(data.parent / stage / "train.py"), "train")
    order = layout(settings.channels_last)
    objective = objective_of(stage, False, config.size, run.device, order)
    objective.to(run.device, memory_format=order)
    optimizer = adamw(objective, settings)
    schedule = ConstantLR(optimizer)

    def epoch(batches) -> dict:
        return train_one_epoch(objective, batches, optimizer, schedule, run, settings)

    sources = forms(run, settings, config)
    times = {name: [] for name in sources}
    for turn in range(1 + config.rounds):
        for name, batches in sources.items():
            taken = seconds(lambda batches=batches: epoch(batches), run.device)
            if turn:
                times[name].append(taken)
    count = len(sources["steps"].sampler)
    result = {"stage": stage, "slices": count, "peak_memory_mb": peak_memory(run.device)}
    medians = {name: float(np.median(each)) for name, each in times.items()}
    ratios = {name: np.divide(times[name], times["steps"]) for name in times}
    result |= {f"{name}_slices_a_second": count / taken for name, taken in medians.items()}
    result |= {f"{name}_over_steps": float(np.median(r)) for name, r in ratios.items()}
    took = seconds(lambda: evaluate(objective.model, run.val, run, settings), run.device)
    result["validation_slices_a_second"] = len(run.val) / took
    log = [{"epoch": 1, "val_dice": 0.0}]
    run.folder.mkdir(parents=True, exist_ok=True)
    result["saving_seconds"] = seconds(
        lambda: save_epoch(objective, optimizer, run, settings, log, is_best=True), run.device
    )
    if config.operations:
        result["operations"] = slowest(lambda: epoch(sources["steps"]), config.operations)
    return result


def row_of(result: dict) -> dict[str, str]:
    """A stage's row of the table."""
    row = {"stage": result["stage"], "steps, slices/s": f"{result['steps_slices_a_second']:.1f}"}
    for key, value in result.items():
        if key.endswith("_over_steps") and key != "steps_over_steps":
            name = key.removesuffix("_over_steps")
            label = f"{name} processes" if name != "cold" else name
            row[f"{label}, times the steps"] = f"{value:.2f}"
    return row | {
        "validation, slices/s": f"{result['validation_slices_a_second']:.0f}",
        "saving, s": f"{result['saving_seconds']:.2f}",
        "peak memory, MB": f"{result['peak_memory_mb']:.0f}",
    }


def main(config: Config) -> None:
    """Measure each stage in a process of its own, print a table, write the JSON."""
    device = pick_device(config.device)
    about, results = machine(device), []
    with tempfile.TemporaryDirectory() as home:
        data = phantom(Path(home), config)
        for stage in config.models:
            results.append(alone(measure, stage, data, config))
    about |= {"size": config.size, "batch_size": config.batch_size, "rounds": config.rounds}
    write_json(config.output, {**about, "stages": results})
    print(f"\n{markdown([row_of(result) for result in results])}")
    for result in results:
        for operation, share in result.get("operations", {}).items():
            print(f"{result['stage']}: {100 * share:4.1f} % {operation}")
    print(f"-> {shown(config.output.resolve())}")


if __name__ == "__main__":
    launch(main, Config)
