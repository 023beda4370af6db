"""Pictures: one run's curves, overlays of truth and prediction, the comparison of models.

matplotlib figures are made without pyplot: nothing is kept open, no display is needed.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from common.files import atomic

TRUTH, PREDICTION = (0, 158, 115), (230, 97, 0)  # green and orange: told apart by colour-blind eyes


def save_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure atomically."""
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def losses(row: dict) -> list[str]:
    """The names of the losses in a row of log.csv."""
    return [name for name in row if name not in ("epoch", "lr", "val_dice", "val_pooled")]


def curves(path: Path, log: list[dict], title: str) -> None:
    """Losses (as weighted, log scale) and validation Dice over the epochs of one run."""
    figure = Figure((9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in log]
    for name in losses(log[0]):
        left.plot(epochs, [row[name] for row in log], label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="weighted loss", yscale="log")
    left.legend(frameon=False, fontsize=8)
    right.plot(epochs, [row["val_dice"] for row in log], label="mean over patients")
    right.plot(epochs, [row["val_pooled"] for row in log], label="pooled over slices", lw=1)
    right.set(xlabel="epoch", ylabel="validation Dice", ylim=(0, 1))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    save_figure(path, figure)


def outlined(
    image: np.ndarray, mask: np.ndarray, colour: tuple, scale: int = 1, width: int = 1
) -> np.ndarray:
    """A grey uint8 image `(H, W)` as RGB, `scale` times larger, with the mask's edge on it.

    The edge lies inside the mask and is `width` of the enlarged pixels wide.
    """
    image = np.asarray(image).repeat(scale, 0).repeat(scale, 1)
    inside = np.asarray(mask).astype(bool).repeat(scale, 0).repeat(scale, 1)
    core = inside
    for _ in range(width):
        padded = np.pad(core, 1)
        around = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
        core = core & np.logical_and.reduce(around)
    rgb = np.stack([image] * 3, axis=-1)
    rgb[inside & ~core] = colour
    return rgb


def panels(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """CT | truth (green outline) | prediction (orange outline), side by side, RGB uint8."""
    scale = max(1, 320 // image.shape[0])
    parts = [
        outlined(image, np.zeros_like(truth), TRUTH, scale),
        outlined(image, truth, TRUTH, scale, 2),
        outlined(image, prediction, PREDICTION, scale, 2),
    ]
    return np.concatenate(parts, axis=1)


def sheet(path: Path, title: str, rows: list[tuple], aspect: float = 1.0) -> None:
    """Slices of one volume, four a row, the mask's outline in orange and the truth's in green.

    A row is a title, a grey uint8 view `(H, W)`, its mask, its true mask or None; `aspect` is a
    pixel's height over its width.
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure((2.6 * columns, 2.7 * lines + 0.5), layout="constrained", facecolor="white")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in grid:
        axis.set_axis_off()
    for axis, (name, image, mask, truth) in zip(grid, rows, strict=False):
        scale = max(1, 512 // max(image.shape))
        picture = outlined(image, np.zeros_like(mask), PREDICTION, scale)
        for drawn, colour in ((truth, TRUTH), (mask, PREDICTION)):
            if drawn is not None:
                edge = outlined(image, drawn, colour, scale, 2)
                here = (edge == colour).all(-1)
                picture[here] = colour
        axis.imshow(picture, aspect=aspect, interpolation="nearest")
        axis.set_title(name, fontsize=8, parse_math=False)
    known = any(truth is not None for *_, truth in rows)
    legend = "orange: mask" + (", green: truth" if known else "")
    # Names of files are no formulas, whatever dollars are in them.
    figure.suptitle(f"{title}\n{legend}", fontsize=9, parse_math=False)
    save_figure(path, figure, dpi=150)


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a uint8 array `(H, W)` or `(H, W, 3)`, or uint16 `(H, W)`, as PNG, atomically."""
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=4)


def comparison(path: Path, rows: list[dict], models: list[str]) -> None:
    """One row a patient: CT, truth, then each model's mask with its Dice on that slice alone.

    A row is a dict: `title`, `image` and `truth` `(H, W)`, `masks` and `dice` by model.
    """
    columns = ["CT", "truth", *models]
    size = (1.9 * len(columns), 2.0 * len(rows) + 0.3)
    figure = Figure(size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        image, truth = row["image"], row["truth"]
        scale = max(1, 288 // image.shape[0])  # about the size at which it is drawn
        panels = [
            outlined(image, np.zeros_like(truth), TRUTH, scale),
            outlined(image, truth, TRUTH, scale, 2),
            *(outlined(image, row["masks"][m], PREDICTION, scale, 2) for m in models),
        ]
        for axis, panel in zip(axes, panels, strict=True):
            axis.imshow(panel)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(row["title"], fontsize=8)
        for axis, model in zip(axes[2:], models, strict=True):
            axis.set_xlabel(f"slice Dice {row['dice'][model]:.3f}", fontsize=8)
    for axis, title in zip(grid[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    save_figure(path, figure, dpi=150)
