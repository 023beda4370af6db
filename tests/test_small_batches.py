"""Small slices and batches of one: trained, or refused before the first epoch with the remedy."""

import pytest
from conftest import run


@pytest.fixture(scope="module")
def tiny(repo, phantom):
    """Slices of 16 pixels: the deepest map of five levels is one pixel."""
    flags = ("--input", phantom, "--size", 16, "--output", repo / "data" / "tiny")
    run(repo, "data_prep/slice_nifti.py", *flags)
    return repo / "data" / "tiny"


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("student_s1", ("--deep", "--share", "train")),
        ("teacher_t1_unet", ("--width", 4)),
        ("teacher_t2_transunet", ("--width", 192, "--depth", 1)),
    ],
)
def test_a_single_value_for_batchnorm_is_refused_before_the_first_epoch(repo, tiny, stage, flags):
    common = ("--data", tiny, "--epochs", 1, "--name", "one", *flags)
    text = run(repo, f"{stage}/train.py", *common, "--batch-size", 1, code=1)
    assert "error: --batch-size 1 is one slice" in text and "--size 32 or more" in text
    assert not (repo / stage / "runs" / "one").exists()
    slices = int(text.split(" training slices")[0].split()[-1])
    text = run(repo, f"{stage}/train.py", *common, "--batch-size", slices - 1, code=1)
    assert f"error: --batch-size {slices - 1} leaves one of {slices} slices alone" in text


def test_a_map_of_several_pixels_trains_with_batches_of_one(repo, tiny):
    flags = ("--data", tiny, "--epochs", 1, "--name", "one", "--batch-size", 1)
    assert "best epoch 1" in run(repo, "student_s1/train.py", *flags)


def test_a_random_teacher_takes_its_statistics_without_a_last_batch_of_one(repo, tiny):
    flags = ("--data", tiny, "--epochs", 1, "--name", "even")
    text = run(repo, "teacher_t1_unet/train.py", *flags, "--width", 4, "--batch-size", 8)
    slices = int(text.split(" training slices")[0].split()[-1])
    teacher = repo / "teacher_t1_unet" / "runs" / "even" / "best.pt"
    words = ("--teacher", teacher, "--control", "random-teacher", "--share", "train")
    run(repo, "kd_t1_s1/train.py", *flags, *words, "--batch-size", slices - 1)
