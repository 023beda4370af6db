"""Masks of other 2D data sets: which pixels are organ, told by each file's own values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from common.files import UserError, shown
from common.pictures import Loaded, check_opaque, load

USUAL = ((1,) * 3, (255,) * 3)  # what an organ's pixels hold where nothing is odd, as (R, G, B)
NOISE = 24  # how far lossy formats move the values of an even area
DARK = 32  # an organ darker than this cannot be told from what a lossy format makes of black
FEW = 9  # pixels of a third value that may be chance: those inside an area of 5 x 5
ALIKE = 48  # colours of one organ in two lossy files differ by less
EVEN = 8  # what values may differ by from pixel to pixel inside an even area of a lossy file


class NotTwoValues(UserError):
    """A mask of one organ holds something else than a background of 0 and one other value."""


@dataclass(frozen=True)
class Mask:
    """What is known of a file's mask: the share of its pixels that are organ, the colour (R, G, B)
    that is organ in it (a palette's number, thrice; None: nothing is, or what is organ was said),
    and what may be odd."""

    path: Path
    covered: float
    colour: tuple[int, int, int] | None = None
    lossy: bool = False
    palette: bool = False
    upside_down: bool = False  # in a palette's colours background is brighter than organ
    highest: int = 0
    lowest: int = 0
    turned: bool = False  # by its EXIF orientation


def read_binary(path: Path, threshold: int | None) -> tuple[np.ndarray, Mask]:
    """A mask of one organ as {0, 255}, uint8 `(H, W)`, and what is known of it.

    A palette's numbers count, not its colours; of colours the brightest channel. NotTwoValues if it
    holds more than a background of 0 and one other value and there is no `threshold`; UserError as
    of `load` and `check_opaque`.
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
    return _of_values(colours, path)


def read_numbers(path: Path) -> tuple[np.ndarray, Mask]:
    """A mask of several organs as the numbers that its file holds, a palette's too, uint8 `(H, W)`,
    and what is known of it.

    UserError for colours, for formats that do not keep values, and as of `load`.
    """
    loaded = load(path)
    if loaded.lossy:
        raise UserError(f"{shown(path)} is a {loaded.lossy}: it does not keep values exactly.")
    if loaded.image.mode not in ("L", "P", "PA", "1"):
        raise UserError(
            f"{shown(path)} has mode {loaded.image.mode}; a mask of several organs holds an "
            "index a pixel, grey or of a palette."
        )
    numbers = _numbers(loaded.image) // np.uint8(loaded.step)
    return numbers, Mask(path, float((numbers > 0).mean()), turned=loaded.turned)


def _numbers(image: Image.Image) -> np.ndarray:
    """The numbers that a grey or palette picture holds, uint8 `(H, W)`."""
    return np.array(image.getchannel(0) if image.mode == "PA" else image).astype(np.uint8)


def _cut(values: np.ndarray, threshold: int, path: Path, **more) -> tuple[np.ndarray, Mask]:
    """What is at or above a threshold."""
    organ = values >= threshold
    span = {"lowest": int(values.min()), "highest": int(values.max())}
    return _as_255(organ), Mask(path, float(organ.mean()), **span, **more)


def _as_255(organ: np.ndarray) -> np.ndarray:
    return np.where(organ, 255, 0).astype(np.uint8)


def _of_palette(loaded: Loaded, path: Path, threshold: int | None) -> tuple[np.ndarray, Mask]:
    """A palette's mask, by its numbers: 0 is background, one other the organ."""
    values = _numbers(loaded.image)
    found = np.unique(values).tolist()
    listed = (loaded.image.palette.getdata()[1] if loaded.image.palette else b"") or b""
    width = len(loaded.image.palette.mode) if loaded.image.palette else 3
    shades = {n: tuple(listed[width * n : width * n + 3]) for n in found}
    ramp = all(shades[n] in ((n,) * 3, ()) for n in found)
    if threshold is not None:
        if len(found) > 2 and not ramp:
            raise UserError(
                f"{shown(path)} holds {len(found)} numbers of a palette, in no order of "
                "brightness that --threshold could cut: save it as grey, or name its numbers with "
                "--organs NAME=VALUE[,VALUE]."
            )
        return _cut(values, threshold, path, palette=True)
    organ = _other_than_0(found, path, "palette numbers")
    if organ == 255 and not ramp and shades[255] != (255, 255, 255):
        raise NotTwoValues(
            f"{shown(path)} holds the palette numbers {', '.join(map(str, found))}; 255 often "
            "marks what is to be left out. --organs NAME=1 takes it as background, NAME=255 as the "
            "organ."
        )
    upside_down = organ is not None and 0 in shades and sum(shades[0]) > sum(shades[organ])
    about = {"palette": True, "upside_down": upside_down}
    return _as_255(values > 0), _mask(values > 0, path, organ, **about)


def _of_values(colours: np.ndarray, path: Path) -> tuple[np.ndarray, Mask]:
    """A mask that holds exact values: grey `(H, W, 1)`, or colours `(H, W, 3)`."""
    if colours.shape[-1] == 3 and (colours == colours[..., :1]).all():
        colours = colours[..., :1]
    if colours.shape[-1] == 1:
        organ = _other_than_0(np.unique(colours).tolist(), path, "values")
    else:
        codes = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        triples = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in np.unique(codes)]
        organ = _other_than_0([t if any(t) else 0 for t in triples], path, "colours")
    mask = colours.any(axis=-1)
    return _as_255(mask), _mask(mask, path, organ)


