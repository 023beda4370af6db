"""Several organs through the real stages: phantom, slices, training, masks, scores, volumes."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script, run
from PIL import Image

from common.files import UserError, read_csv, read_json, write_json
from common.phantom import ORGANS
from common.scores import table
from common.settings import InferenceConfig, MetricsConfig
from common.slices import read_mask, read_set
from common.study import add_up
from common.unet import parameters, student_s1


@pytest.fixture(scope="module")
def organs(repo):
    """Eight phantom patients with all of their organs, as volumes and as 32-pixel slices."""
    volumes, data = repo / "data" / "organs", repo / "data" / "organs2d"
    flags = ("--patients", 8, "--unlabelled", 0, "--size", 64, "--thickness", 14)
    run(repo, "data_prep/make_phantom.py", "--output", volumes, "--classes", "all", *flags)
    flags = ("--output", data, "--labels", "all", "--size", 32)
    run(repo, "data_prep/slice_nifti.py", "--input", volumes, *flags)
    return volumes, data


@pytest.fixture(scope="module")
def trained(repo, organs):
    """T1, S1 and KD(T1,S1) trained for an epoch on them, their test patients segmented."""
    _, data = organs
    common = {"data": data, "device": "cpu", "name": "organs", "epochs": 1, "batch_size": 4}
    for stage in ("teacher_t1_unet", "student_s1", "kd_t1_s1"):
        train = load_script(repo / stage / "train.py")
        own = {"width": 4} if stage == "teacher_t1_unet" else {}
        if stage == "kd_t1_s1":
            own = {"teacher": repo / "teacher_t1_unet/runs/organs/best.pt", "border": 0.5}
            own |= {"channelwise": 0.1, "relation": 1.0, "queue": 64, "unlabelled": True}
        train.main(train.Config(**common, **own))
        for name, usual, flags in (
            ("inference", InferenceConfig, {"device": "cpu", "probabilities": True}),
            ("metrics", MetricsConfig, {}),
        ):
            script = load_script(repo / stage / f"{name}.py")
            script.main(getattr(script, "Config", usual)(name="organs", **flags))
    return {s: repo / s / "runs" / "organs" for s in ("student_s1", "kd_t1_s1")}


def test_the_data_set_names_its_organs_and_its_masks_hold_their_values(organs):
    data = read_set(organs[1])
    assert data.organs == [*ORGANS] and data.classes == len(ORGANS) + 1
    seen = {v for s in data.slices for v in np.unique(read_mask(_mask(data, s), data.classes))}
    assert seen == {*range(len(ORGANS) + 1)}
    assert parameters(student_s1(data.classes)) == 57_297 + 17 * len(ORGANS)  # the last layer's


def _mask(data, s):
    return data.folder / "masks" / f"{s.name}.png"


def test_every_organ_is_scored_and_written_in_its_own_value(trained, organs):
    data = read_set(organs[1])
    for folder in trained.values():
        result = read_json(folder / "summary.json")
        assert [*result["organs"]] == [*ORGANS]
        means = [row["per_patient"]["dice"]["mean"] for row in result["organs"].values()]
        assert all(mean is not None for mean in means)
        first = next(iter(result["cases"].values()))
        each = [row["dice"] for row in first["organs"].values() if row["dice"] is not None]
        assert first["dice"] == pytest.approx(np.mean(each))
        rows = read_csv(folder / "metrics_per_case.csv", ("dice", "dice spleen", "hd95_mm liver"))
        assert len(rows) == len(result["cases"])
        assert "inferior_vena_cava" in table(result)
        page = (folder / "report.html").read_text()
        assert "<h2>Organs</h2>" in page and page.count("gallbladder") >= 1
        for path in (folder / "predictions").glob("*.png"):
            assert np.asarray(Image.open(path)).max() <= len(ORGANS)
        maps = {p.stem.partition("_")[2] for p in (folder / "probabilities").iterdir()}
        assert len([*(folder / "probabilities").iterdir()]) == len(ORGANS) * result["slices"]
        assert any("vena" in name for name in maps)
        assert len([*(folder / "overlays").glob("*.png")]) > 0
    assert data.size == 32


def test_a_study_of_several_organs_has_a_row_for_each(trained, organs, tmp_path):
    runs = {"S1": {(None, 0): trained["student_s1"]}, "KD(T1,S1)": {(None, 0): trained["kd_t1_s1"]}}
    text = add_up(tmp_path, runs, {"KD(T1,S1)": "S1"}, read_set(organs[1]))
    assert all(f"| {organ} " in text for organ in ORGANS)
    assert "KD(T1,S1) over S1" in text
    assert {"comparison.png", "errors.png", "repairs.png"} <= {p.name for p in tmp_path.iterdir()}


def test_a_volume_gets_a_label_for_each_organ(repo, trained, organs, tmp_path, capsys):
    volumes, _ = organs
    image = sorted((volumes / "imagesTr").glob("*.nii.gz"))[0]
    truth = volumes / "labelsTr" / image.name
    inference = load_script(repo / "kd_t1_s1" / "inference.py")
    flags = {"name": "organs", "device": "cpu", "volume": image, "truth": truth}
    out = tmp_path / "seg.nii.gz"
    inference.main(InferenceConfig(**flags, output=out, probabilities=True, largest_component=True))
    mask, source = nib.load(out), nib.load(image)
    assert mask.shape == source.shape and np.array_equal(mask.affine, source.affine)
    about = json.loads((tmp_path / "seg.json").read_text())
    assert [*about["organs"]] == [*ORGANS]
    for value, (organ, row) in enumerate(about["organs"].items(), start=1):
        voxels = np.count_nonzero(np.asarray(mask.dataobj) == value)
        assert row["volume_ml"] == pytest.approx(voxels * np.prod(mask.header.get_zooms()) / 1000)
        assert row["scores"]["dice"] is None or 0 <= row["scores"]["dice"] <= 1, organ
    maps = [nib.load(tmp_path / f"seg_probability_{o.replace('_', '-')}.nii.gz") for o in ORGANS]
    total = sum(np.asarray(m.dataobj) for m in maps)
    assert total.max() <= 1 + 1e-4 and total.min() >= 0
    assert (tmp_path / "seg.png").exists() and "mean Dice" in capsys.readouterr().out


def test_a_data_set_of_other_organs_is_refused(repo, trained, organs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(organs[1], other)
    info = read_json(other / "dataset.json")
    write_json(other / "dataset.json", {**info, "classes": info["classes"][::-1]})
    inference = load_script(repo / "student_s1" / "inference.py")
    config = InferenceConfig(name="organs", device="cpu", data=other)
    with pytest.raises(UserError, match="was trained on spleen, .*hold inferior_vena_cava"):
        inference.main(config)


def test_a_model_of_another_plane_or_of_percentiles(repo, organs, tmp_path, capsys):
    volumes, image = organs[0], sorted((organs[0] / "imagesTr").glob("*.nii.gz"))[0]
    train = load_script(repo / "student_s1" / "train.py")
    inference = load_script(repo / "student_s1" / "inference.py")
    for name, flags in (
        ("coronal", ("--axis", "coronal")),
        ("shares", ("--percentiles", 1, 99)),
    ):
        data = tmp_path / name
        flags += ("--size", 32, "--labels", "spleen", "--output", data)
        run(repo, "data_prep/slice_nifti.py", "--input", volumes, *flags)
        train.main(train.Config(data=data, device="cpu", name=name, epochs=1))
    config = {"device": "cpu", "volume": image, "output": tmp_path / "seg.nii.gz"}
    with pytest.raises(UserError, match="coronal slices; --volume cuts axial ones"):
        inference.main(InferenceConfig(name="coronal", **config))
    with pytest.raises(UserError, match="trained on no HU"):
        inference.main(InferenceConfig(name="shares", hu_low=0.0, **config))
    inference.main(InferenceConfig(name="shares", **config))
    assert "percentiles 1 to 99 of each volume" in capsys.readouterr().out
    voxels = np.asarray(nib.load(image).dataobj)
    bounds = np.percentile(voxels[voxels > voxels.min()], (1, 99))
    assert json.loads((tmp_path / "seg.json").read_text())["window"] == pytest.approx(bounds)
