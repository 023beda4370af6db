"""Pairs of images and masks that hold an index a pixel."""

import numpy as np
import pytest
from PIL import Image
from small_pairs import make, picture, some

from common.dataset.loading import SliceDataset
from common.errors import UserError


def indexed(path, mode="L"):
    """A mask with the values 1, 2, 3 and 7 in columns, grey or as a palette's numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((32, 32), np.uint8)
    for value, column in ((1, 0), (2, 8), (3, 16), (7, 24)):
        pixels[8:24, column : column + 4] = value
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette([*range(255, -1, -1)] * 3)  # colours that tell nothing of the number
    picture.save(path)
    return pixels


@pytest.mark.parametrize(
    ("classes", "mode", "names", "values"),
    [
        (("a", "b", "c"), "L", ["a", "b", "c"], [1, 2, 3]),
        (("a", "b", "c"), "P", ["a", "b", "c"], [1, 2, 3]),
        (("x=7", "y=1,3"), "P", ["x", "y"], [2, 0, 2, 1]),
        (("x=2,3",), "L", ["x"], [0, 255, 255]),
    ],
)
def test_index_masks_of_several_classes(tmp_path, capsys, classes, mode, names, values):
    some(tmp_path, ["p1", "p2", "p3"])
    for name in ("p1", "p2", "p3"):
        (tmp_path / "images" / f"{name}.png").unlink()
        picture(tmp_path / "images" / f"{name}.png", size=(32, 32))
        pixels = indexed(tmp_path / "masks" / f"{name}.png", mode)
    data = make(tmp_path, classes=classes)
    assert data.info["classes"] == names and data.num_classes == (
        len(names) + 1 if len(names) > 1 else 1
    )
    expected = np.zeros((32, 32), np.uint8)
    for value, becomes in zip((1, 2, 3, 7), values, strict=False):
        expected[pixels == value] = becomes
    found = np.asarray(Image.open(tmp_path / "out/masks/p1_000.png"))
    assert np.array_equal(found, expected)
    assert data.slices[0].foreground == np.count_nonzero(expected)
    item = SliceDataset(data, data.slices)[0]
    assert set(item["mask"].unique().tolist()) == {*range(len(names) + 1)}
    assert "note: --classes does not name the values" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": ("a", "b=2")}, "--classes a: give its values too"),
        ({"classes": ("a", "a")}, "names a twice"),
        ({"classes": ("a", "b"), "threshold": 3}, "--threshold has no effect on masks that hold"),
        ({"classes": ("all",)}, "pictures do not name their classes"),
        ({}, r"(?s)3 of 3 .*p1.png holds 5 values: 0, 1, 2, 3, 7.*\nA mask holds 0 and 1, or 0"),
        ({"classes": ("a",)}, "say with --classes which classes their values are"),
        ({"classes": ("a=1",), "mask_suffix": "_rgb"}, "mode RGB; a mask of several classes holds"),
        (
            {"classes": ("a=1",), "mask_suffix": "_jpg"},
            "is a JPEG: it does not keep values exactly",
        ),
    ],
)
def test_what_classes_exclude(tmp_path, settings, words):
    for name in ("p1", "p2", "p3"):
        picture(tmp_path / "images" / f"{name}.png", size=(32, 32))
        indexed(tmp_path / "masks" / f"{name}.png")
        suffix = settings.get("mask_suffix", "")
        if suffix:
            (tmp_path / "masks" / f"{name}.png").unlink()
            end = "jpg" if suffix == "_jpg" else "png"
            mode = "L" if end == "jpg" else "RGB"
            picture(tmp_path / "masks" / f"{name}{suffix}.{end}", mode, (32, 32))
    with pytest.raises(UserError, match=words):
        make(tmp_path, **settings)
    assert not (tmp_path / "out").exists()
