"""Several classes through the real stages: phantom, slices, training, masks, scores, volumes."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, load_script, run
from PIL import Image

import common.study.plan
from common.dataset.classes import on_the_left
from common.dataset.slices import read_mask, read_set
from common.errors import UserError
from common.evaluation.comparison import by_patient, compare
from common.evaluation.error_types import error_pixels, of_each_class
from common.evaluation.figures import legend, outlined, panels
from common.evaluation.metrics import per_case, summary
from common.evaluation.score_run import table
from common.files import read_csv, read_json, write_json
from common.inference.segment_volumes import segment
from common.inference.trained_run import Trained
from common.models.unet import Output, decided, parameters, student_s1
from common.settings import InferenceConfig, MetricsConfig
from common.study.plan import data_steps
from common.study.results import add_up, slice_dice
from data_prep.phantom import ORGANS


@pytest.fixture(scope="module")
def classes(repo):
    """Eight phantom patients with all of their classes, as volumes and as 32-pixel slices."""
    volumes, data = repo / "data" / "classes", repo / "data" / "classes2d"
    flags = ("--patients", 8, "--unlabelled", 0, "--size", 64, "--thickness", 14)
    run(repo, "data_prep/make_phantom.py", "--output", volumes, "--classes", "all", *flags)
    flags = ("--output", data, "--classes", "all", "--size", 32)
    run(repo, "data_prep/slice_nifti.py", "--input", volumes, *flags)
    return volumes, data


@pytest.fixture(scope="module")
def trained(repo, classes):
    """T1, S1 and KD(T1,S1) trained for an epoch on them, their test patients segmented."""
    _, data = classes
    common = {"data": data, "device": "cpu", "name": "classes", "epochs": 1, "batch_size": 4}
    for stage in ("teacher_t1_unet", "student_s1", "kd_t1_s1"):
        train = load_script(repo / stage / "train.py")
        own = {"width": 4} if stage == "teacher_t1_unet" else {}
        if stage == "kd_t1_s1":
            own = {"teacher": repo / "teacher_t1_unet/runs/classes/best.pt", "border": 0.5}
            own |= {"channelwise": 0.1, "affinity": 1.0, "unlabelled": True}
        train.main(train.Config(**common, **own))
        for name, usual, flags in (
            ("inference", InferenceConfig, {"device": "cpu", "probabilities": True}),
            ("metrics", MetricsConfig, {}),
        ):
            script = load_script(repo / stage / f"{name}.py")
            script.main(getattr(script, "Config", usual)(name="classes", **flags))
    return {s: repo / s / "runs" / "classes" for s in ("student_s1", "kd_t1_s1")}


def test_the_data_set_names_its_classes_and_its_masks_hold_their_values(classes):
    data = read_set(classes[1])
    assert data.classes == [*ORGANS] and data.num_classes == len(ORGANS) + 1
    seen = {v for s in data.slices for v in np.unique(read_mask(_mask(data, s), data.num_classes))}
    assert seen == {*range(len(ORGANS) + 1)}
    assert parameters(student_s1(data.num_classes)) == 57_297 + 17 * len(ORGANS)  # the last layer's


def _mask(data, s):
    return data.folder / "masks" / f"{s.name}.png"


def test_every_class_is_scored_and_written_in_its_own_value(trained, classes):
    data = read_set(classes[1])
    for folder in trained.values():
        result = read_json(folder / "summary.json")
        assert [*result["per_class"]] == [*ORGANS]
        means = [row["per_patient"]["dice"]["mean"] for row in result["per_class"].values()]
        assert all(mean is not None for mean in means)
        first = next(iter(result["cases"].values()))
        each = [row["dice"] for row in first["per_class"].values() if row["dice"] is not None]
        assert first["dice"] == pytest.approx(np.mean(each))
        rows = read_csv(folder / "metrics_per_case.csv", ("dice", "dice spleen", "hd95_mm liver"))
        assert len(rows) == len(result["cases"])
        assert "inferior_vena_cava" in table(result)
        page = (folder / "report.html").read_text()
        assert "<h2>Classes</h2>" in page and page.count("gallbladder") >= 1
        for path in (folder / "predictions").glob("*.png"):
            assert np.asarray(Image.open(path)).max() <= len(ORGANS)
        maps = {p.stem.partition("_")[2] for p in (folder / "probabilities").iterdir()}
        assert len([*(folder / "probabilities").iterdir()]) == len(ORGANS) * result["slices"]
        assert any("vena" in name for name in maps)
        assert len([*(folder / "overlays").glob("*.png")]) > 0
    assert data.size == 32


def test_a_study_of_several_classes_has_a_row_for_each(trained, classes, tmp_path):
    runs = {"S1": {(None, 0): trained["student_s1"]}, "KD(T1,S1)": {(None, 0): trained["kd_t1_s1"]}}
    text = add_up(tmp_path, runs, {"KD(T1,S1)": "S1"}, read_set(classes[1]))
    assert all(f"| {class_name} " in text for class_name in ORGANS)
    assert "KD(T1,S1) over S1" in text
    assert {"comparison.png", "errors.png", "repairs.png"} <= {p.name for p in tmp_path.iterdir()}


def test_a_volume_gets_a_label_for_each_class(repo, trained, classes, tmp_path, capsys):
    volumes, _ = classes
    image = sorted((volumes / "imagesTr").glob("*.nii.gz"))[0]
    truth = volumes / "labelsTr" / image.name
    inference = load_script(repo / "kd_t1_s1" / "inference.py")
    flags = {"name": "classes", "device": "cpu", "volume": image, "ground_truth": truth}
    out = tmp_path / "seg.nii.gz"
    inference.main(InferenceConfig(**flags, output=out, probabilities=True, largest_component=True))
    mask, source = nib.load(out), nib.load(image)
    assert mask.shape == source.shape and np.array_equal(mask.affine, source.affine)
    about = json.loads((tmp_path / "seg.json").read_text())
    assert [*about["per_class"]] == [*ORGANS]
    for value, (class_name, row) in enumerate(about["per_class"].items(), start=1):
        voxels = np.count_nonzero(np.asarray(mask.dataobj) == value)
        assert row["volume_ml"] == pytest.approx(voxels * np.prod(mask.header.get_zooms()) / 1000)
        assert row["scores"]["dice"] is None or 0 <= row["scores"]["dice"] <= 1, class_name
    maps = [nib.load(tmp_path / f"seg_probability_{o}.nii.gz") for o in ORGANS]
    total = sum(np.asarray(m.dataobj) for m in maps)
    assert total.max() <= 1 + 1e-4 and total.min() >= 0
    assert (tmp_path / "seg.png").exists() and "mean Dice" in capsys.readouterr().out


@pytest.fixture(scope="module")
def permuted(classes, tmp_path_factory):
    """The same slices, with the classes' names in another order."""
    other = Path(shutil.copytree(classes[1], tmp_path_factory.mktemp("permuted") / "classes2d"))
    info = read_json(other / "dataset.json")
    write_json(other / "dataset.json", {**info, "classes": info["classes"][::-1]})
    return other


