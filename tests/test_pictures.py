"""Pictures in formats that hold more than grey values: alpha, pages, previews."""

import pytest
from PIL import Image
from test_import_pairs import make, some

from common.files import UserError


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
        make(tmp_path, overwrite=True, organs=("spleen", "liver"))
