"""Checkpoints: what they hold, and how a bad one is refused."""

import os
import pickle
import zipfile

import pytest
import torch

from common.errors import UserError
from common.models.unet import student_s1, student_s2
from common.training import checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"stage": "student_s1", "model": student_s1().state_dict()})
    return path


def test_weights_come_back(saved):
    model = student_s1()
    content = checkpoint.load(saved, "student_s1")
    checkpoint.load_weights(model, content["model"], saved)
    assert all(torch.equal(v, content["model"][k]) for k, v in model.state_dict().items())


def test_a_missing_one_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="none.pt does not exist. Train T1 first."):
        checkpoint.load(tmp_path / "none.pt", "teacher_t1_unet", "Train T1 first.")


def test_another_stage_or_network_is_refused(saved):
    with pytest.raises(UserError, match="written by student_s1; one of teacher_t1_unet"):
        checkpoint.load(saved, "teacher_t1_unet")
    with pytest.raises(UserError, match="does not fit the network: size mismatch"):
        checkpoint.load_weights(student_s2(), checkpoint.load(saved, "student_s1")["model"], saved)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "stage": "student_s1", "model": Evil()}, "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "pickle.pt"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / name, "student_s1")
    assert not (tmp_path / "executed").exists()


def test_cut_short_or_foreign_files_are_refused(saved, tmp_path):
    whole = saved.read_bytes()
    for share in range(20):
        saved.write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises(UserError, match="best.pt"):
            checkpoint.load(saved, "student_s1")
    saved.write_text("not a checkpoint")
    with pytest.raises(UserError, match="best.pt"):
        checkpoint.load(saved, "student_s1")
    torch.save([1, 2], saved)
    with pytest.raises(UserError, match="not a checkpoint of this repository"):
        checkpoint.load(saved, "student_s1")


def test_a_checkpoint_that_does_not_say_whom_it_has_seen_is_refused(tmp_path):
    whole = {"config": {}, "patients": {"train": [], "val": []}, "num_classes": 1, "size": 80}
    whole["classes"] = ["spleen"]
    checkpoint.check_content({**whole, "epoch": 1}, tmp_path)
    for patients in ({}, {"train": []}, {"train": [], "val": "a"}):
        with pytest.raises(UserError, match="its patients are not lists train and val"):
            checkpoint.check_content({**whole, "epoch": 1, "patients": patients}, tmp_path)


def test_one_of_an_earlier_version_is_called_that(tmp_path):
    torch.save({"format": 1, "organs": ["spleen"]}, tmp_path / "best.pt")
    with pytest.raises(UserError, match="is of an earlier version of this repository: train again"):
        checkpoint.load(tmp_path / "best.pt", "student_s1")


def test_a_file_that_claims_or_unpacks_to_too_much_is_refused(saved, tmp_path):
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("archive/data/bomb", bytes(50_000_000))
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="packed.pt is refused: a checkpoint is not compressed"):
        checkpoint.load(packed, "student_s1")
    weights = {k: torch.zeros(1).expand(10**12) for k in student_s1().state_dict()}
    checkpoint.save(saved, {"stage": "student_s1", "model": weights})
    with pytest.raises(UserError, match="does not fit the network: size mismatch"):
        content = checkpoint.load(saved, "student_s1")
        checkpoint.load_weights(student_s1(), content["model"], saved)
