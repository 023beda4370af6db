"""Figures of a study: gains with their intervals, patients in pairs, cost, curves of many runs,
kinds of errors, embeddings, the terms of a loss, Dice against labels."""

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from common.evaluation import embedding
from common.evaluation.comparison import in_words
from common.evaluation.embedding import Embedding
from common.evaluation.error_types import KINDS
from common.evaluation.figures import losses, save_figure

# Okabe and Ito's colours, which colour-blind eyes can tell apart, one per model.
COLOURS = {
    "T1": "#000000",
    "T2": "#7f7f7f",
    "S1": "#56b4e9",
    "KD(T1,S1)": "#0072b2",
    "KD(T2,S1)": "#009e73",
    "S2": "#e69f00",
    "KD(T1,S2)": "#d55e00",
    "KD(T2,S2)": "#cc79a7",
}
COLOURS_OF_ERRORS = ("#d55e00", "#e69f00", "#56b4e9", "#0072b2")  # in the order of KINDS


def colours(models: list[str]) -> dict[str, str | tuple]:
    """One colour per model: its own, or for the arms of an ablation one of evenly spaced hues from
    green to red, in their order."""
    others = [model for model in models if model not in COLOURS]
    hues = colormaps["turbo"](np.linspace(0.35, 0.95, len(others)))
    return COLOURS | dict(zip(others, map(tuple, hues), strict=True))


def _two_panels(models: list[str], **sharing) -> tuple[Figure, tuple]:
    """A figure of two panels, with room on the right for a legend of the models."""
    figure = Figure((9, max(3.6, 0.5 + 0.19 * len(models))), layout="constrained")
    return figure, figure.subplots(1, 2, **sharing)


def gains(path: Path, gained: dict[str, tuple[str, dict]]) -> None:
    """One line per model: its mean gain in Dice points over its base, and the 95 % interval.

    `gained` maps a model to its base's name and its gain (`common.evaluation.comparison.gain`).
    """
    figure = Figure((8, 1.0 + 0.4 * len(gained)), layout="constrained")
    axis = figure.subplots()
    for place, (_, gain) in enumerate(gained.values()):
        if gain["low"] is not None:
            axis.plot([gain["low"], gain["high"]], [place, place], color="#0072b2", lw=2)
        axis.plot(gain["mean"], place, "o", color="#0072b2", ms=7)
        where = {"xy": (1.02, place), "xycoords": ("axes fraction", "data")}
        axis.annotate(in_words(gain), **where, va="center", fontsize=9)
    axis.axvline(0, color="black", lw=0.8)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -2), max(high, 2))  # a tenth of a point must not look large
    names = [f"{model} over {base}" for model, (base, _) in gained.items()]
    axis.set_yticks(range(len(gained)), names)
    axis.set(xlabel="gain in Dice points per patient (95 % interval from six patients on)")
    axis.set_ylim(len(gained) - 0.5, -0.5)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure)


