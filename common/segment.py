"""Whole CT volumes through a trained model: masks in the files' own geometry, sheets, measures."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from common import figures
from common.device import autocast, to_device
from common.files import UserError, bullets, shown, write_json
from common.scores import number, overlap_scores
from common.settings import InferenceConfig
from common.surfaces import surface_scores
from common.trained import Trained, probabilities
from common.views import HU_WINDOW, axial_view, from_square, from_views, to_square, window
from common.volumes import Volume, is_dicom, read_volume, stem, write_volume

NIFTI = (".nii", ".nii.gz")
DICOM = (
    "DICOM is not read: convert the series with dcm2niix (https://github.com/rordenlab/dcm2niix) "
    "and name the .nii.gz."
)


class Job(NamedTuple):
    """One volume to segment: its file, where its mask goes, its true mask if there is one."""

    volume: Path
    mask: Path
    truth: Path | None

    def beside(self, ending: str) -> Path:
        """A file beside the mask, of the same name but for the ending."""
        return self.mask.with_name(stem(self.mask) + ending)


def segment(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """Segment `--volume`: masks as .nii.gz, and beside each a sheet (.png) and measures (.json).

    A file that cannot be used does not stop the others: UserError names all of them at the end.
    """
    low, high = hu_window(run, config)
    guess = "" if known_window(run, config) else " (a guess: see --hu-low, --hu-high)"
    jobs, problems = list_jobs(run, config), []
    print(f"epoch {run.checkpoint['epoch']}, HU {low:g} to {high:g}{guess}, on {run.device}")
    for job in jobs:
        try:
            print(_segment_one(model, run, config, job), flush=True)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{len(problems)} of {len(jobs)} volumes were not segmented:{bullets(problems, 200)}"
        )


def known_window(run: Trained, config: InferenceConfig) -> bool:
    """Whether flags or training say which HU are shown as 0 and 255."""
    return bool(run.checkpoint.get("window")) or None not in (config.hu_low, config.hu_high)


def hu_window(run: Trained, config: InferenceConfig) -> tuple[float, float]:
    """The HU shown as 0 and 255: the flags', else those of the slices that the run was trained on,
    else, of slices imported without them, the usual ones of the abdomen."""
    usual = run.checkpoint.get("window") or HU_WINDOW
    low = usual[0] if config.hu_low is None else config.hu_low
    high = usual[1] if config.hu_high is None else config.hu_high
    if low >= high:
        raise UserError(f"--hu-low {low:g} must be below --hu-high {high:g}.")
    return float(low), float(high)


def list_jobs(run: Trained, config: InferenceConfig) -> list[Job]:
    """What is to be segmented, and where to. UserError if there is nothing, if a true mask is
    missing, or if a mask would replace a volume or a true mask."""
    volumes, single = volume_files(config.volume), not config.volume.is_dir()
    folder = config.output or run.folder / "volumes"
    if folder.is_file() and not folder.name.endswith(NIFTI):
        raise UserError(f"--output {shown(folder)} is a file; name a folder or a .nii.gz.")
    if single and folder.name.endswith(NIFTI):
        masks = [folder]
    else:
        masks = [folder / f"{stem(v)}.nii.gz" for v in volumes]
    truths = [None] * len(volumes)
    if config.truth:
        if not single and not config.truth.is_dir():
            raise UserError("--truth must be a folder where --volume is one.")
        truths = [config.truth / v.name if config.truth.is_dir() else config.truth for v in volumes]
    given = {path.resolve() for path in (*volumes, *truths) if path}
    if lost := [mask for mask in masks if mask.resolve() in given]:
        raise UserError(f"The mask would replace {shown(lost[0])}; choose another --output.")
    if lost := [shown(path) for path in truths if path and not path.is_file()]:
        raise UserError(f"{len(lost)} true masks are missing:{bullets(lost)}")
    return [Job(*files) for files in zip(volumes, masks, truths, strict=True)]


def volume_files(path: Path) -> list[Path]:
    """The NIfTI file, or those in the folder, sorted. UserError if there is none."""
    if not path.exists():
        raise UserError(f"--volume {shown(path)} does not exist.")
    inside = [path] if path.is_file() else sorted(path.iterdir())
    files = [f for f in inside if f.name.endswith(NIFTI) and not f.name.startswith(".")]
    if not files:
        found = [f for f in (inside if path.is_file() else path.rglob("*")) if f.is_file()]
        hint = DICOM if any(map(is_dicom, found)) else ""
        raise UserError(f"{shown(path)} is, or holds, no .nii or .nii.gz. {hint}".strip())
    names = [stem(f) for f in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{shown(path)} holds {twice[0]} as .nii and as .nii.gz.")
    return files


def _segment_one(model: nn.Module, run: Trained, config: InferenceConfig, job: Job) -> str:
    """Segment one volume and write what belongs to it; a line that says what was found."""
    began = time.perf_counter()
    volume = read_volume(job.volume)
    if not np.isfinite(volume.voxels).all():
        raise UserError(f"{shown(job.volume)} holds NaN or infinite voxels.")
    truth = _read_truth(job.truth, volume) if job.truth else None
    mask = np.empty(volume.voxels.shape, np.uint8)
    maps = np.empty(volume.voxels.shape, np.float32) if config.probabilities else None
    for first, found in organ_maps(model, run, volume, config):
        part = slice(first, first + len(found))
        mask[..., part] = from_views((found > 0.5).to(torch.uint8).cpu().numpy())
        if maps is not None:
            maps[..., part] = from_views(found.cpu().numpy())
    if config.largest_component:
        mask = largest_component(mask)
    about = {
        "volume": job.volume.name,
        "stage": run.checkpoint["stage"],
        "run": run.folder.name,
        "weights": config.weights,
        "epoch": run.checkpoint["epoch"],
        "hu_window": hu_window(run, config),
        "largest_component": config.largest_component,
        "organ": run.checkpoint.get("organs", ["organ"])[0],
        "orientation": volume.stored_orientation,
        "shape": volume.stored_shape,
        "spacing_mm": [round(s, 6) for s in volume.spacing],
        **measures(mask, volume.spacing),
        "scores": None if truth is None else volume_scores(mask, truth, volume.spacing),
    }
    write_volume(job.mask, mask, volume)
    if maps is not None:
        write_volume(job.beside("_probability.nii.gz"), maps, volume)
    _draw_sheet(job.beside(".png"), volume, mask, truth, about)
    about["seconds"] = round(time.perf_counter() - began, 3)
    write_json(job.beside(".json"), about)
    return in_a_line(about, job)


def organ_maps(
    model: nn.Module, run: Trained, volume: Volume, config: InferenceConfig
) -> Iterator[tuple[int, Tensor]]:
    """The organ's probability in batches of axial views: first slice, float32 `(n, row, column)`.

    Every slice goes the way of `data_prep/slice_nifti.py` into its square, and its map the way back
    to the CT's own pixels, before anything is thresholded.
    """
    low, high = hu_window(run, config)
    spacing, shape = (volume.spacing[1], volume.spacing[0]), volume.voxels.shape[1::-1]
    count, size = volume.voxels.shape[2], run.checkpoint["size"]
    starts = range(0, count, config.batch_size)
    for first in tqdm(starts, desc="slices", disable=None, leave=False):
        views = (
            window(axial_view(volume.voxels, index), low, high)
            for index in range(first, min(first + config.batch_size, count))
        )
        squares = np.stack([to_square(view, spacing, size, mask=False) for view in views])
        batch = {"image": torch.from_numpy(squares)[:, None].float() / 255}
        batch = to_device(batch, run.device, config.channels_last)
        with torch.inference_mode(), autocast(run.device, config.bf16):
            logits = model(batch["image"], reconstruct=False).logits
        yield first, from_square(probabilities(logits), shape, spacing)[:, 0]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask whose voxels touch, by a face, an edge or a corner."""
    parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    if count < 2:
        return mask
    return (parts == np.bincount(parts.flat)[1:].argmax() + 1).astype(mask.dtype)


