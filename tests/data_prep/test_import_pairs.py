"""import_pairs.py: folders of 2D images and masks, paired by name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from small_pairs import make, mask, picture, script, some

from common.dataset.loading import SliceDataset
from common.dataset.slices import read_mask, read_set
from common.dataset.splits import read_splits
from common.errors import UserError
from common.files import read_json


@pytest.mark.parametrize(
    ("image", "mode", "truth", "suffix", "high"),
    [
        ("a{}.png", "L", "a{}.png", "", 255),
        ("a{}.png", "L", "a{}.png", "", 1),
        ("{}_training.tif", "RGB", "{}_manual1.gif", "_manual1", 255),  # DRIVE
        ("k{}.jpg", "RGB", "k{}.jpg", "", 255),  # Kvasir-SEG
        ("ISIC_{}.jpg", "RGB", "ISIC_{}_segmentation.png", "_segmentation", 255),
        ("b{}.bmp", "L", "b{}.bmp", "", 255),
    ],
)
def test_the_common_layouts(tmp_path, image, mode, truth, suffix, high):
    for i in range(4):
        picture(tmp_path / "images" / image.format(i), mode)
        mask(tmp_path / "masks" / truth.format(i), high)
    settings = {"mask_suffix": suffix}
    if "training" in image:
        settings["image_suffix"] = "_training"
    data = make(tmp_path, **settings)
    assert len(data.slices) == 4
    item = SliceDataset(data, data.slices)[0]
    assert item["image"].shape == (1, 32, 32)
    assert set(item["mask"].unique().tolist()) == {0, 1}
    rows, columns = item["mask"].nonzero().unbind(1)
    # 40 x 30 pixels become 32 x 24, padded above and below by 4.
    assert abs(int(rows.min()) - (4 + 4)) <= 1 and abs(int(columns.max()) - 23) <= 1


def test_one_folder_for_both(tmp_path):
    for i in range(3):
        picture(tmp_path / "images" / f"x{i}.png")
        mask(tmp_path / "images" / f"x{i}_mask.png")
    assert len(make(tmp_path, mask_suffix="_mask").slices) == 3


def test_patients_from_a_regular_expression_stay_together(tmp_path):
    some(tmp_path, [f"p{p}_{s:03d}" for p in range(5) for s in (3, 10, 100)])
    data = make(tmp_path, patient=r"^(.+)_(\d+)$")
    assert [s.name for s in data.slices[:3]] == ["p0_003", "p0_010", "p0_100"]
    splits = read_splits(data, "splits.json", ("train", "val", "test"))
    assert sorted(sum((splits[p] for p in ("train", "val", "test")), [])) == [
        f"p{p}" for p in range(5)
    ]


def test_patients_from_a_csv(tmp_path):
    some(tmp_path, ["a", "b", "c", "d"])
    table = tmp_path / "who.csv"
    table.write_text("file,patient\na.png,A 1\nb.png,A 1\nc.png,P2\nd.png,P3\n")
    data = make(tmp_path, patient_csv=table)
    assert [(s.name, s.source) for s in data.slices[:2]] == [
        ("A_1_000", "a.png"),
        ("A_1_001", "b.png"),
    ]
    table.write_text("file,patient\na.png,P1\n")
    with pytest.raises(UserError, match="no patient for 3 images"):
        make(tmp_path, patient_csv=table, overwrite=True)


def test_a_csv_that_contradicts_itself_is_refused_and_dots_in_names_stay(tmp_path):
    some(tmp_path, ["s.1", "s.2", "s.3", "s.4"])
    table = tmp_path / "who.csv"
    table.write_text("file,patient\ns.1,A\ns.2,A\ns.3,B\nfolder/s.4.png,C\n")
    data = make(tmp_path, patient_csv=table)
    assert [s.case for s in data.slices] == ["A", "A", "B", "C"]
    table.write_text("file,patient\ns.1,A\ns.2,A\ns.3,B\ns.4,C\none/s.1.png,B\n")
    with pytest.raises(UserError, match="lists s.1 under A and under B"):
        make(tmp_path, patient_csv=table, overwrite=True)


def test_two_patients_are_not_one_case(tmp_path):
    some(tmp_path, ["\u5f20_1", "\u674e_1", "\u738b_1"])
    with pytest.raises(UserError, match="'\u5f20' and '\u674e' would both be 'case'"):
        make(tmp_path, patient="^(.+)_[0-9]+$")


def test_what_the_masks_show_has_a_name(tmp_path, capsys):
    some(tmp_path, ["a", "b", "c"])
    assert make(tmp_path).classes == ["spleen"]
    assert "note: what the masks show is called spleen; --classes NAME" in capsys.readouterr().out
    assert make(tmp_path, classes=("left kidney",), overwrite=True).classes == ["left_kidney"]
    assert "called spleen" not in capsys.readouterr().out


def test_all_lonely_files_are_named(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    picture(tmp_path / "images" / "d.png")
    mask(tmp_path / "masks" / "e.png")
    with pytest.raises(UserError) as error:
        make(tmp_path)
    assert "d.png has no mask" in str(error.value) and "e.png has no image" in str(error.value)


def test_bad_pairs_are_all_named_and_nothing_is_left(tmp_path):
    some(tmp_path, ["a", "b", "c", "d"])
    mask(tmp_path / "masks" / "a.png", high=7)
    mask(tmp_path / "masks" / "b.png", size=(41, 30))
    whole = (tmp_path / "images" / "c.png").read_bytes()
    (tmp_path / "images" / "c.png").write_bytes(whole[:50])
    with pytest.raises(UserError, match="3 of 4") as error:
        make(tmp_path)
    assert "--threshold" in str(error.value) and "41x30" in str(error.value)
    assert "c.png is damaged" in str(error.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_one_image_of_two_patients_is_a_leak(tmp_path):
    shades = np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)
    for name in ("a_1", "a_2", "b_1", "c_1", "d_1"):
        mask(tmp_path / "masks" / f"{name}.png")
        picture(tmp_path / "images" / f"{name}.png")  # of one grey, as air is: they may be alike
    for name in ("a_1", "a_2"):
        Image.fromarray(shades).save(tmp_path / "images" / f"{name}.png")
    rule = {"patient": r"^(.)_(\d)$"}
    assert len(make(tmp_path, **rule).slices) == 5  # both of one patient
    Image.fromarray(shades).save(tmp_path / "images" / "c_1.png", compress_level=1)
    with pytest.raises(UserError, match=r"(?s)a leak.*a_1.png = a_2.png = c_1.png.*all but one"):
        make(tmp_path, **rule, overwrite=True)
    assert len(read_set(tmp_path / "out").slices) == 5


def test_two_imports_of_one_set_do_not_mix(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    code = "import sys; from common.files import lock_folder; from pathlib import Path;"
    code += "lock = lock_folder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="written by another process"):
            make(tmp_path)
        other.stdin.close()
    assert len(make(tmp_path).slices) == 3


def test_a_threshold_makes_grey_masks_binary(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    mask(tmp_path / "masks" / "a.png", high=7)
    data = make(tmp_path, threshold=5)
    assert all(s.foreground for s in data.slices)


def test_sixteen_bits_are_refused(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match="8 bits per channel"):
        make(tmp_path)


def test_an_existing_data_set_is_kept(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    make(tmp_path)
    with pytest.raises(UserError, match="--overwrite"):
        make(tmp_path)
    assert make(tmp_path, overwrite=True).slices


def test_sources_and_foreign_folders_are_never_overwritten(tmp_path):
    some(tmp_path, ["a", "b", "c"])
    for output in (tmp_path, tmp_path / "images"):
        config = script.Config(
            images=tmp_path / "images", masks=tmp_path / "masks", output=output, overwrite=True
        )
        with pytest.raises(UserError):
            script.main(config)
    assert len(list((tmp_path / "images").iterdir())) == 3
    assert len(list((tmp_path / "masks").iterdir())) == 3


def test_an_absent_or_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        make(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        make(tmp_path)


@pytest.mark.skipif(
    "SPLEEN_REAL_DATA" not in os.environ, reason="SPLEEN_REAL_DATA names no folder of real CT"
)
def test_real_slices(tmp_path):
    folder = Path(os.environ["SPLEEN_REAL_DATA"]) / "real_ct_2d"
    config = script.Config(
        images=folder / "images",
        masks=folder / "masks",
        patient=r"^(.+)_(\d+)$",
        output=tmp_path / "out",
        size=128,
    )
    script.main(config)
    data = read_set(tmp_path / "out")
    assert len(data.slices) == 213 and len({s.case for s in data.slices}) == 30
    assert sum(s.foreground > 0 for s in data.slices) == 108
    first = data.slices[1]
    assert read_mask(data.folder / "masks" / f"{first.name}.png", 1).sum() == first.foreground
    assert read_json(data.folder / "dataset.json")["size"] == 128


@pytest.mark.skipif(
    "SPLEEN_REAL_DATA" not in os.environ, reason="SPLEEN_REAL_DATA names no folder of real CT"
)
def test_real_slices_of_thirteen_classes(tmp_path):
    folder = Path(os.environ["SPLEEN_REAL_DATA"]) / "real_ct_multi"
    names = list(read_json(folder / "labels.json").values())[1:]
    config = script.Config(
        images=folder / "images",
        masks=folder / "masks",
        classes=tuple(names),
        patient=r"^(.+)_(\d+)$",
        output=tmp_path / "out",
        size=512,
    )
    script.main(config)
    data = read_set(tmp_path / "out")
    assert len(data.slices) == 134 and data.info["classes"] == names and data.num_classes == 14
    for slice_ in data.slices[::20]:
        given = np.asarray(Image.open(folder / "masks" / slice_.source))
        found = read_mask(data.folder / "masks" / f"{slice_.name}.png", data.num_classes)
        if given.shape == found.shape:
            assert np.array_equal(found, given)


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (("a_01", "a_02", "b_01", "b_02"), True),
        (("p1-1", "p1-2", "p2-1"), True),
        (("one", "two", "three", "four"), False),
        (("img_1", "img_2", "img_3", "img_4"), False),  # one stem: numbered images
        (("1", "2", "3", "4"), False),
    ],
)
def test_names_that_look_like_patients_are_pointed_out(tmp_path, capsys, names, warned):
    for name in names:
        picture(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png")
    make(tmp_path)
    assert ("warning: the names look like 2 patients" in capsys.readouterr().out) == warned
