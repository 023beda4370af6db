"""Apply a trained model to new 2D pictures: masks in their own size, overlays, a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from common.dataset.classes import file_name
from common.dataset.picture_folders import name_of
from common.dataset.pictures import load, to_grey
from common.dataset.preprocessing import from_square, to_square
from common.dataset.processes import unforeseen
from common.dataset.slices import mask_picture
from common.errors import UserError, bullets
from common.evaluation import figures
from common.evaluation.metrics import (
    mean_and_spread,
    number,
    over_classes,
    overlap_scores,
    with_spread,
)
from common.files import atomic, shown, write_csv, write_json
from common.inference.measures import largest_components
from common.inference.picture_files import COLUMNS, PictureJob, list_pictures
from common.inference.segment_volumes import SEEN, seen_before, seen_in_words
from common.inference.trained_run import Trained, in_16_bits, maps_of, range_in_words
from common.inference.true_masks import check_truths, reader_of
from common.inference.volume_files import begin, checksums, own_rows, untouched
from common.models.unet import decided
from common.settings import InferenceConfig

LARGEST = 1024  # height or width of an overlay's picture in pixels; above, it is drawn smaller


def predict_pictures(model: nn.Module, run: Trained, config: InferenceConfig) -> None:
    """Predict `--images`: masks as PNG in the pictures' own size, each with its measures (.json),
    an overlay and, on request, probability maps; and a table.

    Rows of an earlier table stay as long as their masks do. A picture that cannot be used does not
    stop the others: UserError names all of them at the end.
    """
    jobs, table = list_pictures(run, config)
    read_truth = None
    if config.ground_truth:
        threshold = config.ground_truth_threshold
        read_truth = reader_of(run, config.ground_truth, threshold)
        for line in check_truths(run, [job.truth for job in jobs], read_truth, threshold):
            print(line)
    table_rows = _earlier(table)
    if window := run.checkpoint.get("window"):
        print(
            f"note: {shown(run.path)} was trained on slices of volumes, shown in the range "
            f"{range_in_words(window)}; the grey values of these pictures may mean something else"
        )
    print(f"epoch {run.checkpoint['epoch']}, on {run.device}")
    done: dict[str, dict] = {}
    problems: list[str] = []
    if table and table_rows:  # no old row for a new mask, whenever this ends
        coming = {job.place for job in jobs}
        _write_table(
            table, {place: rows for place, rows in table_rows.items() if place not in coming}
        )
    try:
        for first in range(0, len(jobs), config.batch_size):
            batch = jobs[first : first + config.batch_size]
            _predict_batch(model, run, config, batch, read_truth, done, problems)
    finally:
        for job in jobs if table else ():
            if job.place in done:
                table_rows[job.place] = _rows(done[job.place], job.place)
            elif not untouched(job):  # it failed half-way
                table_rows.pop(job.place, None)
        if table:
            _write_table(table, table_rows)
    _sum_up(run, config, list(done.values()), table)
    if problems:
        raise UserError(
            f"{len(problems)} of {len(jobs)} pictures were not predicted:{bullets(problems, 200)}"
        )


def _predict_batch(
    model: nn.Module,
    run: Trained,
    config: InferenceConfig,
    jobs: list[PictureJob],
    read_truth,
    done: dict[str, dict],
    problems: list[str],
) -> None:
    """Predict some pictures together, and write what belongs to them. What each one's JSON holds is
    added to `done`, by its mask's place, what goes wrong to `problems`."""
    good, size = [], run.checkpoint["size"]
    for job in jobs:
        with _noted(job, problems):
            good.append((job, *_read(job, read_truth)))
    if not good:
        return
    squares = np.stack([to_square(image, (1, 1), size, mask=False) for _, image, *_ in good])
    for (job, image, truth, doubts), maps in zip(
        good, maps_of(model, run, squares, config), strict=True
    ):
        with _noted(job, problems):
            doubts += _seen_before(job, config, run)
            done[job.place] = about = _write(run, config, job, image, truth, maps, doubts)
            print(f"{_in_words(about)} -> {shown(job.mask)}", flush=True)


