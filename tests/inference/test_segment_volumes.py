"""Whole volumes: masks in their own geometry."""

import errno
import os
import time

import nibabel as nib
import numpy as np
import pytest
import small_volumes
from small_volumes import SIZE, ct, go, save

from common.dataset.nifti import read_volume
from common.errors import UserError
from common.evaluation import figures
from common.files import read_csv, read_json
from common.inference.segment_volumes import _stored_index
from common.inference.volume_files import volume_files
from common.settings import InferenceConfig

trained = small_volumes.trained  # the fixture


def oblique(degrees=12):
    turn = np.deg2rad(degrees)
    affine = np.diag([0.8, 0.8, 2.5, 1])
    cosine, sine = np.cos(turn), np.sin(turn)
    around = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine[:3, :3] = around @ affine[:3, :3]
    affine[:3, 3] = (-50, 20, 700)
    return affine


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "ASL", "oblique", "oblique PIR"])
def test_the_mask_lies_on_the_bright_voxels_in_the_input_s_own_geometry(trained, tmp_path, codes):
    affine = oblique() if "oblique" in codes else None
    path = save(tmp_path / "ct.nii.gz", ct(), codes.split()[-1].replace("oblique", "RAS"), affine)
    folder = go(trained, path, probabilities=True)
    image, mask = nib.load(path), nib.load(folder / "ct.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(image.dataobj) > 60)
    assert np.array_equal(mask.affine, image.affine) and mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8 and mask.header["descrip"] == image.header["descrip"]
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[code] == image.header[code]
    maps = nib.load(folder / "ct_probability.nii.gz")
    assert np.array_equal(maps.get_fdata() > 0.5, mask.get_fdata() > 0)
    assert np.array_equal(maps.affine, image.affine)
    about = read_json(folder / "ct.json")
    assert about["shape"] == list(image.shape)
    assert about["spacing_mm"] == pytest.approx(image.header.get_zooms(), abs=1e-5)
    about = about["per_class"]["spleen"]
    assert about["volume_ml"] == pytest.approx((10 * 14 * 5 + 2) * 0.8 * 0.8 * 2.5 / 1000, rel=1e-5)
    assert about["slices_with_class"] == 7 and about["length_mm"] == pytest.approx(9 * 2.5)
    assert (folder / "ct.png").stat().st_size > 10_000


def test_the_largest_part_alone_and_its_scores(trained, tmp_path, capsys):
    path = save(tmp_path / "in/ct.nii.gz", ct())
    truth = np.zeros((SIZE, SIZE, 9), np.uint8)
    truth[4:14, 6:20, 2:7] = 1
    save(tmp_path / "truth/ct.nii.gz", truth)
    settings = {"ground_truth": tmp_path / "truth", "largest_component": True}
    go(trained, path.parent, output=tmp_path / "out", **settings)
    whole = read_json(tmp_path / "out/ct.json")
    about = whole["per_class"]["spleen"]
    (row,) = read_csv(tmp_path / "out/volumes.csv")
    assert (row["volume"], row["class"], row["dice"]) == ("ct.nii.gz", "spleen", "1.0")
    assert float(row["volume_ml"]) == pytest.approx(about["volume_ml"])
    assert (
        whole["scores"]
        == about["scores"]
        == {
            **dict.fromkeys(("dice", "iou", "recall", "precision", "nsd_1mm", "nsd_2mm"), 1.0),
            **dict.fromkeys(("hd95_mm", "assd_mm"), 0.0),
        }
    )
    assert about["length_mm"] == pytest.approx(12.5)
    assert "spleen 1.1 ml, 12 mm long, in 5 of 9 slices; Dice 1.000" in capsys.readouterr().out


def test_other_shapes_and_spacings_come_back_at_their_own_size(trained, tmp_path):
    voxels = np.full((90, 60, 5), 20, np.int16)
    voxels[30:60, 15:45, 1:4] = 100
    path = save(tmp_path / "ct.nii", voxels, "LPS", np.diag([0.7, 1.1, 3, 1]))
    go(trained, path, output=tmp_path / "seg.nii")
    mask = nib.load(tmp_path / "seg.nii").get_fdata() > 0
    truth = nib.load(path).get_fdata() > 60
    assert mask.shape == truth.shape
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95


def test_an_empty_mask_has_a_sheet_and_measures_too(trained, tmp_path):
    path = save(tmp_path / "ct.nii.gz", np.full((40, 40, 3), -1000, np.int16))
    about = read_json(go(trained, path) / "ct.json")["per_class"]["spleen"]
    assert about["volume_ml"] == about["length_mm"] == about["slices_with_class"] == 0


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_bad_file_does_not_stop_the_others(trained, tmp_path, monkeypatch):
    save(tmp_path / "in/a.nii.gz", ct())
    (tmp_path / "in/b.nii.gz").write_bytes(b"no volume")
    save(tmp_path / "in/c.nii.gz", np.full((4, 4, 4), np.nan, np.float32))
    save(tmp_path / "in/d.nii.gz", ct())
    (tmp_path / "in/._d.nii.gz").write_bytes(b"shadow")
    with pytest.raises(UserError, match="2 of 4 volumes(.|\n)*b.nii.gz(.|\n)*c.nii.gz holds NaN"):
        go(trained, tmp_path / "in")
    assert sorted(p.name for p in (trained.folder / "volumes").glob("*.nii.gz")) == [
        "a.nii.gz",
        "d.nii.gz",
    ]
    table = trained.folder / "volumes" / "volumes.csv"
    assert [row["volume"] for row in read_csv(table)] == ["a.nii.gz", "d.nii.gz"]
    for name in ("b", "c"):
        (tmp_path / f"in/{name}.nii.gz").unlink()
    save(tmp_path / "more/e.nii.gz", ct())
    go(trained, tmp_path / "more")
    assert [row["volume"] for row in read_csv(table)] == ["a.nii.gz", "d.nii.gz", "e.nii.gz"]
    # What cannot be read the second time keeps its row as it keeps its mask.
    (tmp_path / "in/d.nii.gz").write_bytes(b"no volume")
    with pytest.raises(UserError, match="1 of 2 volumes"):
        go(trained, tmp_path / "in")
    assert [row["volume"] for row in read_csv(table)] == ["a.nii.gz", "d.nii.gz", "e.nii.gz"]
    # One that fails half made has no old row beside its new mask.
    save(tmp_path / "in/d.nii.gz", ct(seed=1))
    monkeypatch.setattr(figures, "sheet", full_disk)
    with pytest.raises(UserError, match="2 of 2 volumes(.|\n)*No space"):
        go(trained, tmp_path / "in")
    assert [row["volume"] for row in read_csv(table)] == ["e.nii.gz"]
    table.write_text("my,own\n")
    with pytest.raises(UserError, match=r"volumes.csv would be replaced"):
        go(trained, tmp_path / "in")


def test_what_is_no_volume_gets_one_clear_line(trained, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(50))
    (tmp_path / "empty").mkdir()
    (tmp_path / "ct.png").write_bytes(b"x")
    for path, words in (
        (series, "dcm2niix"),
        (series / "IM0001", "dcm2niix"),
        (tmp_path / "empty", "no .nii"),
        (tmp_path / "ct.png", "no .nii"),
        (tmp_path / "absent.nii.gz", "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            volume_files(path)
    path = save(tmp_path / "in/ct.nii.gz", ct())
    save(tmp_path / "in/other.nii.gz", ct())
    small = save(tmp_path / "small.nii.gz", ct((SIZE, SIZE, 8 + 2)))
    moved = save(tmp_path / "moved.nii.gz", (ct() > 60).astype(np.uint8), affine=oblique(1))
    (tmp_path / "file").write_text("")
    for volume, settings, words in (
        (path, {"ground_truth": small}, "label's shape is .32, 32, 10."),
        (path, {"ground_truth": path}, "values -100, 100"),
        (path, {"ground_truth": moved}, "affine differs"),
        (path, {"ground_truth": tmp_path / "empty"}, "1 true masks are missing"),
        (path.parent, {"ground_truth": small}, "must be a folder"),
        (path, {"hu_low": 300.0}, "must be below"),
        (path, {"output": tmp_path / "file"}, "name a folder"),
        (path, {"output": tmp_path / "seg.nrrd"}, "name a folder"),
        (path.parent, {"output": tmp_path / "new.nii.gz"}, "is a folder"),
        (path, {"output": tmp_path / "file" / "below"}, "Not a directory"),
    ):
        with pytest.raises(UserError, match=words):
            go(trained, volume, **settings)


def test_odd_names_and_files_do_not_stop_the_others(trained, tmp_path):
    names = ("a b.nii.gz", "$1_$2.nii.gz", "Müller<b>.nii.gz", f"{'x' * 240}.nii.gz", "z.nii.gz")
    for name in names:
        save(tmp_path / "in" / name, ct())
    os.mkfifo(tmp_path / "in/pipe.nii.gz")
    (tmp_path / "in/folder.nii.gz").mkdir()
    (tmp_path / "in/loop.nii.gz").symlink_to(tmp_path / "in/loop.nii.gz")
    with pytest.raises(UserError, match="1 of 5 volumes were not segmented(.|\n)*xxx"):
        go(trained, tmp_path / "in")
    written = {p.name for p in (trained.folder / "volumes").glob("*.nii.gz")}
    assert written == {*names} - {f"{'x' * 240}.nii.gz"}


def test_thin_volumes_have_a_sheet_of_the_usual_size(trained, tmp_path):
    for shape in ((512, 1, 4), (1, 512, 4), (40, 40, 1)):
        path = save(tmp_path / "thin.nii.gz", ct((64, 64, 9))[:1, :1, :1] + np.zeros(shape, "i2"))
        began = time.process_time()
        sheet = go(trained, path) / "thin.png"
        assert sheet.stat().st_size < 3e6 and time.process_time() - began < 10


def test_what_looks_wrong_is_said(trained, tmp_path, capsys):
    path = save(tmp_path / "ct.nii.gz", ct() + 1024)
    folder = go(trained, path)
    assert "nothing is below 924: no air, or not in HU" in capsys.readouterr().out
    air = np.full((SIZE, SIZE, 9), -1000, np.int16)
    air[4:28, 4:28] = -50
    right, left = air.copy(), air.copy()
    right[20:26, 10:16, 3:6] = left[6:12, 10:16, 3:6] = 100
    for voxels, doubt in ((right, True), (left, False)):
        go(trained, save(path, voxels))
        assert ("patient's right" in capsys.readouterr().out) == doubt
        assert len(read_json(folder / "ct.json")["doubts"]) == doubt
    parts = {"train": ["a"], "val": ["b"], "teacher": ["a", "ct"]}
    trained.checkpoint["patients"] = parts
    go(trained, path)
    assert "among the teacher's train patients" in capsys.readouterr().out


def test_flags_of_volumes_and_of_slices_exclude_each_other(tmp_path):
    for settings in ({"largest_component": True}, {"ground_truth": tmp_path}, {"hu_low": 0.0}):
        with pytest.raises(UserError, match="without --volume"):
            InferenceConfig(**settings)
    with pytest.raises(UserError, match="--subset has no effect with --volume"):
        InferenceConfig(volume=tmp_path, subset="val")
    with pytest.raises(UserError, match="--overlays has no effect with --volume"):
        InferenceConfig(volume=tmp_path, overlays=3)


def test_a_run_whose_window_is_not_known_says_that_it_guesses(trained, tmp_path, capsys):
    path = save(tmp_path / "ct.nii.gz", ct())
    trained.checkpoint["window"] = None
    go(trained, path)
    assert "HU -160 to 240 (a guess" in capsys.readouterr().out
    trained.checkpoint["window"] = None
    go(trained, path, hu_low=-160.0, hu_high=240.0)
    assert "guess" not in capsys.readouterr().out


def test_a_sheet_counts_slices_as_the_file_does(tmp_path):
    for codes, name in (("LPS", "k = 3"), ("RAI", "k = 5"), ("SPL", "i = 3"), ("LIP", "j = 5")):
        volume = read_volume(save(tmp_path / "v.nii.gz", np.zeros((9, 9, 9), np.int16), codes))
        assert _stored_index(volume, 3) == name


def test_an_inverted_true_mask_is_doubted(trained, tmp_path, capsys):
    volume = save(tmp_path / "v.nii.gz", ct())
    for truth, told in ((ct() > 60, False), (ct() <= 60, True)):
        path = save(tmp_path / "t.nii.gz", truth.astype(np.uint8))
        go(trained, volume, ground_truth=path)
        assert ("is it inverted?" in capsys.readouterr().out) is told
