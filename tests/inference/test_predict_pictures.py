"""What inference.py --images finds in pictures without masks."""

import os

import numpy as np
import pytest
import small_pictures
import small_trainings
from PIL import Image
from small_pictures import SIZE, blob, go, put, read_grey, run_of, values

from common.errors import UserError
from common.files import read_csv, read_json
from common.inference.predict_slices import predict
from common.inference.trained_run import open_run, ready
from common.models.unet import student_s1
from common.settings import InferenceConfig

finished = small_trainings.finished  # the fixture
trained = small_pictures.trained  # the fixture


def test_a_picture_of_the_data_set_gets_the_mask_of_its_slice_and_its_score(finished, tmp_path):
    stage, slices = finished
    through_slices = small_trainings.masks_of(stage, data=slices)
    for name in through_slices:
        put(tmp_path / f"new/{name}.png", Image.open(slices / f"images/{name}.png"))
    settings = {"ground_truth": slices / "masks", "output": tmp_path / "out"}
    config = InferenceConfig(images=tmp_path / "new", device="cpu", **settings)
    run = open_run(config, str(stage))
    predict(ready(student_s1(), run, config), run, config)
    rows = {row["mask"]: row for row in read_csv(tmp_path / "out/pictures.csv")}
    assert len(rows) == len(through_slices) and any(m.any() for m in through_slices.values())
    for name, mask in through_slices.items():
        assert np.array_equal(values(tmp_path / f"out/{name}.png"), mask)
        true, row = values(slices / f"masks/{name}.png") > 0, rows[f"{name}.png"]
        assert int(row["pixels"]) == np.count_nonzero(mask)
        both = np.count_nonzero(mask) + np.count_nonzero(true)
        dice = 2 * np.count_nonzero(true & (mask > 0)) / both if both else None
        assert row["dice"] == ("" if dice is None else str(dice))


@pytest.mark.parametrize("shape", [(80, 60), (32, 33), (9, 300), (400, 30), (1, 1), (3, 500)])
def test_masks_have_the_picture_s_own_size(trained, tmp_path, shape):
    path = put(tmp_path / "p.bmp", blob(shape))
    folder = go(
        trained, path, ground_truth=put(tmp_path / "t.png", (blob(shape) > 128) * np.uint8(255))
    )
    mask = values(folder / "p.png")
    assert mask.shape == shape and mask.dtype == np.uint8 and {*np.unique(mask)} <= {0, 255}
    about = read_json(folder / "p.json")
    assert (about["height"], about["width"]) == shape
    found = about["per_class"]["polyp"]
    assert found["pixels"] == np.count_nonzero(mask) and found["share"] == (mask > 0).mean()
    if max(shape) < 3 * min(shape) and min(shape) > 10:
        assert about["scores"]["dice"] > 0.85
    assert (folder / "overlays/p.png").exists()


def test_scores_are_those_of_the_pixels_and_only_parts_that_touch_the_largest_are_kept(
    trained, tmp_path, capsys
):
    pixels = blob()  # 8 x 8 pixels
    pixels[30, 30] = 255
    truth = np.zeros((SIZE, SIZE), np.uint8)
    truth[8:16, 8:12] = 1  # its left half, and 32 pixels elsewhere
    truth[20:28, 20:24] = 1
    put(tmp_path / "in/a.png", pixels)
    put(tmp_path / "in/b.png", np.full((SIZE, SIZE), 20, np.uint8))
    put(tmp_path / "truth/a.gif", truth)
    put(tmp_path / "truth/b.png", np.zeros((SIZE, SIZE), np.uint8))
    folder = go(trained, tmp_path / "in", ground_truth=tmp_path / "truth")
    assert read_json(folder / "a.json")["scores"] == {
        "dice": 2 * 32 / (65 + 64),
        "iou": 32 / (65 + 64 - 32),
        "recall": 32 / 64,
        "precision": 32 / 65,
    }
    go(trained, tmp_path / "in", ground_truth=tmp_path / "truth", largest_component=True)
    one, other = read_csv(folder / "pictures.csv")
    assert (one["picture"], one["class"], one["pixels"]) == ("a.png", "polyp", "64")
    assert float(one["dice"]) == 0.5 and float(one["iou"]) == pytest.approx(1 / 3)
    assert (other["pixels"], other["dice"]) == ("0", "")  # neither has a pixel: undefined
    assert "a.png: polyp 64 pixels (6.2%); Dice 0.500, IoU 0.333" in capsys.readouterr().out