@contextmanager
def _noted(job: PictureJob, problems: list[str]) -> Iterator[None]:
    """What goes wrong with one picture inside the context becomes a line of `problems`."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))
    except Exception as error:  # an unforeseen name or file
        problems.append(f"{shown(job.picture)}: {unforeseen(error)}")


def _read(job: PictureJob, read_truth) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """A picture, grey uint8 `(H, W)`, its true mask as class indices, and what may be odd about
    them. UserError if they differ in size, or as in `load`, `to_grey` and what reads the truth."""
    loaded = load(job.picture)
    image = to_grey(loaded.image, job.picture)
    if not job.truth:
        return image, None, []
    true = read_truth(job.truth)
    if true.indices.shape != image.shape:
        sizes = [f"{p.shape[1]}x{p.shape[0]}" for p in (true.indices, image)]
        raise UserError(
            f"{shown(job.truth)} is {sizes[0]} pixels, its picture {shown(job.picture)} {sizes[1]}."
        )
    if loaded.turned == true.turned:
        return image, true.indices, []
    names = ("the picture", "its true mask")
    turned, upright = names if loaded.turned else reversed(names)
    return image, true.indices, [f"EXIF turns {turned}, not {upright}: look at the overlay"]


def _write(run, config, job: PictureJob, image, truth, maps: Tensor, doubts: list[str]) -> dict:
    """Write what belongs to one picture; returns what its JSON holds.

    Its probability maps `(classes, size, size)` go back to its own pixels before they are decided.
    """
    classes, suffixes = run.classes, run.suffixes if config.probabilities else []
    probabilities = from_square(maps[None], image.shape, (1, 1))
    mask = decided(probabilities)[0].cpu().numpy()
    if config.largest_component:
        mask = largest_components(mask, len(classes))
    about = {
        "picture": job.name,
        "stage": run.checkpoint["stage"],
        "run": run.folder.name,
        "weights": config.weights,
        "epoch": run.checkpoint["epoch"],
        "height": image.shape[0],
        "width": image.shape[1],
        "largest_component": config.largest_component,
        "doubts": doubts,
        **_findings(mask, truth, classes),
    }
    colours = figures.legend(classes, run.checkpoint.get("colours"))
    begin(job, suffixes)
    with atomic(job.mask) as temporary:
        shade = np.uint8(255 if len(classes) == 1 else 1)
        mask_picture(mask * shade, colours).save(temporary, compress_level=4)
    figures.save_picture(job.overlay, _overlay(image, truth, mask, colours))
    if suffixes:
        for path, level in zip(job.maps(suffixes), in_16_bits(probabilities[0]), strict=True):
            figures.save_picture(path, level)
    about["files"] = checksums(job, suffixes)
    write_json(job.record, about)
    return about


def _findings(mask: np.ndarray, truth: np.ndarray | None, classes: list[str]) -> dict:
    """`per_class`: each class's pixels, the fraction of the picture that they are and, with a true
    mask, its scores (else None); `scores`: their means over the classes."""
    each = {}
    for value, class_name in enumerate(classes, start=1):
        of_class, pixels = mask == value, int(np.count_nonzero(mask == value))
        scores = None
        if truth is not None:
            true = truth == value
            scores = overlap_scores(
                np.count_nonzero(of_class & true), pixels, np.count_nonzero(true)
            )
        each[class_name] = {"pixels": pixels, "share": pixels / mask.size, "scores": scores}
    means = None
    if truth is not None:
        means = over_classes({class_name: row["scores"] for class_name, row in each.items()})
    return {"per_class": each, "scores": means}


def _overlay(image: np.ndarray, truth, mask: np.ndarray, colours) -> np.ndarray:
    """The picture, its truth, if known, and what is predicted, side by side, RGB uint8."""
    step = -(-max(image.shape) // LARGEST)
    image = np.asarray(Image.fromarray(image).reduce(step))
    mask, truth = (m if m is None else m[::step, ::step] for m in (mask, truth))
    return figures.panels(image, truth, mask, colours)


def _seen_before(job: PictureJob, config: InferenceConfig, run: Trained) -> list[str]:
    """`segment.seen_before` of the names that import_pairs.py would give the picture's patient: its
    own, or its sub-folder's."""
    home = config.images if config.images.is_dir() else config.images.parent
    name = name_of(job.picture, home, "")
    names = [file_name(part, "case") for part in (name, name.rpartition("/")[0]) if part]
    return [doubt for part in names for doubt in seen_before(Path(part), run)][:1]


def _in_words(about: dict) -> str:
    """`a.png: polyp 512 pixels (3.1 %)`, and the scores if there are."""
    parts = [
        f"{class_name} {row['pixels']} pixels ({row['share']:.1%})"
        for class_name, row in about["per_class"].items()
        if row["pixels"] or len(about["per_class"]) == 1
    ]
    text = f"{about['picture']}: {', '.join(parts) or 'nothing'}"
    if scores := about["scores"]:
        mean = "mean " if len(about["per_class"]) > 1 else ""
        text += f"; {mean}Dice {number(scores['dice'])}, IoU {number(scores['iou'])}"
    return "; ".join([text, *about["doubts"]])


def _rows(about: dict, place: str) -> list[dict]:
    """The table's row for each class of a picture, whose mask is at `place`."""
    named = {"picture": about["picture"], "mask": place, "doubts": "; ".join(about["doubts"])}
    of_classes = [
        named | {"class": class_name} | row | (row["scores"] or {})
        for class_name, row in about["per_class"].items()
    ]
    return [{column: row.get(column) for column in COLUMNS} for row in of_classes]


def _earlier(table: Path | None) -> dict[str, list[dict]]:
    """The rows of an earlier table by mask, of those that are still there."""
    rows: dict[str, list[dict]] = {}
    for row in own_rows(table, COLUMNS) if table else ():
        if (table.parent / row["mask"]).is_file():
            rows.setdefault(row["mask"], []).append(row)
    return rows


def _write_table(table: Path, rows: dict[str, list[dict]]) -> None:
    """Write the rows, sorted by their masks; without any there is no table."""
    if rows:
        write_csv(table, [row for place in sorted(rows) for row in rows[place]])
    else:
        table.unlink(missing_ok=True)


def _sum_up(run: Trained, config: InferenceConfig, done: list[dict], table: Path | None) -> None:
    """Print the mean score, what is odd about the true masks, and where the table is."""
    if config.ground_truth and done:
        each = {
            class_name: [about["per_class"][class_name]["scores"] for about in done]
            for class_name in run.classes
        }
        # Recall is defined where the truth shows foreground.
        never_true = [
            class_name for class_name, s in each.items() if all(row["recall"] is None for row in s)
        ]
        if never_true:
            print(
                f"warning: no true mask shows {', '.join(never_true)}: do they hold the same "
                "values as the masks that the run was trained on?"
            )
        dice = mean_and_spread(about["scores"]["dice"] for about in done)
        if dice["n"] > 1:
            seen = sum(SEEN in doubt for about in done for doubt in about["doubts"])
            words = seen_in_words(seen)
            print(f"Dice, mean over {dice['n']} pictures{words}: {with_spread(dice)}")
    if table and done:
        print(f"table -> {shown(table)}")