def patients(path: Path, pairs: dict[tuple[str, str], tuple[dict, dict]]) -> None:
    """One panel per pair (plain, distilled): each patient's Dice, joined by a line; the mean
    dashed.

    The values are dicts patient -> Dice (or None). Green: gained; orange: lost; grey: neither.
    """
    columns = min(6, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure((2.2 * columns + 0.6, 3.6 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axis, ((plain, distilled), (before, after)) in zip(grid, pairs.items(), strict=False):
        cases = [c for c in before if before[c] is not None and after.get(c) is not None]
        lines = np.array([[before[c], after[c]] for c in cases]).reshape(-1, 2)
        for line in lines:
            colour = ("#999999", "#009e73", "#d55e00")[int(np.sign(line[1] - line[0]))]
            axis.plot([0, 1], line, "o-", color=colour, lw=0.9, ms=3, alpha=0.7)
        if len(lines):
            axis.plot([0, 1], lines.mean(0), "s--", color="black", lw=1.6, ms=5)
        axis.set_xticks([0, 1], [fill(name, 15) for name in (plain, distilled)], fontsize=9)
        axis.set(xlim=(-0.25, 1.25))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid[::columns]:
        axis.set_ylabel("Dice per patient")
    for axis in grid[len(pairs) :]:
        axis.set_visible(False)
    save_figure(path, figure)


def cost(path: Path, models: dict[str, dict]) -> None:
    """Dice against parameters and latency; a model is `dice`, `parameters`, `latency_ms`."""
    figure, (left, right) = _two_panels([*models], sharey=True)
    colour = colours([*models])
    for axis, key, label, ticks in (
        (left, "parameters", "parameters", (1, 3)),
        (right, "latency_ms", "milliseconds per slice (forward pass, batch 1)", (1, 2, 5)),
    ):
        for model, row in models.items():
            marker = "*" if model.startswith("T") else "o"
            axis.plot(row[key], row["dice"], marker, color=colour[model], ms=9, label=model)
        axis.set(xscale="log", xlabel=label)
        axis.xaxis.set_major_locator(LogLocator(subs=ticks))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelrotation=30)
        axis.grid(alpha=0.25)
    left.set_ylabel("Dice, mean over patients")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(path, figure)


def curves(path: Path, logs: dict[str, list[list[dict]]]) -> None:
    """Segmentation loss and validation Dice of every run; one colour per model, one line per
    run."""
    figure, (left, right) = _two_panels([*logs])
    colour = colours([*logs])
    for model, runs in logs.items():
        for number, log in enumerate(runs):
            epochs = [int(row["epoch"]) for row in log]
            label = model if not number else None
            for axis, column in ((left, "segmentation"), (right, "val_dice")):
                values = [float(row[column]) for row in log]
                axis.plot(epochs, values, color=colour[model], lw=1.2, alpha=0.8, label=label)
    left.set(xlabel="epoch", ylabel="segmentation loss (DiceBCE), as weighted")
    right.set(xlabel="epoch", ylabel="validation Dice, mean over patients", ylim=(0, 1))
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(path, figure)


def errors(path: Path, shares: dict[str, dict[str, float]]) -> None:
    """One bar per model: its kinds of errors (see `error_types`) in percent of the foreground
    pixels."""
    figure = Figure((8, 1.2 + 0.38 * len(shares)), layout="constrained")
    axis = figure.subplots()
    _stack(axis, [*shares.values()])
    _name_bars(axis, [*shares], "wrong pixels in % of the class's, mean over patients")
    save_figure(path, figure)


def repairs(path: Path, changes: dict[str, tuple[str, dict, dict]]) -> None:
    """Two bars per model: errors of the base that it fixes, and new errors that it introduces.

    `changes` maps a model to its base's name and two dicts kind -> % of the foreground pixels.
    """
    figure = Figure((8, 1.2 + 0.45 * len(changes)), layout="constrained")
    axis = figure.subplots()
    _stack(axis, [repaired for _, repaired, _ in changes.values()])
    _stack(axis, [made for *_, made in changes.values()], sign=-1)
    axis.axvline(0, color="black", lw=0.8)
    low, high = axis.dataLim.intervalx
    room = 0.05 * (high - low) or 1.0  # next to the bars
    axis.set_xlim(low - room, high + room)
    names = [f"{model} after {base}" for model, (base, *_) in changes.items()]
    _name_bars(
        axis, names, "newly wrong  |  repaired, in % of the foreground pixels, mean over patients"
    )
    save_figure(path, figure)


def _stack(axis, shares: list[dict[str, float]], sign: int = 1) -> None:
    """A bar for each dict (kind of error -> fraction), to the right of 0 or (`sign` -1) to the
    left."""
    left = np.zeros(len(shares))
    for kind, colour in zip(KINDS, COLOURS_OF_ERRORS, strict=True):
        widths = sign * np.array([share[kind] for share in shares])
        label = kind if sign > 0 else None
        axis.barh(range(len(shares)), widths, left=left, color=colour, label=label, height=0.7)
        left += widths


def _name_bars(axis, names: list[str], label: str) -> None:
    """Names on the left, from top to bottom, and the kinds of errors as a legend above."""
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlabel=label)
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)


