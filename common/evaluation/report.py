"""report.html: one run's scores, patients, worst cases, training and settings on one page.

The page needs no network and no other file: its pictures are embedded. All text that comes from
files (names of cases, runs and classes) is escaped.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from common.dataset.slices import Slice, SliceSet
from common.evaluation import figures
from common.evaluation.comparison import by_patient
from common.evaluation.metrics import TITLES, each_of_several, number, with_spread
from common.evaluation.score_run import caution
from common.files import read_json, shown, write_text

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.about { color: #777; margin-top: .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; } figure { margin: 1rem 0; }
figcaption { font-size: .85rem; color: #777; }
td.text { text-align: left; overflow-wrap: anywhere; }
"""


def write_report(folder: Path, data: SliceSet, compared: tuple[str, ...] = (), worst=6) -> None:
    """Write report.html of a scored run into its folder.

    `compared` are lines of comparison with other runs; `worst` is how many patients, those of the
    lowest Dice first, are shown with their slices.
    """
    result = read_json(folder / "summary.json", "Run metrics.py first.")
    parts = [
        f"<h1>{_text(result['stage'])}: {_text(result['run'])}</h1>",
        f'<p class="about">{_text(_about(result, data))}</p>',
        "<h2>Scores</h2>" + ("<p>Means over the classes.</p>" if each_of_several(result) else ""),
        _scores(result),
        *_classes(result),
        "".join(f"<p>{_text(line)}</p>" for line in (caution(result), *compared) if line),
        "<h2>Patients</h2>",
        _picture(_dots(result), "Dice of each patient; the line is their mean."),
        _patients(result),
        "<h2>Worst first</h2>",
        *_worst(folder, data, result, worst),
        *_training(folder),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(result['stage'])}: {_text(result['run'])}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
    write_text(folder / "report.html", page)
    print(f"report -> {shown(folder / 'report.html')}")


def _text(value) -> str:
    """A value, escaped for a page."""
    return html.escape(str(value))


