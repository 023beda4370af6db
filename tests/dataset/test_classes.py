"""Several classes: named, selected and merged from the label volumes."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script, run
from PIL import Image
from small_volumes import body

from common.dataset.cases import problems_of
from common.dataset.classes import named_in, parse_classes
from common.dataset.layouts import VolumesConfig, list_all, study_classes
from common.dataset.nifti import read_volume
from common.dataset.preprocessing import from_views
from common.dataset.slices import read_mask, read_set
from common.errors import UserError
from common.files import read_json, write_json

check = load_script(ROOT / "data_prep/check_volumes.py")
slicer = load_script(ROOT / "data_prep/slice_nifti.py")
KNOWN = {"spleen": (1,), "right_kidney": (2,), "left_kidney": (3,)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["liver=6"], {"liver": (6,)}),
        (["kidneys=3,2", "liver=6"], {"kidneys": (2, 3), "liver": (6,)}),
        (["left kidney", "spleen"], {"left_kidney": (3,), "spleen": (1,)}),
        (["spleen", "liver=6"], {"spleen": (1,), "liver": (6,)}),
        (["spleen=4"], {"spleen": (4,)}),  # what is typed counts, not what the folder says
        (["all"], KNOWN),
    ],
)
def test_classes_are_named_in_the_order_given(words, expected):
    found = parse_classes(words, KNOWN)
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["liver"], "--classes liver: known are spleen, right_kidney, left_kidney; or give its"),
        (["liver="], "NAME=VALUE or NAME=VALUE,VALUE is expected"),
        (["=3"], "NAME=VALUE"),
        (["liver=6;7"], "NAME=VALUE"),
        (["liver=6,"], "NAME=VALUE"),
        (["liver=0"], "0 is background"),
        (["liver=-1"], "whole numbers from 1 on"),
        (["liver=6", "tumour=6"], "the value 6 is under liver and tumour"),
        (["liver=6", "liver=7"], "names liver twice"),
        (["all", "liver=6"], "--classes all stands alone"),
        ([f"o{k}={k}" for k in range(1, 300)], "names 299 classes"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, reason):
    with pytest.raises(UserError) as error:
        parse_classes(words, KNOWN)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_all_needs_a_folder_that_names_its_labels():
    with pytest.raises(UserError, match="no dataset.json names the labels"):
        parse_classes(["all"])


def test_names_are_read_as_decathlon_and_as_nnunet_write_them():
    decathlon = {"0": "background", "10": "prostate/uterus", "2": "right kidney"}
    expected = {"right_kidney": (2,), "prostate_uterus": (10,)}
    assert named_in({"labels": decathlon}) == expected
    nnunet = {"background": 0, "right kidney": 2, "prostate/uterus": 10, "whole": [1, 2]}
    assert named_in({"labels": nnunet}) == expected | {"whole": (1, 2)}
    assert list(named_in({"labels": decathlon})) == list(expected)
    assert named_in({}) == named_in([]) == named_in({"labels": ["spleen"]}) == {}


def classes(shape=(16, 16, 6)):
    """Values 1, 2, 3 and 6, each in a block of its own."""
    label = np.zeros(shape, np.uint8)
    for value, x in ((6, 3), (2, 6), (3, 9), (1, 12)):
        label[x : x + 2, 4:8, 1 : 1 + value % 4] = value
    return label


@pytest.fixture
def folder(tmp_path):
    """Four cases with several classes, named in dataset.json; one of them holds value 6 nowhere."""
    listed = []
    for number in range(4):
        label = classes()
        if number == 3:
            label[label == 6] = 0
        for kind, voxels in (("images", body(number)), ("labels", label)):
            path = tmp_path / f"task/{kind}Tr/p{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 3, 1.0])), path)
        listed.append({k: f"{k}sTr/p{number}.nii.gz" for k in ("image", "label")})
    names = ("background", "spleen", "right kidney", "left kidney", "", "", "liver")
    names = {str(k): name for k, name in enumerate(names) if name}
    about = {"training": listed, "labels": names}
    (tmp_path / "task/dataset.json").write_text(json.dumps(about))
    return tmp_path / "task"


def cut(folder, **settings):
    """The data set that slice_nifti makes, at the volumes' own 16 pixels."""
    config = {"input": folder, "output": folder.parent / "out", "size": 16, "workers": 1}
    slicer.main(slicer.Config(**config | settings))
    return read_set(folder.parent / "out")


def masks_of(data, case):
    """A case's masks as canonical voxels, in the values that are on disk."""
    files = [data.folder / "masks" / f"{s.name}.png" for s in data.of([case])]
    return from_views(np.stack([np.asarray(Image.open(file)) for file in files]))


