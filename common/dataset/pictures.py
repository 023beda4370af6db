"""Pictures of other 2D data sets, in whatever format and mode they come."""

import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.dataset.slices import MAX_PIXELS
from common.errors import UserError
from common.files import shown

ORIENTATION = 0x0112  # the tag in EXIF and TIFF that says how a picture is turned or mirrored
# Formats that may not keep values exactly, by Pillow's names.
LOSSY = {"MPO": "JPEG", **{name: name for name in ("JPEG", "JPEG2000", "WEBP", "AVIF")}}


class Loaded(NamedTuple):
    """A picture as it should be seen: its pixels upright, the file's format if that does not keep
    values exactly, whether EXIF had it turned, and the step between grey values of 2 or 4 bits."""

    image: Image.Image
    lossy: str
    turned: bool
    step: int


def load(path: Path) -> Loaded:
    """Read a picture and turn it as its EXIF orientation says.

    UserError for a damaged file, for more than 8 bits and for several pages.
    """
    try:
        # From a path Pillow maps a TIFF into memory, and garbles one that is turned by 90 degrees.
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            raw = _check_form(picture, path)
            lossy = LOSSY.get(picture.format, "")
            if picture.format == "TIFF" and "jpeg" in str(picture.info.get("compression")):
                lossy = "JPEG"
            # Loading a TIFF turns it, and takes the tag away; other formats have it afterwards.
            tag = picture.tag_v2.get(ORIENTATION) if picture.format == "TIFF" else None
            picture.load()
            turned = (tag or _orientation(picture, path)) in range(2, 9)
            upright = ImageOps.exif_transpose(picture) if turned else picture.copy()
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{shown(path)} is damaged or not a picture.") from None
    except Exception as error:  # Pillow's readers raise many types for a damaged file
        raise UserError(f"{shown(path)} is damaged or not a picture ({error}).") from None
    bits = re.match("L;([24])", raw)
    return Loaded(upright, lossy, turned, 255 // (2 ** int(bits[1]) - 1) if bits else 1)


def _check_form(picture: Image.Image, path: Path) -> str:
    """How Pillow unpacks an open picture ("RGB;16B"). UserError for what is not read."""
    if picture.width * picture.height > MAX_PIXELS:
        raise UserError(
            f"{shown(path)} claims {picture.width}x{picture.height} pixels, more than 8192x8192."
        )
    pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    if pages > 1:  # in a camera's MPO the others are previews of the first
        raise UserError(f"{shown(path)} holds {pages} pages; save each as a picture of its own.")
    how = picture.tile[0][3] if picture.tile else ""
    raw = str(how[0] if isinstance(how, tuple) and how else how)
    # Pillow drops the low byte of 16-bit colours silently.
    if picture.mode.startswith(("I", "F")) or re.search(";16[BLN]", raw):
        depth = f"mode {picture.mode}" + ", 16 bits" * (";16" in raw)
        raise UserError(f"{shown(path)} has {depth}; convert it to 8 bits per channel.")
    return raw


def _orientation(picture: Image.Image, path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none. UserError if EXIF cannot be read."""
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception as error:  # as for the picture itself
        raise UserError(
            f"{shown(path)}: its EXIF, which may say how it is turned, is damaged ({error}); save "
            "the picture upright, without EXIF."
        ) from None


def to_grey(image: Image.Image, path: Path) -> np.ndarray:
    """A loaded picture as grey uint8 `(H, W)`. UserError as in `check_opaque`."""
    check_opaque(image, path)
    return np.asarray(image.convert("L"))


def check_opaque(image: Image.Image, path: Path) -> None:
    """UserError for transparent pixels that are not a black background."""
    if not image.has_transparency_data:
        return
    pixels = np.asarray(image.convert("RGBA"))
    hidden = pixels[..., 3] < 255
    # A black background may be transparent; otherwise the alpha holds what is shown.
    silhouette = hidden.any() and not hidden.all() and not pixels[..., :3].any()
    if pixels[hidden][:, :3].any() or silhouette:
        raise UserError(
            f"{shown(path)} has see-through pixels (alpha), and what is stored there is not what "
            "is seen; save it without alpha."
        )
