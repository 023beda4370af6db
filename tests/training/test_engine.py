"""The training loop: resuming, sampling, schedules, failures."""

import math
from dataclasses import fields
from itertools import product

import pytest
import torch
from conftest import ROOT, Infinite, load_script
from small_trainings import Config, Stopped, build, stop_after, train

from common.dataset.slices import read_set
from common.dataset.splits import read_splits
from common.errors import UserError
from common.files import read_csv, read_json, write_csv
from common.losses.segmentation import SegmentationObjective
from common.models.unet import UNet, student_s1
from common.settings import DistillationConfig, StudentConfig
from common.training import checkpoint
from common.training.engine import evaluate, fit, seed_epoch
from common.training.runs import start


@pytest.mark.parametrize(
    ("kind", "workers", "accumulate"),
    [
        *(("teacher", 0, 1), ("student", 0, 1), ("distilled", 0, 1), ("unlabelled", 0, 1)),
        *(("teacher", 2, 1), ("student", 2, 1), ("distilled", 2, 3), ("student", 0, 3)),
    ],
)
def test_resume_is_exact_to_the_bit(stage, slices, monkeypatch, kind, workers, accumulate):
    same = {"unlabelled": kind == "unlabelled", "accumulate": accumulate}
    settings = {**same, "workers": workers}
    run, whole = train(stage, slices, kind, name="whole", **same)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(stage, slices, kind, name="parts", **settings)
    # Whatever was drawn in between must not matter.
    torch.rand(7)
    _, resumed = train(stage, slices, kind, name="parts", **settings, resume=True)
    for key, value in whole.state_dict().items():
        other = resumed.state_dict()[key]
        same = torch.equal(value, other) if torch.is_tensor(value) else value == other
        assert same, key
    runs = run.folder.parent
    assert (runs / "whole" / "log.csv").read_text() == (runs / "parts" / "log.csv").read_text()
    states = [torch.load(runs / n / "last.pt", weights_only=True) for n in ("whole", "parts")]
    moments = [s["optimizer"]["state"][0]["exp_avg"] for s in states]
    assert torch.equal(*moments)


def test_every_epoch_and_every_process_draws_anew():
    draws = {}
    for kind in product((0, 1), (1, 2, 3), (0, 1)):  # seed, epoch, process
        seed_epoch(*kind)
        draws[kind] = torch.rand(1).item()
    assert len({*draws.values()}) == len(draws)
    seed_epoch(1, 2, 0)  # and yet each is what it was
    assert torch.rand(1).item() == draws[1, 2, 0]


def test_one_seed_is_one_result_and_another_is_another(stage, slices):
    states, logs = [], []
    for name, changes in {"a": {}, "b": {}, "c": {"deterministic": True}, "d": {"seed": 1}}.items():
        run, objective = train(stage, slices, epochs=2, name=name, **changes)
        states.append(objective.state_dict())
        logs.append(read_csv(run.folder / "log.csv"))
    torch.use_deterministic_algorithms(False)
    for other in (1, 2):
        assert logs[other] == logs[0]
        assert all(torch.equal(v, states[other][k]) for k, v in states[0].items())
    assert logs[3] != logs[0]


