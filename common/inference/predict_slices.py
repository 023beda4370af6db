"""Apply a trained model to slices: masks, probability maps, overlays."""

import shutil
import time

import numpy as np
import torch
from torch import Tensor, nn

from common.dataset.slices import mask_picture
from common.device import autocast, layout
from common.evaluation import embedding, figures
from common.files import shown, write_json
from common.inference.export import export
from common.inference.predict_pictures import predict_pictures
from common.inference.reconstruction import write_reconstructions
from common.inference.segment_volumes import segment
from common.inference.trained_run import Trained, forward, in_16_bits
from common.models.unet import predicted, probabilities
from common.settings import InferenceConfig
from common.training.runs import STALE


def predict(
    model: nn.Module, run: Trained, config: InferenceConfig, reconstructions: bool = False
) -> None:
    """Write predictions/, overlays/ and features.npz, on request probabilities/, reconstructions/.

    With `--volume` whole CT volumes instead (`segment_volumes`), with `--images` new pictures
    (`predict_pictures`), with `--export` ONNX. What an earlier inference wrote is removed first,
    and its scores. inference.json is written last, so its presence means inference finished.
    """
    if config.volume:
        segment(model, run, config)
    if config.images:
        predict_pictures(model, run, config)
    if config.export:
        export(model, run, config.export)
    if not config.of_slices:
        return
    for name in (*STALE, "features.npz"):  # the scores too, which belong to the removed masks
        (run.folder / name).unlink(missing_ok=True)
    for name in ("predictions", "probabilities", "overlays", "reconstructions"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    began = time.perf_counter()
    _write_masks(model, run, config)
    seconds = time.perf_counter() - began
    _write_features(model, run, config)
    _write_overlays(run, config.overlays)
    if reconstructions:
        write_reconstructions(model, run, config)
    about = {
        "data": str(run.data.folder),
        "subset": config.subset,
        "cases": run.cases,
        "classes": run.data.classes,
        "weights": config.weights,
        "epoch": run.checkpoint["epoch"],
        "parameters": run.checkpoint["parameters"],
        "mask_ratio": run.setting("mask_ratio") if reconstructions else None,
        "latency_ms": milliseconds(model, run, config),
        "seconds_per_slice": seconds / len(run.slices),
    }
    write_json(run.folder / "inference.json", about)
    patients = run.data.patients_of(run.cases)
    print(
        f"{len(run.slices)} masks of {len(patients)} patients ({config.subset}), epoch "
        f"{about['epoch']} -> {shown(run.folder / 'predictions')}\n"
        f"{1000 * about['seconds_per_slice']:.1f} ms a slice, files included; "
        f"{about['latency_ms']:.1f} ms a forward pass of one slice on {run.device}"
    )


@torch.inference_mode()
def milliseconds(model: nn.Module, run: Trained, config: InferenceConfig) -> float:
    """Shortest of 20 forward passes of one slice in ms, without files, after three to warm up.

    The shortest, because time lost to other processes is not the network's.
    """
    image = torch.zeros(1, 3, run.data.size, run.data.size, device=run.device)
    image, times = image.contiguous(memory_format=layout(config.channels_last)), []
    for _ in range(3 + 20):
        began = time.perf_counter()
        with autocast(run.device, config.amp):
            model(image, reconstruct=False)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        times.append(1000 * (time.perf_counter() - began))
    return min(times[3:])


def _write_masks(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """Mask PNGs in predictions/, and probability maps if asked for."""
    (run.folder / "predictions").mkdir(parents=True)
    shade = np.uint8(255 if run.num_classes == 1 else 1)
    colours = figures.legend(run.data.classes, run.data.colours)
    for batch, output in forward(model, run, run.slices, config):
        masks = predicted(output.logits).to(torch.uint8).cpu().numpy() * shade
        for name, mask in zip(batch["name"], masks, strict=True):
            # No atomic rename for each of thousands of files: inference.json vouches for them.
            path = run.folder / "predictions" / f"{name}.png"
            mask_picture(mask, colours).save(path, compress_level=1)
        if config.probabilities:
            _write_probabilities(run, batch["name"], output.logits)


def _write_features(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """features.npz: the last features at some pixels of up to 200 slices with foreground."""
    foreground = [s for s in run.slices if s.foreground]
    places = np.linspace(0, len(foreground) - 1, min(len(foreground), 200)).round().astype(int)
    slices, drawn = [foreground[i] for i in places], []
    for batch, output in forward(model, run, slices, config):
        batch["patient"] = [run.data.patients[case] for case in batch["case"]]
        drawn.append(embedding.draw(output.features["decoder"], batch))
    if pixels := embedding.join([part for part in drawn if part]):
        embedding.save(run.folder / "features.npz", pixels)


def _write_probabilities(run: Trained, names: list[str], logits: Tensor) -> None:
    """16-bit PNGs, 65535 = 1: one per slice, or one per slice and class (`_<class>`)."""
    for name, maps in zip(names, in_16_bits(probabilities(logits)), strict=True):
        for level, suffix in zip(maps, run.suffixes, strict=True):
            figures.save_picture(run.folder / "probabilities" / f"{name}{suffix}.png", level)


def _write_overlays(run: Trained, count: int) -> None:
    """Overlays of `count` slices (-1: all): what is found, and what is invented.

    Three quarters of them are slices with foreground, evenly spaced over the patients; the rest are
    slices without it in which the most is predicted.
    """
    false = {
        s: np.count_nonzero(run.data.prediction(run.folder, s))
        for s in run.slices
        if not s.foreground
    }
    worst = sorted((s for s in false if false[s]), key=false.get, reverse=True)
    slices = run.slices
    if count >= 0:
        worst = worst[: count // 4]
        foreground = [s for s in run.slices if s.foreground]
        places = np.linspace(
            0, max(0, len(foreground) - 1), min(len(foreground), count - len(worst))
        )
        slices = worst + [foreground[i] for i in sorted({*places.round().astype(int).tolist()})]
    colours = figures.legend(run.data.classes, run.data.colours)
    for s in slices:
        truth, mask = run.data.truth(s), run.data.prediction(run.folder, s)
        pixels = figures.panels(run.data.image(s), truth, mask, colours)
        figures.save_picture(run.folder / "overlays" / f"{s.name}.png", pixels)
