"""Which pictures inference.py --images takes, and what it must leave alone."""

import numpy as np
import pytest
import small_pictures
from small_pictures import blob, go, put, values

from common.errors import UserError
from common.files import read_csv, read_json
from common.inference import predict_pictures
from common.settings import InferenceConfig

trained = small_pictures.trained  # the fixture


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


OF_A = {"a.png", "a.json", "overlays/a.png"}


def test_nothing_that_was_given_is_replaced(trained, tmp_path):
    path = put(tmp_path / "in/a.png", blob())
    other = put(tmp_path / "in/b.png", blob())
    whole = path.read_bytes(), other.read_bytes()
    for images, settings, said in (
        (path, {"output": path.parent}, "a.png would be replaced"),
        (path, {"output": path}, "a.png would be replaced"),
        (path, {"output": other}, "b.png would be replaced"),
        (path, {"output": tmp_path / "in/../in"}, "a.png would be replaced"),
        (path, {"output": other, "ground_truth": other}, "b.png would be replaced"),
        (path.parent, {"output": path.parent}, "the pictures' own folder"),
        (path.parent, {"output": tmp_path / "x.png"}, "one file; --images is a folder"),
        (path, {"output": tmp_path / "x.jpg"}, "name a folder or a .png"),
        (path.parent, {"ground_truth": path.parent}, "the pictures' own folder"),
        (path.parent, {"ground_truth": path}, "--ground-truth must be a folder"),
        (path, {"ground_truth": tmp_path / "none"}, "--ground-truth .*none does not exist"),
    ):
        with pytest.raises(UserError, match=said):
            go(trained, images, **settings)
    assert (path.read_bytes(), other.read_bytes()) == whole
    assert names_in(tmp_path) == {"in/a.png", "in/b.png"}


@pytest.mark.parametrize("name", ["a.png", "a.json", "overlays/a.png", "probabilities/a.png"])
def test_a_file_of_somebody_else_s_stays(trained, tmp_path, name):
    path, out = put(tmp_path / "in/a.jpg", blob()), tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{name} would be replaced"):
        go(trained, path.parent, output=out, probabilities=True)
    assert names_in(out) == {name} and (out / name).read_bytes() == b"mine"


def test_a_table_of_somebody_else_s_stays(trained, tmp_path):
    path, table = put(tmp_path / "in/a.png", blob()), tmp_path / "out/pictures.csv"
    table.parent.mkdir()
    table.write_text("name,age\n")
    with pytest.raises(UserError, match="pictures.csv would be replaced"):
        go(trained, path, output=table.parent)
    assert names_in(table.parent) == {"pictures.csv"} and table.read_text() == "name,age\n"


def test_its_own_masks_are_replaced_unless_somebody_has_changed_them(trained, tmp_path):
    path = put(tmp_path / "in/a.png", blob())
    folder = go(trained, path, probabilities=True)
    assert names_in(folder) == {*OF_A, "probabilities/a.png", "pictures.csv"}
    theirs = put(folder / "probabilities/a_expert.png", blob())
    put(path, blob(value=30))
    go(trained, path)  # the map that it will not have goes, theirs stays
    assert names_in(folder) == {*OF_A, "probabilities/a_expert.png", "pictures.csv"}
    assert theirs.exists() and not values(folder / "a.png").any()
    put(folder / "a.png", blob())  # corrected by hand
    with pytest.raises(UserError, match="pictures/a.png would be replaced"):
        go(trained, path)
    assert np.array_equal(values(folder / "a.png"), blob())


def test_rows_stay_as_long_as_their_masks(trained, tmp_path):
    folder = go(trained, put(tmp_path / "one/a.png", blob()))
    go(trained, put(tmp_path / "two/b.png", blob()))
    assert [row["picture"] for row in read_csv(folder / "pictures.csv")] == ["a.png", "b.png"]
    (folder / "a.png").unlink()
    (tmp_path / "two/b.png").write_bytes(b"no longer a picture")
    with pytest.raises(UserError, match="1 of 1 pictures"):
        go(trained, tmp_path / "two")
    assert [row["picture"] for row in read_csv(folder / "pictures.csv")] == ["b.png"]


