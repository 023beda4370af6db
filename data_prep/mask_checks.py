"""What is odd about the masks of a set: whether they show the same, and what a user should know."""

from collections import Counter
from collections.abc import Sequence

from common.dataset.mask_files import Mask, NotTwoValues
from common.files import shown

USUAL = ((1,) * 3, (255,) * 3)  # what an foreground pixels hold where nothing is odd, as (R, G, B)
ALIKE = 48  # colours of one class in two lossy files differ by no more


def contradictions(masks: Sequence[Mask]) -> list[NotTwoValues]:
    """What is wrong with masks that each hold two values, but not all the same: one for each file
    whose class has another value or colour than most. 0 and 1 beside 0 and 255 is usual."""
    groups: list[list[Mask]] = []
    # Exact values first, palettes at the front: the first of a group is what others are held to.
    for mask in sorted(masks, key=lambda mask: (mask.lossy, not mask.palette)):
        if mask.colour is not None:
            group = next((g for g in groups if _alike(g[0], mask)), None)
            if group is None:
                groups.append([mask])
            else:
                group.append(mask)
    limit = 128 if any(mask.lossy for mask in masks) else 1
    most = max(groups, key=lambda g: (len(g), g[0].colour in USUAL), default=[])
    return [
        NotTwoValues(
            f"{shown(mask.path)} shows foreground as {_as_text(mask.colour)}, {len(most)} other "
            f"masks as {_as_text(most[0].colour)}; if it is the same, --threshold {limit} takes "
            "both."
        )
        for group in groups
        if group is not most
        for mask in group
    ]


def _alike(a: Mask, b: Mask) -> bool:
    """Whether two masks can show the same class, by the values that they show it as."""
    if a.palette and b.palette:
        return a.colour == b.colour
    first, second = ((255,) * 3 if m.colour in USUAL else m.colour for m in (a, b))
    apart = max(abs(x - y) for x, y in zip(first, second, strict=True))
    return apart <= (ALIKE if a.lossy or b.lossy else 0)


def remarks_on(masks: Sequence[Mask], threshold: int | None) -> list[str]:
    """What a user should know of how masks of one class were read, as lines to print."""
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
            f"warning: --threshold {threshold} leaves nothing of {len(erased)} of {count} masks; "
            f"the highest value in them is {max(mask.highest for mask in erased)}"
        )
    if filled:
        lines.append(
            f"warning: --threshold {threshold} makes class of all pixels of {len(filled)} of "
            f"{count} masks; the lowest value in them is {min(mask.lowest for mask in filled)}"
        )
    return lines


def inverted(shares: Sequence[float]) -> list[str]:
    """A warning, as a line to print, if the foreground covers more than half of most pictures that
    show it; `shares` are the fractions it covers."""
    seen = [share for share in shares if share]
    most = sum(share > 0.5 for share in seen)
    if most <= len(seen) / 2:
        return []
    return [
        f"warning: the foreground covers more than half of {most} of {len(shares)} pictures: are "
        "the masks inverted? 0 (black) must be background; if they are, swap their values (grey: "
        "PIL.ImageOps.invert), and import them again with --overwrite"
    ]


def _as_text(colour: tuple[int, int, int]) -> str:
    return str(colour[0]) if len(set(colour)) == 1 else str(colour)