def _picture(png: bytes, caption: str) -> str:
    """A PNG embedded in the page."""
    source = base64.b64encode(png).decode()
    words = _text(caption)
    return (
        f'<figure><img alt="{words}" src="data:image/png;base64,{source}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _table(head: list[str], lines: list, style: str = "") -> str:
    """A table with escaped cells, perhaps of a CSS class."""
    first = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    cell = f'<td class="{style}">' if style else "<td>"
    body = ("".join(f"{cell}{_text(value)}</td>" for value in line) for line in lines)
    return f"<table><tr>{first}</tr>" + "".join(f"<tr>{line}</tr>" for line in body) + "</table>"


def _about(result: dict, data: SliceSet) -> str:
    """The page's second line."""
    speed = f"{result['latency_ms']:.1f} ms a slice" if result.get("latency_ms") else ""
    return ", ".join(
        filter(
            None,
            (
                f"{len(_dice_of_patients(result))} {result['subset']} patients",
                f"{result['slices']} slices of {data.size}x{data.size} pixels",
                ", ".join(data.classes)
                if len(data.classes) < 4
                else f"{len(data.classes)} classes",
                f"{result['weights']} epoch ({result['epoch']})",
                f"{result['parameters']:,} parameters",
                speed,
            ),
        )
    )


def _scores(result: dict) -> str:
    """Mean and spread over patients, and pooled over all slices."""
    scored = [s for s in TITLES if s in result["per_patient"]]
    lines = [
        [
            TITLES[s],
            with_spread(result["per_patient"][s]),
            number(result["pooled"][s]) if s in result["pooled"] else "",
        ]
        for s in scored
    ]
    return _table(["", "per patient", "pooled over slices"], lines)


def _classes(result: dict) -> list[str]:
    """One table row per class: mean +- std over patients, patient count, pooled Dice."""
    several = each_of_several(result)
    if not several:
        return []
    scored = [s for s in TITLES if s in result["per_patient"]]
    lines = [
        [
            class_name,
            *(with_spread(row["per_patient"][s]) for s in scored),
            row["per_patient"]["dice"]["n"],
            number(row["pooled"]["dice"]),
        ]
        for class_name, row in several.items()
    ]
    head = ["", *(TITLES[s] for s in scored), "patients", "Dice, pooled"]
    return ["<h2>Classes</h2>", _table(head, lines)]


def _order(result: dict) -> list[str]:
    """The patients from the lowest Dice to the highest; those without one last."""
    dice = {case: row["dice"] for case, row in result["cases"].items()}
    return sorted(dice, key=lambda case: (dice[case] is None, dice[case] or 0.0, case))


def _patients(result: dict) -> str:
    """One line per patient, the worst first."""
    scored = [s for s in TITLES if s in result["per_patient"]]
    lines = []
    for case in _order(result):
        row = result["cases"][case]
        lines.append([case, row["slices"], *(number(row[s]) for s in scored)])
    several = any("patient" in row for row in result["cases"].values())
    first = "volume" if several else "patient"
    return _table([first, "slices", *(TITLES[s] for s in scored)], lines)


def _dice_of_patients(result: dict) -> dict[str, float | None]:
    """Each patient's Dice, the mean over its volumes."""
    return by_patient([result])


def _dots(result: dict) -> bytes:
    """Each patient's Dice as a dot, sorted, and the mean as a line; a PNG."""
    defined = sorted(dice for dice in _dice_of_patients(result).values() if dice is not None)
    figure = Figure((8, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(defined) + 1), defined, "o", color="#0072b2", ms=5)
    if defined:
        axis.axhline(float(np.mean(defined)), color="#d55e00", lw=1)
    axis.set(xlabel="patients, by their Dice", ylabel="Dice", ylim=(-0.02, 1.02), xticks=[])
    axis.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png")
    return stream.getvalue()


def _worst(folder: Path, data: SliceSet, result: dict, count: int) -> list[str]:
    """The worst patients' slices with the largest class and with the most wrong pixels."""
    parts = []
    for case in _order(result)[:count]:
        rated = []
        for s in data.of([case]):
            masks = data.truth(s), data.prediction(folder, s)
            rated.append((s, *masks, int((masks[0] != masks[1]).sum())))
        largest = max(rated, key=lambda row: row[0].foreground)
        wrong = max(rated, key=lambda row: row[3])
        parts.append(f"<h3>{_text(case)}: Dice {number(result['cases'][case]['dice'])}</h3>")
        parts.append(_slice(data, *largest[:3], f"{largest[0].name}: the largest class"))
        if wrong[0] != largest[0]:
            words = f"{wrong[0].name}: the most wrong pixels ({wrong[3]})"
            parts.append(_slice(data, *wrong[:3], words))
    return parts


def _slice(data: SliceSet, s: Slice, truth: np.ndarray, mask: np.ndarray, words: str) -> str:
    """CT | truth | prediction of one slice."""
    stream = io.BytesIO()
    colours = figures.legend(data.classes, data.colours)
    Image.fromarray(figures.panels(data.image(s), truth, mask, colours)).save(stream, "png")
    which = "truth, prediction" if colours else "truth (green), prediction (orange)"
    return _picture(stream.getvalue(), f"{words}. CT, {which}")


def _training(folder: Path) -> list[str]:
    """Curves and settings, if the run still has them."""
    parts = []
    if (folder / "curves.png").exists():
        curves = (folder / "curves.png").read_bytes()
        parts += ["<h2>Training</h2>", _picture(curves, "Weighted losses and validation Dice.")]
    if (folder / "config.json").exists():
        made = read_json(folder / "config.json")
        machine = made.get("environment", {})
        machine = {"hardware" if k == "device" else k: v for k, v in machine.items()}
        settings = {**made.get("config", {}), **machine}
        parts += ["<h2>Settings</h2>", _table(["setting", ""], [*settings.items()], "text")]
    return parts
