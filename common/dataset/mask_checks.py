"""What is odd about the masks of a set: whether they show the same, and what a user should know."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from common.dataset.mask_files import Mask, NotTwoValues
from common.files import shown

USUAL = ((1,) * 3, (255,) * 3)  # what foreground pixels hold where nothing is odd, as (R, G, B)
ALL_AROUND = 0.9  # of a picture's border: a structure that covers more, and half of it, is rare
ALIKE = 48  # colours of one class in two lossy files differ by no more


def contradictions(masks: Sequence[Mask], flag: str = "--threshold") -> list[NotTwoValues]:
    """What is wrong with masks that each hold two values, but not all the same: one for each file
    whose foreground has another value or colour than most. A mixture of 0/1 and 0/255 is normal.

    `flag` is the flag that sets the threshold."""
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
        NotTwoValues(f"{shown(mask.path)} {_difference(mask, most, flag)}")
        for group in groups
        if group is not most
        for mask in group
    ]


def _difference(mask: Mask, most: list[Mask], flag: str) -> str:
    """How a mask contradicts most others of its set, and what to do about it."""
    usual = most[0]
    if mask.upside_down != usual.upside_down:
        sides = ["darker", "brighter"]
        return (
            f"has a palette whose number 0 is {sides[mask.upside_down]} than its foreground, in "
            f"{len(most)} other masks it is {sides[usual.upside_down]}: one kind is inverted. Save "
            "all as grey, with black as background."
        )
    lowest = min(max(mask.colour), max(usual.colour))
    limit = max(1, lowest // 2) if mask.lossy or any(m.lossy for m in most) else 1
    return (
        f"shows foreground as {_as_text(mask.colour)}, {len(most)} other masks as "
        f"{_as_text(usual.colour)}; if it is the same, {flag} {limit} takes both."
    )


def _alike(a: Mask, b: Mask) -> bool:
    """Whether two masks can show the same class, by the values that they show it as."""
    if a.upside_down != b.upside_down:
        return False
    if a.palette and b.palette:
        return a.colour == b.colour
    first, second = ((255,) * 3 if m.colour in USUAL else m.colour for m in (a, b))
    difference = max(abs(x - y) for x, y in zip(first, second, strict=True))
    return difference <= (ALIKE if a.lossy or b.lossy else 0)


def remarks_on(
    masks: Sequence[Mask], threshold: int | None, flag: str = "--threshold"
) -> list[str]:
    """What a user should know of how masks of one class were read, `threshold` being what `flag`
    was given; lines to print."""
    lines, count = [], len(masks)
    holding = Counter(_as_text(m.colour) for m in masks if m.colour and not m.lossy)
    if len(holding) > 1:
        parts = ", ".join(f"{n} hold 0 and {value}" for value, n in sorted(holding.items()))
        lines.append(f"note: of the masks {parts}; each is read by its own two values")
    elif odd := [value for value in holding if value not in ("1", "255")]:
        lines.append(f"note: the masks hold 0 and {odd[0]}, which is taken as the class")
    if turned := sum(mask.upside_down for mask in masks):
        lines.append(
            f"warning: in {turned} of {count} masks the palette shows number 0 brighter than the "
            "other; they are read by number: 0 is background"
        )
    erased = [m for m in masks if threshold is not None and 0 < m.highest < threshold]
    filled = [m for m in masks if m.covered == 1 and m.lowest < m.highest]
    if erased:
        lines.append(
            f"warning: {flag} {threshold} leaves nothing of {len(erased)} of {count} masks; "
            f"the highest value in them is {max(mask.highest for mask in erased)}"
        )
    if filled:
        lines.append(
            f"warning: {flag} {threshold} makes foreground of all pixels of {len(filled)} of "
            f"{count} masks; the lowest value in them is {min(mask.lowest for mask in filled)}"
        )
    return lines


def looks_inverted(foreground: np.ndarray) -> bool:
    """Whether a bool mask `(H, W)` covers more than half of its picture and nearly all of the
    picture's border, as background does."""
    border = np.concatenate(
        [foreground[0], foreground[-1], foreground[1:-1, 0], foreground[1:-1, -1]]
    )
    return bool(foreground.mean() > 0.5 and border.mean() > ALL_AROUND)


def inverted(masks: Sequence[bool]) -> list[str]:
    """A warning, as a line to print, if any of the masks `looks_inverted`."""
    count = sum(masks)
    if not count:
        return []
    return [
        f"warning: in {count} of {len(masks)} pictures the foreground covers more than half and "
        "nearly the whole border: are these masks inverted? 0 (black) must be background; if they "
        "are, swap their two values, and run this again"
    ]


def turned_alone(images: Sequence[bool], masks: Sequence[bool]) -> list[str]:
    """Lines to print if EXIF turned images and not their masks, or the other way round; whether it
    did is given for each pair."""
    pairs = [*zip(images, masks, strict=True)]
    lines = []
    if count := sum(image and not mask for image, mask in pairs):
        lines.append(
            f"note: {count} images are turned as their EXIF orientation says, their masks, which "
            "have none, are not: they must have been drawn on the upright picture"
        )
    if count := sum(mask and not image for image, mask in pairs):
        lines.append(
            f"warning: {count} masks are turned as their EXIF orientation says, their images, "
            "which have none, are not: look at the overlays, and save the masks without EXIF if "
            "they do not fit"
        )
    return lines


def _as_text(colour: tuple[int, int, int]) -> str:
    return str(colour[0]) if len(set(colour)) == 1 else str(colour)
