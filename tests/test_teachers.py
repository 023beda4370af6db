import pytest
import torch

from common.distillation import Distiller
from common.files import UserError
from common.runs import start
from common.settings import DistillationConfig
from common.teachers import add_unlabelled, load_teacher
from common.unet import student_s1


def test_the_control_without_a_teacher_needs_none(stage, slices, tmp_path):
    config = DistillationConfig(data=slices, control="no-teacher", device="cpu")
    run = start(config, str(stage), "student")
    assert load_teacher(tmp_path / "none.pt", "teacher_t1_unet", None, run, config) is None
    Distiller(student_s1(), None, run.size, config)
    for teacher, control in ((None, "none"), (student_s1(), "no-teacher")):
        with pytest.raises(ValueError, match="one of them"):
            Distiller(student_s1(), teacher, run.size, DistillationConfig(control=control))


def test_unlabelled_images_come_from_the_other_training_patients_without_their_masks(stage, slices):
    config = DistillationConfig(data=slices, unlabelled=True, device="cpu")
    plain, run = (start(config, str(stage), "student") for _ in range(2))
    add_unlabelled(run, config)
    others = set(run.splits["train"]) - set(run.splits["student"])
    assert set(run.patients["unlabelled"]) == others
    assert run.patients["train"] == run.splits["student"]
    assert {s.case for s in run.train.others.slices} == others
    seen = set()
    for key in [(i, 100 + i) for i in range(len(run.train))]:
        sample, same = run.train[key], plain.train[key]
        assert sample.keys() == {*same, "unlabelled", "unlabelled_name"}
        assert all(torch.equal(sample[k], same[k]) for k in ("image", "mask"))
        assert sample["unlabelled"].shape == sample["image"].shape
        assert torch.equal(sample["unlabelled"], run.train[key]["unlabelled"])
        seen.add(sample["unlabelled"].sum().item())
    assert len(seen) > 10
    run.splits["student"] = run.splits["train"]
    with pytest.raises(UserError, match="every training patient's labels"):
        add_unlabelled(run, config)
