"""Figures: one run's curves, overlays of truth and prediction, the comparison of models.

matplotlib figures are made without pyplot: nothing stays open and no display is needed.
"""

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw, ImageFont

from common.files import atomic

TRUTH, PREDICTION = (0, 158, 115), (230, 97, 0)  # green and orange: told apart by colour-blind eyes
RGB = tuple[int, int, int]


def save_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure atomically."""
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def drawable(name: str) -> str:
    """A name safe for matplotlib: dollars are not formulas, and letters that the font lacks are
    escaped."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    letters = (
        c if ord(c) in glyphs or c == "\n" else c.encode("ascii", "backslashreplace").decode()
        for c in name
    )
    return "".join(letters).replace("$", r"\$")


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
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False, "fontsize": 8}
    left.legend(**above, ncols=3)
    right.plot(epochs, [row["val_dice"] for row in log], label="mean over patients")
    right.plot(epochs, [row["val_pooled"] for row in log], label="pooled over slices", lw=1)
    right.set(xlabel="epoch", ylabel="validation Dice", ylim=(0, 1))
    right.legend(**above, ncols=2)
    figure.suptitle(drawable(title), fontsize=10)
    save_figure(path, figure)


def legend(classes: list[str], given: list[str] | None = None) -> dict[str, RGB] | None:
    """A colour for each of several classes: those `given` (#rrggbb), else of a palette.

    None for one class: its truth is green, what is predicted orange.
    """
    if len(classes) == 1:
        return None
    if given:
        colours = [tuple(bytes.fromhex(text[1:])) for text in given]
    else:  # tab20 holds pairs of a dark and a light tone: first the dark ones; no grey on a CT
        many = colormaps["hsv"](np.linspace(0, 1, len(classes), endpoint=False))
        pairs = [c for c in colormaps["tab20"].colors if max(c) > min(c)]
        tones = [*pairs[::2], *pairs[1::2]]
        tones = tones if len(classes) <= len(tones) else many
        colours = [tuple(round(255 * float(part)) for part in tone[:3]) for tone in tones]
    return dict(zip(classes, colours, strict=False))


def outlined(
    image: np.ndarray,
    mask: np.ndarray,
    colours: RGB | dict[str, RGB],
    scale: int = 1,
    width: int = 1,
    lines: np.ndarray | None = None,
) -> np.ndarray:
    """A grey uint8 image `(H, W)` as RGB, `scale` times larger, with the classes' edges on it.

    One colour for all that is not 0, or one for each of the values 1, 2, ..., whose insides are
    then tinted, too. An edge lies inside its class and is `width` of the enlarged pixels wide. With
    `lines` the edges are those of this other mask.
    """
    image, mask, lines = (
        np.asarray(part).repeat(scale, 0).repeat(scale, 1)
        for part in (image, mask, mask if lines is None else lines)
    )
    rgb = np.stack([image] * 3, axis=-1)
    if not isinstance(colours, dict):
        rgb[_edge(lines.astype(bool), width)] = colours
        return rgb
    for value, colour in enumerate(colours.values(), start=1):
        inside = mask == value
        rgb[inside] = np.uint8(0.7 * rgb[inside] + 0.3 * np.array(colour))
    for value, colour in enumerate(colours.values(), start=1):
        rgb[_edge(lines == value, width)] = colour
    return rgb


def _edge(inside: np.ndarray, width: int) -> np.ndarray:
    """The outermost `width` pixels of a bool mask `(H, W)`."""
    core = inside
    for _ in range(width):
        padded = np.pad(core, 1)
        around = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
        core = core & np.logical_and.reduce(around)
    return inside & ~core


