"""Other data sets: where they keep images and masks, 4D images, MR, two volumes of one patient."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, load_script, run
from PIL import Image
from small_volumes import body, spleen

import common.study.plan
from common.dataset.layouts import looks_grouped
from common.dataset.slices import read_image, read_set
from common.dataset.splits import write_splits
from common.errors import UserError
from common.files import read_json, write_json
from common.study.plan import data_steps
from common.study.results import add_up
from common.training import checkpoint

check = load_script(ROOT / "data_prep/check_volumes.py")
slicer = load_script(ROOT / "data_prep/slice_nifti.py")
SYNAPSE = {"images": "img/img*.nii.gz", "masks": "label/label*.nii.gz"}
ACDC = {
    "images": "*/*_frame*.nii.gz",
    "masks": "*/*_frame*_gt.nii.gz",
    "patient": r"^(patient\d+)",
}


def put(path: Path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 3, 1.0])), path)


def pair(image: Path, label: Path, seed: int):
    put(image, body(seed))
    put(label, spleen())


def cut(folder, **settings):
    config = {"input": folder, "output": folder.parent / "out", "size": 16, "workers": 1}
    slicer.main(slicer.Config(**config | settings))
    return read_set(folder.parent / "out")


@pytest.fixture
def synapse(tmp_path):
    for n in range(1, 5):
        names = f"s/img/img{n:04d}.nii.gz", f"s/label/label{n:04d}.nii.gz"
        pair(*(tmp_path / name for name in names), n)
    return tmp_path / "s"


@pytest.fixture
def acdc(tmp_path):
    for patient in range(1, 7):
        home = tmp_path / f"training/patient{patient:03d}"
        for frame in (1, 8 + patient):
            name = f"{home.name}_frame{frame:02d}"
            pair(home / f"{name}.nii.gz", home / f"{name}_gt.nii.gz", 20 * patient + frame)
        put(home / f"{home.name}_4d.nii.gz", np.zeros((4, 4, 2, 3), np.int16))
    return tmp_path / "training"


def test_synapse(synapse, capsys):
    (synapse / "img/._img0001.nii.gz").write_bytes(b"a shadow of macOS")
    data = cut(synapse, **SYNAPSE)
    assert sorted(data.info["cases"]) == [f"img{n:04d}" for n in range(1, 5)]
    assert {s.source for s in data.slices} == {f"img{n:04d}.nii.gz" for n in range(1, 5)}
    assert all(s.foreground == 12 * (s.index in (2, 3)) for s in data.slices)
    check.main(check.Config(input=synapse, workers=1, **SYNAPSE))
    assert "4 cases are sound" in capsys.readouterr().out


def test_every_file_without_partner_is_named(synapse, capsys):
    put(synapse / "img/img0009.nii.gz", body(9))
    put(synapse / "label/label0008.nii.gz", spleen())
    with pytest.raises(UserError) as error:
        cut(synapse, **SYNAPSE)
    assert "img0009.nii.gz has no mask" in str(error.value)
    assert "label0008.nii.gz has no image" in str(error.value)
    with pytest.raises(UserError, match="2 of 6 cases"):
        check.main(check.Config(input=synapse, workers=1, **SYNAPSE))
    assert "error    img0009" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "holds no dataset.json. Of a folder in another layout"),
        ({"images": "img/*.nii.gz"}, "--images and --masks belong together"),
        ({**SYNAPSE, "masks": "labels/label*.nii.gz"}, "--masks 'labels/label.* finds no file"),
        ({**SYNAPSE, "images": "*/img*.nii.gz"}, "different numbers of stars"),
        ({**SYNAPSE, "images": "../s/img/img*.nii.gz"}, "name files below --input"),
        ({**SYNAPSE, "images": "**/img*.nii.gz"}, "a star for each folder"),
        ({**SYNAPSE, "images": "label/label*.nii.gz"}, "only the masks"),
        ({**SYNAPSE, "patient": "img[0-9]+"}, "no group in parentheses"),
        ({**SYNAPSE, "patient": "(img000[12])"}, r"(?s)no patient for 2 volumes.*img0003"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(synapse, settings, words):
    with pytest.raises(UserError, match=words):
        cut(synapse, **settings)


def test_names_that_are_the_same_in_every_folder_give_way_to_the_folder_s(tmp_path):
    for n in range(3):  # KiTS
        home = tmp_path / f"kits/case_{n:05d}"
        pair(home / "imaging.nii.gz", home / "segmentation.nii.gz", n)
    data = cut(tmp_path / "kits", images="*/imaging.nii.gz", masks="*/segmentation.nii.gz")
    assert sorted(data.info["cases"]) == ["case_00000", "case_00001", "case_00002"]


def test_both_frames_of_an_acdc_patient_are_on_one_side_of_every_split(acdc, capsys):
    tested = []
    for fold in range(3):
        data = cut(acdc, **ACDC, num_folds=3, fold=fold)
        splits = read_json(data.folder / "splits.json")
        tested += whole_patients(splits)
    assert sorted(tested) == sorted(data.info["cases"]) and len(tested) == 12
    assert "12 volumes of 6 patients" in capsys.readouterr().out
    # reproduce.py deals the same set into folds and shares of labels of its own.
    write_splits(data.folder, (0, 1), 2, {50})
    tested = []
    for fold in (0, 1):
        tested += whole_patients(read_json(data.folder / f"splits_fold{fold}of2.json"))
        shares = read_json(data.folder / f"splits_fold{fold}of2_labels50.json")
        whole_patients(shares)
        assert len(shares["student"]) == 2
    assert sorted(tested) == sorted(data.info["cases"])


def whole_patients(splits) -> list[str]:
    """The test cases; every part of the split must hold both frames of each of its patients."""
    for part in ("train", "val", "test", "student"):
        patients = [case.split("_")[0] for case in splits[part]]
        assert patients and all(patients.count(name) == 2 for name in patients)
    assert set(splits["student"]) < set(splits["train"])
    return splits["test"]


def test_a_model_of_patients_with_several_volumes_is_scored_by_patient(acdc, repo, tmp_path):
    data = cut(acdc, **ACDC, classes=("spleen=1",), size=32)
    flags = ("--data", data.folder, "--name", "acdc")
    log = run(repo, "student_s1/train.py", *flags, "--epochs", 1, "--batch-size", 8)
    splits = read_json(data.folder / "splits.json")
    patients = {part: data.patients_of(splits[part]) for part in ("student", "test")}
    assert f"slices of {len(patients['student'])} patients (student)" in log
    run(repo, "student_s1/inference.py", *flags)
    assert f"{len(patients['test'])} test patients" in run(repo, "student_s1/metrics.py", *flags)
    folder = repo / "student_s1/runs/acdc"
    whose = checkpoint.load(folder / "best.pt", "student_s1")["patient_of"]
    assert {*whose.values()} == data.patients_of([*splits["student"], *splits["val"]])
    page = (folder / "report.html").read_text()
    assert f"{len(patients['test'])} test patients" in page and "<th>volume</th>" in page
    add_up(tmp_path / "study", {"S1": {(None, 0): folder}}, {}, data)
    assert (tmp_path / "study/comparison.png").exists()


def test_files_of_one_s_own_stay_in_a_set_that_is_cut_again(synapse):
    data = cut(synapse, **SYNAPSE)
    (data.folder / "notes").mkdir()
    (data.folder / "notes/a.txt").write_text("mine")
    write_json(data.folder / "splits_mine.json", {"train": []})
    (data.folder / ".manifest.99.tmp.csv").write_text("half")
    cut(synapse, **SYNAPSE)
    assert (data.folder / "notes/a.txt").read_text() == "mine"
    assert read_json(data.folder / "splits_mine.json") == {"train": []}
    assert not list(data.folder.glob(".*.tmp*"))


def test_a_patient_with_several_volumes_is_pointed_out(acdc, capsys):
    settings = {**ACDC, "patient": None}
    cut(acdc, **settings)
    assert "look like 6 patients with several volumes" in capsys.readouterr().out
    assert looks_grouped(["spleen_2", "spleen_3"]) == looks_grouped(["a", "b"]) == 0


def test_amos_s_validation_list_counts_too(tmp_path):
    home, lists = tmp_path / "amos", {"training": [], "validation": [], "test": []}
    for n in range(5):
        part, key = ("Tr", "training") if n < 3 else ("Va", "validation")
        names = {k: f"./{k}s{part}/amos_{n:04d}.nii.gz" for k in ("image", "label")}
        put(home / names["image"], body(n))
        put(home / names["label"], spleen() * (1 + n % 2))
        lists[key].append(names)
    lists["validation"].append({"image": "./imagesVa/amos_0009.nii.gz"})  # its label is kept back
    labels = {"0": "background", "1": "spleen", "2": "right kidney"}
    write_json(home / "dataset.json", {**lists, "labels": labels})
    data = cut(home, classes=("right kidney", "spleen"))
    assert sorted(data.info["cases"]) == [f"amos_{n:04d}" for n in range(5)]
    assert data.info["classes"] == ["right_kidney", "spleen"]
    lists["validation"].append(lists["training"][0])
    write_json(home / "dataset.json", lists)
    with pytest.raises(UserError, match="amos_0000: listed twice"):
        cut(home)


def test_a_study_of_all_classes_makes_and_cuts_them(tmp_path, monkeypatch):
    """reproduce.py passes --classes on; without it the commands are what they were."""
    monkeypatch.setattr(common.study.plan, "ROOT", tmp_path)  # not the developer's own data
    reproduce = load_script(ROOT / "reproduce.py")
    _, steps = data_steps(reproduce.Config(quick=True, classes="all"))
    commands = [" ".join(step.command) for step in steps]
    assert "--classes all" in commands[0] and "phantom_quick-all" in commands[0]
    assert "--classes all" in commands[-1] and "slices_quick-all" in commands[-1]
    _, usual = data_steps(reproduce.Config(quick=True))
    assert not any("--classes" in step.command for step in usual)
    volumes = reproduce.Config(input=tmp_path, classes="all", name="n")
    assert "--classes all" in " ".join(data_steps(volumes)[1][-1].command)
    with pytest.raises(UserError, match="--classes has no effect with --data"):
        reproduce.Config(data=Path("d"), classes="all")


@pytest.fixture
def brats(tmp_path):
    """Four 4D volumes: channel c is c + 1 times as bright; 0 outside the head."""
    home, listed = tmp_path / "Task01", []
    for n in range(4):
        rng = np.random.default_rng(n)
        head = np.zeros((16, 16, 6))
        head[3:13, 3:13] = rng.integers(100, 900, (10, 10, 6))
        image = np.stack([head * (c + 1) for c in range(4)], axis=-1).astype(np.int16)
        names = {k: f"./{k}sTr/BRATS_{n:03d}.nii.gz" for k in ("image", "label")}
        put(home / names["image"], image)
        put(home / names["label"], spleen() * 2)
        listed.append(names)
    about = {
        "training": listed,
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
    }
    write_json(home / "dataset.json", about)
    return home


def test_one_channel_of_4d_images(brats, capsys):
    mr = {"classes": ("tumour",), "percentiles": (0.5, 99.5)}
    with pytest.raises(UserError, match=r"\(16, 16, 6, 4\).*one of its 4 channels.*--channel"):
        cut(brats, **mr)
    with pytest.raises(UserError, match="no channel 4: they count from 0"):
        cut(brats, **mr, channel=4)
    data = cut(brats, **mr, channel=0)
    dim = {s.name: read_image(data.folder / f"images/{s.name}.png") for s in data.slices}
    assert data.info["channel"] == 0 and data.info["window"] == {"percentiles": [0.5, 99.5]}
    assert data.info["cases"]["BRATS_000"]["shape"] == [16, 16, 6]
    data = cut(brats, **mr, channel=3, overwrite=True)
    for name, image in dim.items():  # four times as bright: the same picture
        assert np.array_equal(read_image(data.folder / f"images/{name}.png"), image)
        assert (image[:3] == 0).all() and image.max() > 230
        assert 100 < np.median(image[3:13, 3:13]) < 156  # the empty rim does not count
    text = capsys.readouterr().out
    assert "no air" not in text and "range of a CT" not in text


def test_a_4d_folder_is_checked_by_channel_and_needs_no_hu(brats, capsys):
    with pytest.raises(UserError, match="4 of 4"):
        check.main(check.Config(input=brats, workers=1))
    assert "--channel" in capsys.readouterr().out
    check.main(check.Config(input=brats, workers=1, channel=2))
    text = capsys.readouterr().out
    assert "4 cases are sound; warnings: 1" in text  # of edema, which no label shows
    assert "edema: no label of the set holds 1" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"percentiles": (1.0,)}, "takes two numbers"),
        ({"percentiles": (99.0, 1.0)}, "the lower one first"),
        ({"percentiles": (1.0, 101.0)}, "two numbers from 0 to 100"),
        ({"percentiles": (1.0, 99.0), "hu_low": -100}, "exclude each other"),
    ],
)
def test_percentiles_that_cannot_be_meant_are_refused(synapse, settings, words):
    with pytest.raises(UserError, match=words):
        cut(synapse, **SYNAPSE, **settings)


def test_slices_of_another_plane_lie_where_their_geometry_says(synapse):
    data = cut(synapse, **SYNAPSE, axis="coronal")
    about = json.loads((data.folder / "dataset.json").read_text())
    assert about["axis"] == "coronal" and about["cases"]["img0001"]["axis"] == "coronal"
    assert len(data.of(["img0001"])) == 16  # one for each of the 16 voxels from back to front
    shown = [s.index for s in data.of(["img0001"]) if s.foreground]
    assert shown == [4, 5, 6, 7]  # where small_volumes.spleen puts the spleen
    mask = np.asarray(Image.open(data.folder / "masks/img0001_005.png"))
    rows, columns = np.nonzero(mask)
    # 6 voxels of 3 mm from foot to head fill 16 pixels; 16 of 1 mm from right to left 14 of them.
    assert rows.min() >= 5 and rows.max() <= 11 and columns.min() >= 9