def test_several_classes_are_indices_that_are_seen_as_colours(tmp_path):
    trained = run_of(tmp_path, ["left lung", "heart"], colours=["#0000ff", "#ff0000"])
    pixels = blob(value=164)
    pixels[20:30, 20:30] = 255
    labels = {"left lung": [3], "heart": [7, 9]}
    trained.checkpoint["labels"] = labels
    truth = np.select([pixels == 164, pixels == 255], [3, 9], 5).astype(np.uint8)
    settings = {"probabilities": True, "ground_truth": put(tmp_path / "t.png", truth)}
    folder = go(trained, put(tmp_path / "p.png", pixels), **settings)
    with Image.open(folder / "p.png") as mask:
        seen = np.asarray(mask.convert("RGB"))
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), (pixels == 164) + 2 * (pixels == 255))
    assert (seen[pixels == 164] == (0, 0, 255)).all() and (seen[pixels == 255] == (255, 0, 0)).all()
    assert not seen[pixels == 40].any()
    names = {path.name for path in (folder / "probabilities").iterdir()}
    assert names == {"p_left_lung.png", "p_heart.png"}
    heart = values(folder / "probabilities/p_heart.png")
    assert heart.dtype == np.uint16 and np.array_equal(heart > 32768, pixels == 255)
    rows = read_csv(folder / "pictures.csv")
    assert [(r["class"], r["pixels"], r["dice"]) for r in rows] == [
        ("left lung", "64", "1.0"),
        ("heart", "100", "1.0"),
    ]


def test_colours_and_turned_pictures_are_read_as_import_pairs_reads_them(trained, tmp_path):
    colours = np.stack([blob((40, 20)), blob((40, 20), 120), blob((40, 20), 250)], axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = put(tmp_path / "in/turned.jpg", colours, exif=exif, quality=95)
    put(tmp_path / "in/colour.tif", colours)
    put(tmp_path / "grey/colour.png", read_grey(tmp_path / "in/colour.tif"))
    folder, grey = (
        go(trained, tmp_path / "in"),
        go(trained, tmp_path / "grey", output=tmp_path / "g"),
    )
    assert np.array_equal(values(folder / "colour.png"), values(grey / "colour.png"))
    assert values(folder / "colour.png").any()
    assert values(folder / "turned.png").shape == read_grey(turned).shape == (20, 40)


def test_names_of_all_kinds_and_equal_ones_in_sub_folders_do_not_collide(trained, tmp_path, capsys):
    names = ["a b.png", "$x_1$.png", "möwe.png", "x.png", "x.jpg", "X.bmp", "x_png.png"]
    names += ["x.y.tif", "one/x.png", "two/x.png", "overlays/x.y.png", "dataset.png"]
    for k, name in enumerate(names):
        put(tmp_path / "in" / name, blob((40 + k, 30)))
    odd = os.fsencode(tmp_path) + b"/in/n\xe9.png"
    (tmp_path / "in/x.png").rename(os.fsdecode(odd))
    put(tmp_path / "in/x.png", blob((99, 30)))
    put(tmp_path / "in/masks/x.png", blob())  # masks are no pictures
    (tmp_path / "in/.hidden.png").write_bytes(b"")
    folder = go(trained, tmp_path / "in", probabilities=True)
    rows = {row["picture"]: row["mask"] for row in read_csv(folder / "pictures.csv")}
    assert len(rows) == len({*rows.values()}) == 13 and rows["one/x.png"] == "one/x.png"
    for picture, mask in rows.items():
        path = tmp_path / "in" / picture.replace("\\udce9", "\udce9")
        assert values(folder / mask).shape == read_grey(path).shape
    written = [p for p in folder.rglob("*") if p.is_file()]
    assert len(written) == 4 * 13 + 1
    assert (rows["x.jpg"], rows["X.bmp"]) == ("x_jpg.png", "X_bmp.png")
    assert (rows["x.png"], rows["x_png.png"]) == ("x_png-2.png", "x_png.png")
    assert "in: masks (1)" in capsys.readouterr().out


def test_bad_pictures_do_not_stop_the_others_and_are_all_named(trained, tmp_path):
    for name in "abcd":
        put(tmp_path / f"in/{name}.png", blob())
        put(tmp_path / f"truth/{name}.png", blob() // 180)
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:60])
    put(tmp_path / "in/c.tif", blob().astype(np.uint16))
    (tmp_path / "in/c.png").unlink()
    put(tmp_path / "truth/d.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(UserError) as error:
        go(trained, tmp_path / "in", ground_truth=tmp_path / "truth")
    for part in ("3 of 4 pictures", "b.png is damaged", "c.tif has", "d.png is 6x5 pixels"):
        assert part in str(error.value)
    folder = trained.folder / "pictures"
    assert [row["picture"] for row in read_csv(folder / "pictures.csv")] == ["a.png"]
    (tmp_path / "truth/a.png").unlink()
    with pytest.raises(
        UserError, match=r"no true mask of the same name for 1 pictures:\s+.*a\.png"
    ):
        go(trained, tmp_path / "in", ground_truth=tmp_path / "truth")


def test_a_run_of_volumes_says_that_pictures_may_be_strange_to_it(trained, tmp_path, capsys):
    path = put(tmp_path / "p.png", blob())
    go(trained, path)
    assert "note" not in capsys.readouterr().out
    trained.checkpoint["window"] = [-160, 240]
    go(trained, path)
    assert (
        "trained on slices of volumes, shown in the range HU -160 to 240" in capsys.readouterr().out
    )


def test_pictures_of_patients_that_were_trained_on_are_pointed_out(trained, tmp_path, capsys):
    trained.checkpoint["patients"] = {"train": ["p1", "ward"], "val": []}
    for name in ("p1.png", "p2.png", "ward/x.png"):
        put(tmp_path / "in" / name, blob())
        put(tmp_path / "truth" / name, (blob() > 128) * np.uint8(255))
    folder = go(trained, tmp_path / "in", ground_truth=tmp_path / "truth")
    assert "mean over 3 pictures, 2 of them of patients that were" in capsys.readouterr().out
    rows = read_csv(folder / "pictures.csv")
    assert ["train patients" in row["doubts"] for row in rows] == [True, False, True]


def test_true_masks_of_other_values_are_not_scored_in_silence(tmp_path, capsys):
    trained = run_of(tmp_path, ["polyp"], labels={"polyp": [6]})
    path = put(tmp_path / "p.png", blob())
    for value, said in ((6, False), (255, False), (3, True)):
        truth = put(tmp_path / "t.png", (blob() > 128) * np.uint8(value))
        folder = go(trained, path, ground_truth=truth)
        assert ("warning: no true mask shows polyp" in capsys.readouterr().out) is said
        assert read_json(folder / "p.json")["scores"]["dice"] == (0 if said else 1)


FOUND = (blob() > 128) * np.uint8(255)


def predict_with_truths(trained, tmp_path, truths, **settings):
    """Predict a picture for each true mask, and score it."""
    for n, truth in enumerate(truths):
        put(tmp_path / f"in/{n}.png", blob())
        put(tmp_path / f"truth/{n}.png", truth)
    return read_csv(
        go(trained, tmp_path / "in", ground_truth=tmp_path / "truth", **settings) / "pictures.csv"
    )


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (255 - FOUND, "warning: in 3 of 3 pictures the foreground covers more than half"),
        (
            np.full_like(FOUND, 255),
            "warning: in 3 of 3 pictures the foreground covers more than half",
        ),
        (FOUND // 2, "note: the masks hold 0 and 127, which is taken as the class"),
    ],
)
def test_what_is_odd_about_true_masks_is_said_before_they_are_scored_by(
    trained, tmp_path, capsys, truth, words
):
    predict_with_truths(trained, tmp_path, [truth] * 3)
    assert words in capsys.readouterr().out


