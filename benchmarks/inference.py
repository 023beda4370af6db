"""Inference of every network: latency, throughput, size; and of whole CT volumes, file to file.

    python inference.py                                  T1, T2, S1, S2 at 256 pixels
    python inference.py --size 512 --networks S1 T1 --device cuda
    python inference.py --volume ct.nii.gz               one CT with each, NIfTI in, NIfTI out

Networks have random weights: their speed does not depend on them. Forms: *plain* is float32,
channels first, BatchNorm apart; *default* is what inference.py does (bf16 autocast where the
hardware computes it, channels last, BatchNorm folded into the convolutions); *compiled* is that
under torch.compile, with `--compiled`. They take turns, so that a busy machine slows all; medians.
Writes results/benchmarks/inference.json.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401  how threads wait is settled before torch is imported

# isort: split
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import NETWORKS as BY_STAGE
from training import alone, machine, peak_memory

from common import config as base
from common.config import launch, option
from common.device import autocast, fuse, layout, pick_device
from common.files import ROOT, shown, write_json
from common.inference.segment_volumes import segment
from common.inference.trained_run import Trained
from common.settings import InferenceConfig
from common.study.arms import STUDENTS, TEACHERS
from common.study.tables import markdown

NETWORKS = {(TEACHERS | STUDENTS)[stage]: make for stage, make in BY_STAGE.items()}
BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass
class Config(base.Config):
    """What to measure."""

    networks: tuple[str, ...] = option((*NETWORKS,), "networks", choices=(*NETWORKS,), least=1)
    size: int = option(256, "height and width of the slices", low=16)
    batches: tuple[int, ...] = option(
        BATCHES, "batch sizes of which the fastest is sought", low=1, least=1
    )
    rounds: int = option(5, "measured passes of each form, after one to warm up", low=1)
    compiled: bool = option(False, "measure torch.compile, too")
    volume: Path | None = option(None, "a CT in NIfTI: seconds from file to file")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    output: Path = option(ROOT / "results/benchmarks/inference.json", "JSON file to write")


def forms_of(name: str, compiled: bool, device: torch.device) -> dict[str, nn.Module]:
    """A network in each form, ready."""
    forms = {}
    for form in ("plain", "default", *(["compiled"] if compiled else [])):
        torch.manual_seed(0)
        model = NETWORKS[name]().eval().requires_grad_(False)
        if form != "plain":
            fuse(model)
        model.to(device, memory_format=layout(form != "plain"))
        if form == "compiled":
            model.compile()
        forms[form] = model
    return forms


@torch.inference_mode()
def passes(form: str, model: nn.Module, images: torch.Tensor, device: torch.device) -> float:
    """Seconds of one forward pass without the reconstruction."""
    images = images.contiguous(memory_format=layout(form != "plain"))
    began = time.perf_counter()
    with autocast(device, wanted=form != "plain"):
        model(images, reconstruct=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(name: str, config: Config, device: torch.device) -> dict:
    """Latency of one slice and the best throughput, in each form."""
    forms = forms_of(name, config.compiled, device)
    plain = forms["plain"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(torch.zeros(1, 3, config.size, config.size, device=device), reconstruct=False)
    result = {
        "network": name,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }
    best = dict.fromkeys(forms, (0.0, 0))
    for batch in sorted({1, *config.batches}):
        images = torch.rand(batch, 3, config.size, config.size, device=device)
        times = {form: [] for form in forms}
        for turn in range(1 + config.rounds):
            for form, model in forms.items():
                taken = passes(form, model, images, device)
                if turn:
                    times[form].append(taken)
        medians = {form: float(np.median(seconds)) for form, seconds in times.items()}
        for form, median in medians.items():
            if batch == 1:
                result[f"{form}_ms"] = 1000 * median
            best[form] = max(best[form], (batch / median, batch))
    for form, (throughput, batch) in best.items():
        result |= {f"{form}_slices_a_second": throughput, f"{form}_batch": batch}
    return result


def whole_volume(name: str, config: Config, device: torch.device) -> dict:
    """From a NIfTI file to the mask's, sheet and measures written: seconds, memory. In a process of
    its own."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval().requires_grad_(False)
    fuse(model)
    model.to(device, memory_format=layout(True))
    with tempfile.TemporaryDirectory() as home:
        about = {"stage": name, "epoch": 0, "num_classes": 1, "size": config.size}
        about |= {"window": [-160, 240], "classes": ["spleen"]}
        run = Trained(Path(home), Path(home) / "best.pt", about, device)
        began = time.perf_counter()
        segment(model, run, InferenceConfig(volume=config.volume, device=config.device))
        taken = time.perf_counter() - began
    return {"volume_seconds": taken, "volume_peak_memory_mb": peak_memory(device)}


def main(config: Config) -> None:
    """Measure all networks, print a table, write the JSON."""
    device = pick_device(config.device)
    about, results, rows = machine(device), [], []
    for network in config.networks:
        result = measure(network, config, device)
        row = {
            "network": network,
            "parameters": f"{result['parameters']:,}",
            "GMAC": f"{result['multiply_adds'] / 1e9:.2f}",
        }
        for form in ("plain", "default", *(["compiled"] if config.compiled else [])):
            row[f"{form}, ms a slice"] = f"{result[f'{form}_ms']:.1f}"
            row[f"{form}, slices a second"] = (
                f"{result[f'{form}_slices_a_second']:.1f} (batch {result[f'{form}_batch']})"
            )
        if config.volume:
            result |= alone(whole_volume, network, config, device)
            row["NIfTI to NIfTI, s"] = f"{result['volume_seconds']:.1f}"
            row["its peak memory, MB"] = f"{result['volume_peak_memory_mb']:.0f}"
        results.append(result)
        rows.append(row)
    about |= {"size": config.size, "rounds": config.rounds}
    write_json(config.output, {**about, "networks": results})
    print(f"\n{markdown(rows)}\n-> {shown(config.output.resolve())}")


if __name__ == "__main__":
    launch(main, Config)
