"""Masks of one class, in the forms in which other data sets keep them."""

import numpy as np
import pytest
from PIL import Image
from small_pairs import make, picture

from common.dataset.mask_files import NotTwoValues, read_binary, read_numbers
from common.errors import UserError

Y, X = np.mgrid[:60, :80]
ORGAN = ((Y - 20) / 12) ** 2 + ((X - 55) / 9) ** 2 < 1
OTHER = ((Y - 45) / 8) ** 2 + ((X - 20) / 8) ** 2 < 1
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]
RAMP = [value for grey in range(256) for value in (grey, grey, grey)]


def palette(numbers, colours=VOC):
    image = Image.fromarray(np.asarray(numbers, np.uint8), "L")
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def colours(front, back=(0, 0, 0)):
    return Image.fromarray(np.where(ORGAN[..., None], front, back).astype(np.uint8))


def grey(front, back=0):
    return Image.fromarray(np.where(ORGAN, front, back).astype(np.uint8))


def read(tmp_path, image, ending="png", threshold=None, **settings):
    path = tmp_path / f"mask.{ending}"
    image.save(path, **settings)
    return read_binary(path, threshold)


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif"])
@pytest.mark.parametrize("shades", [VOC, [0], [0, 0, 0, 255, 255, 255], RAMP])
def test_a_palette_is_read_by_number(tmp_path, shades, ending):
    pixels, mask = read(tmp_path, palette(ORGAN, shades), ending)
    assert np.array_equal(pixels, ORGAN * np.uint8(255)) and not mask.upside_down


@pytest.mark.parametrize(
    ("image", "settings"),
    [
        (palette(ORGAN), {"transparency": 0}),
        (palette(ORGAN), {"transparency": 1}),
        (palette(ORGAN), {"bits": 1}),
        (palette(ORGAN * 255, RAMP), {}),
        (palette(ORGAN * 255, [0] * 765 + [255] * 3), {}),
        (palette(ORGAN * 15), {}),
        (palette(ORGAN).convert("PA"), {"format": "TIFF"}),
        (Image.fromarray(ORGAN), {}),
        (Image.fromarray(ORGAN), {"format": "TIFF", "compression": "group4"}),
        (grey(128), {}),
        (grey(254), {}),
        (colours((255, 0, 0)), {}),
        (colours((0, 0, 4)), {}),  # grey 0: by luminance it would be lost
        (colours((0, 0, 255)).convert("RGBA"), {}),
    ],
)
def test_two_values_are_read_as_they_are(tmp_path, image, settings):
    pixels, _ = read(tmp_path, image, **settings)
    assert np.array_equal(pixels, ORGAN * np.uint8(255))


def test_a_palette_that_shows_the_background_brighter_is_told(tmp_path):
    pixels, mask = read(tmp_path, palette(ORGAN, [255, 255, 255, 0, 0, 0]))
    assert np.array_equal(pixels > 0, ORGAN) and mask.upside_down


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (palette(ORGAN + 2 * OTHER), "holds 3 palette numbers: 0, 1, 2"),
        (palette(ORGAN + 1), "holds 2 palette numbers: 1, 2"),
        (palette(ORGAN * 255, VOC + [0] * 756 + [224, 224, 192]), "0, 255; 255 often marks"),
        (grey(2, 1), "holds 2 values: 1, 2"),
        (grey(76, 76), "holds 1 value: 76"),
        (colours((255, 0, 0), (255, 255, 255)), r"holds 2 colours: \(255, 0, 0\), \(255, 255, 2"),
        (Image.fromarray(np.dstack([ORGAN, OTHER, ORGAN & False]) * np.uint8(255)), "3 colours"),
        (grey(255).resize((40, 30)).resize((80, 60), Image.Resampling.BILINEAR), "values: 0, 1"),
    ],
)
def test_what_is_not_two_values_is_refused(tmp_path, image, words):
    with pytest.raises(NotTwoValues, match=words):
        read(tmp_path, image)


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize(
    "image",
    [colours(c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 0, 0))]
    + [grey(255), grey(76), grey(128)],
)
def test_a_jpeg_is_cut_between_its_two_values(tmp_path, image, quality):
    pixels, _ = read(tmp_path, image, "jpg", quality=quality)
    assert np.count_nonzero((pixels > 0) != ORGAN) < 0.1 * np.count_nonzero(ORGAN)


def test_jpeg_masks_that_show_nothing_or_all_stay(tmp_path):
    assert not read(tmp_path, grey(0), "jpg", quality=30)[0].any()
    assert read(tmp_path, grey(255, 255), "jpg", quality=30)[0].all()
    inside_tiff = read(tmp_path, colours((255, 0, 0)), "tif", compression="jpeg")[0]
    assert np.count_nonzero((inside_tiff > 0) != ORGAN) < 20


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (grey(1), "nothing brighter than [1-3], which cannot be told from the format's noise"),
        (grey(128, 128), "no black background"),
        (grey(200, 100), "no black background"),
        (colours((255, 0, 0), (255, 255, 255)), "no black background"),
        (Image.fromarray((ORGAN * 255 + OTHER * 128).astype(np.uint8)), "more than two values"),
        (Image.fromarray((ORGAN * 255 + OTHER * 200).astype(np.uint8)), "more than two values"),
        (Image.fromarray(np.dstack([ORGAN, OTHER, ORGAN & False]) * np.uint8(255)), "or colours"),
    ],
)
def test_jpeg_masks_that_a_cut_would_falsify_are_refused(tmp_path, image, words):
    with pytest.raises(NotTwoValues, match=words):
        read(tmp_path, image, "jpg", quality=90)


