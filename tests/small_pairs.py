"""Small pictures with masks, and import_pairs.py on them."""

import numpy as np
from conftest import ROOT, load_script
from PIL import Image

from common.dataset.slices import read_set

script = load_script(ROOT / "data_prep/import_pairs.py")


def picture(path, mode="L", size=(40, 30), value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), value, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def mask(path, high=255, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[5:20, 8:30] = high
    Image.fromarray(pixels).save(path)


def make(tmp_path, **settings):
    config = script.Config(images=tmp_path / "images", output=tmp_path / "out", size=32, **settings)
    if config.masks is None and (tmp_path / "masks").exists():
        config.masks = tmp_path / "masks"
    script.main(config)
    return read_set(tmp_path / "out")


def some(tmp_path, names):
    for name in names:
        picture(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png")
