"""Small slices and batches of one: trained, or refused before the first epoch with the remedy."""

import re

import pytest
from conftest import load_script, run

from common.errors import UserError


@pytest.fixture(scope="module")
def tiny(repo, phantom):
    """Slices of 16 pixels: the deepest map of five levels is one pixel."""
    flags = ("--input", phantom, "--size", 16, "--output", repo / "data" / "tiny")
    run(repo, "data_prep/slice_nifti.py", *flags)
    return repo / "data" / "tiny"


def train(repo, stage, tiny, capsys, **settings) -> int:
    """A short training by the stage's own script; how many slices it has."""
    script = load_script(repo / stage / "train.py")
    script.main(script.Config(data=tiny, epochs=1, device="cpu", overwrite=True, **settings))
    return int(re.search(r"(\d+) training slices", capsys.readouterr().out)[1])


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("student_s1", {"deep": True}),
        ("teacher_t1_unet", {"width": 4}),
        ("teacher_t2_transunet", {"width": 192, "depth": 1}),
    ],
)
def test_a_single_value_for_batchnorm_is_refused_before_the_first_epoch(
    repo, tiny, capsys, stage, more
):
    with pytest.raises(UserError, match="--batch-size 1 is one slice.*--size 32 or more"):
        train(repo, stage, tiny, capsys, name="one", batch_size=1, train_on="train", **more)
    assert not (repo / stage / "runs" / "one").exists()
    count = int(re.search(r"(\d+) training slices", capsys.readouterr().out)[1])
    with pytest.raises(UserError, match=f"--batch-size {count - 1} leaves one of {count} slices"):
        train(repo, stage, tiny, capsys, name="one", batch_size=count - 1, train_on="train", **more)


def test_what_has_two_values_trains(repo, tiny, capsys):
    train(repo, "student_s1", tiny, capsys, name="one", batch_size=1)  # a map of several pixels
    count = train(repo, "teacher_t1_unet", tiny, capsys, name="even", batch_size=8, width=4)
    # A random teacher's statistics are taken without the last batch, which is one slice.
    settings = {"control": "random-teacher", "train_on": "train", "batch_size": count - 1}
    teacher = repo / "teacher_t1_unet" / "runs" / "even" / "best.pt"
    train(repo, "kd_t1_s1", tiny, capsys, name="even", teacher=teacher, **settings)