def _mask(mask: np.ndarray, path: Path, organ, **more) -> Mask:
    """What is known of a mask whose organ is one value, one colour, or None."""
    colour = organ if organ is None or isinstance(organ, tuple) else (organ,) * 3
    return Mask(path, float(mask.mean()), colour, **more)


def _other_than_0(found: list, path: Path, what: str):
    """The value that is not background; None of an empty mask. NotTwoValues if there are several,
    or if 0 is missing and the other is none of the usual."""
    others = [value for value in found if value != 0]
    if len(others) > 1 or others and 0 not in found and others[0] not in (1, 255):
        some = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        kind = what if len(found) > 1 else what.removesuffix("s")
        raise NotTwoValues(f"{shown(path)} holds {len(found)} {kind}: {some}.")
    return others[0] if others else None


def _of_lossy(
    values: np.ndarray, colours: np.ndarray, path: Path, form: str
) -> tuple[np.ndarray, Mask]:
    """A mask in a format that blurs values, cut half-way between its background and its organ.

    `values` `(H, W)` are the brightest of `colours` `(H, W, 1 or 3)`. NotTwoValues where these are
    not two even colours, one of them black.
    """
    colours = colours.astype(np.int16)
    low, high = int(values.min()), int(values.max())
    constant = np.ptp(colours, axis=(0, 1)).max() <= EVEN
    if constant and high < NOISE:
        return np.zeros_like(values), Mask(path, 0.0, lossy=True)
    if high < DARK:
        raise NotTwoValues(
            f"{shown(path)} is a {form} that holds nothing brighter than {high}, which cannot be "
            "told from the format's noise; save the mask as PNG."
        )
    cut = low if constant and low > 255 - NOISE else (low + high) / 2  # all of it organ, or two
    for _ in range(2):  # the extremes may be the format's ringing; the medians are not
        dark, bright = (_median(colours[part]) for part in (values < cut, values >= cut))
        cut = min(cut, (dark.max() + bright.max()) / 2)
    if dark.max() > bright.max() / 3:
        raise NotTwoValues(
            f"{shown(path)} is a {form} whose background is not black: it holds about "
            f"{_as_text(_triple(dark))}."
        )
    organ = values >= cut
    far = np.abs(colours - np.where(organ[..., None], bright, dark)).max(axis=-1) > NOISE
    spread = [ndimage.maximum_filter(c, 3) - ndimage.minimum_filter(c, 3) for c in colours.T]
    if np.count_nonzero(far.T & (np.max(spread, axis=0) <= EVEN)) > FEW:
        raise NotTwoValues(f"{shown(path)} is a {form} of more than two values or colours.")
    return _as_255(organ), Mask(path, float(organ.mean()), _triple(bright), lossy=True)