def test_true_masks_that_contradict_each_other_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"2.png shows foreground as 90, 2 other masks as 255"):
        predict_with_truths(trained, tmp_path, [FOUND, FOUND, (FOUND > 0) * np.uint8(90)])
    assert not (trained.folder / "pictures" / "pictures.csv").exists()


def test_true_masks_of_more_than_two_values_are_cut_where_the_user_says(trained, tmp_path):
    soft = np.where(FOUND, 200, 60).astype(np.uint8)
    soft[0, 0] = 0
    with pytest.raises(UserError, match="--ground-truth-threshold"):
        predict_with_truths(trained, tmp_path, [soft])
    rows = predict_with_truths(trained, tmp_path, [soft], ground_truth_threshold=128)
    assert [row["dice"] for row in rows] == ["1.0"]
    with pytest.raises(UserError, match="no effect without --images and --ground-truth"):
        InferenceConfig(images=tmp_path / "in", ground_truth_threshold=3)
    several = run_of(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="no effect on masks that hold an index"):
        predict_with_truths(several, tmp_path, [FOUND], ground_truth_threshold=128)


@pytest.mark.parametrize("turned", ["in", "truth"])
def test_exif_on_one_of_picture_and_true_mask_is_told(trained, tmp_path, turned):
    put(tmp_path / "in/a.png", blob())
    put(tmp_path / "truth/a.png", FOUND)
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / turned / "a.png") as picture:
        put(tmp_path / turned / "a.png", picture.copy(), exif=exif)
    folder = go(trained, tmp_path / "in", ground_truth=tmp_path / "truth")
    (row,) = read_csv(folder / "pictures.csv")
    assert row["dice"] == "0.0"
    sides = ("its true mask", "the picture")[:: 1 if turned == "truth" else -1]
    assert f"EXIF turns {sides[0]}, not {sides[1]}" in row["doubts"]