def test_other_classes_are_refused_by_every_door(
    repo, trained, classes, permuted, slices, tmp_path
):
    scripts = {
        f"{stage}/{name}": load_script(repo / stage / f"{name}.py")
        for stage in ("student_s1", "kd_t1_s1")
        for name in ("train", "inference", "metrics")
    }
    train = {"data": permuted, "device": "cpu", "batch_size": 4}
    teacher = repo / "teacher_t1_unet/runs/classes/best.pt"
    doors = {
        "student_s1/inference": InferenceConfig(name="classes", device="cpu", data=permuted),
        "student_s1/metrics": MetricsConfig(name="classes", data=permuted),
    }
    for name, config in doors.items():
        with pytest.raises(UserError, match="is of spleen, .* hold inferior_vena_cava"):
            scripts[name].main(config)
    again = scripts["student_s1/train"].Config(name="classes", epochs=2, resume=True, **train)
    with pytest.raises(UserError, match="the data set's classes"):
        scripts["student_s1/train"].main(again)
    for data in (permuted, slices):  # the same classes crossed, and one class
        own = {**train, "data": data}
        config = scripts["kd_t1_s1/train"].Config(teacher=teacher, name="x", **own)
        with pytest.raises(UserError, match="best.pt is of spleen, kidney_right"):
            scripts["kd_t1_s1/train"].main(config)


