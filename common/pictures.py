"""Pictures of other 2D data sets, in whatever format and mode they come."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.files import UserError, shown
from common.slices import MAX_PIXELS

JPEG_THRESHOLD = 128


class NotTwoValues(UserError):
    """A mask of one organ holds other values than 0 and 1, or 0 and 255."""


def read_picture(path: Path, indices: bool = False) -> tuple[np.ndarray, bool]:
    """A picture as grey uint8 `(H, W)`, and whether it is a JPEG.

    With `indices` the values are those that the file holds, a palette's numbers too; then UserError
    for colours and JPEG. UserError for more than 8 bits, for several pages, and, but with
    `indices`, for see-through pixels that are not a black background.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{shown(path)} claims {picture.width}x{picture.height} pixels, more than "
                    "8192x8192."
                )
            pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            if pages > 1:  # in a camera's MPO the others are previews of the first
                raise UserError(
                    f"{shown(path)} holds {pages} pages; save each as a picture of its own."
                )
            if picture.mode.startswith(("I", "F")):
                raise UserError(
                    f"{shown(path)} has mode {picture.mode}; convert it to 8 bits a channel."
                )
            if not indices and picture.has_transparency_data:
                grey, alpha = (np.asarray(band) for band in picture.convert("LA").split())
                hidden = alpha < 255
                # A black background is see-through at times; else the alpha holds what is shown.
                if grey[hidden].any() or (hidden.any() and not grey.any()):
                    raise UserError(
                        f"{shown(path)} has see-through pixels (alpha), and what is grey there is "
                        "not what is seen; save it as grey without."
                    )
            jpeg = picture.format in ("JPEG", "MPO")
            if indices and jpeg:
                raise UserError(f"{shown(path)} is a JPEG: it does not keep values exactly.")
            if indices and picture.mode not in ("L", "P", "1"):
                raise UserError(
                    f"{shown(path)} has mode {picture.mode}; a mask of several organs holds an "
                    "index a pixel, grey or of a palette."
                )
            if indices and picture.mode != "L":
                return np.array(picture).astype(np.uint8), False
            return np.asarray(picture.convert("L")), jpeg
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise many types for a damaged file
        raise UserError(f"{shown(path)} is damaged or not a picture ({error}).") from None


def binary(path: Path, threshold: int | None) -> np.ndarray:
    """A mask as {0, 255}. NotTwoValues if it holds others and there is no threshold for them."""
    values, jpeg = read_picture(path)
    if threshold is None and jpeg:
        threshold = JPEG_THRESHOLD
    if threshold is None:
        found = np.unique(values)
        if not (np.isin(found, (0, 1)).all() or np.isin(found, (0, 255)).all()):
            some = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
            raise NotTwoValues(f"{shown(path)} holds {len(found)} values: {some}.")
        threshold = 1
    return np.where(values >= threshold, 255, 0).astype(np.uint8)