def panels(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    colours: dict[str, RGB] | None = None,
) -> np.ndarray:
    """CT | truth (green outline), if known | prediction (orange outline), side by side, RGB uint8.

    For several classes (`legend`), each in its colour, with the names of those on the slice below.
    """
    scale = max(1, 320 // max(image.shape))
    drawn = [(truth, TRUTH), (prediction, PREDICTION)]
    masks = [(mask, colour) for mask, colour in drawn if mask is not None]
    parts = [outlined(image, np.zeros_like(prediction), TRUTH, scale)]
    parts += [outlined(image, mask, colours or colour, scale, 2) for mask, colour in masks]
    picture = np.concatenate(parts, axis=1)
    if not colours:
        return picture
    present = {value for mask, _ in masks for value in np.unique(mask).tolist()}
    names = {name: c for k, (name, c) in enumerate(colours.items(), start=1) if k in present}
    return np.concatenate([picture, _names_below(names, picture.shape[1])])


def _names_below(names: dict[str, RGB], width: int, line: int = 22) -> np.ndarray:
    """A strip of coloured squares and names, as many lines high as they need, RGB uint8."""
    font, places, x, y = ImageFont.load_default(14), [], 6, 0
    for name in names:
        room = 22 + round(font.getlength(name)) + 14
        if x > 6 and x + room > width:
            x, y = 6, y + line
        places.append((x, y))
        x += room
    strip = Image.new("RGB", (width, y + line))
    pen = ImageDraw.Draw(strip)
    for (x, y), (name, colour) in zip(places, names.items(), strict=True):
        pen.rectangle((x, y + 4, x + 13, y + 17), fill=colour)
        pen.text((x + 20, y + 2), name, fill="white", font=font)
    return np.asarray(strip)


def patches(colours: dict[str, RGB], masks: list[np.ndarray]) -> list[Patch]:
    """What a matplotlib legend needs of the classes that are in any of the masks."""
    present = set().union(*(np.unique(mask).tolist() for mask in masks))
    return [
        Patch(color=np.array(colour) / 255, label=drawable(name))
        for k, (name, colour) in enumerate(colours.items(), start=1)
        if k in present
    ]


def classes_below(figure: Figure, shown: list[Patch], columns: int) -> None:
    """A legend of the classes below a grid of so many columns; the figure grows by its height."""
    if not shown:
        return
    lines = -(-len(shown) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.2 * lines)
    figure.legend(
        handles=shown, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )


def sheet(
    path: Path,
    title: str,
    rows: list[tuple],
    aspect: float = 1.0,
    colours: dict[str, RGB] | None = None,
) -> None:
    """Slices of one volume, four per row, the mask's outline in orange and the truth's in green.

    A row is a title, a grey uint8 view `(H, W)`, its mask, its true mask or None; `aspect` is a
    pixel's height over its width. Several classes (`legend`) have their own colours: the mask is
    tinted, the lines are the truth's if there is one.
    """
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure((2.6 * columns, 2.7 * lines + 0.5), layout="constrained", facecolor="white")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in grid:
        axis.set_axis_off()
    for axis, (name, image, mask, truth) in zip(grid, rows, strict=False):
        scale = max(1, 512 // max(image.shape))
        if colours:
            picture = outlined(image, mask, colours, scale, 2, lines=truth)
        else:
            picture = outlined(image, np.zeros_like(mask), PREDICTION, scale)
            for drawn, colour in ((truth, TRUTH), (mask, PREDICTION)):
                if drawn is not None:
                    edge = outlined(image, drawn, colour, scale, 2)
                    edges = (edge == colour).all(-1)
                    picture[edges] = colour
        axis.imshow(picture, aspect=aspect, interpolation="nearest")
        axis.set_title(drawable(name), fontsize=8)
    with_truth = any(truth is not None for *_, truth in rows)
    words = "\norange: mask" + (", green: truth" if with_truth else "")
    if colours:
        words = "\ntinted: mask, lines: truth" if with_truth else ""
        masks = [m for *_, mask, truth in rows for m in (mask, truth) if m is not None]
        classes_below(figure, patches(colours, masks), columns)
    figure.suptitle(f"{drawable(fill(title, 30 * columns))}{words}", fontsize=9)
    save_figure(path, figure, dpi=150)


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a uint8 array `(H, W)` or `(H, W, 3)`, or uint16 `(H, W)`, as PNG, atomically."""
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=4)


def frame_of(masks: list[np.ndarray]) -> tuple[slice, slice]:
    """The square part of masks `(H, W)` of equal shape that holds all they show, with a margin of
    a quarter and at least a third of the side: its rows and columns."""
    shown = np.any([mask > 0 for mask in masks], axis=0)
    pixels = np.argwhere(shown) if shown.any() else np.argwhere(~shown)
    low, high, most = pixels.min(0), pixels.max(0) + 1, min(shown.shape)
    side = min(most, max(int(1.25 * (high - low).max()), -(-most // 3)))
    start = np.clip((low + high - side) // 2, 0, np.array(shown.shape) - side)
    return tuple(slice(int(first), int(first) + side) for first in start)


def comparison(
    path: Path, rows: list[dict], models: list[str], colours: dict[str, RGB] | None = None
) -> None:
    """One row per patient: CT, and of the part in its frame the truth and each model's mask.

    A row is a dict: `title`, `image` and `truth` `(H, W)`, `masks` and `dice` (on that slice alone)
    by model. Several classes have their `colours` (`legend`). The font size suits a page on which
    eleven columns are 800 pixels wide.
    """
    columns = ["CT", "truth", *models]
    size = (1.3 * len(columns), 1.45 * len(rows) + 0.3)
    figure = Figure(size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        masks = [row["truth"], *(row["masks"][model] for model in models)]
        part = frame_of(masks)
        image = row["image"][part]
        scale = max(1, 256 // image.shape[0])  # about the displayed size
        paints = [colours or TRUTH, *[colours or PREDICTION] * len(models)]
        panels = [
            outlined(image, mask[part], paint, scale, 2)
            for mask, paint in zip(masks, paints, strict=True)
        ]
        for axis, panel in zip(axes, [row["image"], *panels], strict=True):
            axis.imshow(panel, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        corner, side = (part[1].start - 0.5, part[0].start - 0.5), part[0].stop - part[0].start
        axes[0].add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", lw=0.8))
        axes[0].set_ylabel(drawable(row["title"]), fontsize=8)
        for axis, model in zip(axes[2:], models, strict=True):
            axis.set_xlabel(f"Dice {row['dice'][model]:.3f}", fontsize=10)
    for axis, title in zip(grid[0], columns, strict=True):
        axis.set_title(drawable(fill(title, 13)), fontsize=11)
    if colours:
        masks = [m for row in rows for m in (row["truth"], *row["masks"].values())]
        classes_below(figure, patches(colours, masks), len(columns))
    save_figure(path, figure, dpi=200)
