"""Distillation of prediction maps, against softmax references."""

import pytest
import torch
import torch.nn.functional as F

from common.losses.map_terms import ChannelwiseLoss, PredictionMapLoss, shown_channels


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
    PredictionMapLoss(2.0)(student, teacher).backward()
    assert student.grad.abs().min() > 0
    same = teacher.clone().requires_grad_()
    loss = PredictionMapLoss(2.0)(same, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-6


def test_prediction_loss_survives_extreme_logits():
    student = torch.tensor([[[[-200.0, 200.0]]]], requires_grad=True)
    loss = PredictionMapLoss(1.0)(student, -student.detach())
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_prediction_loss_at_some_pixels_is_the_mean_over_them():
    student, teacher = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    where = torch.zeros(2, 6, 6, dtype=torch.bool)
    where[0, 2:4, 1:5] = True
    cut = [x[:1, :, 2:4, 1:5] for x in (student, teacher)]
    loss = PredictionMapLoss(2.0)
    assert torch.allclose(loss(student, teacher, where), loss(*cut))
    assert loss(student, teacher, torch.zeros_like(where)).item() == 0


def test_channelwise_loss_equals_a_loop():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    shown = torch.tensor([[True, False, True], [True, True, False]])
    terms = []
    for n, c in shown.nonzero().tolist():
        q = [(x[n, c].flatten() / 4).softmax(0) for x in (student, teacher)]
        terms.append(16 * (q[1] * (q[1] / q[0]).log()).sum())
    loss = ChannelwiseLoss(4.0)(student, teacher, shown)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)


def test_channelwise_loss_does_not_see_a_shift_and_leaves_out_what_is_not_shown():
    student, teacher = torch.randn(2, 1, 4, 4, requires_grad=True), torch.randn(2, 1, 4, 4)
    loss = ChannelwiseLoss(4.0)
    shown = torch.tensor([[True], [False]])
    assert torch.allclose(loss(student + 3, teacher, shown), loss(student, teacher, shown))
    loss(student, teacher, shown).backward()
    assert student.grad[0].abs().min() > 0 and not student.grad[1].any()
    nothing = loss(student, teacher, torch.zeros_like(shown))
    nothing.backward()
    assert nothing.item() == 0 and student.grad.isfinite().all()


def test_shown_channels_are_the_classes_of_each_image():
    labels = torch.zeros(3, 4, 4, dtype=torch.long)
    labels[1, 2, 2] = 1
    labels[2] = 2
    assert shown_channels(labels, 1).tolist() == [[False], [True], [False]]
    # The background's map counts beside a class alone: not on the empty first, the full third.
    three = [[False, False, False], [True, True, False], [False, False, True]]
    assert shown_channels(labels, 3).tolist() == three
