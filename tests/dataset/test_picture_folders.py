"""Pictures in sub-folders, folders without pictures, and names that are hard to write."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from small_pairs import make, mask, picture, some

from common.errors import UserError


def nested(tmp_path, images, masks):
    for patient in ("A", "B", "C"):
        for number in (1, 2, 10):
            names = {"p": patient, "n": number}
            picture(tmp_path / "images" / images.format(**names), value=ord(patient) + number)
            if masks:
                mask(tmp_path / masks.format(**names))


@pytest.mark.parametrize(
    ("images", "masks", "settings"),
    [
        ("{p}/{p}_{n}.tif", "images/{p}/{p}_{n}_mask.tif", {"mask_suffix": "_mask"}),  # LGG
        ("{p}/{n}.png", "masks/{p}/{n}.png", {}),  # the same names in each folder
        ("{p}/images/{n}.png", "images/{p}/masks/{n}.png", {}),
        ("images/{p}/{n}.png", "images/masks/{p}/{n}.png", {}),
    ],
)
def test_a_sub_folder_is_a_patient(tmp_path, capsys, images, masks, settings):
    nested(tmp_path, images, masks)
    data = make(tmp_path, **settings)
    assert [s.name for s in data.slices[:4]] == ["A_000", "A_001", "A_002", "B_000"]
    assert [s.source for s in data.slices[1:3]] == [
        images.format(p="A", n=2),  # counted as people do: 10 comes last
        images.format(p="A", n=10),
    ]
    said = capsys.readouterr().out
    assert "each of the 3 sub-folders counts as a patient (A, B, C); if they are not" in said


def test_a_folder_for_each_image_with_a_mask_for_each_object(tmp_path, capsys):
    for number in range(3):  # Data Science Bowl 2018
        folder = tmp_path / "images" / f"id{number}"
        picture(folder / "images" / f"id{number}.png", value=number)
        mask(folder / "masks" / "first.png")
        picture(folder / "masks" / "second.png", value=0)
    data = make(tmp_path)
    assert [s.case for s in data.slices] == ["id0", "id1", "id2"]
    assert all(s.foreground for s in data.slices)
    assert "note: 3 images have several masks in their folder (up to 2)" in capsys.readouterr().out
    with pytest.raises(UserError, match="id0.png has 2 masks in its folder, one for each object"):
        make(tmp_path, classes=("a=1",), overwrite=True)


def test_rules_and_tables_know_the_sub_folders(tmp_path):
    nested(tmp_path, "{p}/{n}.png", "masks/{p}/{n}.png")
    data = make(tmp_path, patient="^(.+)/([0-9]+)$")
    assert [s.name for s in data.slices[:3]] == ["A_001", "A_002", "A_010"]
    data = make(tmp_path, patient="^([0-9]+)$", overwrite=True)
    assert {s.case for s in data.slices} == {"1", "2", "10"}
    table = tmp_path / "who.csv"
    rows = [
        f"images/{p}/{n}.png,{who}\n"
        for p, who in zip("ABC", "XXY", strict=True)
        for n in (1, 2, 10)
    ]
    table.write_text("file,patient\n" + "".join(rows))
    data = make(tmp_path, patient_csv=table, overwrite=True)
    assert [s.case for s in data.slices] == ["X"] * 6 + ["Y"] * 3
    table.write_text("file,patient\n1.png,X\n2.png,Y\n10.png,Z\nA/1.png,Q\n")
    with pytest.raises(UserError, match="lists 1 under X and under Q"):
        make(tmp_path, patient_csv=table, overwrite=True)


@pytest.mark.parametrize(
    ("images", "settings", "words"),
    [
        ("x/{p}/{n}.png", {"mask_suffix": "_m"}, "several folders deep, as in x/A: say which fold"),
        ("train/{p}{n}.png", {"mask_suffix": "_m"}, "sub-folders train are parts of a split"),
        (
            "{p}/s_{n}.png",
            {"mask_suffix": "_m", "patient": "(s)_([0-9]+)$"},
            "A/s_1.*= .*B/s_1.png",
        ),
        ("{p}/{n}.png", {}, "images: no masks are named. .* `python inference.py --images FOLDER`"),
    ],
)
def test_sub_folders_that_leave_the_patient_open_are_refused(tmp_path, images, settings, words):
    nested(tmp_path, images, "images/" + images.replace(".png", "_m.png"))
    with pytest.raises(UserError, match=words):
        make(tmp_path, **settings)


def test_new_pictures_without_masks_are_told_where_to_go(tmp_path):
    nested(tmp_path, "{p}{n}.png", None)
    (tmp_path / "masks").mkdir()
    for settings in ({}, {"masks": tmp_path / "images", "mask_suffix": "_mask"}):
        with pytest.raises(UserError, match="are predicted by `python inference.py --images"):
            make(tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.dcm", "3 .dcm files: DICOM, which dcm2niix converts to NIfTI; .*slice_nifti"),
        ("a.nii.gz", "3 .nii.gz files: NIfTI; .*slice_nifti"),
        ("a.MHA", "3 .mha files: MetaImage, to be saved as NIfTI"),
        ("a.webp", "3 .webp files: a format that is not read; save them as PNG"),
        ("a.npy", "3 .npy files: a format that is not read; save the pictures in them as PNG"),
        ("a", "a0 is DICOM"),
        ("a.xyz", "It holds 3 .xyz"),
    ],
)
def test_a_folder_of_another_format_is_named(tmp_path, name, words):
    (tmp_path / "images").mkdir()
    for number in range(3):
        path = tmp_path / "images" / name.replace("a", f"a{number}", 1)
        path.write_bytes(bytes(128) + b"DICM" + bytes(300) if name == "a" else b"abc")
    with pytest.raises(UserError, match=f"images holds no pictures .*{words}"):
        make(tmp_path)


def test_what_is_left_out_is_told(tmp_path, capsys):
    some(tmp_path, ["a", "b", "c"])
    (tmp_path / "images" / "d.webp").write_bytes(b"")
    picture(tmp_path / "images" / "more" / "e.png")
    assert len(make(tmp_path).slices) == 3
    said = capsys.readouterr().out
    assert "images: 1 .webp, the pictures in sub-folders (1), as there are others" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("code", ["utf-8", "ascii"])
def test_names_of_any_kind_are_imported(tmp_path, code):
    some(tmp_path, ["$x$", "a b", "\u30b9\u30e91"])
    for kind in ("images", "masks"):
        (tmp_path / kind / "a b.png").rename(os.fsdecode(bytes(tmp_path / kind) + b"/p\xf6.png"))
    command = [sys.executable, "data_prep/import_pairs.py", "--images", tmp_path / "images"]
    command += ["--masks", tmp_path / "masks", "--output", tmp_path / "out", "--size", "32"]
    env = {**os.environ, "PYTHONIOENCODING": code}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "manifest.csv").read_text(encoding="utf-8")
    assert [line.split(",")[3] for line in text.splitlines()[1:]] == [
        "\u30b9\u30e91.png",
        "p\\udcf6.png",
        "$x$.png",
    ]
