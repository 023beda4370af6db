"""What a dataset.json may look like: nnU-Net's, Windows', regions, modalities, names alike."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script, run
from small_volumes import body, spleen

from common.dataset.classes import named_in, overlapping, parse_classes
from common.dataset.layouts import VolumesConfig, find_cases, is_ct, list_all
from common.errors import UserError
from common.files import read_json

check = load_script(ROOT / "data_prep/check_volumes.py")
slicer = load_script(ROOT / "data_prep/slice_nifti.py")
REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3}


def put(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 3, 1.0])), path)


def index(folder, **about):
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def pairs(folder, count=3, image="imagesTr/c{n}.nii.gz", label="labelsTr/c{n}.nii.gz"):
    """Files of so many cases, and what dataset.json lists of them."""
    listed = []
    for n in range(count):
        names = {"image": image.format(n=n), "label": label.format(n=n)}
        put(folder / names["image"], body(n))
        put(folder / names["label"], spleen())
        listed.append(names)
    return listed


def names_in(folder, **settings):
    return [case.name for case in list_all(VolumesConfig(input=folder, **settings))]


def checked(folder, capsys, **settings):
    check.main(check.Config(input=folder, workers=1, **settings))
    return capsys.readouterr().out


def test_nnunet_s_folders_are_read_without_a_list(tmp_path, capsys):
    pairs(tmp_path, image="imagesTr/c{n}_0000.nii.gz")
    with pytest.raises(UserError) as error:
        list_all(VolumesConfig(input=tmp_path))
    flags = '--images "imagesTr/*_0000.nii.gz" --masks "labelsTr/*.nii.gz"'
    assert f"holds no dataset.json. Of a folder in another layout name the files: {flags}" in str(
        error.value
    )
    patterns = {"images": "imagesTr/*_0000.nii.gz", "masks": "labelsTr/*.nii.gz"}
    assert names_in(tmp_path, **patterns) == ["c0", "c1", "c2"]
    about = {"labels": {"background": 0, "spleen": 1}, "channel_names": {"0": "CT"}}
    index(tmp_path, **about, file_ending=".nii.gz", numTraining=99)
    assert names_in(tmp_path) == ["c0", "c1", "c2"]
    assert "3 cases are sound; warnings: 0" in checked(tmp_path, capsys)
    index(tmp_path, **about, file_ending=".nrrd")
    with pytest.raises(UserError, match=r"its files are .nrrd; .nii or .nii.gz is expected"):
        list_all(VolumesConfig(input=tmp_path))


@pytest.mark.parametrize("listed", [True, False])
def test_one_of_nnunet_s_channels_is_chosen(tmp_path, listed, capsys):
    training = pairs(tmp_path)
    for n in range(3):
        path = tmp_path / f"imagesTr/c{n}.nii.gz"
        path.rename(path.with_name(f"c{n}_0000.nii.gz"))
        put(path.with_name(f"c{n}_0001.nii.gz"), body(n) * 2)
    more = {"training": training} if listed else {"file_ending": ".nii.gz"}
    index(tmp_path, channel_names={"0": "CT", "1": "PET"}, labels={"spleen": 1}, **more)
    with pytest.raises(UserError, match="2 channels.*choose one with --channel"):
        list_all(VolumesConfig(input=tmp_path))
    for channel in (0, 1):
        cases = list_all(VolumesConfig(input=tmp_path, channel=channel))
        assert [case.image.name for case in cases] == [
            f"c{n}_000{channel}.nii.gz" for n in range(3)
        ]
        assert [case.name for case in cases] == ["c0", "c1", "c2"]
        assert is_ct(tmp_path, channel) == (channel == 0)
        text = checked(tmp_path, capsys, channel=channel)
        assert "3 cases are sound; warnings: 0" in text
    with pytest.raises(UserError, match="names 2 channels|c0_0002.nii.gz is missing"):
        list_all(VolumesConfig(input=tmp_path, channel=2))


def test_images_listed_without_their_0000_are_found(tmp_path, capsys):
    training = pairs(tmp_path)
    for path in list((tmp_path / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    index(tmp_path, training=training, numTraining=7)
    assert names_in(tmp_path) == ["c0", "c1", "c2"]
    assert "3 cases are sound; warnings: 0" in checked(tmp_path, capsys)


def test_windows_separators_are_read(tmp_path):
    training = pairs(tmp_path)
    back = [{key: f".\\{name}".replace("/", "\\") for key, name in e.items()} for e in training]
    index(tmp_path, training=back[:2], validation=back[2:])
    assert names_in(tmp_path) == ["c0", "c1", "c2"]


def test_names_alike_are_told_apart_by_their_folders(tmp_path):
    training = pairs(tmp_path, image="t/case_{n}/imaging.nii.gz", label="t/case_{n}/seg.nii.gz")
    index(tmp_path, training=training)
    assert names_in(tmp_path) == ["case_0", "case_1", "case_2"]
    deeper = pairs(tmp_path, 1, image="u/v/w/imaging.nii.gz", label="u/v/w/seg.nii.gz")
    index(tmp_path, training=training[:1] + deeper)
    assert names_in(tmp_path) == ["t_case_0_imaging", "u_v_w_imaging"]
    index(tmp_path, training=training + training[1:2])
    _, problems = find_cases(VolumesConfig(input=tmp_path))
    assert problems == [("case_1", "listed twice")]
    index(tmp_path, training=training[:2], test=["t/case_1/imaging.nii.gz"])
    _, problems = find_cases(VolumesConfig(input=tmp_path))
    assert problems == [("case_1", "listed for training and for test")]


def test_regions_that_overlap_are_refused_and_others_read(tmp_path, capsys):
    listed = named_in({"labels": REGIONS})
    assert listed == {"whole_tumor": (1, 2, 3), "tumor_core": (2, 3), "enhancing": (3,)}
    assert overlapping(listed) == [2, 3]
    apart = named_in({"labels": {"spleen": "1", "kidneys": [2, "3"], "liver": 6.0}})
    assert apart == {"spleen": (1,), "kidneys": (2, 3), "liver": (6,)} and not overlapping(apart)
    training = pairs(tmp_path)
    for n in range(3):
        label = spleen()
        label[4:6] *= 2
        label[5:6] = np.where(label[5:6] == 2, 3, 0)
        put(tmp_path / f"labelsTr/c{n}.nii.gz", label)
    index(tmp_path, training=training, labels=REGIONS)
    text = checked(tmp_path, capsys)
    assert "3 cases are sound; warnings: 1" in text and "regions overlap (values 2, 3)" in text
    with pytest.raises(UserError, match="overlap cannot be one label map.*--classes NAME=VALUE"):
        parse_classes(["all"], listed)
    with pytest.raises(UserError, match="no whole numbers for x; give NAME=VALUE"):
        parse_classes(["all"], named_in({"labels": {"spleen": 1, "x": [1.5]}}))
    settings = {"input": tmp_path, "output": tmp_path / "o", "size": 16, "workers": 1}
    slicer.main(slicer.Config(**settings, classes=("whole tumor",)))
    assert read_json(tmp_path / "o/dataset.json")["labels"] == {"whole_tumor": [1, 2, 3]}


@pytest.mark.parametrize(
    ("about", "ct_or_not"),
    [
        ({}, True),
        ({"modality": {"0": "CT"}}, True),
        ({"modality": "ct"}, True),
        ({"channel_names": {"0": "CT"}}, True),
        ({"channel_names": {"0": "CECT"}}, True),
        ({"modality": {"0": "PET/CT"}}, True),
        ({"modality": {"0": "MRI"}}, False),
        ({"modality": {"0": "FLAIR", "1": "T1w"}}, False),
        ({"modality": {"0": "T1 bias-corrected"}}, False),
        ({"modality": None, "channel_names": {"0": "MRI"}}, False),
    ],
)
def test_a_modality_is_ct_by_its_words(tmp_path, about, ct_or_not):
    assert is_ct(index(tmp_path, **about)) == ct_or_not


def test_a_window_in_hu_for_mr_is_pointed_out(tmp_path, capsys):
    training = pairs(tmp_path)
    for n in range(3):
        put(tmp_path / f"imagesTr/c{n}.nii.gz", body(n) + 1024)
    index(tmp_path, training=training, modality={"0": "T1 bias-corrected"})
    assert "warnings: 0" in checked(tmp_path, capsys)
    settings = {"input": tmp_path, "output": tmp_path / "o", "size": 16, "workers": 1}
    slicer.main(slicer.Config(**settings))
    text = capsys.readouterr().out
    assert "images T1 bias-corrected; the window in HU" in text and "no air" not in text
    slicer.main(slicer.Config(**settings, percentiles=(0.5, 99.5), overwrite=True))
    assert "window in HU" not in capsys.readouterr().out


def test_whatever_one_case_raises_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    index(tmp_path, training=pairs(tmp_path))
    for module in (check, slicer):
        name = "read_volume" if module is check else "read_case"
        whole = getattr(module, name)

        def fail(path, *more, whole=whole):
            if "c1" in str(path):
                raise RecursionError("maximum recursion depth exceeded")
            if "c2" in str(path):
                raise MemoryError
            return whole(path, *more)

        monkeypatch.setattr(module, name, fail)
    with pytest.raises(UserError, match="2 of 3 cases"):
        checked(tmp_path, capsys)
    text = capsys.readouterr().out
    assert "c1.nii.gz: RecursionError: maximum" in text and "c2.nii.gz: MemoryError" in text
    assert "\nc0 " in text
    with pytest.raises(UserError, match="c1: RecursionError(.|\n)*c2: MemoryError"):
        slicer.main(slicer.Config(input=tmp_path, output=tmp_path / "o", size=16, workers=1))


def test_names_outside_the_code_page_or_utf_8_are_printed_and_sliced(repo, tmp_path):
    names = ("患者3".encode(), b"caf\xe9", b"$a_$b")
    for n, name in enumerate(names):
        for kind, voxels in ((b"i/", body(n)), (b"l/", spleen())):
            path = tmp_path / kind.decode() / "x.nii.gz"
            put(path, voxels)
            path.rename(path.with_name((name + b".nii.gz").decode("utf-8", "surrogateescape")))
    flags = ("--input", tmp_path, "--images", "i/*.nii.gz", "--masks", "l/*.nii.gz")
    for encoding in ("cp1252", "ascii"):
        narrow = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        text = run(repo, "data_prep/check_volumes.py", *flags, **narrow)
        assert "\\u60a3\\u80053" in text and "caf_xe9" in text and "3 cases are sound" in text
    text = run(repo, "data_prep/slice_nifti.py", *flags, "--output", tmp_path / "o", **narrow)
    assert "18 slices" in text
    assert {*read_json(tmp_path / "o/dataset.json")["cases"]} == {"患者3", "caf_xe9", "$a_$b"}