def embeddings(path: Path, models: dict[str, Embedding]) -> None:
    """One panel per model: its last features at the same pixels of test slices, in the plane of
    their largest spread, and the fraction of pixels nearest to their own class's mean."""
    columns = min(4, len(models))
    rows = -(-len(models) // columns)
    figure = Figure((2.6 * columns, 2.7 * rows + 0.4), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    colours = ("#999999", "#009e73", "#d55e00")
    for axis, (model, drawn) in zip(grid, models.items(), strict=False):
        places = embedding.plane(drawn)
        for kind, (name, colour) in enumerate(zip(embedding.CLASSES, colours, strict=True)):
            x, y = places[drawn.kinds == kind].T
            axis.scatter(x, y, s=3, color=colour, alpha=0.5, lw=0, label=name)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{model}: separation {embedding.separation(drawn):.2f}", fontsize=9)
        for low_high, values in zip((axis.set_xlim, axis.set_ylim), places.T, strict=True):
            low, high = np.percentile(values, (0.5, 99.5))
            low_high(low - (high - low) / 10, high + (high - low) / 10)
    for axis in grid[len(models) :]:
        axis.set_visible(False)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *handles, frameon=False, fontsize=8, ncols=3, markerscale=4, loc="outside lower center"
    )
    save_figure(path, figure)


def terms(path: Path, logs: dict[str, list[list[dict]]]) -> None:
    """One panel per model: each of its weighted losses over the epochs, mean over its runs."""
    columns = min(4, len(logs))
    rows = -(-len(logs) // columns)
    figure = Figure((max(5.5, 3.4 * columns), 2.8 * rows + 0.6), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    lines = {}  # one colour and one legend entry per loss, over all panels
    for axis, (model, runs) in zip(grid, logs.items(), strict=False):
        length = min(map(len, runs))
        for name in losses(runs[0][0]):
            values = np.mean([[float(row[name]) for row in run[:length]] for run in runs], axis=0)
            place = [*lines].index(name) if name in lines else len(lines)
            # Dashes, so that of two losses of equal height both are seen.
            style = {"color": f"C{place}", "ls": ("-", "--", "-.", ":")[place % 4], "lw": 1.4}
            (line,) = axis.plot(range(1, length + 1), values, **style)
            lines.setdefault(name, line)
        axis.set(yscale="log", xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(model, fontsize=9)
    grid[0].set_ylabel("weighted loss")
    for axis in grid[len(logs) :]:
        axis.set_visible(False)
    names = [name.replace("_", " ") for name in lines]
    where = {"loc": "outside lower center", "ncols": 3}
    figure.legend(lines.values(), names, frameon=False, fontsize=8, **where)
    save_figure(path, figure)


def labels(path: Path, curves: dict[str, dict[int, tuple]]) -> None:
    """Dice against the fraction of labelled patients, one line per model, with 95 % intervals.

    `curves` maps a model to percent -> (mean Dice over patients, low, high; None where unknown).
    """
    figure = Figure((6.4, 4), layout="constrained")
    axis = figure.subplots()
    for place, (model, points) in enumerate(curves.items()):
        x, colour = sorted(points), f"C{place}"
        axis.plot(x, [points[at][0] for at in x], "o-", color=colour, ms=4, lw=1.4, label=model)
        for at, (_, low, high) in points.items():
            if low is not None:
                axis.plot([at, at], [low, high], color=colour, lw=1, alpha=0.6)
    axis.set(xscale="log", xlabel="training patients with labels in %", ylabel="Dice per patient")
    ticks = sorted({x for points in curves.values() for x in points})
    axis.set_xticks(ticks, map(str, ticks))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    save_figure(path, figure)
