"""Pictures in formats that hold more than grey values: alpha, pages, previews, EXIF."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_pairs import make, some
from small_pictures import read_grey

from common.errors import UserError


def test_see_through_masks_and_many_pages_are_refused(tmp_path):
    some(tmp_path, ["a", "b", "c", "d"])
    white = Image.new("RGBA", (40, 30), (255, 255, 255, 255))
    white.save(tmp_path / "masks" / "a.png")  # see-through nowhere: white is what is meant
    assert make(tmp_path).slices[0].foreground == 32 * 24
    white.putpixel((3, 3), (0, 0, 0, 0))
    white.save(tmp_path / "masks" / "d.png")  # what is hidden is black: background either way
    white.putpixel((3, 3), (255, 255, 255, 0))
    white.save(tmp_path / "masks" / "b.png")
    shape = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    shape.paste((0, 0, 0, 255), (5, 5, 20, 20))  # a silhouette: its shape is in the alpha
    shape.save(tmp_path / "masks" / "a.png")
    grey = Image.new("L", (40, 30), 9)
    for kind in ("images", "masks"):
        (tmp_path / kind / "c.png").unlink()
        grey.save(tmp_path / kind / "c.tif", save_all=True, append_images=[grey] * 4)
    with pytest.raises(UserError) as error:
        make(tmp_path, overwrite=True)
    assert "masks/b.png has see-through pixels" in str(error.value)
    assert "masks/a.png has see-through pixels" in str(error.value)
    assert "d.png" not in str(error.value)
    assert "images/c.tif holds 5 pages" in str(error.value)


def test_a_camera_s_picture_with_previews_is_a_jpeg(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    one = Image.open(tmp_path / "masks" / "a.png").convert("L")
    for kind in ("images", "masks"):
        (tmp_path / kind / "a.png").unlink()
        one.save(tmp_path / kind / "a.jpg", "MPO", save_all=True, append_images=[one])
    assert Image.open(tmp_path / "masks" / "a.jpg").n_frames == 2
    assert make(tmp_path).slices[0].foreground > 0
    with pytest.raises(UserError, match="a.jpg is a JPEG: it does not keep values exactly"):
        make(tmp_path, overwrite=True, classes=("spleen", "liver"))


KINDS = ("images", "masks")
# What was stored, as it is to be seen: the rows and columns of EXIF orientations 1 to 8.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[:, ::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


def save_turned(path, pixels, orientation):
    """Save pixels as they are, with a tag that says how they are to be turned."""
    tag = {0x0112: orientation}
    exif = Image.Exif()
    exif.update(tag)
    tiff = path.suffix == ".tif"
    Image.fromarray(pixels).save(path, **({"tiffinfo": tag} if tiff else {"exif": exif}))


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright(tmp_path, orientation, ending):
    stored = np.kron(np.array([[0, 60, 120], [30, 200, 250]], np.uint8), np.ones((8, 8), np.uint8))
    save_turned(tmp_path / f"a.{ending}", stored, orientation)
    expected = UPRIGHT[orientation](stored)
    found = read_grey(tmp_path / f"a.{ending}")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if ending == "jpg" else 0)


@pytest.mark.parametrize("size", [(40, 30), (40, 40)])
def test_a_mask_drawn_on_the_upright_picture_meets_it_upright(tmp_path, capsys, size):
    seen = np.zeros(size, np.uint8)
    seen[4:12, 5:15] = 255
    stored = np.rot90(seen).copy()  # by a camera held sideways: orientation 6
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    for shade, name in ((0, "a"), (10, "b"), (20, "c")):
        save_turned(tmp_path / "images" / f"{name}.jpg", stored // 255 * np.uint8(255 - shade), 6)
        Image.fromarray(seen).save(tmp_path / "masks" / f"{name}.png")
    data = make(tmp_path)
    image, mask = (np.asarray(Image.open(tmp_path / f"out/{k}/a_000.png")) for k in KINDS)
    assert image[mask > 0].mean() > 200 and image[mask == 0].mean() < 20
    assert (
        "3 images are turned as their EXIF orientation says, their masks" in capsys.readouterr().out
    )
    save_turned(tmp_path / "masks" / "a.png", stored, 6)  # as it is stored, with the same tag
    again = make(tmp_path, overwrite=True)
    assert again.slices[0].foreground == data.slices[0].foreground
    Image.fromarray(stored).save(tmp_path / "masks" / "a.png")
    if size[0] != size[1]:
        with pytest.raises(UserError, match="a.png is 40x30 .* 30x40, turned as its EXIF says"):
            make(tmp_path, overwrite=True)


def test_colours_of_16_bits_are_refused_before_pillow_drops_their_low_bytes(tmp_path):
    some(tmp_path, ["a", "b", "c"])

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    row = b"\0" + bytes([0, 1]) * 3 * 40  # all of it class, with the value 1
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(row * 30)) + chunk(b"IEND", b"")
    (tmp_path / "masks" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(UserError, match="b.png has mode RGB, 16 bits; convert it to 8 bits"):
        make(tmp_path)