def test_a_run_leaves_what_it_promises(stage, slices):
    run, objective = train(stage, slices, epochs=3)
    names = {p.name for p in run.folder.iterdir()}
    assert names == {"config.json", "log.csv", "curves.png", "last.pt", "best.pt"}
    log = read_csv(run.folder / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    best = checkpoint.load(run.folder / "best.pt", "stage")
    assert best["val_dice"] == pytest.approx(max(float(r["val_dice"]) for r in log))
    about = read_json(run.folder / "config.json")
    assert about["config"]["epochs"] == 3 and about["parameters"] == 57_297
    assert about["environment"]["torch"] == torch.__version__


def test_the_schedule_warms_up_and_ends_near_zero(stage, slices):
    run, _ = train(stage, slices, epochs=5, warmup=0.2)
    rates = [float(row["lr"]) for row in read_csv(run.folder / "log.csv")]
    steps = math.ceil(len(run.train) / 8)
    assert rates[0] == pytest.approx(Config.lr / steps)
    assert rates[1] == pytest.approx(Config.lr)
    assert rates == sorted(rates[:1]) + sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.2 * Config.lr


def test_training_learns_and_evaluate_counts_by_patient(stage, slices):
    run, objective = train(
        stage, slices, train_on="train", epochs=25, lr=5e-3, foreground_fraction=0.6
    )
    log = read_csv(run.folder / "log.csv")
    assert float(log[-1]["segmentation"]) < 0.85 * float(log[0]["segmentation"])
    result = evaluate(objective.model, run.val, run, Config(device="cpu"))
    splits = read_splits(read_set(slices), "splits.json", ("val",))
    dice = result["per_patient"]["dice"]
    assert dice["n"] + dice["undefined"] == len(splits["val"])
    assert float(log[-1]["val_dice"]) == pytest.approx(dice["mean"], abs=1e-6)


def test_the_best_weights_are_those_that_best_pt_says(stage, slices, capsys):
    run, _ = train(stage, slices, epochs=2)
    path = run.folder / "best.pt"
    # Killed after best.pt of epoch 3 was written, before last.pt.
    checkpoint.save(path, {**checkpoint.load(path, "stage"), "epoch": 3, "val_dice": 0.99})
    run, _ = train(stage, slices, epochs=4, resume=True)
    assert run.best == (3, 0.99) and checkpoint.load(path, "stage")["epoch"] == 3
    assert "best epoch 3: validation Dice 0.9900" in capsys.readouterr().out
    path.unlink()
    run, _ = train(stage, slices, epochs=5, resume=True)
    assert run.best[0] == checkpoint.load(path, "stage")["epoch"] == 5
    assert "The best of the coming epochs will be kept" in capsys.readouterr().out


def test_a_training_without_an_class_is_refused(stage, own_slices):
    student = read_json(own_slices / "splits.json")["student"]
    rows = read_csv(own_slices / "manifest.csv")
    empty = [r for r in rows if r["case"] not in student or r["foreground"] == "0"]
    write_csv(own_slices / "manifest.csv", empty)
    with pytest.raises(UserError, match="no slice of student shows a class to learn"):
        train(stage, own_slices, epochs=1)


def test_what_is_refused_leaves_the_old_run_alone(stage, slices):
    run, _ = train(stage, slices, epochs=1)
    config = Config(data=slices, epochs=1, device="cpu", overwrite=True)
    again = start(config, str(stage), "student")
    with pytest.raises(UserError, match="multiples of 64"):
        model = UNet((2, 2, 2, 2, 2, 2, 2), count=1)
        fit(SegmentationObjective(model), again, config)
    assert (run.folder / "best.pt").exists()


def test_the_teacher_is_the_same_to_the_bit_after_a_training(stage, slices):
    config = Config(data=slices, epochs=2, batch_size=8, device="cpu")
    run = start(config, str(stage), "student")
    objective = build("distilled", run)
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    fit(objective, run, config)
    after = objective.teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(stage, slices):
    config = Config(data=slices, epochs=3, device="cpu", batch_size=8)
    run = start(config, str(stage), "student")
    objective = SegmentationObjective(student_s1())
    honest, calls = objective.forward, []

    def poisoned(batch):
        calls.append(1)
        losses = honest(batch)
        if len(calls) > math.ceil(len(run.train) / 8) + 1:
            losses["segmentation"] = losses["segmentation"] * float("nan")
        return losses

    objective.forward = poisoned
    with pytest.raises(
        UserError, match=r"epoch 2, batch 2.*the loss segmentation.*not finite.*phantom_"
    ):
        fit(objective, run, config)
    last = checkpoint.load(run.folder / "last.pt", "stage")
    assert last["epoch"] == 1 and all(v.isfinite().all() for v in last["objective"].values())


def test_a_gradient_that_is_not_finite_stops_the_run_too(stage, slices):
    config = Config(data=slices, epochs=1, device="cpu")
    run = start(config, str(stage), "student")
    objective = SegmentationObjective(student_s1())
    honest = objective.forward
    objective.forward = lambda b: {"segmentation": Infinite.apply(honest(b)["segmentation"])}
    with pytest.raises(UserError, match="the gradient is not finite"):
        fit(objective, run, config)
    assert not (run.folder / "last.pt").exists()


PAIRS = [(f"student_s{s}", f"kd_t{t}_s{s}") for s in (1, 2) for t in (1, 2)]


@pytest.mark.parametrize(("plain", "distilled"), PAIRS)
def test_both_arms_have_the_same_recipe(plain, distilled):
    plain, distilled = (load_script(ROOT / s / "train.py").Config for s in (plain, distilled))
    for f in fields(StudentConfig):
        assert getattr(plain(), f.name) == getattr(distilled(), f.name)
    own = {f.name for f in fields(distilled)} - {f.name for f in fields(plain)}
    terms = {f.name for f in fields(DistillationConfig)} - {f.name for f in fields(StudentConfig)}
    assert own == {"teacher", *terms}


def test_without_its_terms_the_distilled_student_is_the_plain_one_to_the_bit(repo, slices):
    teacher = load_script(repo / "teacher_t1_unet/train.py")
    plain = load_script(repo / "student_s1/train.py")
    distilled = load_script(repo / "kd_t1_s1/train.py")
    same = {"data": slices, "epochs": 2, "device": "cpu", "name": "zero"}
    teacher.main(teacher.Config(**same, width=4))
    plain.main(plain.Config(**same))
    path = repo / "teacher_t1_unet/runs/zero/best.pt"
    distilled.main(distilled.Config(**same, teacher=path, prediction=0.0, scales=()))
    logs = [(repo / s / "runs/zero/log.csv").read_text() for s in ("student_s1", "kd_t1_s1")]
    assert logs[0] == logs[1]
