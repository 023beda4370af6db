"""The user's own commands, run as processes on a small phantom."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, STAGES, load_script, run
from PIL import Image

from common.config import launch
from common.dataset.slices import read_set

BY_HAND = ("teacher_t1_unet", "student_s1", "kd_t1_s1")  # tests/test_reproduce.py runs the others
SCRIPTS = [
    *("reproduce.py", "data_prep/make_phantom.py", "data_prep/check_volumes.py"),
    *("data_prep/slice_nifti.py", "data_prep/import_pairs.py", "data_prep/download_task09.py"),
    *(f"{stage}/{script}.py" for stage in STAGES for script in ("train", "inference", "metrics")),
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_flag_with_its_default(script, monkeypatch, capsys):
    module = load_script(ROOT / script)
    monkeypatch.setattr("sys.argv", [script, "--help"])
    cls = getattr(module, "Config", None) or getattr(module, "InferenceConfig", None)
    with pytest.raises(SystemExit) as exit:
        launch(module.main, cls or module.MetricsConfig)
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert module.__doc__.strip().splitlines()[0] in text
    for f in fields(cls or module.MetricsConfig):
        assert f"--{f.name.replace('_', '-')} " in text, f.name
        assert f.metadata["help"].split()[0] in text


@pytest.fixture(scope="module")
def trained(repo, slices):
    """The three stages by hand, each from its own folder, with default names."""
    short = ("--epochs", "2", "--batch-size", "8")
    log = {}
    for stage in BY_HAND:
        flags = (*short, "--width", "4") if stage == "teacher_t1_unet" else short
        log[stage] = [run(repo, "train.py", *flags, cwd=repo / stage)]
        extra = ("--probabilities",) if stage == "student_s1" else ()
        log[stage].append(run(repo, "inference.py", *extra, cwd=repo / stage))
        log[stage].append(run(repo, "metrics.py", cwd=repo / stage))
    return repo, log


def test_each_stage_leaves_its_files(trained, slices):
    repo, _ = trained
    data = read_set(slices)
    test = json.loads((slices / "splits.json").read_text())["test"]
    names = {f"{s.name}.png" for s in data.of(test)}
    for stage in BY_HAND:
        folder = repo / stage / "runs" / "default"
        assert {p.name for p in (folder / "predictions").iterdir()} == names
        some = np.asarray(Image.open(folder / "predictions" / sorted(names)[0]))
        assert some.shape == (32, 32) and set(np.unique(some)) <= {0, 255}
        assert list((folder / "overlays").glob("*.png"))
        summary = json.loads((folder / "summary.json").read_text())
        assert sorted(summary["cases"]) == test
        rows = list(csv.DictReader((folder / "metrics_per_case.csv").open()))
        assert [row["case"] for row in rows] == test
    restored = repo / "teacher_t1_unet/runs/default/reconstructions"
    assert {p.name for p in restored.iterdir()} == names
    assert "ssim" in json.loads((restored.parent / "summary.json").read_text())["reconstruction"]
    chances = repo / "student_s1/runs/default/probabilities"
    assert {p.name for p in chances.iterdir()} == names
    chance = np.asarray(Image.open(chances / sorted(names)[0]))
    mask = np.asarray(Image.open(chances.parent / "predictions" / sorted(names)[0]))
    assert chance.dtype == np.uint16 and ((chance > 32767) == (mask == 255)).all()
    assert not (repo / "kd_t1_s1/runs/default/reconstructions").exists()


def test_whole_volumes_are_segmented_in_their_own_geometry(trained, phantom):
    repo, _ = trained
    flags = ("--volume", phantom / "imagesTr", "--ground-truth", phantom / "labelsTr")
    for stage in ("teacher_t1_unet", "kd_t1_s1"):
        text = run(repo, "inference.py", *flags, "--largest-component", cwd=repo / stage)
        assert "HU -160 to 240, on" in text and text.count("spleen") >= 8
        assert "Dice, mean over 8 volumes, 6 of them of patients that were trained" in text
        folder = repo / stage / "runs/default/volumes"
        for path in (phantom / "imagesTr").iterdir():
            image, mask = nib.load(path), nib.load(folder / path.name)
            assert mask.shape == image.shape and np.array_equal(mask.affine, image.affine)
            about = json.loads((folder / path.name.replace(".nii.gz", ".json")).read_text())
            counted = np.count_nonzero(mask.dataobj) * np.prod(image.header.get_zooms()) / 1000
            own = about["per_class"]["spleen"]
            assert own["volume_ml"] == pytest.approx(counted, rel=1e-4)
            assert 0 <= about["scores"]["dice"] <= 1
    single = min((phantom / "imagesTs").iterdir())
    out = repo / "seg.nii.gz"
    run(repo, "inference.py", "--volume", single, "--output", out, cwd=repo / "student_s1")
    assert nib.load(out).shape == nib.load(single).shape
    assert (repo / "seg.png").exists() and not (repo / "seg_probability.nii.gz").exists()


def test_new_pictures_are_predicted(trained, slices):
    repo, count = trained[0], len(list((slices / "images").iterdir()))
    flags = ("--images", slices / "images", "--output", repo / "new")
    text = run(repo, "inference.py", *flags, cwd=repo / "kd_t1_s1")
    assert text.count(": spleen ") == len(list((repo / "new/overlays").iterdir())) == count


def test_inference_and_scores_find_the_training_s_data(trained, slices, tmp_path):
    repo, _ = trained
    elsewhere = Path(shutil.copytree(slices, tmp_path / "elsewhere"))
    flags = ("--data", os.path.relpath(elsewhere, repo / "student_s1"), "--name", "far")
    run(repo, "train.py", *flags, "--epochs", 1, "--batch-size", 8, cwd=repo / "student_s1")
    for script in ("inference", "metrics"):
        assert "1 epoch" not in run(repo, f"student_s1/{script}.py", "--name", "far")
    done = repo / "student_s1/runs/far/inference.json"
    assert json.loads(done.read_text())["data"] == str(elsewhere)
    # Trained further, the masks are of weights that are gone.
    run(
        repo,
        "student_s1/train.py",
        *("--data", elsewhere),
        *flags[2:],
        "--epochs",
        2,
        "--batch-size",
        8,
        "--resume",
    )
    assert "Run inference.py first" in run(repo, "student_s1/metrics.py", "--name", "far", code=1)
    text = run(repo, "student_s1/inference.py", "--name", "fra", code=1)
    assert re.search(r"fra/best.pt does not exist. There are .*default, far: choose one", text)
    shutil.rmtree(elsewhere)
    text = run(repo, "student_s1/inference.py", "--name", "far", code=1)
    assert "elsewhere. Name it with --data." in text


def test_what_is_printed(trained):
    _, log = trained
    assert "57,297 parameters\n" in log["student_s1"][0]
    assert "HD95 mm" in log["student_s1"][2] and "report -> runs" in log["student_s1"][2]
    assert "more in the objective's projections" in log["kd_t1_s1"][0]
    assert "teacher" in log["kd_t1_s1"][0] and "validation Dice" in log["kd_t1_s1"][0]
    assert "contrast_bottleneck" in log["kd_t1_s1"][0]
    assert "PSNR" in log["teacher_t1_unet"][2]
    assert (
        "gain over plain S1 (default): " in log["kd_t1_s1"][2]
        and "Dice points" in log["kd_t1_s1"][2]
    )
    assert "against T1 (default): " in log["kd_t1_s1"][2]


def test_the_thesis_s_recipe_a_deep_student_and_unlabelled_patients(trained):
    repo, _ = trained
    folder, short = repo / "kd_t1_s1", ("--epochs", 1, "--batch-size", 8, "--name", "more")
    flags = ("--recipe", "thesis", "--deep", "--unlabelled")
    text = run(repo, "train.py", *short, *flags, cwd=folder)
    assert "57,187 parameters" in text and "more patients, without their labels" in text
    run(repo, "inference.py", "--name", "more", cwd=folder)
    config = json.loads((folder / "runs/more/config.json").read_text())["config"]
    assert config["segmentation"] == 0.4 and config["contrast"] == "image"
    assert (folder / "runs/more/features.npz").exists()


def test_scripts_run_from_any_directory(trained, slices, tmp_path):
    repo, _ = trained
    for script in ("inference.py", "metrics.py"):
        run(repo, repo / "student_s1" / script, cwd=tmp_path)


def test_the_phantom_and_the_slices_are_the_same_bytes_again(repo, phantom, slices, tmp_path):
    flags = ("--patients", 8, "--unlabelled", 1, "--size", 64, "--thickness", 14)
    run(repo, "data_prep/make_phantom.py", *flags, "--output", tmp_path / "again")
    assert files_of(phantom) == files_of(tmp_path / "again")
    again = ("--input", phantom, "--output", tmp_path / "slices", "--size", 32, "--workers", 1)
    run(repo, "data_prep/slice_nifti.py", *again)
    assert files_of(slices) == files_of(tmp_path / "slices")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "slices" / "images").iterdir()}
    run(repo, "data_prep/slice_nifti.py", *again, "--fold", 1, "--num-folds", 4)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "slices/images").iterdir()}
    assert json.loads((tmp_path / "slices/splits.json").read_text())["folds"] == 4


def test_lost_slices_come_back_and_a_bad_volume_does_not_cost_the_set(repo, phantom, tmp_path):
    folder = Path(shutil.copytree(phantom, tmp_path / "task"))
    flags = ("--input", folder, "--output", tmp_path / "out", "--size", 32)
    run(repo, "data_prep/slice_nifti.py", *flags)
    whole = files_of(tmp_path / "out")
    next((tmp_path / "out" / "masks").glob("phantom_003*")).unlink()
    run(repo, "data_prep/slice_nifti.py", *flags)
    assert files_of(tmp_path / "out") == whole
    image = folder / "imagesTr" / "phantom_001.nii.gz"
    image.write_bytes(image.read_bytes()[:300])
    run(repo, "data_prep/slice_nifti.py", *flags, code=1)
    assert files_of(tmp_path / "out") == whole
    other = ("--input", folder, "--output", folder / "imagesTr", "--overwrite")
    (folder / "imagesTr" / "phantom_001.nii.gz").unlink()
    shutil.copy(phantom / "imagesTr" / "phantom_001.nii.gz", folder / "imagesTr")
    assert "is not a data set" in run(repo, "data_prep/slice_nifti.py", *other, code=1)


def test_killed_slicing_is_no_data_set_and_goes_on(repo, phantom, slices, tmp_path):
    flags = ("--input", phantom, "--output", tmp_path / "out", "--size", 32, "--workers", 1)
    command = [sys.executable, "data_prep/slice_nifti.py", *map(str, flags)]
    process = subprocess.Popen(command, cwd=repo, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("out.partial/.done/*.json")):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "out.partial" / ".done" / ".phantom_001.1.tmp.json").touch()  # killed while writing
    run(repo, "data_prep/slice_nifti.py", *flags)
    assert files_of(slices) == files_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("student_s1/train.py --name x --data nowhere", 1, "No data set in nowhere"),
        ("student_s1/train.py --wings 2", 2, "unrecognized arguments: --wings 2"),
        ("student_s1/train.py --name x --device cuda", 1, "PyTorch sees 0 CUDA devices"),
        ("student_s1/inference.py --name never", 1, "never/best.pt does not exist"),
        ("student_s1/metrics.py --name never", 1, "inference.json does not exist"),
        ("kd_t1_s1/train.py --name x --teacher none.pt", 1, "none.pt does not exist"),
        (
            "kd_t1_s1/train.py --name y --teacher student_s1/runs/default/best.pt",
            1,
            "written by student_s1; one of teacher_t1_unet",
        ),
        (
            "kd_t2_s2/train.py --name y --teacher teacher_t1_unet/runs/default/best.pt",
            1,
            "written by teacher_t1_unet; one of teacher_t2_transunet",
        ),
        ("teacher_t2_transunet/train.py --name x --width 200", 1, "a multiple of 192"),
        ("data_prep/slice_nifti.py --input nowhere", 1, "make_phantom.py"),
        ("data_prep/import_pairs.py --images nowhere", 1, "nowhere does not exist"),
        ("reproduce.py --input a --data b", 1, "exclude each other"),
    ],
)
def test_a_mistake_is_one_clear_line(trained, command, code, words):
    import torch

    repo, _ = trained
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    text = run(repo, *command.split(), code=code)
    assert words in text
    assert text.strip().splitlines()[-1].startswith("error: ") or code == 2


def test_an_image_size_that_the_network_cannot_take(trained, phantom, tmp_path):
    repo, _ = trained
    flags = ("--input", phantom, "--output", tmp_path / "s20", "--size", 20)
    run(repo, "data_prep/slice_nifti.py", *flags)
    train = ("teacher_t1_unet/train.py", "--data", tmp_path / "s20", "--name", "s20", "--width", 4)
    assert "--size 32" in run(repo, *train, code=1)
    predict = ("student_s1/inference.py", "--data", tmp_path / "s20")
    assert "was trained on 32-pixel slices" in run(repo, *predict, code=1)


def test_a_split_that_moved_is_not_predicted(trained, slices, tmp_path):
    repo, _ = trained
    moved = Path(shutil.copytree(slices, tmp_path / "moved"))
    splits = json.loads((moved / "splits.json").read_text())
    splits["train"], splits["test"] = splits["test"], splits["train"]
    splits["student"] = splits["train"][:1]
    (moved / "splits.json").write_text(json.dumps(splits))
    text = run(repo, "student_s1/inference.py", "--data", moved, code=1)
    assert "has been trained or chosen on test patients" in text


def test_reconstructions_of_an_earlier_inference_are_not_scored(trained):
    repo, _ = trained
    folder = repo / "teacher_t1_unet"
    run(repo, "inference.py", "--subset", "val", "--no-reconstructions", cwd=folder)
    assert "no reconstructions" in run(repo, "metrics.py", cwd=folder)
    assert "reconstruction" not in json.loads((folder / "runs/default/summary.json").read_text())
    run(repo, "inference.py", cwd=folder)
    next((folder / "runs/default/reconstructions").iterdir()).unlink()
    assert "is missing" in run(repo, "metrics.py", cwd=folder, code=1)


def test_a_second_training_does_not_destroy_the_first(trained):
    repo, _ = trained
    before = (repo / "student_s1/runs/default/best.pt").read_bytes()
    text = run(repo, "train.py", cwd=repo / "student_s1", code=1)
    assert "--resume" in text and "--overwrite" in text
    assert (repo / "student_s1/runs/default/best.pt").read_bytes() == before
