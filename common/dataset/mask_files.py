"""Masks of other 2D data sets: which pixels are foreground, told by each file's own values."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from common.dataset.pictures import Loaded, check_opaque, load
from common.errors import UserError
from common.files import shown

NOISE = 24  # how far lossy formats move the values of an even area
DARK = 32  # a foreground darker than this cannot be told from what a lossy format makes of black
FEW = 9  # pixels of a third value that may be chance: those inside an area of 5 x 5
BLUR = 3  # how far from an edge, in pixels, lossy formats mix the colours of both sides
FAR = 96  # no blur moves a value by as much, except at edges
EVEN = 8  # what values may differ by from pixel to pixel inside an even area of a lossy file


class NotTwoValues(UserError):
    """A mask of one class holds something else than a background of 0 and one other value."""


@dataclass(frozen=True)
class Mask:
    """What is known of a file's mask: the share of its pixels that are foreground, the colour (R,
    G, B) that is foreground in it (a palette's number, thrice; None: nothing is, or what is
    foreground was said), and what may be odd."""

    path: Path
    covered: float
    colour: tuple[int, int, int] | None = None
    lossy: bool = False
    palette: bool = False
    upside_down: bool = False  # in a palette's colours background is brighter than foreground
    highest: int = 0
    lowest: int = 0
    turned: bool = False  # by its EXIF orientation


def read_binary(path: Path, threshold: int | None) -> tuple[np.ndarray, Mask]:
    """A mask of one class as {0, 255}, uint8 `(H, W)`, and what is known of it.

    A palette's numbers count, not its colours; of colours the brightest channel. NotTwoValues if it
    holds more than a background of 0 and one other value and there is no `threshold`; UserError as
    in `load` and `check_opaque`.
    """
    loaded = load(path)
    pixels, mask = _binary(loaded, path, threshold)
    return pixels, replace(mask, turned=loaded.turned)


def _binary(loaded: Loaded, path: Path, threshold: int | None) -> tuple[np.ndarray, Mask]:
    """`read_binary` of a loaded picture."""
    if loaded.image.mode in ("P", "PA"):
        return _of_palette(loaded, path, threshold)
    check_opaque(loaded.image, path)
    if loaded.image.mode in ("1", "L", "LA"):
        values = np.asarray(loaded.image.convert("L"))
        colours = values[..., None]
    else:
        colours = np.asarray(loaded.image.convert("RGB"))
        values = colours.max(axis=-1)
    if threshold is not None:
        return _cut(values, threshold, path)
    if loaded.lossy:
        return _of_lossy(values, colours, path, loaded.lossy)
    if loaded.step > 1:  # 0 and 1 of 4 bits have become 0 and 17
        colours = np.where(colours == 255, 255, colours // loaded.step).astype(np.uint8)
    return _of_values(colours, path)


def read_numbers(path: Path) -> tuple[np.ndarray, Mask]:
    """A mask of several classes as the numbers that its file holds, a palette's too, uint8 `(H,
    W)`, and what is known of it.

    UserError for colours, for formats that do not keep values, and as in `load`.
    """
    loaded = load(path)
    if loaded.lossy:
        raise UserError(f"{shown(path)} is a {loaded.lossy}: it does not keep values exactly.")
    if loaded.image.mode not in ("L", "P", "PA", "1"):
        raise UserError(
            f"{shown(path)} has mode {loaded.image.mode}; a mask of several classes holds an "
            "index a pixel, grey or of a palette."
        )
    numbers = _numbers(loaded.image) // np.uint8(loaded.step)
    return numbers, Mask(path, float((numbers > 0).mean()), turned=loaded.turned)


def _numbers(image: Image.Image) -> np.ndarray:
    """The numbers that a grey or palette picture holds, uint8 `(H, W)`."""
    return np.array(image.getchannel(0) if image.mode == "PA" else image).astype(np.uint8)


def _cut(values: np.ndarray, threshold: int, path: Path, **more) -> tuple[np.ndarray, Mask]:
    """What is at or above a threshold."""
    foreground = values >= threshold
    span = {"lowest": int(values.min()), "highest": int(values.max())}
    return _as_255(foreground), Mask(path, float(foreground.mean()), **span, **more)


def _as_255(foreground: np.ndarray) -> np.ndarray:
    return np.where(foreground, 255, 0).astype(np.uint8)


def _of_palette(loaded: Loaded, path: Path, threshold: int | None) -> tuple[np.ndarray, Mask]:
    """A palette's mask, by its numbers: 0 is background, one other the foreground."""
    values = _numbers(loaded.image)
    numbers = np.unique(values).tolist()
    listed = loaded.image.getpalette() or []  # R, G, B of each number in turn
    shades = {number: tuple(listed[3 * number : 3 * number + 3]) for number in numbers}
    ramp = all(shades[n] in ((n,) * 3, ()) for n in numbers)
    if threshold is not None:
        if len(numbers) > 2 and not ramp:
            raise UserError(
                f"{shown(path)} holds {len(numbers)} numbers of a palette, in no order of "
                "brightness that --threshold could cut: save it as grey, or name its numbers with "
                "--classes NAME=VALUE[,VALUE]."
            )
        return _cut(values, threshold, path, palette=True)
    foreground = _other_than_0(numbers, path, "palette numbers")
    if foreground == 255 and not ramp and shades[255] != (255, 255, 255):
        raise NotTwoValues(
            f"{shown(path)} holds the palette numbers {', '.join(map(str, numbers))}; 255 often "
            "marks what is to be left out. --classes NAME=1 takes it as background, NAME=255 as "
            "foreground."
        )
    upside_down = (
        foreground is not None and 0 in shades and sum(shades[0]) > sum(shades[foreground])
    )
    about = {"palette": True, "upside_down": upside_down}
    return _as_255(values > 0), _mask(values > 0, path, foreground, **about)


def _of_values(colours: np.ndarray, path: Path) -> tuple[np.ndarray, Mask]:
    """A mask that holds exact values: grey `(H, W, 1)`, or colours `(H, W, 3)`."""
    if colours.shape[-1] == 3 and (colours == colours[..., :1]).all():
        colours = colours[..., :1]
    if colours.shape[-1] == 1:
        foreground = _other_than_0(np.unique(colours).tolist(), path, "values")
    else:
        codes = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        triples = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in np.unique(codes)]
        foreground = _other_than_0([t if any(t) else 0 for t in triples], path, "colours")
    mask = colours.any(axis=-1)
    return _as_255(mask), _mask(mask, path, foreground)


def _mask(mask: np.ndarray, path: Path, foreground, **more) -> Mask:
    """What is known of a mask whose foreground is one value, one colour, or None."""
    colour = (
        foreground if foreground is None or isinstance(foreground, tuple) else (foreground,) * 3
    )
    return Mask(path, float(mask.mean()), colour, **more)


def _other_than_0(values: list, path: Path, what: str):
    """The value that is not background; None of an empty mask. NotTwoValues if there are several,
    or if 0 is missing and the other is none of the usual."""
    others = [value for value in values if value != 0]
    if len(others) > 1 or others and 0 not in values and others[0] not in (1, 255):
        some = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        kind = what if len(values) > 1 else what.removesuffix("s")
        raise NotTwoValues(f"{shown(path)} holds {len(values)} {kind}: {some}.")
    return others[0] if others else None


def _of_lossy(
    values: np.ndarray, colours: np.ndarray, path: Path, form: str
) -> tuple[np.ndarray, Mask]:
    """A mask in a format that blurs values, cut half-way between its background and its foreground.

    `values` `(H, W)` are the brightest of `colours` `(H, W, 1 or 3)`. NotTwoValues where these are
    not two even colours, one of them black.
    """
    colours = colours.astype(np.int16)
    low, high = int(values.min()), int(values.max())
    spread = int(np.ptp(colours, axis=(0, 1)).max())
    if spread == 0 and high < DARK:
        return np.zeros_like(values), Mask(path, 0.0, lossy=True)
    if high < DARK:
        raise NotTwoValues(
            f"{shown(path)} is a {form} that holds nothing brighter than {high}, which cannot be "
            "told from the format's noise; save the mask as PNG."
        )
    whole = spread <= EVEN and low > 255 - NOISE
    cut = low if whole else (low + high) / 2
    for _ in range(2):  # the extremes may be the format's ringing; the medians are not
        dark, bright = (_median(colours[part]) for part in (values < cut, values >= cut))
        cut = min(cut, (dark.max() + bright.max()) / 2)
    if not whole and (low == high or dark.max() > bright.max() / 4):
        raise NotTwoValues(f"{shown(path)} is a {form} that has no black background.")
    foreground = values >= cut
    if _has_third(colours, foreground, np.where(foreground[..., None], bright, dark)):
        raise NotTwoValues(f"{shown(path)} is a {form} of more than two values or colours.")
    return _as_255(foreground), Mask(path, float(foreground.mean()), _triple(bright), lossy=True)


def _has_third(colours: np.ndarray, foreground: np.ndarray, expected: np.ndarray) -> bool:
    """Whether areas of a lossy picture, `colours` `(H, W, channels)`, have another colour than is
    `expected` in foreground and background: even areas, or any far from the edges that the format
    blurs."""
    difference = np.abs(colours - expected).max(axis=-1)
    bands = np.moveaxis(colours, -1, 0)
    spread = [ndimage.maximum_filter(b, 3) - ndimage.minimum_filter(b, 3) for b in bands]
    even = np.max(spread, axis=0) <= EVEN
    inside = ndimage.binary_erosion(foreground, iterations=BLUR, border_value=1)
    inside |= ndimage.binary_erosion(~foreground, iterations=BLUR, border_value=1)
    odd = (difference > NOISE) & even | (difference > FAR) & inside
    return np.count_nonzero(odd) > FEW


def _median(colours: np.ndarray) -> np.ndarray:
    """The median colour of `(N, channels)`; black if there is none."""
    return np.median(colours, axis=0) if len(colours) else np.zeros(colours.shape[-1])


def _triple(colour) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.broadcast_to(colour, 3))