def test_runs_of_other_classes_are_not_compared(trained, tmp_path):
    mine = read_json(trained["kd_t1_s1"] / "summary.json")
    path = tmp_path / "summary.json"
    for other in ({**mine, "classes": ["spleen"]}, {**mine, "classes": ["a", "b"]}):
        write_json(path, other)
        assert "not compared" in compare(mine, "gain", path)
    write_json(path, mine)
    assert "+0.0 Dice points" in compare(mine, "gain", path)


def test_the_likeliest_class_is_decided():
    maps = torch.tensor([[0.1, 0.3, 0.5, 0.2], [0.2, 0.4, 0.3, 0.2], [0.1, 0.3, 0.1, 0.2]])
    found = decided(maps.view(1, 3, 1, 4)).flatten().tolist()
    assert found == [0, 2, 1, 0]  # backgrounds of 0.6, 0.0, 0.1, 0.4


def test_a_truth_in_the_labels_own_values_is_scored_class_by_class(
    repo, trained, classes, tmp_path
):
    """A network that finds by brightness: what it finds and the truth have values of their own."""
    image = sorted((classes[0] / "imagesTr").glob("*.nii.gz"))[0]
    source = nib.load(image)
    known = np.asarray(nib.load(classes[0] / "labelsTr" / image.name).dataobj)
    painted = np.full(known.shape, -200, np.int16)  # each class as bright as its number
    for value in (1, 2, 5):
        painted[known == value] = 30 * value
    nib.save(nib.Nifti1Image(painted, source.affine), tmp_path / "ct.nii.gz")

    class Brightness(torch.nn.Module):
        def forward(self, images, reconstruct=False):
            level = images[:, 0] * 400 - 160
            order = (-200, 150, 30, 60)  # background, liver (5), spleen (1), kidney_right (2)
            logits = torch.stack([-((level - at).abs()) for at in order], 1)
            return Output(logits, {}, None)

    labels = {"liver": [5], "spleen": [1], "kidney_right": [2]}
    about = {"stage": "x", "epoch": 1, "num_classes": 4, "size": 64, "window": [-160, 240]}
    about |= {"classes": [*labels], "labels": labels}
    held = Trained(tmp_path, tmp_path / "best.pt", about, torch.device("cpu"))
    truth = classes[0] / "labelsTr" / image.name
    config = {
        "volume": tmp_path / "ct.nii.gz",
        "ground_truth": truth,
        "device": "cpu",
        "amp": False,
    }
    segment(Brightness(), held, InferenceConfig(**config, output=tmp_path / "seg.nii.gz"))
    found = read_json(tmp_path / "seg.json")["per_class"]
    assert [row["scores"]["dice"] > 0.9 for row in found.values()] == [True] * 3
    mask = np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj)
    for value, (class_name, (own,)) in enumerate(labels.items(), start=1):
        assert (mask[known == own] == value).mean() > 0.8, class_name


def test_two_volumes_of_a_patient_are_one_patient():
    counts = np.array([[[1, 2, 2]], [[0, 2, 2]], [[2, 2, 2]]])
    owner = {"p1_ed": "p1", "p1_es": "p1", "p2": "p2"}
    found = summary([*owner], counts, ["lv"], owner)["per_patient"]["dice"]
    assert found == {"mean": 0.625, "std": pytest.approx(0.5303, abs=1e-4), "n": 2, "undefined": 0}
    rows = per_case([*owner], counts, ["lv"], patients=owner)
    assert by_patient([{"cases": rows}, {"cases": rows}]) == {"p1": 0.25, "p2": 1.0}


