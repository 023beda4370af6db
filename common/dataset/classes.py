"""Which values of a label are which class: `--classes spleen=1 kidneys=2,3`, and what it does.

The k-th class named becomes mask value k; one class alone becomes 255. What is not named becomes
background.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import shown

USUAL = {"spleen": (1,)}  # what a label holds where nothing else is said
IGNORE = "ignore"  # nnU-Net's name for pixels without a label; not a class
WHICH = ("spleen", "all")  # of volumes that name more than one
MOST = 254  # classes in an 8-bit mask, whose 0 is background
MANY_GONE = 0.1  # of the slices that show a class; a smaller share is just the tips of a structure
FAR = 1 << 16  # label values below it are counted through a table


def plain_name(name: str) -> str:
    """A class's name as used in flags, tables and files: `right kidney` -> `right_kidney`.

    Letters of all alphabets stay, as it is also displayed.
    """
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def file_name(name: str, otherwise: str) -> str:
    """A name that is safe in file names on every disk: ASCII only; `otherwise` if nothing is
    left."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._") or otherwise


def parse_classes(
    words: Sequence[str],
    named: Mapping[str, tuple[int, ...]] | None = None,
    flag: str = "--classes",
) -> dict[str, tuple[int, ...]]:
    """`NAME=VALUE[,VALUE]` words as values by name, in the order given.

    A bare NAME has the values that are `named` for it; `all`, alone, is all that is named, but for
    nnU-Net's `ignore`.
    UserError for anything else, for a name given twice and for a value under two names.
    """
    named = named or {}
    if [*words] == ["all"]:
        if not named:
            raise UserError(f"{flag} all: no dataset.json names the labels; give NAME=VALUE.")
        if undefined := [name for name, values in named.items() if not values]:
            raise UserError(
                f"{flag} all: dataset.json gives no whole numbers for {', '.join(undefined)}; give "
                "NAME=VALUE."
            )
        kept = {name: values for name, values in named.items() if name != IGNORE}
        if not kept:
            raise UserError(f"{flag} all: dataset.json names no class but {IGNORE}.")
        words = [f"{name}={','.join(map(str, values))}" for name, values in kept.items()]
    classes: dict[str, tuple[int, ...]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = plain_name(name)
        values = [v.strip() for v in text.split(",")] if equals else named.get(name)
        if not values:
            if name == "all":
                raise UserError(f"{flag} all stands alone, for all that dataset.json names.")
            names = f"known are {', '.join(named)}; or " if named else ""
            raise UserError(f"{flag} {word}: {names}give its values too, as in {word}=2,3.")
        if not (name and all(re.fullmatch("[0-9]{1,9}", str(v)) and int(v) for v in values)):
            raise UserError(
                f"{flag} {word!r}: NAME=VALUE or NAME=VALUE,VALUE is expected, with whole numbers "
                "from 1 on (0 is background)."
            )
        if name in classes:
            both = ",".join(map(str, (*classes[name], *values)))
            raise UserError(f"{flag} names {name} twice; its values go together: {name}={both}.")
        classes[name] = tuple(sorted({int(v) for v in values}))
    owners: dict[int, str] = {}
    for name, values in classes.items():
        for value in values:
            if owners.setdefault(value, name) != name:
                raise UserError(
                    f"{flag}: the value {value} is under {owners[value]} and {name}. Regions that "
                    f"overlap cannot be one label map: name parts that do not, {flag} "
                    "NAME=VALUE NAME=VALUE,VALUE."
                )
    if len(classes) > MOST:
        raise UserError(f"{flag} names {len(classes)} classes; an 8-bit mask holds {MOST}.")
    return classes


def on_the_left(classes: Sequence[str]) -> int | None:
    """The mask value, from 1, of a class that lies on the patient's left: the spleen.
    None if there is none."""
    names = [name.lower() for name in classes]
    return next((k for k, n in enumerate(names, start=1) if n == "spleen"), None)


def as_words(labels: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The words from which `parse_classes` makes these."""
    return tuple(f"{name}={','.join(map(str, values))}" for name, values in labels.items())


def named_in(listed) -> dict[str, tuple[int, ...]]:
    """The classes that a dataset.json's "labels" names, by value: Decathlon's `{"1": "spleen"}` or
    nnU-Net's `{"spleen": 1, "kidneys": [2, 3]}`, whose regions may overlap. A class whose values
    are not whole numbers gets none; `parse_classes` refuses it."""
    labels = listed.get("labels") if isinstance(listed, dict) else None
    classes: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        turned = isinstance(value, str) and not value.isdecimal()
        name, values = (value, key) if turned else (key, value)
        values, name = _whole(values), plain_name(str(name))
        if name and values != [0]:
            classes[name] = tuple(sorted({*classes.get(name, ()), *values} - {0}))
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def _whole(values) -> list[int]:
    """A value, or a list of them, as whole numbers from 0 on; empty if any of them is none."""
    try:
        numbers = [float(value) for value in (values if isinstance(values, list) else [values])]
        whole = all(number >= 0 and number % 1 == 0 for number in numbers)
    except (TypeError, ValueError):
        return []
    return [int(number) for number in numbers] if whole else []


def overlapping(labels: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Values that belong to more than one class: regions that cannot be one label map."""
    each = [value for values in labels.values() for value in values]
    return sorted({value for value in each if each.count(value) > 1})


def to_mask(label: np.ndarray, labels: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Label values as mask values, uint8 of the same shape: k for the k-th class, 255 for one
    alone; 0 elsewhere."""
    mask = np.zeros(label.shape, np.uint8)
    for number, values in enumerate(labels.values(), start=1):
        mask[np.isin(label, values)] = number if len(labels) > 1 else 255
    return mask


def count_values(label: np.ndarray) -> dict[int, int]:
    """How many voxels have each value, without 0. The values are whole numbers from 0 on."""
    if label.dtype.kind in "iu" and label.size and label.max() < FAR:
        counts = np.bincount(label.ravel())
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v}
    values, counts = np.unique(label, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}


def remarks(
    labels: Mapping[str, tuple[int, ...]], held: set[int], naming: str = "--classes does not name"
) -> list[str]:
    """What is odd about labels, where `held` are the values of the whole set (without 0). `naming`
    says what has left out the others."""
    lines = []
    for name, values in labels.items():
        if missed := [str(v) for v in values if v not in held]:
            lines.append(f"warning: {name}: no label of the set holds {', '.join(missed)}")
    named = {v for values in labels.values() for v in values}
    if rest := sorted(held - named):
        shown = ", ".join(map(str, rest[:12])) + (" ..." if len(rest) > 12 else "")
        lines.append(f"note: {naming} the values {shown}: background")
    return lines


def vanished(name: str, gone: int, shown: int, size: int) -> list[str]:
    """A warning, as a line to print, if a class that `shown` slices show is gone from many of them
    once they are resized to `size` pixels."""
    if gone <= MANY_GONE * shown:
        return []
    return [
        f"warning: {name} is too small to be seen in {gone} of the {shown} slices that show it, at "
        f"{size} pixels; a larger --size keeps more"
    ]


def check_classes(names, colours, path: Path) -> None:
    """UserError if the classes' names or colours in a dataset.json or checkpoint cannot be used."""
    texts = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
    if not texts or not names or len(names) != len({*names}) or len(names) > MOST:
        raise UserError(
            f"{shown(path)}: its classes are not a list of up to {MOST} different names."
        )
    if colours is None:
        return
    hexes = isinstance(colours, list) and all(
        isinstance(c, str) and re.fullmatch("#[0-9a-fA-F]{6}", c) for c in colours
    )
    if not hexes or len(colours) != len(names):
        raise UserError(
            f'{shown(path)}: its colours are not a list of {len(names)} like "#1f77b4".'
        )
