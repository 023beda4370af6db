import math

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from common.distillation import (
    SCALES,
    ContrastiveLoss,
    Distiller,
    PredictionMapLoss,
    features_at,
    info_nce,
    pixel_classes,
    sample_pixels,
    supervised_contrast,
)
from common.files import UserError
from common.losses import SegmentationObjective
from common.unet import student_s1, teacher_t1

WEIGHTS = {"prediction": 0.5, "encoder": 0.25, "bottleneck": 0.5, "decoder": 0.25}


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def batch_of(count, size=32):
    mask = torch.zeros(count, size, size, dtype=torch.long)
    mask[:, 8:20, 10:22] = 1
    mask[count // 2 :] = 0  # some slices have no organ
    mask[0, 8:20, 10:22] = 1
    return {"image": torch.rand(count, 3, size, size), "mask": mask}


def distiller(contrast="dense", weights=WEIGHTS, seed=0):
    torch.manual_seed(seed)
    student = student_s1()
    return Distiller(student, teacher_t1(width=4), 32, weights, contrast)


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


# Contrast


def test_info_nce_of_constant_features_is_log_n():
    same = F.normalize(torch.ones(20, 8), dim=1)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(20), abs=1e-5)


def test_supervised_contrast_of_constant_features_is_log_of_the_valid_keys():
    same = F.normalize(torch.ones(30, 8), dim=1)
    labels = torch.tensor([0] * 10 + [1] * 8 + [2] * 5 + [-1] * 7)
    loss = supervised_contrast(same, same, labels, 0.1)
    assert loss.item() == pytest.approx(math.log(23), abs=1e-5)


def test_supervised_contrast_equals_a_loop():
    queries, keys = unit(12, 6), unit(12, 6)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, -1, -1, 2])
    terms = []
    for i in range(12):
        if labels[i] < 0:
            continue
        shares = {j: math.exp(queries[i] @ keys[j] / 0.2) for j in range(12) if labels[j] >= 0}
        positives = [j for j in shares if labels[j] == labels[i]]
        total = sum(shares.values())
        terms.append(-sum(math.log(shares[j] / total) for j in positives) / len(positives))
    loss = supervised_contrast(queries, keys, labels, 0.2)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_supervised_contrast_with_one_positive_each_is_info_nce():
    queries, keys = unit(9, 5), unit(9, 5)
    both = supervised_contrast(queries, keys, torch.arange(9), 0.3), info_nce(queries, keys, 0.3)
    assert torch.allclose(*both, atol=1e-6)


def test_nothing_valid_gives_zero_and_a_finite_gradient():
    queries = unit(4, 3).requires_grad_()
    loss = supervised_contrast(queries, unit(4, 3), torch.full((4,), -1), 0.1)
    loss.backward()
    assert loss.item() == 0 and queries.grad.isfinite().all()


@pytest.mark.parametrize("form", ["dense", "image"])
def test_contrast_falls_well_below_chance_when_its_projections_learn(form):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (16, 8, 8))
    code = F.one_hot(labels, 3).movedim(-1, 1).float()
    student = torch.cat([code, torch.randn(16, 5, 8, 8)], 1)
    teacher = torch.cat([torch.randn(16, 9, 8, 8), code * 2], 1)
    loss = ContrastiveLoss(8, 12, form)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    values = []
    for _ in range(80):
        positions, found = sample_pixels(labels, 3, 40)
        optimizer.zero_grad()
        value = loss(student, teacher, positions, found, (8, 8))
        value.backward()
        optimizer.step()
        values.append(value.item())
    chance = math.log(16 if form == "image" else 120)
    assert values[-1] < chance - 0.8


def test_border_is_what_lies_between_dilation_and_erosion():
    mask = torch.zeros(1, 24, 24, dtype=torch.long)
    mask[0, 6:18, 5:16] = 1
    found = pixel_classes(mask, classes=2, width=2)[0].numpy()
    square = torch.ones(5, 5).numpy()
    wide = ndimage.binary_dilation(mask[0].numpy(), square)
    core = ndimage.binary_erosion(mask[0].numpy(), square)
    assert ((found == 2) == (wide & ~core)).all()
    assert ((found == 1) == core).all()


def test_sampled_pixels_are_balanced_distinct_and_of_their_class():
    labels = torch.zeros(4, 16, 16, dtype=torch.long)
    labels[1, 3:9, 3:9] = 1
    labels[2, 0, :5] = 2
    positions, found = sample_pixels(labels, 3, 20)
    flat = labels.flatten()
    for c, expected in ((0, 20), (1, 20), (2, 5)):
        chosen = positions[found == c]
        assert len(chosen) == expected == len(chosen.unique())
        assert (flat[chosen] == c).all()
    assert (found == -1).sum() == 15


def test_features_at_reads_the_cell_that_holds_the_pixel():
    features = torch.randn(3, 7, 4, 8)
    large = F.interpolate(features, (16, 16), mode="nearest").movedim(1, -1).reshape(-1, 7)
    positions = torch.randint(0, 3 * 256, (50,))
    assert torch.equal(features_at(features, positions, (16, 16)), large[positions])


# The distiller


@pytest.mark.parametrize("contrast", ["dense", "image"])
def test_every_term_has_a_gradient_at_the_student(contrast):
    objective = distiller(contrast)
    losses = objective(batch_of(4))
    assert list(losses) == ["segmentation", "prediction", *(f"contrast_{s}" for s in SCALES)]
    for name, loss in losses.items():
        objective.zero_grad()
        loss.backward(retain_graph=True)
        gradient = objective.model.levels[0][0].weight.grad
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("contrast", ["dense", "image"])
@pytest.mark.parametrize("count", [1, 3])
def test_short_last_batches_and_empty_slices_are_taken(contrast, count):
    batch = batch_of(count)
    batch["mask"].zero_()
    losses = distiller(contrast)(batch)
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
    Distiller(student, teacher_t1(width=4), 32, WEIGHTS)
    assert student.training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_with_weights_zero_it_is_the_plain_student():
    nothing = distiller(weights=dict.fromkeys(WEIGHTS, 0.0))
    torch.manual_seed(0)
    plain = SegmentationObjective(student_s1())
    batch = batch_of(4)
    assert list(nothing(batch)) == ["segmentation"]
    assert torch.equal(nothing(batch)["segmentation"], plain(batch)["segmentation"])


def test_an_unknown_term_is_refused():
    with pytest.raises(UserError, match="head"):
        distiller(weights={"head": 1.0})