@pytest.mark.parametrize("stopped_at", ["begin", "mask_picture", "_overlay", "checksums"])
def test_what_a_kill_leaves_is_not_taken_for_whole_and_does_not_stop_the_next(
    trained, tmp_path, monkeypatch, stopped_at
):
    for name in "abc":
        put(tmp_path / f"in/{name}.png", blob())
    folder = go(trained, tmp_path / "in")
    whole = read_csv(folder / "pictures.csv")
    calls = iter(range(3))
    real = getattr(predict_pictures, stopped_at)

    def stop(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    put(tmp_path / "in/a.png", np.full_like(blob(), 200))
    put(tmp_path / "in/b.png", blob(value=30))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"common.inference.predict_pictures.{stopped_at}", stop)
        go(trained, tmp_path / "in", probabilities=True)
    rows = {row["picture"]: row for row in read_csv(folder / "pictures.csv")}
    assert rows["a.png"]["pixels"] == str(np.count_nonzero(values(folder / "a.png")))
    listed = {"a.png", "c.png"} | ({"b.png"} if stopped_at == "begin" else set())
    assert rows.keys() == listed  # b's old files are still whole before `begin`
    go(trained, tmp_path / "in")
    again = read_csv(folder / "pictures.csv")
    assert again[2] == whole[2] and [row["pixels"] for row in again[:2]] == ["1024", "0"]
    assert None not in read_json(folder / "b.json")["files"].values()
    assert not any("probabilities" in name for name in names_in(folder))


def test_masks_in_the_folder_are_not_predicted(trained, tmp_path, capsys):
    for name in ("x.png", "sub/y.png", "sub/masks/y.png", "truth/x.png", "truth/sub/y.png"):
        put(tmp_path / "in" / name, blob() // 180)
    settings = {"ground_truth": tmp_path / "in/truth", "output": tmp_path / "in/out"}
    for more in ({}, {"output": tmp_path / "in/out2"}, {}):
        folder = go(trained, tmp_path / "in", **(settings | more))
        assert [r["picture"] for r in read_csv(folder / "pictures.csv")] == ["sub/y.png", "x.png"]
    with pytest.raises(UserError, match="holds only masks"):
        go(trained, tmp_path / "in/out")
    assert len(read_csv(go(trained, tmp_path / "in/sub/masks") / "pictures.csv")) == 1
    put(tmp_path / "set/images/z.png", blob())
    put(tmp_path / "set/masks/z.png", blob() // 180)
    go(
        trained,
        tmp_path / "set/images",
        ground_truth=tmp_path / "set/masks",
        output=tmp_path / "set",
    )
    assert read_json(tmp_path / "set/z.json")["scores"]["dice"] == 1


def test_what_is_not_a_picture_gets_one_clear_line(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("ct.nii.gz", "cts/a.nii", "sub/cts/a.nii.gz", "x.webp", "w/x.webp", "scan.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name, said in (
        ("none", "--images .*none does not exist"),
        ("empty", "holds no pictures .*It is empty"),
        ("ct.nii.gz", "is a NIfTI volume: volumes are segmented with --volume"),
        ("cts", "holds NIfTI volumes.* --volume"),
        ("sub", "holds NIfTI volumes.* --volume"),
        ("x.webp", "x.webp is not a picture .*save them as PNG"),
        ("w", "holds no pictures .*1 .webp files.*save them as PNG"),
        ("scan.dcm", "scan.dcm is not a picture .*DICOM"),
    ):
        with pytest.raises(UserError, match=said) as error:
            go(trained, tmp_path / name)
        assert "\n" not in str(error.value)


def test_flags_without_effect_on_pictures_are_refused(tmp_path):
    for settings, said in (
        ({"volume": tmp_path}, "--volume and --images exclude each other"),
        ({"export": tmp_path / "a.onnx"}, "--images and --export exclude each other"),
        ({"data": tmp_path}, "--data has no effect with --images"),
        ({"subset": "val"}, "--subset has no effect with --images"),
        ({"overlays": 3}, "--overlays has no effect with --images"),
        ({"hu_low": 0.0}, "--hu-low has no effect without --volume"),
    ):
        with pytest.raises(UserError, match=said):
            InferenceConfig(images=tmp_path, **settings)
    with pytest.raises(UserError, match="--output has no effect without --volume or --images"):
        InferenceConfig(output=tmp_path)