def test_a_model_of_another_plane_or_of_percentiles(repo, classes, tmp_path, capsys):
    volumes, image = classes[0], sorted((classes[0] / "imagesTr").glob("*.nii.gz"))[0]
    train = load_script(repo / "student_s1" / "train.py")
    inference = load_script(repo / "student_s1" / "inference.py")
    for name, flags in (
        ("coronal", ("--axis", "coronal")),
        ("shares", ("--percentiles", 1, 99)),
    ):
        data = tmp_path / name
        flags += ("--size", 32, "--classes", "spleen", "--output", data)
        run(repo, "data_prep/slice_nifti.py", "--input", volumes, *flags)
        train.main(train.Config(data=data, device="cpu", name=name, epochs=1))
    config = {"device": "cpu", "volume": image, "output": tmp_path / "seg.nii.gz"}
    with pytest.raises(UserError, match="coronal slices; --volume cuts axial ones"):
        inference.main(InferenceConfig(name="coronal", **config))
    with pytest.raises(UserError, match="not trained on HU"):
        inference.main(InferenceConfig(name="shares", hu_low=0.0, **config))
    inference.main(InferenceConfig(name="shares", **config))
    assert "percentiles 1 to 99 of each volume" in capsys.readouterr().out
    voxels = np.asarray(nib.load(image).dataobj)
    bounds = np.percentile(voxels[voxels > voxels.min()], (1, 99))
    assert json.loads((tmp_path / "seg.json").read_text())["window"] == pytest.approx(bounds)


def test_small_parts_of_it():
    assert legend(["spleen"]) is None
    assert legend(["a", "b"], ["#102030", "#ffffff"]) == {"a": (16, 32, 48), "b": (255, 255, 255)}
    many = legend([str(k) for k in range(40)])
    assert len({*many.values()}) == 40 and all(max(c) > min(c) for c in many.values())
    assert on_the_left(["liver", "Spleen"]) == 2 and on_the_left(["liver"]) is None
    about = {"num_classes": 3, "classes": ["left kidney", "left_kidney"]}
    held = Trained(Path(), Path(), about, torch.device("cpu"))
    assert held.suffixes == ["_1-left_kidney", "_2-left_kidney"]
    truth = np.array([[1, 1, 0, 2, 2, 0]])
    mask = np.array([[1, 0, 0, 2, 1, 0]])
    assert slice_dice(mask, truth, 2) == pytest.approx((2 / 4 + 2 / 3) / 2)
    found = of_each_class(lambda t, m: error_pixels(m, t), 2, truth, mask)
    # Of class 1 one pixel missed and a false island; of class 2 one pixel missed.
    assert found == {
        "false island": 1,
        "beyond the border": 0,
        "short of the border": 2,
        "missed island": 0,
    }


def test_a_picture_of_several_classes_has_their_colours_and_names():
    grey, truth = np.full((64, 64), 100, np.uint8), np.zeros((64, 64), np.uint8)
    truth[10:20, 10:20], truth[30:40, 30:40] = 1, 3
    colours = legend(["a", "b", "c"])
    picture = panels(grey, truth, truth * 0, colours)
    assert picture.shape[0] > 320 and picture.shape[1] == 3 * 320  # a line of names below
    seen = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert colours["a"] in seen and colours["c"] in seen and colours["b"] not in seen
    lines = outlined(grey, truth * 0, colours, lines=truth)
    assert (lines != 100).any(-1).sum() == 2 * 36  # edges of two squares of 10 pixels, no tint


def test_of_volumes_that_name_several_classes_the_spleen_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(common.study.plan, "ROOT", tmp_path / "repository")
    reproduce = load_script(ROOT / "reproduce.py")

    def cut(names, **settings):
        write_json(tmp_path / "dataset.json", {"labels": dict(enumerate(names))})
        config = reproduce.Config(input=tmp_path, name="n", **settings)
        return " ".join(data_steps(config)[1][-1].command)

    assert "--classes Spleen" in cut(["background", "liver", "Spleen"])
    assert "--classes all" in cut(["background", "liver", "Spleen"], classes="all")
    assert "--classes" not in cut(["background", "spleen"])
    with pytest.raises(UserError, match="names liver, aorta, no spleen: --classes all takes them"):
        cut(["background", "liver", "aorta"])
