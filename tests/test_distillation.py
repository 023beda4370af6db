import pytest
import torch
import torch.nn.functional as F

from common.config import SCALES, DistillationConfig
from common.distillation import Distiller, PredictionMapLoss
from common.losses import SegmentationObjective
from common.unet import student_s1, teacher_t1


def batch_of(count, size=32):
    mask = torch.zeros(count, size, size, dtype=torch.long)
    mask[:, 8:20, 10:22] = 1
    mask[count // 2 :] = 0  # some slices have no organ
    mask[0, 8:20, 10:22] = 1
    return {"image": torch.rand(count, 3, size, size), "mask": mask}


def distiller(**changes):
    torch.manual_seed(0)
    student = student_s1()
    return Distiller(student, teacher_t1(width=4), 32, DistillationConfig(**changes))


# Prediction map


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_prediction_loss_is_the_two_class_softmax_kl(temperature):
    student, teacher = torch.randn(2, 1, 9, 9), torch.randn(2, 1, 9, 9)
    two = [torch.cat([torch.zeros_like(x), x], 1) / temperature for x in (student, teacher)]
    kl = F.kl_div(two[0].log_softmax(1), two[1].softmax(1), reduction="none").sum(1).mean()
    loss = PredictionMapLoss(temperature)(student, teacher)
    assert torch.allclose(loss, temperature**2 * kl, atol=1e-6)


def test_prediction_loss_is_the_bernoulli_kl():
    s, t = torch.tensor(0.3), torch.tensor(0.8)
    expected = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    loss = PredictionMapLoss(1.0)(s.logit().view(1, 1, 1, 1), t.logit().view(1, 1, 1, 1))
    assert torch.allclose(loss, expected, atol=1e-6)


def test_prediction_loss_has_a_gradient_and_its_minimum_at_the_teacher():
    teacher = torch.randn(2, 1, 8, 8)
    student = torch.zeros_like(teacher, requires_grad=True)
    PredictionMapLoss()(student, teacher).backward()
    assert student.grad.abs().min() > 0
    same = teacher.clone().requires_grad_()
    loss = PredictionMapLoss()(same, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-6


def test_prediction_loss_survives_extreme_logits():
    student = torch.tensor([[[[-200.0, 200.0]]]], requires_grad=True)
    loss = PredictionMapLoss(1.0)(student, -student.detach())
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# The distiller


@pytest.mark.parametrize("contrast", ["dense", "image", "mse"])
def test_every_term_has_a_gradient_at_the_student(contrast):
    objective = distiller(contrast=contrast)
    losses = objective(batch_of(4))
    assert list(losses) == ["segmentation", "prediction", *(f"contrast_{s}" for s in SCALES)]
    for name, loss in losses.items():
        objective.zero_grad()
        loss.backward(retain_graph=True)
        gradient = objective.model.levels[0][0].weight.grad
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("contrast", ["dense", "image", "mse"])
@pytest.mark.parametrize("count", [1, 3])
def test_short_last_batches_and_empty_slices_are_taken(contrast, count):
    batch = batch_of(count)
    batch["mask"].zero_()
    losses = distiller(contrast=contrast)(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_projections_are_in_the_optimizer_and_move_and_the_teacher_does_not():
    objective = distiller()
    teacher = objective.teacher
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    projections = {k: v.clone() for k, v in objective.scales.state_dict().items()}
    assert len(projections) == 3 * 2 * 2
    ours = {id(p) for p in objective.parameters()}
    assert not ours & {id(p) for p in teacher.parameters()}
    kept = {k.split(".")[0] for k in objective.state_dict()}
    assert kept == {"model", "scales", "_extra_state"}
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    objective.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(objective(batch_of(4)).values()).backward()
        optimizer.step()
    assert not teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    now = objective.scales.state_dict()
    assert all(not torch.equal(projections[k], now[k]) for k in projections)


def test_the_teacher_does_not_compute_its_reconstruction():
    objective = distiller()
    calls = []
    objective.teacher.reconstruction.register_forward_hook(lambda *_: calls.append(1))
    objective(batch_of(2))
    assert not calls


def test_a_dummy_forward_leaves_no_trace():
    student = student_s1()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    Distiller(student, teacher_t1(width=4), 32, DistillationConfig())
    assert student.training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_with_weights_zero_it_is_the_plain_student():
    nothing = distiller(prediction=0.0, encoder=0.0, bottleneck=0.0, decoder=0.0)
    torch.manual_seed(0)
    plain = SegmentationObjective(student_s1())
    batch = batch_of(4)
    assert list(nothing(batch)) == ["segmentation"]
    assert torch.equal(nothing(batch)["segmentation"], plain(batch)["segmentation"])


def test_scales_and_weights_choose_the_terms():
    only = distiller(scales=("bottleneck",), prediction=0.0)
    assert list(only(batch_of(2))) == ["segmentation", "contrast_bottleneck"]
    assert list(only.scales) == ["bottleneck"]
    loss, twice = (distiller(bottleneck=w, control="none") for w in (0.5, 1.0))
    terms = []
    for objective in (loss, twice):
        torch.manual_seed(5)
        terms.append(objective(batch_of(4)))
    assert torch.allclose(2 * terms[0]["contrast_bottleneck"], terms[1]["contrast_bottleneck"])


def test_the_control_shows_the_teacher_another_image():
    batch = batch_of(3)
    seen = []
    for control in ("none", "other-image"):
        objective = distiller(control=control, scales=())
        objective.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        objective(batch)
    assert torch.equal(seen[0], batch["image"])
    assert all(torch.equal(seen[1][i], batch["image"][i - 1]) for i in range(3))
    objective(batch_of(1))
    assert not seen[2].any()  # no other image: nothing is shown
