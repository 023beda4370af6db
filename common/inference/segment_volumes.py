"""Apply a trained model to whole CT volumes: masks in the files' geometry, sheets, measures."""

import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from common.dataset.cases import problems_of, read_label
from common.dataset.checks import image_doubts, label_doubts, side_doubts
from common.dataset.classes import on_the_left, to_mask
from common.dataset.formats import stem, without_channel
from common.dataset.nifti import Volume, in_mm, read_volume, write_volume
from common.dataset.preprocessing import (
    axial_view,
    bounds_of,
    from_square,
    from_views,
    pixel_spacing,
    to_square,
)
from common.dataset.preprocessing import window as shades
from common.dataset.processes import unforeseen
from common.errors import UserError, bullets
from common.evaluation import figures
from common.evaluation.metrics import mean_and_spread, with_spread
from common.files import shown, write_csv, write_json
from common.inference.measures import findings, in_words, largest_components, rows
from common.inference.trained_run import Trained, maps_of, range_in_words, window_of
from common.inference.volume_files import (
    Job,
    begin,
    checksums,
    earlier_rows,
    list_jobs,
    map_endings,
    untouched,
)
from common.models.unet import decided
from common.settings import InferenceConfig

SEEN = "a patient of this name is among the"


def segment(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """Segment `--volume`: masks as .nii.gz, each with a sheet (.png) and its measures (.json).

    For a folder the measures are also a table: volumes.csv, one row per volume and class; earlier
    rows stay in it as long as their masks do. A file that cannot be used does not stop the others:
    UserError names all of them at the end.
    """
    wanted = window_of(run, config)
    if (plane := run.checkpoint.get("axis") or "axial") != "axial":
        raise UserError(
            f"{shown(run.path)} was trained on {plane} slices; --volume cuts axial ones."
        )
    certain = run.checkpoint.get("window") or None not in (config.hu_low, config.hu_high)
    guess = "" if certain else " (a guess: see --hu-low, --hu-high)"
    jobs, problems = list_jobs(run, config), []
    table = jobs[0].mask.with_name("volumes.csv") if config.volume.is_dir() else None
    measured, dice, seen = earlier_rows(table) if table else {}, [], 0
    print(f"epoch {run.checkpoint['epoch']}, {range_in_words(wanted)}{guess}, on {run.device}")
    for job in jobs:
        try:
            about = _segment_one(model, run, config, job, wanted)
            print(in_a_line(about, job), flush=True)
            measured[about["volume"]] = rows(about)
            dice += [about["scores"]["dice"]] if about["scores"] else []
            seen += bool(about["scores"] and seen_before(job.volume, run))
        except UserError as error:
            problems.append(str(error))
        except Exception as error:  # an unforeseen name or file
            problems.append(f"{shown(job.volume)}: {unforeseen(error)}")
        if not untouched(job):  # it failed half-way: no old row for a new mask
            measured.pop(job.name, None)
        if table and measured:
            write_csv(table, [row for name in sorted(measured) for row in measured[name]])
        elif table:  # without rows it could not be recognised as our table
            table.unlink(missing_ok=True)
    if len(dice) > 1:
        mean = with_spread(mean_and_spread(dice))
        print(f"Dice, mean over {len(dice)} volumes{seen_in_words(seen)}: {mean}")
    if table and measured:
        print(f"table -> {shown(table)}")
    if problems:
        raise UserError(
            f"{len(problems)} of {len(jobs)} volumes were not segmented:{bullets(problems, 200)}"
        )


def _segment_one(model: nn.Module, run: Trained, config, job: Job, window) -> dict:
    """Segment one volume and write what belongs to it; returns what its JSON holds."""
    began = time.perf_counter()
    volume = read_volume(job.volume, run.checkpoint.get("channel"))
    if not np.isfinite(volume.voxels).all():
        raise UserError(f"{shown(job.volume)} holds NaN or infinite voxels.")
    bounds, hu = bounds_of(volume.voxels, window), not isinstance(window, dict)
    classes, endings = run.classes, map_endings(run, config)
    truth, odd = _read_truth(job.truth, volume, run) if job.truth else (None, [])
    mask = np.empty(volume.voxels.shape, np.uint8)
    maps = [np.empty(volume.voxels.shape, np.float32) for _ in endings]
    for first, probabilities in class_maps(model, run, volume, config, bounds):
        part = slice(first, first + len(probabilities))
        mask[..., part] = from_views(decided(probabilities).cpu().numpy())
        for k, kept in enumerate(maps):
            kept[..., part] = from_views(probabilities[:, k].cpu().numpy())
    if config.largest_component:
        mask = largest_components(mask, len(classes))
    left = on_the_left(classes) if hu else None
    about = {
        "volume": job.name,
        "stage": run.checkpoint["stage"],
        "run": run.folder.name,
        "weights": config.weights,
        "epoch": run.checkpoint["epoch"],
        "window": bounds,
        "largest_component": config.largest_component,
        "orientation": volume.stored_orientation,
        "shape": volume.stored_shape,
        "spacing_mm": volume.geometry()["spacing"],
        "doubts": seen_before(job.volume, run)
        + image_doubts(volume, hu, bounds if hu else None)
        + odd
        + (side_doubts(volume, (mask if truth is None else truth) == left) if left else []),
        **findings(mask, truth, volume.spacing, classes, volume.affine),
    }
    begin(job, endings)
    write_volume(job.mask, mask, volume)
    for kept, ending in zip(maps, endings, strict=True):
        write_volume(job.beside(ending), kept, volume)
    colours = figures.legend(classes, run.checkpoint.get("colours"))
    drawn = rows_of_sheet(volume, mask, truth, bounds)
    aspect = volume.spacing[1] / volume.spacing[0]
    figures.sheet(job.beside(".png"), in_words(about), drawn, aspect, colours)
    about["files"] = checksums(job, endings)
    about["seconds"] = round(time.perf_counter() - began, 3)
    write_json(job.record, about)
    return about


def seen_before(volume: Path, run: Trained) -> list[str]:
    """Whether a patient of the file's name took part in the training, even only the teacher's; its
    scores would not be a fair test."""
    parts = run.checkpoint.get("patients", {})
    named = {stem(volume), without_channel(stem(volume))}
    part = next((part for part, names in parts.items() if named & {*names}), None)
    own = f"training's {part}"
    role = {"teacher": "teacher's train", "teacher_val": "teacher's val"}.get(part, own)
    return [f"{SEEN} {role} patients"] if part else []


def seen_in_words(count: int) -> str:
    """What the mean over several files must say if `count` of them are of such patients."""
    return f", {count} of them of patients that were trained or chosen on" if count else ""


def class_maps(
    model: nn.Module, run: Trained, volume: Volume, config: InferenceConfig, bounds: tuple
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities in batches of axial views: first slice, float32 `(n, classes, row, column)`.

    Every slice is made square as in `data_prep/slice_nifti.py`, and its map is brought back to the
    CT's own pixels before anything is thresholded.
    """
    spacing, shape = pixel_spacing(volume.spacing, "axial"), volume.voxels.shape[1::-1]
    count, size = volume.voxels.shape[2], run.checkpoint["size"]
    starts = range(0, count, config.batch_size)
    for first in tqdm(starts, desc="slices", disable=None, leave=False):
        views = (
            shades(axial_view(volume.voxels, index), *bounds)
            for index in range(first, min(first + config.batch_size, count))
        )
        squares = np.stack([to_square(view, spacing, size, mask=False) for view in views])
        yield first, from_square(maps_of(model, run, squares, config), shape, spacing)


def _read_truth(path: Path, volume: Volume, run: Trained) -> tuple[np.ndarray, list[str]]:
    """A true mask as class indices, uint8, and what is odd about it. UserError if it cannot be read
    or does not fit the volume.

    Where the training's data were cut with `--classes`, its values are those of such labels.
    """
    truth, labels = read_label(path, volume), run.checkpoint.get("labels")
    allowed = None if labels else range(len(run.classes) + 1)
    if problems := problems_of(volume, truth, allowed):
        raise UserError(f"{shown(path)}: {'; '.join(problems)}.")
    odd = label_doubts(volume, truth)
    if np.count_nonzero(truth.voxels) > truth.voxels.size / 2:
        odd.append("the true mask covers more than half of the volume: is it inverted?")
    if not labels:
        return truth.voxels.astype(np.uint8), odd
    mask = to_mask(truth.voxels, labels)
    return mask if len(labels) > 1 else (mask > 0).astype(np.uint8), odd


def rows_of_sheet(volume: Volume, mask, truth, bounds: tuple, panels: int = 12) -> list[tuple]:
    """Evenly spaced slices from the classes' lowest to their highest, over all if there are
    none."""
    seen = mask > 0 if truth is None else (mask > 0) | (truth > 0)
    present = np.flatnonzero(seen.any((0, 1))) if seen.any() else np.arange(mask.shape[2])
    chosen = np.linspace(present[0], present[-1], min(panels, len(present))).round().astype(int)
    rows = []
    for index in sorted({*chosen.tolist()}):
        view = shades(axial_view(volume.voxels, index), *bounds)
        true = None if truth is None else axial_view(truth, index)
        rows.append((_stored_index(volume, index), view, axial_view(mask, index), true))
    return rows


def _stored_index(volume: Volume, index: int) -> str:
    """An axial slice's number in other programs: along the file's own axis i, j or k."""
    ornt = nib.io_orientation(in_mm(volume.stored_affine, volume.header))
    axis = int(np.flatnonzero(ornt[:, 0] == 2)[0])
    place = index if ornt[axis, 1] > 0 else volume.stored_shape[axis] - 1 - index
    return f"{'ijk'[axis]} = {place}"


def in_a_line(about: dict, job: Job) -> str:
    """What was found, how long it took, and where the mask is."""
    return f"{in_words(about)}  ({about['seconds']:.1f} s) -> {shown(job.mask)}"