def test_masks_hold_the_classes_in_the_order_named_and_nothing_else(folder, capsys):
    data = cut(folder, classes=("liver", "kidneys=2,3"))
    assert data.info["classes"] == ["liver", "kidneys"] and data.num_classes == 3
    assert data.info["labels"] == {"liver": [6], "kidneys": [2, 3]}
    for case in list_all(VolumesConfig(input=folder)):
        label = read_volume(case.label).voxels
        expected = np.where(label == 6, 1, np.where((label == 2) | (label == 3), 2, 0))
        assert np.array_equal(masks_of(data, case.name), expected)
        counts = [s.foreground for s in data.of([case.name])]
        assert counts == np.count_nonzero(expected, axis=(0, 1)).tolist()
    name = data.slices[1].name
    assert read_mask(data.folder / "masks" / f"{name}.png", data.num_classes).max() == 2
    text = capsys.readouterr().out
    assert "note: --classes does not name the values 1: background" in text
    assert "with any of 2 classes" in text and "warning" not in text


def test_one_class_merged_of_two_values_is_a_binary_set(folder, capsys):
    data = cut(folder, classes=("kidneys=2,3,9",))
    assert data.info["classes"] == ["kidneys"] and data.num_classes == 1
    label = read_volume(list_all(VolumesConfig(input=folder))[0].label).voxels
    assert np.array_equal(masks_of(data, "p0"), 255 * np.isin(label, (2, 3)))
    assert "warning: kidneys: no label of the set holds 9" in capsys.readouterr().out


def test_several_classes_that_are_not_named_are_refused_with_the_flag_that_helps(folder):
    with pytest.raises(UserError, match=r"(?s)4 of 4 .* 2, 3, 6 beside 0 and 1 .*see --classes"):
        cut(folder)


def test_another_class_is_named(folder, capsys):
    """Label 1 is the spleen, unless --classes says otherwise; what dataset.json says is offered."""
    for path in (folder / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image((label.get_fdata() == 6).astype(np.uint8), label.affine), path)
    about = read_json(folder / "dataset.json") | {"labels": {"0": "background", "1": "liver"}}
    (folder / "dataset.json").write_text(json.dumps(about))
    assert cut(folder).classes == ["spleen"]
    assert "dataset.json's name: --classes liver=1" in capsys.readouterr().out
    assert cut(folder, classes=("liver=1",), overwrite=True).classes == ["liver"]
    assert "note" not in capsys.readouterr().out


def test_without_a_label_1_the_class_must_be_named(folder):
    about = read_json(folder / "dataset.json") | {"labels": {"0": "background", "6": "liver"}}
    (folder / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="names no label 1.*It names liver=6: choose with --cl"):
        cut(folder)


def test_all_leaves_out_what_nnunet_calls_ignore():
    known = {"spleen": (1,), "ignore": (2,)}
    assert parse_classes(["all"], known) == {"spleen": (1,)}
    assert parse_classes(["spleen", "ignore"], known) == known  # by name it is taken


def test_other_classes_do_not_replace_a_data_set_unasked(folder):
    cut(folder, classes=("spleen=2",))
    for other in ({"classes": ("spleen=3",)}, {"classes": ("spleen=2",), "axis": "coronal"}):
        with pytest.raises(UserError, match="--overwrite"):
            cut(folder, **other)
    for path in (folder / "labelsTr").iterdir():  # now one class, for which no --classes is needed
        label = nib.load(path)
        nib.save(nib.Nifti1Image((label.get_fdata() == 2).astype(np.uint8), label.affine), path)
    with pytest.raises(UserError, match="--overwrite"):
        cut(folder)
    again = cut(folder, overwrite=True)
    assert "labels" not in again.info and masks_of(again, "p0").max() == 255


def test_only_what_has_changed_is_cut_anew(folder, capsys):
    data = cut(folder, classes=("liver", "spleen"))
    before = {p: p.stat().st_mtime_ns for p in (data.folder / "masks").iterdir()}
    assert "warning: dataset.json" not in capsys.readouterr().out
    cut(folder, classes=("liver=3",), output=folder.parent / "other")
    assert "dataset.json says liver=6; what --classes says is taken" in capsys.readouterr().out
    again = cut(folder, classes=("liver=6", "spleen=1"))  # the same, said otherwise
    assert before == {p: p.stat().st_mtime_ns for p in (again.folder / "masks").iterdir()}


def table(folder, capsys, code=0, **settings):
    """What check_volumes prints."""
    config = check.Config(input=folder, workers=1, **settings)
    if code:
        with pytest.raises(UserError):
            check.main(config)
    else:
        check.main(config)
    return capsys.readouterr().out


