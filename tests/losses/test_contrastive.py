"""Contrast of features: closed forms, gradients, sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from common.losses.contrastive import (
    DenseContrast,
    FeatureHint,
    ImageContrast,
    PairwiseAffinity,
    border_of,
    features_at,
    info_nce,
    pixel_classes,
    sample_pixels,
    supervised_contrast,
)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_info_nce_of_constant_features_is_log_n():
    same = F.normalize(torch.ones(20, 8), dim=1)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(20), abs=1e-5)


def test_supervised_contrast_of_constant_features_is_log_of_the_valid_keys():
    same = F.normalize(torch.ones(30, 8), dim=1)
    labels = torch.tensor([0] * 10 + [1] * 8 + [2] * 5 + [-1] * 7)
    loss = supervised_contrast(same, same, labels, labels, 0.1)
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
    loss = supervised_contrast(queries, keys, labels, labels, 0.2)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_supervised_contrast_with_one_positive_each_is_info_nce():
    queries, keys = unit(9, 5), unit(9, 5)
    own = torch.arange(9)
    supervised = supervised_contrast(queries, keys, own, own, 0.3)
    assert torch.allclose(supervised, info_nce(queries, keys, 0.3), atol=1e-6)


def test_a_query_without_a_positive_does_not_count():
    queries, keys = unit(3, 5), unit(4, 5)
    labels, key_labels = torch.tensor([0, 1, 7]), torch.tensor([0, 1, 1, -1])
    with_it = supervised_contrast(queries, keys, labels, key_labels, 0.3)
    without = supervised_contrast(queries[:2], keys, labels[:2], key_labels, 0.3)
    assert torch.allclose(with_it, without)


def test_nothing_valid_gives_zero_and_a_finite_gradient():
    queries = unit(4, 3).requires_grad_()
    void = torch.full((4,), -1)
    loss = supervised_contrast(queries, unit(4, 3), void, void, 0.1)
    loss.backward()
    assert loss.item() == 0 and queries.grad.isfinite().all()


@pytest.mark.parametrize("form", [DenseContrast, ImageContrast])
def test_contrast_falls_well_below_chance_when_its_projections_learn(form):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (16, 8, 8))
    code = F.one_hot(labels, 3).movedim(-1, 1).float()
    student = torch.cat([code, torch.randn(16, 5, 8, 8)], 1)
    teacher = torch.cat([torch.randn(16, 9, 8, 8), code * 2], 1)
    loss = form(8, 12, 0.1)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    values = []
    for _ in range(80):
        optimizer.zero_grad()
        value = loss(student, teacher, sample_pixels(labels, 3, 40))
        value.backward()
        optimizer.step()
        values.append(value.item())
    chance = math.log({DenseContrast: 120, ImageContrast: 16}[form])
    assert values[-1] < chance - 0.8


def test_a_hint_is_nothing_where_the_student_s_projection_is_the_teacher_at_any_scale():
    student = torch.rand(2, 6, 8, 8)
    loss = FeatureHint(6, 9)
    teacher = 3 * loss.student(student)
    assert loss(student, teacher.detach()).item() == pytest.approx(0, abs=1e-6)
    assert loss(student, -teacher.detach()).item() == pytest.approx(4, abs=1e-5)  # 2 - 2 cos 180


@pytest.mark.parametrize(("mine", "theirs"), [(8, 4), (4, 8), (8, 8)])
def test_a_hint_compares_the_cells_of_the_coarser_map(mine, theirs):
    loss = FeatureHint(6, 9)
    value = loss(torch.rand(2, 6, mine, mine), torch.rand(2, 9, theirs, theirs))
    value.backward()
    assert 0 < value.item() < 4 and loss.student.weight.grad.abs().sum() > 0


def test_border_is_what_lies_between_dilation_and_erosion():
    mask = torch.zeros(1, 24, 24, dtype=torch.long)
    mask[0, 6:18, 5:16] = 1
    found = pixel_classes(mask, num_classes=2)[0].numpy()
    square = torch.ones(5, 5).numpy()
    wide = ndimage.binary_dilation(mask[0].numpy(), square)
    core = ndimage.binary_erosion(mask[0].numpy(), square)
    assert ((found == 2) == (wide & ~core)).all()
    assert ((found == 1) == core).all()


def test_of_several_classes_the_border_takes_no_class_s_pixels():
    mask = torch.zeros(1, 24, 24, dtype=torch.long)
    mask[0, 6:18, 5:16], mask[0, 10:12, 16:18] = 1, 2  # the second one lies in the first's border
    found = pixel_classes(mask, num_classes=3)
    assert torch.equal(found[mask > 0], mask[mask > 0])
    rim = border_of(mask) & (mask == 0)
    assert rim.any() and torch.equal(found == 3, rim)
    places = sample_pixels(found, 4, count=9)
    assert (places.classes == 2).sum() == 4  # all that there are of the small one


def test_sampled_pixels_are_balanced_distinct_and_of_their_class():
    labels = torch.zeros(4, 16, 16, dtype=torch.long)
    labels[1, 3:9, 3:9] = 1
    labels[2, 0, :5] = 2
    positions, found, same, kinds = sample_pixels(labels, 3, 20)
    assert same is labels and kinds == 3
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


def test_affinities_agree_where_features_are_rotated_and_have_a_gradient_elsewhere():
    student = torch.randn(2, 5, 32, 32)
    turned = torch.linalg.qr(torch.randn(5, 5)).Q
    loss = PairwiseAffinity()
    same = loss(student, torch.einsum("dc,nchw->ndhw", turned, 3 * student))
    assert same.item() == pytest.approx(0, abs=1e-8)
    student.requires_grad_()
    loss(student, torch.randn(2, 9, 8, 8)).backward()
    assert student.grad.abs().sum() > 0


def test_affinities_equal_a_loop():
    student, teacher = torch.randn(1, 3, 2, 2), torch.randn(1, 7, 2, 2)
    terms = []
    for i in range(4):
        for j in range(4):
            alike = [
                F.cosine_similarity(x.flatten(2)[0, :, i], x.flatten(2)[0, :, j], dim=0)
                for x in (student, teacher)
            ]
            terms.append((alike[0] - alike[1]) ** 2)
    loss = PairwiseAffinity()(student, teacher)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-6)