def _median(colours: np.ndarray) -> np.ndarray:
    """The median colour of `(N, channels)`; black if there is none."""
    return np.median(colours, axis=0) if len(colours) else np.zeros(colours.shape[-1])


def _triple(colour) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.broadcast_to(colour, 3))


def _as_text(colour: tuple[int, int, int]) -> str:
    return str(colour[0]) if len(set(colour)) == 1 else str(colour)


def contradictions(masks: Sequence[Mask]) -> list[NotTwoValues]:
    """What is wrong with masks that each hold two values, but not all the same: one for each file
    whose organ has another value or colour than most. 0 and 1 beside 0 and 255 is usual."""
    groups: list[list[Mask]] = []
    # Exact values first, palettes at the front: the first of a group is what others are held to.
    for mask in sorted(masks, key=lambda mask: (mask.lossy, not mask.palette)):
        if mask.colour is not None:
            group = next((g for g in groups if _alike(g[0], mask)), None)
            if group is None:
                groups.append([mask])
            else:
                group.append(mask)
    most = max(groups, key=lambda g: (len(g), g[0].colour in USUAL), default=[])
    return [
        NotTwoValues(
            f"{shown(mask.path)} shows the organ as {_as_text(mask.colour)}, {len(most)} other "
            f"masks as {_as_text(most[0].colour)}: is it the same?"
        )
        for group in groups
        if group is not most
        for mask in group
    ]


def _alike(a: Mask, b: Mask) -> bool:
    """Whether two masks can show the same organ, by the values that they show it as."""
    if a.palette and b.palette:
        return a.colour == b.colour
    first, second = ((255,) * 3 if m.colour in USUAL else m.colour for m in (a, b))
    apart = max(abs(x - y) for x, y in zip(first, second, strict=True))
    return apart <= (ALIKE if a.lossy or b.lossy else 0)


def remarks_on(masks: Sequence[Mask], threshold: int | None) -> list[str]:
    """What a user should know of how masks of one organ were read, as lines to print."""
    lines, count = [], len(masks)
    holding = Counter(_as_text(m.colour) for m in masks if m.colour and not m.lossy)
    if len(holding) > 1:
        parts = ", ".join(f"{n} hold 0 and {value}" for value, n in sorted(holding.items()))
        lines.append(f"note: of the masks {parts}; each is read by its own two values")
    elif odd := [value for value in holding if value not in ("1", "255")]:
        lines.append(f"note: the masks hold 0 and {odd[0]}, which is taken as the organ")
    if turned := sum(mask.upside_down for mask in masks):
        lines.append(
            f"warning: in {turned} of {count} masks the palette shows number 0 brighter than the "
            "other; they are read by number: 0 is background"
        )
    erased = [m for m in masks if threshold is not None and 0 < m.highest < threshold]
    filled = [m for m in masks if m.covered == 1 and m.lowest < m.highest]
    if erased:
        lines.append(
            f"warning: --threshold {threshold} leaves nothing of {len(erased)} of {count} masks; "
            f"the highest value in them is {max(mask.highest for mask in erased)}"
        )
    if filled:
        lines.append(
            f"warning: --threshold {threshold} makes organ of all pixels of {len(filled)} of "
            f"{count} masks; the lowest value in them is {min(mask.lowest for mask in filled)}"
        )
    return lines


def inverted(shares: Sequence[float]) -> list[str]:
    """A warning, as a line to print, if the organ covers more than half of most pictures that show
    it; `shares` are what it covers of each."""
    seen = [share for share in shares if share]
    most = sum(share > 0.5 for share in seen)
    if most <= len(seen) / 2:
        return []
    return [
        f"warning: the organ covers more than half of {most} of {len(shares)} pictures: are the "
        "masks inverted? 0 (black) must be background; if they are, swap their values (grey: "
        "PIL.ImageOps.invert), and import them again with --overwrite"
    ]
