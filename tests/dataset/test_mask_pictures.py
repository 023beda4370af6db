"""Masks of several classes are seen as colours; their values stay the class indices."""

import io

import numpy as np
import pytest
from conftest import ROOT, load_script, refused_or_right
from PIL import Image

from common.config import parse
from common.dataset.slices import mask_picture, read_image, read_mask, read_set
from common.errors import UserError
from common.evaluation.figures import legend
from common.files import read_json, write_json


def pattern(classes):
    return (np.arange(48 * 32).reshape(48, 32) % (classes + 1)).astype(np.uint8)


@pytest.mark.parametrize("classes", [2, 3, 15, 16, 40, 254])
def test_values_stay_and_are_seen_in_the_classes_colours(tmp_path, classes):
    mask, path = pattern(classes), tmp_path / "m.png"
    colours = legend([str(k) for k in range(classes)])
    mask_picture(mask, colours).save(path)
    assert np.array_equal(read_mask(path, classes + 1), mask)
    with Image.open(path) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), mask)
        seen = np.asarray(picture.convert("RGB"))
    palette = np.array([(0, 0, 0), *colours.values()])
    assert np.array_equal(seen, palette[mask])
    Image.fromarray(mask).save(path)  # as older sets have it
    assert np.array_equal(read_mask(path, classes + 1), mask)


def test_a_mask_of_one_class_is_grey_to_the_byte():
    mask, files = pattern(1) * np.uint8(255), (io.BytesIO(), io.BytesIO())
    mask_picture(mask, legend(["spleen"])).save(files[0], "png", compress_level=4)
    Image.fromarray(mask).save(files[1], "png", compress_level=4)
    assert files[0].getvalue() == files[1].getvalue()


def test_damage_and_what_is_not_a_mask_are_refused(tmp_path):
    mask, path = pattern(3), tmp_path / "m.png"
    picture = mask_picture(mask, legend(["a", "b", "c"]))
    picture.save(path)
    with pytest.raises(UserError, match=r"holds the values \[0, 1, 2, 3\].*holds 0 to 2"):
        read_mask(path, 3)
    with pytest.raises(UserError, match="has mode P; 8-bit grey is expected"):
        read_image(path)
    assert refused_or_right(path, lambda path: read_mask(path, 4), mask) > 350
    picture.convert("RGB").save(path)
    with pytest.raises(UserError, match="has mode RGB; 8-bit grey or a palette is expected"):
        read_mask(path, 4)


def test_data_sets_are_written_so(tmp_path, slices, phantom):
    for k in range(4):
        for kind, pixels in (("images", np.full((32, 32), 9 + k, np.uint8)), ("masks", pattern(2))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels[:32]).save(tmp_path / kind / f"p{k}.png")
    script = load_script(ROOT / "data_prep/import_pairs.py")
    words = ["--images", tmp_path / "images", "--masks", tmp_path / "masks", "--size", "32"]
    words += ["--classes", "a", "b", "--output", tmp_path / "set"]
    script.main(parse(script.Config, [*map(str, words)]))
    data = read_set(tmp_path / "set")
    for s in data.slices:
        with Image.open(data.folder / "masks" / f"{s.name}.png") as mask:
            assert mask.mode == "P" and mask.getpalette()[3:6] == [*legend(["a", "b"])["a"]]
        assert np.array_equal(data.truth(s), pattern(2)[:32])
    with Image.open(next((slices / "masks").iterdir())) as mask:
        assert mask.mode == "L"  # one class


def test_colours_given_by_hand_are_those_of_the_masks(tmp_path, phantom):
    script = load_script(ROOT / "data_prep/slice_nifti.py")
    words = ["--input", phantom, "--output", tmp_path / "set", "--size", "32", "--workers", "1"]
    words += ["--classes", "spleen=1", "none=2"]
    config = parse(script.Config, [*map(str, words)])
    script.main(config)
    index = tmp_path / "set/dataset.json"
    write_json(index, read_json(index) | {"colours": ["#010203", "#040506"]})
    script.main(parse(script.Config, [*map(str, words), "--overwrite"]))
    assert read_json(index)["colours"] == ["#010203", "#040506"]
    with Image.open(next((tmp_path / "set/masks").iterdir())) as mask:
        assert mask.getpalette()[:9] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    write_json(index, read_json(index) | {"colours": ["red", "blue"]})
    with pytest.raises(UserError, match="its colours are not a list of 2"):
        script.main(config)
