"""What a teacher restores of images with hidden patches: written, and scored next to its input."""

import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.dataset.loading import seeded
from common.dataset.slices import SliceSet, read_image
from common.device import layout
from common.evaluation import figures
from common.files import read_json, shown, write_json
from common.inference.trained_run import Trained, forward
from common.losses.segmentation import hide_patches
from common.settings import InferenceConfig


def mse(image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error per image of `(N, c, H, W)` in 0..1 -> `(N,)`."""
    return (image - reference).square().mean((1, 2, 3))


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1, per image; equal images give 100."""
    return -10 * mse(image, reference).clamp(min=1e-10).log10()


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity per image of `(N, c, H, W)` in 0..1 (Wang et al., 2004) -> `(N,)`.

    The paper's form: an 11x11 Gaussian window (sigma 1.5), constants 0.01 and 0.03, averaged over
    all positions where the window lies inside the image.
    """
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    bell = torch.exp(-(offsets**2) / (2 * 1.5**2))
    bell = (bell / bell.sum()).to(image)
    channels = image.shape[1]

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(image), blur(reference)
    var_a = blur(image * image) - mean_a**2
    var_b = blur(reference * reference) - mean_b**2
    covariance = blur(image * reference) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return (top / bottom).mean((1, 2, 3))


def hidden_input(images: Tensor, names: list[str], share: float) -> Tensor:
    """Images `(N, c, H, W)` with patches hidden as in training, seeded by the slices' names."""
    parts = []
    for image, name in zip(images, names, strict=True):
        with seeded(zlib.crc32(name.encode())):
            parts.append(hide_patches(image[None].cpu(), share))
    return torch.cat(parts).to(images.device)


def write_reconstructions(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """What the model restores from images with patches hidden as in training.

    A whole image would be reconstructed almost perfectly, through the skips, which shows nothing.
    """
    folder, share = run.folder / "reconstructions", run.setting("mask_ratio")

    def change(batch: dict) -> Tensor:
        hidden = hidden_input(batch["image"], batch["name"], share)
        return hidden.contiguous(memory_format=layout(config.channels_last))

    for batch, output in forward(model, run, run.slices, config, reconstruct=True, change=change):
        grey = output.reconstruction.float().mean(1).clamp(0, 1)
        pixels = (grey * 255).round().to(torch.uint8).cpu().numpy()
        for name, picture in zip(batch["name"], pixels, strict=True):
            figures.save_picture(folder / f"{name}.png", picture)
    print(f"{len(run.slices)} reconstructions -> {shown(folder)}")


def score_reconstructions(folder: Path, data: SliceSet) -> str:
    """MSE, PSNR and SSIM of reconstructions/ and of its hidden input, added to summary.json.

    Means over the slices of inference.json, as one line per kind. UserError naming a slice whose
    reconstruction is missing; a line that says so if there are none.
    """
    done = read_json(folder / "inference.json", "Run inference.py first.")
    if done["mask_ratio"] is None:
        return "no reconstructions: they were switched off, or this teacher learned none"
    rows = {"reconstruction": [], "hidden input": []}
    for name in (s.name for s in data.of(done["cases"])):
        image, restored = (
            torch.from_numpy(read_image(parent / f"{name}.png"))[None, None] / 255
            for parent in (data.folder / "images", folder / "reconstructions")
        )
        given = hidden_input(image, [name], done["mask_ratio"])
        for kind, other in zip(rows, (restored, given), strict=True):
            rows[kind].append([float(f(other, image)) for f in (mse, psnr, ssim)])
    means = {kind: np.mean(values, axis=0).tolist() for kind, values in rows.items()}
    names = ("mse", "psnr_db", "ssim")
    scores = {kind: dict(zip(names, values, strict=True)) for kind, values in means.items()}
    write_json(folder / "summary.json", {**read_json(folder / "summary.json"), **scores})
    return "\n".join(
        f"{kind:<15} MSE {values[0]:.5f}  PSNR {values[1]:.1f} dB  SSIM {values[2]:.3f}"
        for kind, values in means.items()
    )
