"""Curves, overlays and comparison figures."""

import numpy as np
from PIL import Image

from common.evaluation.figures import (
    PREDICTION,
    TRUTH,
    comparison,
    curves,
    drawable,
    frame_of,
    outlined,
    panels,
    save_picture,
    sheet,
)

MASK = np.zeros((20, 20), np.uint8)
MASK[5:12, 6:15] = 1
GREY = np.full((20, 20), 90, np.uint8)


def coloured(picture, colour):
    return (picture == np.array(colour)).all(-1)


def test_an_outline_is_the_mask_s_edge_and_nothing_else():
    picture = outlined(GREY, MASK, TRUTH)
    edge = MASK.astype(bool).copy()
    edge[6:11, 7:14] = False
    assert (coloured(picture, TRUTH) == edge).all()
    assert (picture[~edge] == 90).all()


def test_a_mask_at_the_border_of_the_image_is_closed_there():
    full = np.ones((6, 6), np.uint8)
    edge = coloured(outlined(full * 50, full, TRUTH), TRUTH)
    assert edge[0].all() and edge[:, -1].all() and not edge[1:-1, 1:-1].any()


def test_an_overlay_is_image_truth_and_prediction(tmp_path):
    save_picture(tmp_path / "o.png", panels(GREY, MASK, np.roll(MASK, 3, 1)))
    picture = np.asarray(Image.open(tmp_path / "o.png"))
    left, middle, right = np.split(picture, 3, axis=1)
    assert left.shape == (320, 320, 3) and (left == 90).all()
    assert coloured(middle, TRUTH).any() and not coloured(middle, PREDICTION).any()
    assert coloured(right, PREDICTION).any() and not coloured(right, TRUTH).any()


def test_a_sheet_has_both_outlines_where_the_truth_is_known(tmp_path):
    rows = [(f"slice {k}", GREY, np.roll(MASK, 3, 1), MASK if k % 2 else None) for k in range(5)]
    sheet(tmp_path / "s.png", "a volume", rows, aspect=1.4)
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    assert coloured(picture, TRUTH).sum() > 200 and coloured(picture, PREDICTION).sum() > 500


def test_figures_are_written(tmp_path):
    log = [
        {"epoch": e, "lr": 0.1, "segmentation": 1 / e, "val_dice": 0.1 * e, "val_pooled": 0.1 * e}
        for e in (1, 2, 3)
    ]
    curves(tmp_path / "c.png", log, "a run")
    row = {"title": "p", "image": GREY, "truth": MASK, "masks": {"S1": MASK}, "dice": {"S1": 1.0}}
    comparison(tmp_path / "m.png", [row, row], ["S1"])
    for name in ("c.png", "m.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert pixels.shape[1] > 500 and pixels.std() > 5


def test_the_frame_holds_all_masks_and_stays_in_the_picture():
    one, other, none = np.zeros((3, 60, 60), np.uint8)
    one[50:58, 40:44] = 1
    rows, columns = frame_of([one, none])
    assert rows.stop == 60 and rows.stop - rows.start == columns.stop - columns.start == 20
    assert one[rows, columns].sum() == one.sum()
    other[2:5, 3:6] = 255
    assert frame_of([one, other]) == (slice(0, 60), slice(0, 60))
    assert frame_of([none]) == (slice(0, 60), slice(0, 60))  # nothing anywhere: all of it
    wide = np.zeros((30, 60), np.uint8)
    wide[:, 20:50] = 1
    assert frame_of([wide]) == (slice(0, 30), slice(20, 50))


def test_names_are_drawn_as_they_are_whatever_their_letters(tmp_path, recwarn):
    assert drawable("$a_$b") == r"\$a_\$b"
    assert drawable("Müller 患者\udcff\n") == "Müller \\u60a3\\u8005\\udcff\n"
    image, mask = np.full((20, 20), 99, np.uint8), np.ones((20, 20), np.uint8)
    name = "$\\frac{$ 患者\udcff"
    sheet(tmp_path / "s.png", name, [(name, image, mask, None)], colours={name: (9, 9, 9)})
    row = {"title": name, "image": image, "truth": mask, "masks": {name: mask}, "dice": {name: 1.0}}
    comparison(tmp_path / "c.png", [row], [name])
    log = [{"epoch": 1, "dice": 1.0, "val_dice": 0.5, "val_pooled": 0.5}]
    curves(tmp_path / "l.png", log, name)
    assert len(list(tmp_path.glob("*.png"))) == 3 and not len(recwarn)