def test_a_threshold_takes_the_brightest_channel_and_no_unordered_palette(tmp_path):
    assert np.array_equal(read(tmp_path, colours((200, 0, 0)), threshold=150)[0] > 0, ORGAN)
    shaded = palette(ORGAN + 2 * OTHER, [0, 0, 0, 255, 255, 255, 90, 90, 90])
    with pytest.raises(UserError, match="in no order of brightness that --threshold"):
        read(tmp_path, shaded, threshold=128)


def test_numbers_of_four_bits_are_not_stretched(tmp_path):
    Image.fromarray((ORGAN + 2 * OTHER).astype(np.uint8), "L").save(tmp_path / "a.png", bits=4)
    assert np.unique(read_numbers(tmp_path / "a.png")[0]).tolist() == [0, 1, 2]


def import_all(tmp_path, masks, **settings):
    for number, (ending, image) in enumerate(masks):
        picture(tmp_path / "images" / f"p{number}.png", size=(80, 60), value=100 + number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        image.save(tmp_path / "masks" / f"p{number}.{ending}")
    return [s.foreground for s in make(tmp_path, **settings).slices]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (("png", colours((0, 255, 0))), r"p3.png shows foreground as \(0, 255, 0\), 3 other masks"),
        (("jpg", grey(255)), r"p3.jpg shows foreground as 255.*--threshold 127 takes both"),
        (("png", grey(1)), r"p3.png shows foreground as 1, 3 other masks as \(255, 0, 0\)"),
        (("png", palette(ORGAN, [9, 9, 9])), "p3.png has a palette whose number 0 is brighter"),
    ],
)
def test_masks_that_show_the_class_in_different_colours_are_refused(tmp_path, odd, words):
    with pytest.raises(UserError, match=words):
        import_all(tmp_path, [("png", colours((255, 0, 0)))] * 3 + [odd])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("most", [0, 1])
def test_palettes_of_which_some_show_the_background_brighter_are_refused(tmp_path, most):
    """GIFs of one folder, some saved with white as number 0: those are inverted."""
    kinds = [palette(ORGAN, [0, 0, 0, 255, 255, 255]), palette(~ORGAN, [255, 255, 255, 0, 0, 0])]
    masks = [("gif", kinds[most])] * 3 + [("gif", kinds[1 - most])]
    with pytest.raises(UserError, match=r"1 of 4 pairs.*\n.*p3.gif has a palette.*is inverted"):
        import_all(tmp_path, masks)


def test_the_threshold_that_is_advised_keeps_both_kinds(tmp_path):
    bright, dim = ("jpg", grey(255)), ("jpg", grey(100))
    with pytest.raises(UserError, match="p3.jpg shows foreground as 100.* --threshold 50 takes"):
        import_all(tmp_path, [bright] * 3 + [dim])
    assert np.ptp(import_all(tmp_path, [bright] * 3 + [dim], threshold=50)) <= 30


def test_one_inverted_mask_is_enough_to_be_told(tmp_path, capsys):
    import_all(tmp_path, [("png", grey(255))] * 5 + [("png", grey(0, 255))])
    assert "warning: in 1 of 6 pictures the foreground covers" in capsys.readouterr().out


def test_a_large_structure_is_not_an_inverted_mask(tmp_path, capsys):
    large = np.zeros((60, 80), np.uint8)
    large[:, 10:] = 255  # 7/8 of the picture, and of its border less
    import_all(tmp_path, [("png", Image.fromarray(large))] + [("png", grey(0))] * 4)
    assert "inverted" not in capsys.readouterr().out


def test_values_that_vary_are_read_each_by_its_own_and_told(tmp_path, capsys):
    found = import_all(tmp_path, [("png", grey(1)), ("png", grey(255)), ("png", grey(0))])
    assert found[0] == found[1] > 0 and found[2] == 0
    assert "note: of the masks 1 hold 0 and 1, 1 hold 0 and 255" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "settings", "words"),
    [
        (
            grey(0, 255),
            {},
            "warning: in 3 of 3 pictures the foreground covers more than half",
        ),
        (palette(~ORGAN), {"classes": ("a=1",)}, "in 3 of 3 pictures the foreground covers"),
        (grey(128), {}, "note: the masks hold 0 and 128, which is taken as the class"),
        (palette(ORGAN, [9, 9, 9]), {}, "warning: in 3 of 3 masks the palette shows number 0 br"),
        (grey(128), {"threshold": 200}, "--threshold 200 leaves nothing of 3 of 3 masks; the hig"),
        (grey(128, 20), {"threshold": 9}, "--threshold 9 makes foreground of all pixels of 3 of 3"),
    ],
)
def test_what_is_odd_about_masks_is_told(tmp_path, capsys, image, settings, words):
    import_all(tmp_path, [("png", image)] * 3, **settings)
    assert words in capsys.readouterr().out
