"""The frozen teacher: checked, scored, refused."""

import pytest
import torch
from small_trainings import train

from common.errors import UserError
from common.files import read_json, write_json
from common.losses.distillation import Distiller, fingerprint
from common.models.unet import student_s1, teacher_t1
from common.settings import DistillationConfig
from common.training.runs import start
from common.training.teachers import add_unlabelled, load_teacher


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
    assert set(run.cases["unlabelled"]) == others
    assert run.cases["train"] == run.splits["student"]
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


def test_a_teacher_is_loaded_scored_and_refused_if_it_has_seen_the_test_patients(
    stage, own_slices, capsys
):
    run, trained = train(stage, own_slices, "teacher", epochs=1, train_on="train")
    path, config = (
        run.folder / "best.pt",
        DistillationConfig(data=own_slices, name="new", device="cpu"),
    )

    def build(known):
        assert known["epoch"] == 1
        return teacher_t1(width=4)

    teacher = load_teacher(path, "stage", build, run, config)
    assert fingerprint(teacher) == fingerprint(trained.model)
    assert "validation Dice 0." in capsys.readouterr().out
    # Their scores are no test of the student either, be it in another set of theirs.
    assert run.cases["teacher"] == run.splits["train"]
    assert run.cases["teacher_val"] == run.splits["val"]
    assert run.patient_of == {case: case for part in ("train", "val") for case in run.splits[part]}
    last = load_teacher(run.folder / "last.pt", "stage", build, run, config)
    assert fingerprint(last) == fingerprint(trained.model)  # one epoch: the best and the last
    capsys.readouterr()
    control = DistillationConfig(
        data=own_slices, name="new", device="cpu", control="random-teacher"
    )
    random = load_teacher(path, "stage", build, run, control)
    assert fingerprint(random) != fingerprint(trained.model)
    # Counted over the training slices: as BatchNorm is built they would be 0 and 1.
    statistics = {k: v for k, v in random.state_dict().items() if "running" in k}
    assert all(v.std() > 0 for v in statistics.values() if v.numel() > 1)
    before = fingerprint(random)
    random.get_buffer(next(iter(statistics))).add_(1e-6)
    assert fingerprint(random) == before  # a resume may count them with other threads
    assert "its weights left random (a control): validation Dice" in capsys.readouterr().out
    info = read_json(own_slices / "dataset.json")
    write_json(own_slices / "dataset.json", {**info, "window": [-1000, 1000], "axis": "sagittal"})
    other = start(config, str(stage), "student")
    with pytest.raises(UserError, match="trained on axial slices; .* are sagittal"):
        load_teacher(path, "stage", build, other, config)
    write_json(own_slices / "dataset.json", {**info, "window": [-1000, 1000]})
    load_teacher(path, "stage", build, start(config, str(stage), "student"), config)
    assert "note: " in (said := capsys.readouterr().out) and "another window" in said
    write_json(own_slices / "dataset.json", info)
    splits = read_json(own_slices / "splits.json")
    splits["train"][0], splits["test"][0] = splits["test"][0], splits["train"][0]
    splits["student"] = splits["train"]
    write_json(own_slices / "splits.json", splits)
    moved = start(config, str(stage), "student")
    with pytest.raises(UserError, match="trained or chosen on test patients"):
        load_teacher(path, "stage", build, moved, config)
