"""A run that is taken up again: what may differ, what is kept, what is refused."""

import subprocess

import pytest
import torch
from conftest import load_script
from small_trainings import Config, train

from common.errors import UserError
from common.files import read_csv, read_json, write_json
from common.losses.distillation import Distiller
from common.models.unet import student_s1, teacher_t1
from common.training import runs
from common.training.engine import fit
from common.training.runs import start

QUIET = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}


def test_resume_with_other_settings_names_them(stage, slices, capsys):
    train(stage, slices, epochs=1)
    with pytest.raises(UserError, match="lr: 0.003 -> 0.1"):
        train(stage, slices, epochs=1, lr=0.1, resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        train(stage, slices, epochs=1)
    run, _ = train(stage, slices, epochs=2, resume=True)  # more epochs are welcome
    assert [r["epoch"] for r in read_csv(run.folder / "log.csv")] == ["1", "2"]
    before = (run.folder / "last.pt").read_bytes()
    assert "epochs are done already" not in capsys.readouterr().out
    train(stage, slices, epochs=2, resume=True)  # nothing is left to do, and is said
    assert "all 2 epochs are done already; more --epochs continue" in capsys.readouterr().out
    assert (run.folder / "last.pt").read_bytes() == before


def test_what_is_left_of_a_run_is_not_lost(stage, slices):
    run, _ = train(stage, slices, epochs=1)
    best = run.folder / "best.pt"
    for stale in ("report.html", "metrics_per_case.csv"):
        (run.folder / stale).write_text("of epoch 1")
    train(stage, slices, epochs=2, resume=True)
    assert not (run.folder / "report.html").exists()
    assert not (run.folder / "metrics_per_case.csv").exists()
    before = best.read_bytes()
    (run.folder / "last.pt").unlink()
    with pytest.raises(UserError, match="last.pt is gone.* cannot continue"):
        train(stage, slices, epochs=3, resume=True)
    (run.folder / "config.json").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        train(stage, slices, epochs=3)
    with pytest.raises(UserError, match="holds no config.json and cannot be resumed"):
        train(stage, slices, epochs=3, resume=True)
    assert best.read_bytes() == before


def test_a_resumed_run_keeps_the_record_of_its_training(stage, slices, capsys):
    run, _ = train(stage, slices, epochs=1)
    made = run.folder / "config.json"
    write_json(made, read_json(made) | {"environment": {"processes": 4}})
    (run.folder / "log.csv").unlink()  # as a kill leaves it, after last.pt and before the log
    (run.folder / "best.pt").unlink()
    train(stage, slices, epochs=1, resume=True)  # nothing is left to do
    assert read_json(made)["environment"] == {"processes": 4}
    assert [row["epoch"] for row in read_csv(run.folder / "log.csv")] == ["1"]
    text = capsys.readouterr().out
    assert "best.pt does not exist" in text and "epoch 0" not in text
    train(stage, slices, epochs=2, resume=True)
    assert read_json(made)["earlier_environments"] == [{"processes": 4}]
    assert read_json(made)["environment"]["processes"] == 1


def test_a_run_that_is_older_than_a_flag_is_resumed(stage, slices):
    run, _ = train(stage, slices, epochs=2)
    path = run.folder / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["config"]["deep"], state["config"]["border"]
    torch.save(state, path)
    train(stage, slices, epochs=3, resume=True)
    with pytest.raises(UserError, match="deep: False -> True"):
        train(stage, slices, epochs=3, resume=True, deep=True)


def test_a_resume_on_other_patients_or_with_another_teacher_is_refused(stage, own_slices):
    train(stage, own_slices, "distilled", epochs=1)
    config = Config(data=own_slices, epochs=2, batch_size=8, device="cpu", resume=True)
    run = start(config, str(stage), config.train_on)
    other = Distiller(student_s1(), teacher_t1(width=4), run.size, config)
    with pytest.raises(UserError, match="another teacher"):
        fit(other, run, config)
    splits = read_json(own_slices / "splits.json")
    splits["student"] = splits["train"][-1:]
    write_json(own_slices / "splits.json", splits)
    with pytest.raises(UserError, match="other patients"):
        train(stage, own_slices, "distilled", epochs=2, resume=True)


def test_the_code_s_version_is_the_repository_s_own(tmp_path, monkeypatch):
    def git(*words):
        names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, text=True, **QUIET)
        return done.stdout.strip()

    unknown = {"commit": None, "code_changed": None}
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.code_version() == unknown  # no repository
    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    assert runs.code_version() == {"commit": git("rev-parse", "HEAD"), "code_changed": False}
    (tmp_path / "a.py").write_text("2")
    assert runs.code_version()["code_changed"]
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(runs, "ROOT", tmp_path / "copy")
    assert runs.code_version() == unknown  # a copy inside somebody else's repository
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert runs.code_version() == unknown  # no git


def test_first_weights_are_not_asked_for_again(repo, slices, tmp_path):
    """A T2 that began with ImageNet's weights goes on where their files are not."""
    script = load_script(repo / "teacher_t2_transunet/train.py")
    taken = []
    script.load_imagenet = lambda *_: taken.append(1)
    small = {"width": 192, "depth": 1, "device": "cpu", "encoder_weights": "imagenet-resnet"}
    small |= {"data": slices, "name": "first"}
    script.main(script.Config(epochs=1, **small))
    script.main(script.Config(epochs=2, resume=True, **small))
    assert taken == [1]