def measures(mask: np.ndarray, spacing: tuple[float, float, float]) -> dict:
    """Of a mask in canonical orientation, spacing in mm: slices, those with the organ, its volume
    in ml, and its craniocaudal length in mm, from its lowest slice to its highest."""
    present = np.flatnonzero(mask.any((0, 1)))
    return {
        "slices": mask.shape[2],
        "slices_with_organ": len(present),
        "volume_ml": float(np.count_nonzero(mask) * np.prod(spacing) / 1000),
        "length_mm": float((present[-1] - present[0] + 1) * spacing[2]) if len(present) else 0.0,
    }


def volume_scores(mask: np.ndarray, truth: np.ndarray, spacing: tuple) -> dict:
    """Overlap and surface scores of a mask in the CT's own voxels."""
    counts = (np.count_nonzero(a) for a in (mask * truth, mask, truth))
    return {**overlap_scores(*counts), **surface_scores(mask, truth, spacing)}


def _read_truth(path: Path, volume: Volume) -> np.ndarray:
    """A true mask as uint8 0 and 1. UserError if it is not of the volume's shape and affine."""
    truth = read_volume(path)
    shift = np.abs(truth.stored_affine - volume.stored_affine).max()
    if truth.stored_shape != volume.stored_shape or shift > 1e-3:
        raise UserError(f"{shown(path)} has another shape or affine than its volume.")
    return (truth.voxels > 0).astype(np.uint8)


def _draw_sheet(path: Path, volume: Volume, mask, truth, about: dict, panels: int = 12) -> None:
    """Evenly spaced slices from the organ's lowest to its highest, over all if there is none."""
    seen = mask if truth is None else mask | truth
    present = np.flatnonzero(seen.any((0, 1))) if seen.any() else np.arange(mask.shape[2])
    chosen = np.linspace(present[0], present[-1], min(panels, len(present))).round().astype(int)
    rows = []
    for index in sorted({*chosen.tolist()}):
        view = window(axial_view(volume.voxels, index), *about["hu_window"])
        true = None if truth is None else axial_view(truth, index)
        rows.append((f"slice {index}", view, axial_view(mask, index), true))
    aspect = volume.spacing[1] / volume.spacing[0]
    figures.sheet(path, in_words(about), rows, aspect)


def in_words(about: dict) -> str:
    """`spleen_8: spleen 115.8 ml, 98 mm long, in 12 of 32 slices`, and the scores if there are."""
    text = (
        f"{about['volume']}: {about['organ']} {about['volume_ml']:.1f} ml, "
        f"{about['length_mm']:.0f} mm long, in {about['slices_with_organ']} of {about['slices']} "
        "slices"
    )
    if scores := about["scores"]:
        text += f"; Dice {number(scores['dice'])}, HD95 {number(scores['hd95_mm'])} mm"
    return text


def in_a_line(about: dict, job: Job) -> str:
    """What was found, how long it took, and where it is."""
    return f"{in_words(about)}  ({about['seconds']:.1f} s) -> {shown(job.mask)}"