def test_a_folder_that_names_its_classes_is_sound(folder, capsys):
    text = table(folder, capsys)
    assert "4 cases are sound; warnings: 0" in text and "slice_nifti.py --classes" in text
    ml = 2 * 4 * 2 * 3 / 1000  # 2 x 4 voxels in 2 slices of 1 x 1 x 3 mm
    assert any(
        line.split()[:6] == ["liver", "6", "in", "3", "of", "4"] and f"{ml:.1f}" in line
        for line in text.splitlines()
    )
    assert "no label of the set holds 9" in table(folder, capsys, classes=("x=9",))


def test_a_value_that_nothing_names_is_an_error_until_the_labels_are_named(folder, capsys):
    about = read_json(folder / "dataset.json")
    del about["labels"]["6"]
    (folder / "dataset.json").write_text(json.dumps(about))
    assert "holds the values 6 beside 0 to 3" in table(folder, capsys, code=1)
    assert "4 cases are sound" in table(folder, capsys, classes=("spleen", "liver=6"))
    odd = nib.load(folder / "labelsTr/p1.nii.gz")
    nib.save(
        nib.Nifti1Image(odd.get_fdata(dtype=np.float32) / 2, odd.affine),
        folder / "labelsTr/p1.nii.gz",
    )
    text = table(folder, capsys, code=1, classes=("spleen", "liver=6"))
    assert "0.5, 1.5 beside whole numbers" in text
    with pytest.raises(UserError, match="1 of 4 .*"):
        cut(folder, classes=("spleen", "liver=6"))


def test_a_truth_of_several_classes_is_checked_by_its_range(folder):
    case = list_all(VolumesConfig(input=folder))[0]
    image, label = read_volume(case.image), read_volume(case.label)
    assert problems_of(image, label, range(7)) == []
    assert problems_of(image, label, range(4)) == ["the label holds the values 6 beside 0 to 3"]
    assert "2, 3, 6 beside 0 and 1" in problems_of(image, label)[0]


def test_the_phantom_with_all_its_classes(repo, phantom, tmp_path):
    flags = ("--patients", 3, "--unlabelled", 0, "--size", 64, "--thickness", 14)
    whole = tmp_path / "whole"
    run(repo, "data_prep/make_phantom.py", *flags, "--output", whole)
    flags += ("--classes", "all", "--output", whole)
    assert "made with other flags" in run(repo, "data_prep/make_phantom.py", *flags, code=1)
    run(repo, "data_prep/make_phantom.py", *flags, "--overwrite")
    text = run(repo, "data_prep/check_volumes.py", "--input", whole)
    assert "3 cases are sound" in text and "in 3 of 3 volumes" in text
    for case in list_all(VolumesConfig(input=whole)):  # the same patients, with more labels
        plain = phantom / "imagesTr" / case.image.name
        assert case.image.read_bytes() == plain.read_bytes()
        spleen = read_volume(phantom / "labelsTr" / case.label.name).voxels == 1
        assert (spleen == (read_volume(case.label).voxels == 1)).mean() > 0.9999
    out = ("--output", tmp_path / "out", "--size", 64)
    run(repo, "data_prep/slice_nifti.py", "--input", whole, "--classes", "all", *out)
    data = read_set(tmp_path / "out")
    assert data.info["classes"][0] == "spleen" and len(data.info["classes"]) == 8
    masks = np.concatenate([masks_of(data, f"phantom_{n:03d}") for n in range(3)], axis=2)
    assert set(np.unique(masks)) == {*range(9)}
    x = {n: np.nonzero(masks == k)[0].mean() for k, n in enumerate(data.info["classes"], 1)}
    assert x["kidney_left"] < 32 < x["kidney_right"] and x["spleen"] < 32 < x["liver"]


def test_a_study_cuts_out_what_its_folder_names(tmp_path):
    index = tmp_path / "dataset.json"
    for labels, wanted, found in (
        (None, None, None),
        ({"0": "background", "1": "Spleen"}, None, None),
        ({"0": "background", "1": "left atrium"}, None, "left_atrium"),
        ({"0": "background", "6": "spleen"}, None, "spleen"),
        ({"1": "spleen", "2": "liver"}, None, "spleen"),
        ({"1": "kidney", "2": "liver"}, "all", "all"),
    ):
        write_json(index, {"labels": labels} if labels else {})
        assert study_classes(tmp_path, wanted) == found, labels
    with pytest.raises(UserError, match="names kidney, liver, no spleen"):
        study_classes(tmp_path, None)
    for wanted in (None, "all"):
        write_json(index, {"labels": {"1": "left atrium"}, "modality": {"0": "MRI"}})
        with pytest.raises(UserError, match=r"holds no CT: .*--percentiles"):
            study_classes(tmp_path, wanted)
